"""A sweep: its directory, and what became of its runs.

    <directory>/<name>/                 a run's own directory
    <directory>/jobs/<name>.json        what became of it
    <directory>/jobs/<name>.log         what it printed, where several run at a time
    <directory>/sweep.csv, sweep.png    the runs compared

The records are all that is known of a run: another process reports by them too, and a sweep that is started again
finds there what is missing, has failed or was interrupted.
"""

import hashlib
import itertools
import json
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from minigrad import leaderboard, tables, workers
from minigrad.errors import RunFailed, UserError
from minigrad.figures import as_png
from minigrad.files import locked, new_directory, write_whole
from minigrad.interruption import Interrupted, Request, handling, is_again, raising

_KILLED = "its process was killed, or one beside it, as the system does where memory runs out: try fewer jobs"
_LONGEST = 100  # characters of a name; file systems take 255, and TensorBoard's page shows about as many


@dataclass(frozen=True)
class Record:
    """What became of a run.

    Attributes:
        name: of its directory in the sweep's.
        number: in the sweep as it was started last, from 1.
        overrides: its command line.
        status: "running", "finished", "failed", "refused" (by a mistake of the user's) or "interrupted".
        reason: why it has not finished.
        sweep: when the sweep that it ran in last was begun, in UTC.
        process: the id of the one that it ran in.
    """

    name: str
    number: int
    overrides: tuple[str, ...]
    status: str
    reason: str
    sweep: str
    process: int

    @property
    def values(self) -> dict[str, str]:
        """The values of the command line by key."""
        return dict(_pairs(self.overrides))


@contextmanager
def opened(chosen: str | None) -> Iterator[Path]:
    """Hold a sweep's directory; what is made here and holds no run in the end is removed.

    Args:
        chosen: a directory, which is made if there is none, or None for a new one below `runs/sweeps`.

    Raises:
        UserError: it cannot be made, is no sweep's, or another sweep is going on in it.
    """
    directory = new_directory(Path("runs", "sweeps"), "sweep_dir") if chosen is None else Path(chosen).expanduser()
    is_new = chosen is None or not directory.exists()
    jobs = directory / "jobs"
    if not is_new and not (directory.is_dir() and (jobs.is_dir() or not any(directory.iterdir()))):
        raise UserError(f"sweep_dir={chosen}: expected a new directory or that of a sweep; this holds other things")
    try:
        jobs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"sweep_dir={chosen} cannot be made: {error.strerror}") from None
    with locked(directory, f"the sweep in {directory} is going on in another process; wait for it or stop it"):
        try:
            yield directory
        finally:
            if not any(jobs.iterdir()):
                jobs.rmdir()
                if is_new:
                    directory.rmdir()


def placed(values: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Return a run's values with its place: it goes on with what lies there if it can, and else begins anew.

    Raises:
        UserError: the run is still going on there.
    """
    if "resume" in values and (directory / "config.yaml").is_file():
        return {**values, "resume": str(directory)}
    if directory.is_dir():
        with locked(directory, f"the run in {directory} is going on in another process; wait for it or stop it"):
            shutil.rmtree(directory)
    return {**values, "run_dir": str(directory)}


class Sweep:
    """The runs of a sweep; it is sent to other processes whole.

    Args:
        directory: held by this process.
        runs: their overrides, and those among them that the sweep varies.
    """

    def __init__(self, directory: Path, runs: Mapping[tuple[str, ...], tuple[str, ...]]) -> None:
        self.directory = directory
        self._begun = datetime.now(UTC).isoformat()
        self._end_mark = directory / ".end"
        self._end_mark.unlink(missing_ok=True)  # of a sweep that was killed
        self._runs = dict(runs)
        self._starter: int | None = None  # the process that has started the one that runs a run, if it is not the same
        known = {frozenset(record.overrides): record.name for record in self.records()}
        self._names: dict[tuple[str, ...], str] = {}
        for overrides, varied in runs.items():
            self._names[overrides] = known.get(frozenset(overrides)) or self._new_name(varied)

    @property
    def compared(self) -> dict[str, list[str]]:
        """All values of the keys that the sweep varies, by key, as on the command line."""
        found: dict[str, dict[str, None]] = {}
        for varied in self._runs.values():
            for key, value in _pairs(varied):
                found.setdefault(key, {})[value] = None
        return {key: list(values) for key, values in found.items()}

    def records(self) -> list[Record]:
        """Return what became of all runs that lie in the directory, in the order of their numbers."""
        found = (_read(file) for file in sorted((self.directory / "jobs").glob("*.json")))
        return sorted(found, key=lambda record: record.number)

    def remaining(self) -> int:
        """Return how many runs have not finished."""
        return sum(not self._has_finished(name) for name in self._names.values())

    def failure(self, but: str = "") -> UserError | RunFailed | None:
        """Return the error that names every run that has not finished, and why; None if all have.

        Args:
            but: a status of runs that do not count.
        """
        failed = [record for record in self._unfinished() if record.status != but]
        if not failed:
            return None
        kind = UserError if all(record.status == "refused" for record in failed) else RunFailed
        lines = (f"\n  {self._title(record)}: {record.reason}" for record in failed)
        return kind(f"{len(failed)} of the sweep's {len(self._runs)} runs failed:{''.join(lines)}")

    def run(self, number: int, overrides: tuple[str, ...], begin: Callable[[Path], None]) -> None:
        """Run one of the runs, unless that has been done or the sweep is to end, and record what became of it.

        Args:
            number: of the run, from 1.
            overrides: of the run.
            begin: called with its directory; whatever Exception it raises is recorded, and ends nothing else.

        Raises:
            KeyboardInterrupt: it was interrupted in the process that started the sweep.
        """
        name = self._names[overrides]
        if self._is_to_end() or not self._is_to_run(name):
            return
        place = nullcontext(_print) if self._starter is None else workers.apart(self._starter, self._file(name, "log"))
        with place as say:
            record = ended = Record(name, number, overrides, "running", "", self._begun, os.getpid())
            self._write(record)
            try:
                with raising():
                    if self._is_to_end():  # since it was asked above; the signal may have come too early for this run
                        raise KeyboardInterrupt
                    say(f"{self._label(number)}: {' '.join(overrides)}")
                    begin(self.directory / name)
                ended = replace(record, status="finished")
            except UserError as error:
                ended = replace(record, status="refused", reason=str(error))
            except RunFailed as error:
                ended = replace(record, status="failed", reason=str(error))
            except BrokenPipeError:
                ended = replace(record, status="interrupted", reason="nobody reads the output any more")
                self._end_mark.touch()
            except (Exception, SystemExit) as error:
                ended = replace(record, status="failed", reason=f"{type(error).__name__}: {error}")
            except KeyboardInterrupt as interrupt:
                ended = replace(record, status="interrupted", reason=str(interrupt))
                if self._starter is None:
                    raise
            finally:
                self._write(ended)
            if self._starter is not None:
                say(self._outcome(ended))

    def launch(self, send: Callable[[], None], processes: int) -> None:
        """Run what has not finished, here or, several at a time, in processes of joblib's.

        A process that is killed takes the others with it: joblib sees to that. Their runs have failed, and the rest is
        sent to new processes.

        Args:
            send: calls `run` for every run, here or in so many processes, and returns when all have ended.
            processes: how many; 1: here.

        Raises:
            KeyboardInterrupt: by a signal, which every run got too, and all have ended. A second signal, or one that
                comes while nothing runs, kills the processes.
        """
        for number, (overrides, name) in enumerate(self._names.items(), 1):
            if self._has_finished(name):
                _print(f"{self._label(number)} has finished before: {' '.join(overrides)}")
        if processes == 1:
            send()
        elif processes > 1:
            self._launch_apart(send, processes)

    def conclude(self) -> None:
        """Compare all runs in the directory: in `sweep.csv`, in `sweep.png` and on the terminal."""
        self._end_mark.unlink(missing_ok=True)
        entries = [self._entry(record) for record in self.records()]
        if not entries:
            return
        write_whole(self.directory / "sweep.csv", leaderboard.as_csv(entries).encode())
        figure = leaderboard.draw(entries)
        if figure is not None:
            write_whole(self.directory / "sweep.png", as_png(figure))
        print(f"\n{tables.plain(*leaderboard.table(entries))}\n")
        best = leaderboard.best_first(entries)[0]
        if math.isfinite(best.loss):
            print(f"the best run lies in {shlex.quote(str(self.directory / best.name))}")
        print(f"look at it with: tensorboard --logdir {shlex.quote(str(self.directory))}", flush=True)

    def _launch_apart(self, send: Callable[[], None], processes: int) -> None:
        self._starter = os.getpid()
        request, remain = Request(), True

        def forward(number: int, frame: FrameType | None) -> None:
            if is_again():
                return
            running = [record.process for record in self._unfinished() if record.status == "running"]
            is_first, request.number = not request.made(), number
            if not (is_first and running):
                raise Interrupted(number)  # wherever joblib is; it kills its processes
            self._end_mark.touch()
            for process in running:
                with suppress(ProcessLookupError):
                    os.kill(process, number)

        with handling(forward):
            try:
                while remain and not request.made():
                    try:
                        with workers.processes(processes):
                            send()
                        remain = False
                    except BrokenExecutor:
                        if request.made():
                            break
                        if not self._lose_running("failed", _KILLED):
                            raise
                        remain = any(map(self._is_to_run, self._names.values()))
            finally:
                self._lose_running("interrupted", "its process was killed")
        request.honour()

    def _unfinished(self) -> list[Record]:
        """Return what became of the runs that were begun since the sweep was, and have not finished."""
        return [record for record in self.records() if self._is_of_now(record) and record.status != "finished"]

    def _title(self, record: Record) -> str:
        """Return what tells a run from the others: the overrides that the sweep varies."""
        return " ".join(self._runs[record.overrides]) or record.name

    def _new_name(self, varied: tuple[str, ...]) -> str:
        """Return a name that no other run has; a directory that is not a run's of this sweep is left alone."""
        first = _file_name(",".join(varied) or "run")
        for number in itertools.count(1):
            name = first if number == 1 else f"{first}_{number}"
            is_taken = (self.directory / name).exists() or self._file(name, "json").exists()
            if not is_taken and name not in self._names.values():
                return name
        raise AssertionError  # the count has no end

    def _file(self, name: str, kind: str) -> Path:
        return self.directory / "jobs" / f"{name}.{kind}"

    def _record(self, name: str) -> Record | None:
        file = self._file(name, "json")
        return _read(file) if file.exists() else None

    def _write(self, record: Record) -> None:
        content = asdict(record)
        del content["name"]
        write_whole(self._file(record.name, "json"), (json.dumps(content, indent=2) + "\n").encode())

    def _has_finished(self, name: str) -> bool:
        """Return whether a run has finished, and nobody has removed it to have it run again."""
        record = self._record(name)
        return record is not None and record.status == "finished" and (self.directory / name).is_dir()

    def _is_to_run(self, name: str) -> bool:
        record = self._record(name)
        return not self._has_finished(name) and (record is None or not self._is_of_now(record))

    def _is_of_now(self, record: Record) -> bool:
        return record.sweep == self._begun

    def _is_to_end(self) -> bool:
        """Return whether no further run is to be begun: a signal came, or the process that started this one is gone."""
        is_orphan = sys.platform != "win32" and self._starter not in (None, os.getppid())  # a venv stands between there
        return self._end_mark.exists() or is_orphan

    def _lose_running(self, status: str, reason: str) -> bool:
        """Record what became of runs whose process is gone; return whether there are any."""
        lost = [record for record in self._unfinished() if record.status == "running"]
        for record in lost:
            ended = replace(record, status=status, reason=reason)
            self._write(ended)
            _print(self._outcome(ended))
        return bool(lost)

    def _outcome(self, record: Record) -> str:
        has_failed = record.status in ("failed", "refused")
        reason = f": {record.reason}; see {shlex.quote(str(self._file(record.name, 'log')))}" if has_failed else ""
        return f"{self._label(record.number)} {record.status}: {self._title(record)}{reason}"

    def _label(self, number: int) -> str:
        return f"run {number} of {len(self._runs)}"

    def _entry(self, record: Record) -> leaderboard.Entry:
        reason = {"error": record.reason} if record.reason else {}
        try:
            summary = json.loads((self.directory / record.name / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # there is none, or the run was stopped in the middle of it
            summary = {}
        return leaderboard.Entry(record.name, record.values, record.status, {**reason, **summary})


def _pairs(overrides: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the key and the value of each override."""
    for text in overrides:
        key, _, value = text.partition("=")
        yield key.lstrip("+~"), value


def _print(line: str) -> None:
    print(line, flush=True)


def _file_name(text: str) -> str:
    """Return a text as a file's name; where that loses something, a digest of the whole text follows."""
    safe = re.sub(r"[^A-Za-z0-9_.=,+[\]-]+", "_", text)[:_LONGEST]
    return safe if safe == text else f"{safe}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _read(file: Path) -> Record:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        overrides = tuple(map(str, content.pop("overrides")))
        return Record(name=file.name.removesuffix(".json"), overrides=overrides, **content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no record of a run: {error!r}; remove it, and the run begins anew") from None
