import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minigrad.errors import RunFailed
from minigrad.files import write_whole


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_is_written_whole_and_nothing_is_left_beside_it(tmp_path):
    for content in (b"first", b"", os.urandom(100_000), b"last\n\0"):
        write_whole(tmp_path / "file.pt", content)
        assert (tmp_path / "file.pt").read_bytes() == content
        assert names(tmp_path) == ["file.pt"]


def test_the_folder_is_made(tmp_path):
    write_whole(tmp_path / "folder" / "file", b"content")
    assert (tmp_path / "folder" / "file").read_bytes() == b"content"


def test_what_a_killed_writer_left_beside_is_written_over(tmp_path):
    (tmp_path / ".file.tmp").write_bytes(b"half of someth")
    write_whole(tmp_path / "file", b"new")
    assert names(tmp_path) == ["file"]


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: done.append(name) or real(*args))
    write_whole(tmp_path / "file", b"content")
    assert done == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_step_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, step):
    def fail(*args):
        raise OSError(28, "No space left on device")

    file = tmp_path / "file"
    write_whole(file, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(RunFailed) as caught:
            write_whole(file, b"new")
    assert str(caught.value) == f"{file} cannot be written: No space left on device"
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_file_in_the_folder_s_place_is_an_error(tmp_path):
    (tmp_path / "folder").write_bytes(b"a file")
    with pytest.raises(RunFailed, match="cannot be written: "):
        write_whole(tmp_path / "folder" / "file", b"content")
    assert (tmp_path / "folder").read_bytes() == b"a file"


def test_a_folder_in_the_file_s_place_is_an_error(tmp_path):
    (tmp_path / "file" / "inside").mkdir(parents=True)
    with pytest.raises(RunFailed, match=r"cannot be written: Is a directory$"):
        write_whole(tmp_path / "file", b"content")
    assert names(tmp_path) == ["file"]


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(RunFailed, match=r"cannot be written: No such file or directory$"):
        write_whole(tmp_path / "gone" / "gone, too" / "file", b"content")
    assert names(tmp_path) == []


# A real disk: a file system in memory, of 256 KiB, that the process mounts for itself alone.
ON_A_DISK = """
import subprocess, sys
from pathlib import Path
from minigrad.errors import RunFailed
from minigrad.files import write_whole

disk = Path(sys.argv[1])

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(disk)], check=True)

def attempt(content):
    try:
        write_whole(disk / "file", content)
    except RunFailed as error:
        print(error)
    print(len((disk / "file").read_bytes()), sorted(file.name for file in disk.iterdir()))

mount("size=256k")
attempt(b"old")
attempt(bytes(1_000_000))
attempt(bytes(100_000))
mount("remount,ro")
attempt(b"new")
"""


def test_a_full_and_a_read_only_disk_leave_the_old_file_and_nothing_beside_it(tmp_path):
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no process mount a disk of its own")
    done = subprocess.run(
        [*alone, sys.executable, "-c", ON_A_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    file = tmp_path / "file"
    assert done.stdout.splitlines() == [
        "3 ['file']",
        f"{file} cannot be written: No space left on device",
        "3 ['file']",
        "100000 ['file']",
        f"{file} cannot be written: Read-only file system",
        "100000 ['file']",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource limits")
def test_a_file_above_the_limit_leaves_the_old_one_and_nothing_beside_it(tmp_path):
    code = f"""
import resource, signal
from pathlib import Path
from minigrad.errors import RunFailed
from minigrad.files import write_whole

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_whole(Path({str(tmp_path)!r}, "file"), bytes(2000))
except RunFailed as error:
    print(error)
"""
    write_whole(tmp_path / "file", b"old")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'file'} cannot be written: File too large\n"
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]
