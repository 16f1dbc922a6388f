"""A run: its directory, its seed, its device and its record."""

import itertools
import json
import math
import os
import random
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy
import torch

import minigrad_kernels
from minigrad.config import RunConfig, as_yaml
from minigrad.errors import UserError
from minigrad.tracking import Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Run:
    """One run, from the creation of its directory to its summary.

    Used as a context: entering makes the directory, writes `config.yaml`, seeds every generator and sets the number of
    threads; leaving writes `summary.json`, also when an exception ends the run. After a UserError the directory is
    removed again.

    Args:
        config: the run's typed config.

    Attributes:
        directory: where everything of this run lies; made by this run and by no other.
        device: where it computes.
        steps: updates made so far, set by the experiment.
        metrics: the last value reported under every tag.

    Raises:
        UserError: the device is not there, or (on entering) the directory exists or cannot be made.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.device = resolve_device(config.device)
        self.directory = Path()
        self.steps = 0
        self.metrics: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.directory = _create_directory(self.config)
        (self.directory / "config.yaml").write_text(as_yaml(self.config), encoding="utf-8")
        random.seed(self.config.seed)
        numpy.random.seed(self.config.seed)
        torch.manual_seed(self.config.seed)
        self._threads_before = torch.get_num_threads()
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        self._start = time.perf_counter()
        self._tracker = Tracker(self.directory)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._threads_before)
        self._tracker.close()
        if isinstance(error, UserError):
            shutil.rmtree(self.directory)
            return
        status = "finished" if error is None else "failed" if isinstance(error, Exception) else "interrupted"
        _write_json(self.directory / "summary.json", self._summary(status, error))

    @property
    def path(self) -> str:
        """Which kernels the device gets: "triton" or "plain"."""
        return minigrad_kernels.path_for(self.device)

    @property
    def whereabouts(self) -> str:
        """Where the run lies and how to look at it, for people."""
        place = shlex.quote(str(self.directory))
        return f"the run lies in {place}; look at it with: tensorboard --logdir {place}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step to TensorBoard, and keep them as the run's metrics until newer ones come."""
        self._tracker.scalars(step, values)
        self.metrics.update(values)

    def figure(self, tag: str, figure: "Figure") -> Path:
        """Write a matplotlib figure to TensorBoard and to `figures/<tag>.png`; return the file's path."""
        return self._tracker.figure(tag, figure)

    def _summary(self, status: str, error: BaseException | None) -> dict[str, Any]:
        reason = {} if error is None else {"error": f"{type(error).__name__}: {error}"}
        return {
            "status": status,
            **reason,
            "experiment": self.config.experiment,
            "steps": self.steps,
            "seconds": round(time.perf_counter() - self._start, 3),
            "device": str(self.device),
            "path": self.path,
            "seed": self.config.seed,
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
            **{tag: value if math.isfinite(value) else None for tag, value in self.metrics.items()},
        }


def resolve_device(name: str) -> torch.device:
    """Return the device that `device=` names; "auto" is the GPU when there is one, and the CPU otherwise.

    Raises:
        UserError: it is no device's name, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name}: expected auto, cpu, cuda, cuda:1 or another device of PyTorch") from None
    try:
        torch.empty(1, device=device).cpu()
    except (AssertionError, ImportError, RuntimeError) as error:  # a build without it, a missing plugin, no hardware
        raise UserError(f"device={name}: PyTorch finds no such device here; use device=cpu or device=auto") from error
    return device


def _create_directory(config: RunConfig) -> Path:
    """Make the run's directory; what exists already is never taken."""
    if config.run_dir is not None:
        chosen = Path(config.run_dir).expanduser()
        try:
            chosen.mkdir(parents=True)
        except FileExistsError:
            raise UserError(f"run_dir={config.run_dir} exists; name a new directory, or leave run_dir out") from None
        except OSError as error:
            raise UserError(f"run_dir={config.run_dir} cannot be made: {error.strerror}") from None
        return chosen
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        dated = Path("runs", config.label, stamp if number == 1 else f"{stamp}_{number}")
        try:
            dated.mkdir(parents=True)
        except FileExistsError:
            if not dated.is_dir():
                raise UserError(f"{dated} cannot be made: a file is in its place; name another with run_dir=") from None
        except OSError as error:
            raise UserError(f"{dated} cannot be made: {error.strerror}; name another with run_dir=") from None
        else:
            return dated
    raise AssertionError  # the count has no end


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write beside, then rename: a reader finds the whole file or none."""
    beside = file.with_suffix(".json.tmp")
    with beside.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2, allow_nan=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)
