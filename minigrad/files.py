"""Files that are read whole, the old or the new, whenever the power goes; directories that nobody else has."""

import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from minigrad.errors import RunFailed, UserError

if sys.platform != "win32":
    import fcntl


def write_whole(file: Path, content: bytes) -> None:
    """Write beside, wait for the disk, rename, and wait for the folder, which is made where there is none.

    Raises:
        RunFailed: it cannot be written; what was there before is still there, and nothing else is.
    """
    beside = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(exist_ok=True)
        with beside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(file.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        with suppress(OSError):  # a disk that is read-only refuses this too, even where there is nothing to remove
            beside.unlink()
        raise RunFailed(f"{file} cannot be written: {error.strerror}") from error


def new_directory(parent: Path, key: str) -> Path:
    """Make a directory called by the time, and by a number too if that one exists.

    Args:
        parent: where it lies.
        key: with which the user can name another.

    Raises:
        UserError: it cannot be made.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        dated = parent / (stamp if number == 1 else f"{stamp}_{number}")
        try:
            dated.mkdir(parents=True)
        except FileExistsError:
            if not dated.is_dir():
                raise UserError(f"{dated} cannot be made: a file is in its place; name another with {key}=") from None
        except OSError as error:
            raise UserError(f"{dated} cannot be made: {error.strerror}; name another with {key}=") from None
        else:
            return dated
    raise AssertionError  # the count has no end


@contextmanager
def locked(directory: Path, complaint: str) -> Iterator[None]:
    """Hold a directory for this process alone, where the system can.

    Raises:
        UserError: another process holds it; the message is the complaint.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(complaint) from None
        yield
    finally:
        os.close(descriptor)
