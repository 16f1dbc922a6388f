import hashlib
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minigrad.checkpoints import Checkpoints, read
from minigrad.errors import RunFailed, UserError


def content(steps: int) -> dict[str, Any]:
    """What a run saves, in small."""
    trainer = {"steps": steps, "parameters": {"x": torch.arange(10.0) + steps}, "rule": {"updates": torch.tensor(1.0)}}
    others = {"model": {}, "generators": {"python": [3, [1, 2], None]}, "stopping": {}, "path": {}}
    return {"seconds": 0.5, "metrics": {"test/loss": 0.25}, "trainer": trainer, **others}


def whole(payload: bytes) -> bytes:
    """A file's content with the tail that belongs to it."""
    return payload + b"\nsha256 " + hashlib.sha256(payload).hexdigest().encode() + b"\n"


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def steps_in(directory: Path) -> list[int]:
    """The steps of the checkpoints; everything else that lies there has to be the note of the best."""
    assert {file.name for file in directory.iterdir() if file.suffix != ".pt"} <= {"best.json"}
    return sorted(int(file.stem) for file in directory.glob("*.pt"))


def never(line: str) -> None:
    raise AssertionError(line)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def file(folder) -> Path:
    """A checkpoint."""
    Checkpoints(folder, keep=1).save(7, content(7))
    return folder / "000000007.pt"


# Saving and reading


def test_what_was_saved_is_read(folder):
    checkpoints = Checkpoints(folder, keep=2)
    assert checkpoints.newest(never) is None
    checkpoints.save(7, content(7))
    loaded = checkpoints.newest(never)
    assert loaded.pop("format") == "minigrad 1"
    parameter = loaded["trainer"]["parameters"].pop("x")
    assert torch.equal(parameter, torch.arange(10.0) + 7)
    assert loaded["trainer"]["rule"].pop("updates").item() == 1
    expected = content(7)
    expected["trainer"].update(parameters={}, rule={})
    assert loaded == expected


def test_torch_reads_the_file_as_it_is(file):
    loaded = torch.load(file, weights_only=True)
    assert loaded["trainer"]["steps"] == 7
    assert torch.equal(loaded["trainer"]["parameters"]["x"], torch.arange(10.0) + 7)


def test_the_tail_is_the_sha_256_of_what_is_before_it(file):
    payload, _, tail = file.read_bytes().rpartition(b"\nsha256 ")
    assert tail.decode() == hashlib.sha256(payload).hexdigest() + "\n"


def test_the_newest_has_the_most_steps_not_the_last_name_or_date(folder):
    checkpoints = Checkpoints(folder, keep=5)
    for steps in (1_000_000_000, 999_999_999, 20):
        checkpoints.save(steps, content(steps))
    assert checkpoints.newest(never)["trainer"]["steps"] == 1_000_000_000


def test_other_files_are_left_alone(folder):
    checkpoints = Checkpoints(folder, keep=1)
    folder.mkdir()
    others = [folder / name for name in ("mine.pt", "000000001.txt", ".000000001.pt.tmp", "-1.pt")]
    for other in others:
        other.write_bytes(b"mine")
    assert checkpoints.newest(never) is None
    for steps in (3, 5):
        checkpoints.save(steps, content(steps))
    assert checkpoints.newest(never)["trainer"]["steps"] == 5
    assert all(other.read_bytes() == b"mine" for other in others)


# Which are kept


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_last_ones_are_kept(folder, keep):
    checkpoints = Checkpoints(folder, keep)
    for steps in range(0, 60, 10):
        checkpoints.save(steps, content(steps))
        assert steps_in(folder) == list(range(0, steps + 10, 10))[-keep:]


def test_the_best_is_kept_too(folder):
    checkpoints = Checkpoints(folder, keep=1)
    for steps, best in [(10, True), (20, True), (30, False), (40, False)]:
        checkpoints.save(steps, content(steps))
        if best:
            checkpoints.mark_best(steps, 1 / steps)
    assert steps_in(folder) == [20, 40]
    assert checkpoints.best()["trainer"]["steps"] == 20
    assert checkpoints.newest(never)["trainer"]["steps"] == 40
    checkpoints.mark_best(40, 0.001)
    checkpoints.save(50, content(50))
    assert steps_in(folder) == [40, 50]


def test_a_best_without_a_checkpoint_does_not_count(folder):
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(10, content(10))
    checkpoints.mark_best(10, 0.5)
    checkpoints.mark_best(15, 0.4)
    assert checkpoints.best()["trainer"]["steps"] == 10


def test_the_best_is_known_to_who_comes_later(folder):
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(10, content(10))
    checkpoints.mark_best(10, 0.5)
    later = Checkpoints(folder, keep=1)
    later.save(20, content(20))
    later.save(30, content(30))
    assert steps_in(folder) == [10, 30]
    assert later.best()["trainer"]["steps"] == 10


def test_there_is_no_best_before_the_first_judgement(folder, file):
    with pytest.raises(UserError, match="no checkpoint has been judged yet"):
        Checkpoints(folder, keep=1).best()


def test_a_best_that_is_gone_or_damaged_is_an_error(folder, file):
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.mark_best(7, 0.5)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"000000007\.pt is damaged"):
        checkpoints.best()
    file.unlink()
    with pytest.raises(UserError, match=r"000000007\.pt cannot be read: No such file or directory$"):
        checkpoints.best()


@pytest.mark.parametrize(
    "note",
    [b"", b"{", b"\xff\xfe", b"[]", b"5", b"{}", b'{"steps": null}', b'{"steps": "../7"}', b'{"steps": Infinity}'],
)
def test_a_note_of_the_best_that_says_nothing_is_an_error(folder, file, note):
    (folder / "best.json").write_bytes(note)
    with pytest.raises(UserError, match=r"best\.json is damaged; remove it"):
        Checkpoints(folder, keep=1).best()


def test_a_damaged_checkpoint_of_later_never_displaces_one_that_is_whole(folder):
    # A run that goes on from before two damaged ones, and saves before it reaches them.
    for steps in (10, 20, 30, 40):
        Checkpoints(folder, keep=4).save(steps, content(steps))
    for steps in (30, 40):
        (folder / f"{steps:09d}.pt").write_bytes(b"damaged")
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(25, content(25))
    assert steps_in(folder) == [25, 30, 40]
    assert checkpoints.newest(lambda line: None)["trainer"]["steps"] == 25
    checkpoints.save(40, content(40))
    assert steps_in(folder) == [40]


def test_one_that_cannot_be_removed_ends_nothing(folder):
    checkpoints = Checkpoints(folder, keep=1)
    (folder / "000000003.pt").mkdir(parents=True)
    checkpoints.save(7, content(7))
    assert checkpoints.newest(never)["trainer"]["steps"] == 7


# Damage


def test_every_flipped_bit_is_noticed(file):
    good = file.read_bytes()
    bits = len(good) * 8
    positions = [*range(0, bits, bits // 200), *range(bits - 73 * 8, bits, 7)]  # all over, and the tail
    for bit in positions:
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        with pytest.raises(UserError, match=r"000000007\.pt is damaged: its SHA-256 is not the one "):
            read(file)
    file.write_bytes(good)
    read(file)


def test_every_truncation_and_everything_added_is_noticed(file):
    good = file.read_bytes()
    lengths = {*range(0, len(good), len(good) // 100), *range(len(good) - 75, len(good)), 1, 2, 72, 73, 74}
    for bad in [*(good[:length] for length in lengths), good + b"\n", good + b"\0" * 512, good[1:], b"\0" * len(good)]:
        file.write_bytes(bad)
        with pytest.raises(UserError, match="is damaged"):
            read(file)


def test_a_file_without_the_tail_is_damaged(file):
    file.write_bytes(file.read_bytes().rpartition(b"\nsha256 ")[0])
    torch.load(file, weights_only=True)  # though torch does not mind
    with pytest.raises(UserError, match="is damaged"):
        read(file)


def test_the_one_before_a_damaged_one_is_used_and_a_line_says_so(folder):
    checkpoints, lines = Checkpoints(folder, keep=3), []
    for steps in (10, 20, 30):
        checkpoints.save(steps, content(steps))
    (folder / "000000030.pt").write_bytes(b"")
    assert checkpoints.newest(lines.append)["trainer"]["steps"] == 20
    damaged = "is damaged: its SHA-256 is not the one that it was written with"
    assert lines == [f"{folder / '000000030.pt'} {damaged}; the one before it is used"]
    (folder / "000000020.pt").write_bytes((folder / "000000010.pt").read_bytes()[:-100])
    lines.clear()
    assert checkpoints.newest(lines.append)["trainer"]["steps"] == 10
    assert lines == [f"{folder / f'{n:09d}.pt'} {damaged}; the one before it is used" for n in (30, 20)]


def test_an_error_says_that_none_is_whole(folder):
    checkpoints, lines = Checkpoints(folder, keep=2), []
    for steps in (10, 20):
        checkpoints.save(steps, content(steps))
        (folder / f"{steps:09d}.pt").write_bytes(b"damaged")
    with pytest.raises(UserError) as caught:
        checkpoints.newest(lines.append)
    assert str(caught.value) == f"{folder} holds no checkpoint that can be used"
    assert [line.endswith("; the one before it is used") for line in lines] == [True, False]


def test_a_folder_in_a_checkpoint_s_place_is_passed_over(folder, file):
    (folder / "000000009.pt").mkdir()
    lines = []
    assert Checkpoints(folder, keep=1).newest(lines.append)["trainer"]["steps"] == 7
    assert lines == [f"{folder / '000000009.pt'} cannot be read: Is a directory; the one before it is used"]


# Disks that fail, and kills


def test_a_disk_that_fails_leaves_the_checkpoints_before(folder, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(10, content(10))
    checkpoints.mark_best(10, 0.5)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(RunFailed, match=r"000000020\.pt cannot be written: No space left on device$"):
            checkpoints.save(20, content(20))
        with pytest.raises(RunFailed, match=r"best\.json cannot be written: No space left on device$"):
            checkpoints.mark_best(10, 0.4)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_a_failed_run(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunFailed, match="cannot be written: "):
        Checkpoints(tmp_path / "file", keep=1).save(1, content(1))
    with pytest.raises(RunFailed, match="cannot be written: "):
        Checkpoints(tmp_path / "gone" / "checkpoints", keep=1).save(1, content(1))


# Saves in a child process for so many milliseconds, kills it, and prints how many steps the child had been told are
# saved, how many the newest checkpoint has, and what was complained of; then goes on from there.
KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
from minigrad.checkpoints import Checkpoints
from test_checkpoints import content

torch.set_num_threads(1)  # a fork has none of its parent's threads
checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
steps = 0
for milliseconds in map(int, sys.argv[2:]):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            steps += 1
            checkpoints.save(steps, {**content(steps), "ballast": torch.full((200_000,), float(steps))})
            os.write(writer, steps.to_bytes(8, "big"))
    os.close(writer)
    told = os.read(reader, 8)
    time.sleep(milliseconds / 1000)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told += os.read(reader, 1 << 20)
    lines = []
    newest = checkpoints.newest(lines.append)
    steps = newest["trainer"]["steps"]
    assert (newest["ballast"] == steps).all()
    print(int.from_bytes(told[-8:], "big"), steps, len(lines))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_kill_at_any_moment_loses_nothing_that_was_saved(folder):
    moments = [str(milliseconds) for milliseconds in (0, 3, 11, 17, 24, 32, 41, 53, 60, 77)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), *moments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    results = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(results) == len(moments)
    for told, found, complaints in results:
        assert found in (told, told + 1)  # killed between the renaming and the telling, at worst
        assert complaints == 0


# Files that were not written here


class Calling:
    """What a pickle makes of it: a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class Dictionary(dict):
    """A class of its own, which has no place in a checkpoint."""


def _zip(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


# Each is given the folder that it makes if it has its way.
HOSTILE: dict[str, Callable[[str], bytes]] = {
    "a call": lambda trap: saved(Calling(os.mkdir, trap)),
    "a call deep inside": lambda trap: saved({**content(7), "metrics": {"a": [({"b": Calling(os.mkdir, trap)},)]}}),
    "a call as a key": lambda trap: saved({**content(7), Calling(os.mkdir, trap): 1}),
    "a call of the shell": lambda trap: saved(Calling(os.system, f"mkdir {trap}")),
    "a call of eval": lambda trap: saved(Calling(eval, f"__import__('os').mkdir({trap!r})")),
    "a call of exec": lambda trap: saved(Calling(exec, f"import os; os.mkdir({trap!r})")),
    "a call of a method": lambda trap: saved(Calling(Path.mkdir, Path(trap))),
    "another process": lambda trap: saved(Calling(subprocess.check_call, ["mkdir", trap])),
    "a pickle in a pickle": lambda trap: saved(Calling(pickle.loads, pickle.dumps(Calling(os.mkdir, trap)))),
    "a pickle that is not zipped": lambda trap: pickle.dumps(Calling(os.mkdir, trap)),
    "a pickle of protocol 0": lambda trap: pickle.dumps(Calling(os.mkdir, trap), protocol=0),
    "a zip made by hand": lambda trap: _zip(version=b"3\n", **{"data.pkl": pickle.dumps(Calling(os.mkdir, trap), 2)}),
    "TorchScript": lambda trap: _zip(
        version=b"3\n", **{n: pickle.dumps(Calling(os.mkdir, trap), 2) for n in ("data.pkl", "constants.pkl")}
    ),
    "a class of its own": lambda trap: saved(Dictionary(content(7))),
    "a whole module": lambda trap: saved(torch.nn.Linear(1, 1)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_of_the_right_sha_256_runs_nothing(name, folder, file, tmp_path):
    trap = tmp_path / "trap"
    (folder / "000000009.pt").write_bytes(whole(HOSTILE[name](str(trap))))
    lines = []
    assert Checkpoints(folder, keep=1).newest(lines.append)["trainer"]["steps"] == 7
    assert lines == [f"{folder / '000000009.pt'} is no checkpoint of minigrad; the one before it is used"]
    assert not trap.exists()


@pytest.mark.parametrize("name", [name for name in HOSTILE if name.startswith("a call of") or name == "a call"])
def test_the_hostile_files_are_hostile(name, tmp_path):
    trap = tmp_path / "trap"
    torch.load(io.BytesIO(HOSTILE[name](str(trap))), weights_only=False)
    assert trap.is_dir()


@pytest.mark.parametrize(
    "payload",
    [b"", b"text", b"PK\x03\x04", b"\x80\x02.", _zip(nothing=b"here"), _zip(**{"data.pkl": b"", "version": b"3\n"})],
)
def test_what_is_no_pickle_is_no_checkpoint(file, payload):
    file.write_bytes(whole(payload))
    with pytest.raises(UserError, match=r"000000007\.pt is no checkpoint of minigrad$"):
        read(file)


@pytest.mark.parametrize(
    "value", [{}, [], 5, None, torch.ones(3), "minigrad 1", ["minigrad 1"], {"format": 1}, {"format": torch.ones(2)}]
)
def test_a_content_without_a_format_is_no_checkpoint(file, value):
    file.write_bytes(whole(saved(value)))
    with pytest.raises(UserError, match=r"000000007\.pt is no checkpoint of minigrad$"):
        read(file)


def test_another_format_is_named(file):
    file.write_bytes(whole(saved({"format": "minigrad 2", **content(7)})))
    with pytest.raises(UserError) as caught:
        read(file)
    assert str(caught.value) == f"{file} has the format 'minigrad 2'; this version reads 'minigrad 1'"


def test_a_content_that_lacks_something_is_no_checkpoint(file):
    good = {"format": "minigrad 1", **content(7)}
    for name in content(7):
        lacking = [{key: value for key, value in good.items() if key != name}, {**good, name: None}]
        for value in lacking:
            file.write_bytes(whole(saved(value)))
            with pytest.raises(UserError, match=rf"is no checkpoint of minigrad: it lacks {name}$"):
                read(file)
    file.write_bytes(whole(saved(good)))
    read(file)


def test_what_more_a_zip_or_a_content_holds_does_no_harm(file):
    payload = saved({"format": "minigrad 1", **content(7), "more": [1, 2]})
    buffer = io.BytesIO(payload)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/more.py", "raise SystemExit")
    file.write_bytes(whole(buffer.getvalue()))
    assert read(file)["more"] == [1, 2]
