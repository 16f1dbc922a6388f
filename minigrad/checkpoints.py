"""Checkpoints: all that a run needs to go on, in files that are whole or known not to be.

A file is what `torch.save` writes, followed by a line with its SHA-256; `torch.load` reads it as it is. It is written
beside its place and renamed, so that a run that is killed while it writes leaves the file before it intact. It is read
with `weights_only=True`: tensors and plain values, no code.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from minigrad.errors import UserError
from minigrad.files import write_whole

_FORMAT = "minigrad 1"
_KINDS = {
    "seconds": float,
    "metrics": dict,
    "model": dict,
    "generators": dict,
    "trainer": dict,
    "stopping": dict,
    "path": dict,
}
_MARK = b"\nsha256 "
_TAIL = len(_MARK) + 64 + 1  # the digest in hexadecimal, and the end of the line


class Checkpoints:
    """The checkpoints of a run: the last few, and the one that was judged best.

    Args:
        directory: where they lie, `<steps>.pt` each; made when the first is saved.
        keep: how many of the last to keep.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory = directory
        self._keep = keep

    def save(self, steps: int, content: Mapping[str, Any]) -> None:
        """Save what a run consists of after so many steps, then remove what is not to be kept.

        Args:
            steps: number of steps made.
            content: tensors and plain values, by the names of `_KINDS`.

        Raises:
            RunFailed: the disk is full or read-only; earlier checkpoints are intact.
        """
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, **content}, buffer)
        payload = buffer.getvalue()
        digest = hashlib.sha256(payload).hexdigest().encode()
        write_whole(self._file(steps), payload + _MARK + digest + b"\n")
        self._prune(steps)

    def mark_best(self, steps: int, loss: float) -> None:
        """Note that the checkpoint of so many steps has the lowest loss so far, if there is one of so many."""
        if self._file(steps).is_file():
            write_whole(self._directory / "best.json", json.dumps({"steps": steps, "test/loss": loss}).encode())

    def newest(self, complain: Callable[[str], None]) -> dict[str, Any] | None:
        """Return the content of the newest checkpoint that is whole; None if there is no file at all.

        Args:
            complain: called with a line for every newer one that is not.

        Raises:
            UserError: there are files, and none is whole.
        """
        files = self._files()
        for file in reversed(files):
            try:
                return read(file)
            except UserError as error:
                complain(f"{error}; the one before it is used" if file != files[0] else str(error))
        if files:
            raise UserError(f"{self._directory} holds no checkpoint that can be used")
        return None

    def best(self) -> dict[str, Any]:
        """Return the content of the checkpoint that was judged best.

        Raises:
            UserError: none was judged, or it or the note of it is not whole.
        """
        steps = self._best()
        if steps is None:
            raise UserError(f"{self._directory}: no checkpoint has been judged yet")
        return read(self._file(steps))

    def _best(self) -> int | None:
        """Return the steps of the best, as noted; None before the first."""
        file = self._directory / "best.json"
        try:
            return int(json.loads(file.read_bytes())["steps"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError, OverflowError):
            raise UserError(f"{file} is damaged; remove it to go on without") from None

    def _file(self, steps: int) -> Path:
        return self._directory / f"{steps:09d}.pt"

    def _files(self) -> list[Path]:
        """Return all checkpoints, the newest last."""
        files = [file for file in self._directory.glob("*.pt") if file.stem.isdecimal()]
        return sorted(files, key=lambda file: int(file.stem))

    def _prune(self, steps: int) -> None:
        """Remove what is not to be kept up to the checkpoint of so many steps; later ones are damaged, or not ours."""
        try:
            best = self._best()
        except UserError:
            return  # which one is the best is not known: none is removed
        files = [file for file in self._files() if int(file.stem) <= steps]
        for file in files[: -self._keep]:
            if int(file.stem) != best:
                with suppress(OSError):  # one that stays does no harm
                    file.unlink()


def read(file: Path) -> dict[str, Any]:
    """Return a checkpoint's content, checked against its SHA-256.

    Raises:
        UserError: it is not there, not whole, or no checkpoint.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    payload, tail = content[:-_TAIL], content[-_TAIL:]
    if tail != _MARK + hashlib.sha256(payload).hexdigest().encode() + b"\n":
        raise UserError(f"{file} is damaged: its SHA-256 is not the one that it was written with")
    try:
        loaded = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that was not written here makes of the reader
        raise UserError(f"{file} is no checkpoint of minigrad") from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("format"), str):
        raise UserError(f"{file} is no checkpoint of minigrad")
    if loaded["format"] != _FORMAT:
        raise UserError(f"{file} has the format {loaded['format']!r}; this version reads {_FORMAT!r}")
    missing = [name for name, kind in _KINDS.items() if not isinstance(loaded.get(name), kind)]
    if missing:
        raise UserError(f"{file} is no checkpoint of minigrad: it lacks {', '.join(missing)}")
    return loaded
