"""Sweeps: where their runs lie, what is run again, several at a time, and how one ends."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import pytest

from minigrad.errors import RunFailed, UserError
from minigrad.files import locked
from minigrad.interruption import Interrupted
from minigrad.sweep import Sweep, opened, placed
from minigrad.train import main
from runs import module, outcome, run, signalled_after, summary

QUADRATIC = ["objective=quadratic", "objective.dimensions=3", "steps=4"]
LONG = ["objective=parabola", "steps=1000000", "seed=0,1,2"]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="no signal to a single process there")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sweep(*overrides: str) -> int:
    return main(["-m", *QUADRATIC, *overrides, "sweep_dir=here"])


def attempt(
    *runs: Sequence[str], constant: Sequence[str] = (), begin: Callable[[Path], None] = Path.mkdir
) -> UserError | RunFailed | None:
    """Sweep without Hydra and without training, over overrides beside those that are the same for all runs."""
    with opened("here") as directory:
        sweep = Sweep(directory, {(*constant, *varied): tuple(varied) for varied in runs})

        def send() -> None:
            for number, varied in enumerate(runs, 1):
                sweep.run(number, (*constant, *varied), begin)

        sweep.launch(send, 1)
        return sweep.failure()


def record(name: str, place: Path | str = "here") -> dict:
    return json.loads(Path(place, "jobs", f"{name}.json").read_text())


def statuses(place: Path | str = "here") -> dict[str, str]:
    names = sorted(file.name.removesuffix(".json") for file in Path(place, "jobs").glob("*.json"))
    return {name: record(name, place)["status"] for name in names}


def directories(place: Path | str = "here") -> set[str]:
    return {path.name for path in Path(place).iterdir() if path.is_dir()} - {"jobs"}


def change(name: str, **content: object) -> None:
    Path("here", "jobs", f"{name}.json").write_text(json.dumps({**record(name), **content}))


# What a sweep leaves.


def test_a_sweep_has_a_directory_a_record_and_a_row_for_every_run(capsys):
    assert main(["-m", *QUADRATIC, "rule=gradient_descent,momentum", "learning_rate=0.1,0.01"]) == 0
    (place,) = Path("runs", "sweeps").iterdir()
    names = {f"rule={rule},learning_rate={rate}" for rule in ("gradient_descent", "momentum") for rate in (0.1, 0.01)}
    assert directories(place) == names
    assert statuses(place) == dict.fromkeys(sorted(names), "finished")
    found = record("rule=momentum,learning_rate=0.1", place)
    assert (found["number"], found["reason"]) == (3, "")
    assert found["overrides"] == [*QUADRATIC, "rule=momentum", "learning_rate=0.1"]
    out = capsys.readouterr().out
    assert f"run 3 of 4: {' '.join(QUADRATIC)} rule=momentum learning_rate=0.1\n" in out
    best = min(names, key=lambda name: summary(str(place / name))["test/loss"])
    assert out.splitlines()[-2:] == [
        f"the best run lies in {place / best}",
        f"look at it with: tensorboard --logdir {place}",
    ]
    with (place / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["name"] == best
    assert {row["name"] for row in rows} == names
    assert (place / "sweep.png").is_file()


def test_two_sweeps_of_the_same_second_have_two_directories(monkeypatch):
    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("minigrad.files.datetime", Stopped)
    with opened(None) as first, opened(None) as second:
        assert (first.name, second.name) == ("2026-01-02_03-04-05", "2026-01-02_03-04-05_2")


def test_a_run_is_called_by_what_varies():
    attempt(["rule=adam", "seed=1"], constant=["steps=4"])
    attempt([], constant=["steps=4"])
    assert directories() == {"rule=adam,seed=1", "run"}


def test_a_name_is_one_of_a_file_and_tells_runs_apart():
    long = f"initial={'x' * 300}"
    attempt(["initial='a b'"], ["initial='a:b'"], [long + "1"], [long + "2"], ["objective.hidden=[8,8]"])
    assert "objective.hidden=[8,8]" in directories()
    others = sorted(directories() - {"objective.hidden=[8,8]"})
    assert [name[:-8] for name in others] == ["initial=_a_b__"] * 2 + [f"{long[:100]}_"] * 2
    assert all(int(name[-8:], 16) >= 0 for name in others)


def test_what_is_there_already_is_neither_taken_nor_removed():
    attempt(["seed=1"], constant=["steps=4"])
    attempt(["seed=1"], constant=["steps=5"])
    assert statuses() == {"seed=1": "finished", "seed=1_2": "finished"}
    Path("here", "seed=2").mkdir()
    Path("here", "seed=2", "notes").write_text("keep")
    attempt(["seed=2"], constant=["steps=4"])
    assert Path("here", "seed=2", "notes").read_text() == "keep"
    assert directories() == {"seed=1", "seed=1_2", "seed=2", "seed=2_2"}


# What is run again.


def test_a_sweep_that_is_started_again_runs_what_is_missing(capsys):
    assert sweep("seed=0,1") == 0
    before = Path("here", "seed=0", "summary.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["-m", "seed=2,0", *reversed(QUADRATIC), "sweep_dir=here"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run ")]
    constant = " ".join(reversed(QUADRATIC))
    assert lines == [f"run 2 of 2 has finished before: seed=0 {constant}", f"run 1 of 2: seed=2 {constant}"]
    assert Path("here", "seed=0", "summary.json").stat().st_mtime_ns == before
    assert statuses() == dict.fromkeys(("seed=0", "seed=1", "seed=2"), "finished")
    assert Path("here", "sweep.csv").read_text().count("finished") == 3


def test_a_run_that_failed_or_whose_directory_is_gone_is_run_again():
    ran: list[str] = []

    def begin(directory: Path) -> None:
        ran.append(directory.name)
        directory.mkdir(exist_ok=True)
        if ran == ["seed=0"]:
            raise RunFailed("once")

    for _ in range(2):
        attempt(["seed=0"], ["seed=1"], begin=begin)
    shutil.rmtree("here/seed=1")
    assert attempt(["seed=0"], ["seed=1"], begin=begin) is None
    assert ran == ["seed=0", "seed=1", "seed=0", "seed=1"]


def test_a_sweep_that_is_interrupted_goes_on_with_nothing_lost(capsys):
    with signalled_after(2):
        assert sweep("seed=0,1") == 130
    captured = capsys.readouterr()
    again = f"minigrad-train -m {' '.join(QUADRATIC)} seed=0,1 sweep_dir=here"
    assert captured.out.splitlines()[-1] == f"2 of 2 runs remain; go on with: {again}"
    assert captured.err == "minigrad-train: interrupted\n"
    assert statuses() == {"seed=0": "interrupted"}
    assert "interrupted" in Path("here", "sweep.csv").read_text()
    change("seed=0", status="running", reason="")  # as if it had been killed
    assert main(again.split()[1:]) == 0
    assert "goes on at step 2\n" in capsys.readouterr().out
    assert statuses() == {"seed=0": "finished", "seed=1": "finished"}
    run("whole", *QUADRATIC, "seed=0")
    assert outcome("here/seed=0") == outcome("whole")


def test_a_run_goes_on_where_it_can_and_else_begins_anew():
    values = {"seed": 0, "resume": None, "run_dir": None}
    place = Path("here")
    assert placed(values, place) == {**values, "run_dir": "here"}
    place.mkdir()
    (place / "config.yaml").write_text("resume: null")
    assert placed(values, place) == {**values, "resume": "here"}
    with (
        locked(place, "the test has it"),
        pytest.raises(UserError, match=r"^the run in here is going on in another process; wait for it or stop it$"),
    ):
        placed({"seed": 0}, place)
    assert placed({"seed": 0}, place) == {"seed": 0, "run_dir": "here"}
    assert not place.exists()
    place.mkdir()  # killed before its config was written
    assert placed(values, place) == {**values, "run_dir": "here"}
    assert not place.exists()


# How it ends.


def test_every_run_that_failed_is_named_with_its_reason(capsys):
    assert sweep("learning_rate=-1,1e38,0.1") == 1
    captured = capsys.readouterr()
    refused, failed = (record(f"learning_rate={rate}")["reason"] for rate in ("-1", "1e+38"))
    assert refused == "learning_rate=-1.0: expected a number above 0, below 3.4e38"
    assert failed.startswith("step 1: the loss is inf")
    assert captured.err.splitlines() == [
        f"minigrad-train: {refused}",
        f"minigrad-train: {failed}",
        "minigrad-train: 2 of the sweep's 3 runs failed:",
        f"  learning_rate=-1: {refused}",
        f"  learning_rate=1e+38: {failed}",
    ]
    assert captured.out.splitlines()[-2] == "the best run lies in here/learning_rate=0.1"
    assert list(statuses().values()) == ["refused", "finished", "failed"]
    assert directories() == {"learning_rate=0.1", "learning_rate=1e+38"}
    assert refused in Path("here", "sweep.csv").read_text()


def test_mistakes_alone_are_exit_code_2(capsys):
    assert sweep("learning_rate=-1,-2") == 2
    assert "minigrad-train: 2 of the sweep's 2 runs failed:\n" in capsys.readouterr().err


def test_code_that_ends_its_program_ends_its_run_alone():
    def leave(directory: Path) -> None:
        sys.exit(3)

    failure = attempt(["seed=0"], ["seed=1"], begin=leave)
    assert str(failure) == "2 of the sweep's 2 runs failed:\n  seed=0: SystemExit: 3\n  seed=1: SystemExit: 3"
    assert set(statuses().values()) == {"failed"}


def test_a_bug_keeps_its_traceback_and_ends_nothing_else(monkeypatch, capsys):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("one in two")

    monkeypatch.setattr("minigrad.objectives.Function.judge", broken)
    assert sweep("seed=0,1") == 1
    err = capsys.readouterr().err
    assert err.count("Traceback (most recent call last):") == 2
    assert err.endswith(
        "minigrad-train: 2 of the sweep's 2 runs failed:\n"
        "  seed=0: ZeroDivisionError: one in two\n"
        "  seed=1: ZeroDivisionError: one in two\n"
    )


def test_output_that_nobody_reads_ends_the_sweep():
    def begin(directory: Path) -> None:
        raise BrokenPipeError

    failure = attempt(["seed=0"], ["seed=1"], begin=begin)
    assert str(failure) == "1 of the sweep's 2 runs failed:\n  seed=0: nobody reads the output any more"
    assert statuses() == {"seed=0": "interrupted"}


# What is refused.

WRONG = {
    "jobs=2": "jobs=2 is of a sweep; add -m to run several settings, or leave it out",
    "sweep_dir=there": "sweep_dir=there is of a sweep; add -m to run several settings, or leave it out",
    "-m jobs=0": "jobs=0: expected an integer from 1 on",
    "-m jobs=two": "jobs=two: expected an integer from 1 on",
    "-m jobs=1.5": "jobs=1.5: expected an integer from 1 on",
    "-m jobs=": "jobs=: expected an integer from 1 on",
    "-m sweep_dir=": "sweep_dir=: expected a path, or null for a new directory below runs/sweeps",
    "-m sweep_dir=.": "sweep_dir=.: expected a new directory or that of a sweep; this holds other things",
    "-m sweep_dir=file": "sweep_dir=file: expected a new directory or that of a sweep; this holds other things",
    "-m sweep_dir=file/there": "sweep_dir=file/there cannot be made: Not a directory",
    "-m run_dir=there": "run_dir is of one run; name the sweep's directory with sweep_dir=",
    "-m ++resume=there": "resume is of one run; name the directory of the sweep that is to go on with sweep_dir=",
    "-m seed=0,1,0": "the sweep has seed=0 twice; give every value once",
    "-m rule=adamm,adam sweep_dir=there": "unknown rule 'adamm'; there are: adam, adamw, gradient_descent, momentum, "
    "nesterov, rmsprop",
    "-m --cfg job jobs=2 sweep_dir=there": "Only one of --run, --multirun, --cfg, --info and --shell_completion can be "
    "specified",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_mistake_is_one_clear_line_and_makes_nothing(line, capsys):
    Path("file").write_text("")
    assert main([*line.split(), *QUADRATIC]) == 2
    assert capsys.readouterr().err == f"minigrad-train: {WRONG[line]}\n"
    assert [path.name for path in Path.cwd().iterdir()] == ["file"]


def test_a_mistake_leaves_no_dated_directory():
    assert main(["-m", "rule=adamm,adam"]) == 2
    assert not list(Path("runs", "sweeps").iterdir())


def test_several_at_a_time_need_a_plugin(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_joblib_launcher", None)
    assert sweep("seed=0,1", "jobs=2") == 2
    assert capsys.readouterr().err == (
        "minigrad-train: jobs=2 needs hydra-joblib-launcher: pip install -c constraints.txt -e '.[jobs]'\n"
    )


def test_a_sweep_holds_its_directory_for_itself():
    busy = r"^the sweep in here is going on in another process; wait for it or stop it$"
    with opened("here"), pytest.raises(UserError, match=busy):
        attempt(["seed=0"])


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"overrides": 1}'])
def test_a_damaged_record_is_named(content):
    attempt(["seed=0"])
    Path("here", "jobs", "seed=0.json").write_text(content)
    named = r"^here/jobs/seed=0\.json is no record of a run: .*; remove it, and the run begins anew$"
    with pytest.raises(UserError, match=named):
        attempt(["seed=0"])


def test_the_ranks_of_torchrun_start_no_sweep(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "0")
    assert sweep("seed=0,1") == 2
    assert capsys.readouterr().err == "minigrad-train: a sweep runs in one process: start it without torchrun\n"


# Several at a time.

KILLED = "its process was killed, or one beside it, as the system does where memory runs out: try fewer jobs"
DIFFICULT = """
import os

def f(x):
    assert x != 2, "not two"
    return (x**2).sum() if x != 3 else os.kill(os.getpid(), 9)
"""


def test_several_at_a_time_tell_what_became_of_them_and_go_on_without_a_process_that_is_killed(capfd):
    command = ["objective=python", f"function={module(DIFFICULT)}:f", "steps=4", "sweep_dir=here"]
    assert main(["-m", *command, "learning_rate=0.1,-1", "objective.start=[1],[2],[3],[4],[5]", "jobs=2"]) == 1
    captured = capfd.readouterr()
    starts, refused = range(1, 6), "learning_rate=-1.0: expected a number above 0, below 3.4e38"
    reasons = {("0.1", 2): "AssertionError: not two", ("0.1", 3): KILLED, **{("-1", x): refused for x in starts}}
    lines, failures = captured.out.splitlines(), captured.err.splitlines()
    assert not [line for line in lines if line.startswith("step ")]
    for number, (rate, x) in enumerate(((rate, x) for rate in ("0.1", "-1") for x in starts), 1):
        title, name = f"learning_rate={rate} objective.start=[{x}]", f"learning_rate={rate},objective.start=[{x}]"
        assert sum(line.startswith(f"run {number} of 10: ") for line in lines) == 1
        found = record(name)
        if found["reason"] != KILLED or x == 3:  # or what ran beside it
            assert found["reason"] == reasons.get((rate, x), "")
        log = f": {found['reason']}; see {shlex.quote(f'here/jobs/{name}.log')}" if found["reason"] else ""
        assert lines.count(f"run {number} of 10 {found['status']}: {title}{log}") == 1
        assert (f"  {title}: {found['reason']}" in failures) == (found["status"] != "finished")
    assert sum(status == "failed" for status in statuses().values()) <= 3
    logs = {name: Path("here", "jobs", f"{name}.log").read_text() for name in statuses()}
    assert "step 4/4 " in logs["learning_rate=0.1,objective.start=[1]"]
    assert "Traceback (most recent call last):" in logs["learning_rate=0.1,objective.start=[2]"]
    assert logs["learning_rate=-1,objective.start=[5]"] == f"minigrad-train: {refused}\n"


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def begun(jobs: int) -> subprocess.Popen:
    """Start a sweep in a process group of its own, as a shell does; return it when so many of its runs train."""
    process = subprocess.Popen(
        [sys.executable, "-m", "minigrad.train", "-m", *LONG, f"jobs={jobs}", "sweep_dir=here"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A suite that was itself started in the background ignores the signal, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait(lambda: len(list(Path.cwd().glob("here/*/checkpoints/000000000.pt"))) == jobs or process.poll() is not None)
    return process


@POSIX
@pytest.mark.parametrize(("jobs", "number", "send"), [(1, signal.SIGTERM, os.kill), (2, signal.SIGINT, os.killpg)])
def test_a_signal_lets_all_that_runs_save_and_leaves_no_process(jobs, number, send):
    process = begun(jobs)
    send(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, out
    again = f"minigrad-train -m {' '.join(LONG)} {'jobs=2 ' if jobs == 2 else ''}sweep_dir=here"
    assert out.splitlines()[-2:] == [f"3 of 3 runs remain; go on with: {again}", "minigrad-train: interrupted"]
    assert statuses() == dict.fromkeys(["seed=0", "seed=1"][:jobs], "interrupted")
    for name in statuses():
        assert record(name)["reason"] == number.name
        assert not is_alive(record(name)["process"])
        made = summary(f"here/{name}")["steps"]
        assert Path("here", name, "checkpoints", f"{made:09}.pt").is_file()


@POSIX
def test_the_runs_of_a_sweep_that_is_killed_save_and_end():
    process = begun(2)
    process.kill()
    process.communicate(timeout=60)
    wait(lambda: statuses() == {"seed=0": "interrupted", "seed=1": "interrupted"})
    wait(lambda: not any(is_alive(record(name)["process"]) for name in statuses()))


@POSIX
def test_a_signal_is_passed_on_and_a_second_one_waits_for_nothing(monkeypatch, capsys):
    monkeypatch.setattr("minigrad.workers.processes", nullcontext)
    monkeypatch.setattr("minigrad.interruption._AGAIN", 0)
    with opened("here") as directory, subprocess.Popen(["sleep", "10"]) as process:
        sweep = Sweep(directory, {("seed=0",): ("seed=0",), ("seed=1",): ("seed=1",)})
        sweep.launch(lambda: sweep.run(1, ("seed=0",), lambda _: None), 1)
        change("seed=0", status="running", process=process.pid)

        def send() -> None:
            signal.raise_signal(signal.SIGTERM)
            assert process.wait() == -signal.SIGTERM
            assert Path("here", ".end").exists()  # no further run is begun
            signal.raise_signal(signal.SIGINT)
            pytest.fail("not reached")

        with pytest.raises(Interrupted) as caught:
            sweep.launch(send, 2)
    assert caught.value.number == signal.SIGINT
    assert record("seed=0")["status"] == "interrupted"
    assert record("seed=0")["reason"] == "its process was killed"
    assert capsys.readouterr().out.splitlines()[-1] == "run 1 of 2 interrupted: seed=0"
