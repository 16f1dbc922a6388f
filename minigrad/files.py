"""Writing a file so that whoever reads it finds all of it, the old or the new, whenever the power goes."""

import os
from contextlib import suppress
from pathlib import Path

from minigrad.errors import RunFailed


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
