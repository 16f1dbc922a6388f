"""A run: its directory, its seed, its device and its record."""

import errno
import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

import minigrad_kernels
from minigrad import tables
from minigrad.autodiff.drawing import Drawing
from minigrad.config import RunConfig, as_yaml, hyperparameters
from minigrad.errors import RunFailed, UserError
from minigrad.files import locked, new_directory, write_whole
from minigrad.generators import seed_all
from minigrad.ranks import ALONE, Ranks, local_rank
from minigrad.tracking import Silent, Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Run:
    """One run, from the creation of its directory, or the resumption in it, to its summary.

    Used as a context: entering makes the directory, writes `config.yaml`, seeds every generator and sets the number of
    threads and PyTorch's determinism; leaving writes `summary.json`, also when an exception ends the run. After a
    UserError before the first step nothing is left behind.

    Args:
        config: the run's typed config.
        resumed: whether the run in `config.run_dir` goes on; `goes_on` is to be called then.
        ranks: the processes that make this run, one by default; the first of them alone writes.
        compared: keys by which runs are compared, with all their values as on the command line, or none if not known.

    Attributes:
        ranks: the argument.
        directory: where everything of this run lies; no two runs share one, nor do two processes at a time.
        device: where it computes.
        steps: steps made so far, set by the experiment.
        metrics: the last value reported under every tag.
        verdicts: kinds of what is wrong with the gradient's flow, set by what watches it.

    Raises:
        UserError: the device is not there, or (on entering) the directory exists, cannot be made or is in use.
        RunFailed: the disk takes no more.
    """

    def __init__(
        self,
        config: RunConfig,
        resumed: bool = False,
        ranks: Ranks = ALONE,
        compared: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> None:
        self.config = config
        self._compared = compared
        self.ranks = ranks
        self.device = self.ranks.on_each(lambda: resolve_device(config.device, self.ranks))
        self.directory = Path()
        self.steps = 0
        self.metrics: dict[str, float] = {}
        self.verdicts: list[str] = []
        self._resumed = resumed
        self._seconds_before = 0.0
        self._first_step = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # undoes what was done if the rest cannot be
            stack.enter_context(_disk())
            if self._resumed:
                self.directory = Path(str(self.config.run_dir))
            else:
                self.directory = self.ranks.of_first(lambda: _create_directory(self.config))
                stack.push(self._remove_after_a_mistake)
            busy = f"the run in {self.directory} is going on in another process; wait for it or stop it"
            self.ranks.of_first(lambda: stack.enter_context(locked(self.directory, busy)))
            if not self._resumed and self.ranks.is_first:
                self._write_config()  # first of all: without it nobody can go on here
            self.ranks.remember(self.directory)
            if self.device.type == "cuda" and not self.ranks.is_alone:
                torch.cuda.set_device(self.device)  # or pinned memory would take a part of the first GPU for every rank
            stack.enter_context(_threads(self.config.threads))
            stack.enter_context(_determinism(self.config.deterministic))
            seed_all(self.config.seed)
            self._start = time.perf_counter()
            self._tracker = Tracker(self.directory) if self.ranks.is_first else Silent()
            stack.push(self._close)
            if not self._resumed:
                self._show_config()
            stack.enter_context(self.ranks.connected())  # before the summary is written, which names the error
            self._stack = stack.pop_all()
        return self

    def goes_on(self, steps: int, seconds: float) -> None:
        """Go on after so many steps and seconds: what TensorBoard has of later steps is not shown any more."""
        self.steps = self._first_step = steps
        self._seconds_before = seconds
        self._tracker.purge(steps)
        if self.ranks.is_first:
            (self.directory / "summary.json").unlink(missing_ok=True)  # it says how the run ended, and it has not
            self._write_config()
        self._show_config()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    @property
    def path(self) -> str:
        """Which kernels the device gets: "triton" or "plain"."""
        return minigrad_kernels.path_for(self.device)

    @property
    def seconds(self) -> float:
        """What the run has taken so far, resumptions included."""
        return self._seconds_before + time.perf_counter() - self._start

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
        return self._tracker.figure(tag, figure, self.steps)

    def histogram(self, tag: str, step: int, counts: Sequence[int], edges: Sequence[float]) -> None:
        """Write a histogram of a step to TensorBoard: counts of what lies between edges, of which there is one more."""
        self._tracker.histogram(tag, step, counts, edges)

    def graph(self, drawing: Drawing) -> Path:
        """Write a computation's graph to TensorBoard's page of graphs and to `figures/graph.svg`; return the path."""
        return self._tracker.graph(drawing)

    def text(self, tag: str, markdown: str) -> None:
        """Write a text to TensorBoard."""
        self._tracker.text(tag, markdown, self.steps)

    def table(self, tag: str, columns: Sequence[str], rows: Sequence[Sequence[tables.Cell]]) -> None:
        """Print a table, and write it to TensorBoard as text."""
        print(f"{tables.plain(columns, rows)}\n", flush=True)
        self.text(tag, tables.markdown(columns, rows))

    def flush(self) -> None:
        """Hand what was written so far to the system: TensorBoard sees it, and it outlives this process."""
        self._tracker.flush()

    def _write_config(self) -> None:
        write_whole(self.directory / "config.yaml", as_yaml(self.config).encode())

    def _show_config(self) -> None:
        self._tracker.text("config", f"```yaml\n{as_yaml(self.config)}```", self.steps)
        self._tracker.hyperparameters(hyperparameters(self.config), self._compared)

    def _remove_after_a_mistake(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._is_refused(error) and self.ranks.is_first:
            shutil.rmtree(self.directory)

    def _is_refused(self, error: BaseException | None) -> bool:
        """Return whether a mistake of the user's ended the run before its first step: it leaves nothing behind."""
        return isinstance(error, UserError) and self.steps == self._first_step

    def _close(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """End the curves and write the summary; a full disk is an error of its own only if it is the first."""
        first = error
        for leave in (self._end_curves, self._write_summary):
            try:
                leave(first)
            except RunFailed as failure:
                first = first or failure
        if error is None and first is not None:
            raise first

    def _end_curves(self, error: BaseException | None) -> None:
        try:
            if error is None or (isinstance(error, Exception) and not self._is_refused(error)):
                self._tracker.end(succeeded=error is None)  # else it may go on, and only its first end would be shown
        finally:
            self._tracker.close()
        if self._is_refused(error):
            self._tracker.discard()

    def _write_summary(self, error: BaseException | None) -> None:
        if not self._is_refused(error) and self.ranks.is_first:
            write_whole(self.directory / "summary.json", self._summary(error))

    def _summary(self, error: BaseException | None) -> bytes:
        status = "finished" if error is None else "failed" if isinstance(error, Exception) else "interrupted"
        reason = {} if error is None else {"error": f"{type(error).__name__}: {error}"}
        metrics = {tag: value if math.isfinite(value) else None for tag, value in self.metrics.items()}
        content = {
            "status": status,
            **reason,
            "experiment": self.config.experiment,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "device": str(self.device),
            "path": self.path,
            "ranks": self.ranks.size,
            "seed": self.config.seed,
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
            **({"verdicts": self.verdicts} if self.verdicts else {}),
        }
        return (json.dumps({**content, **metrics}, indent=2, allow_nan=False) + "\n").encode()


def resolve_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """Return the device that `device=` names; "auto" is the GPU when there is one, and the CPU otherwise.

    Of several ranks each has a GPU of its own, by its number on this machine.

    Raises:
        UserError: it is no device's name, this machine has no such device, several ranks would share a GPU, or the GPU
            is too old for the kernels.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not ranks.is_alone:
        name = _own_gpu(name, ranks)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name}: expected auto, cpu, cuda, cuda:1 or another device of PyTorch") from None
    try:
        torch.empty(1, device=device).cpu()
    except (AssertionError, ImportError, RuntimeError) as error:  # a build without it, a missing plugin, no hardware
        raise UserError(f"device={name}: PyTorch finds no such device here; use device=cpu or device=auto") from error
    try:
        minigrad_kernels.check_device(device)
    except RuntimeError as error:
        raise UserError(f"device={name}: {error}") from error
    return device


def _own_gpu(name: str, ranks: Ranks) -> str:
    """Return the name of this rank's GPU."""
    own, there = local_rank(), torch.cuda.device_count()
    if name != "cuda":
        raise UserError(f"device={name}: each of several ranks has a GPU of its own; use device=cuda")
    if own >= there:
        advice = f"start {there} ranks here, or use device=cpu" if there else "use device=cpu"
        raise UserError(
            f"device=cuda: this machine has {there} GPUs, and rank {ranks.rank} needs one of its own; {advice}"
        )
    return f"cuda:{own}"


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
    return new_directory(Path("runs", config.label), "run_dir")


@contextmanager
def _disk() -> Iterator[None]:
    """Turn the error of a disk that takes no more, wherever in a run it comes, into a RunFailed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise RunFailed(f"{error.filename or 'the output'} cannot be written: {error.strerror}") from error


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Set PyTorch's number of threads for a while; None leaves it."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    """Let PyTorch use operations whose results are the same bits every time, for a while."""
    if not wanted:
        yield
        return
    memory: Any = torch.utils.deterministic  # whose attribute is a property that mypy does not see
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = memory.fill_uninitialized_memory
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace or ":4096:8"  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # that would cost time, and change nothing
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = fills
        if workspace is None:
            del os.environ["CUBLAS_WORKSPACE_CONFIG"]
