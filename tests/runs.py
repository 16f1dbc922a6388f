"""Runs of the command line in this process, and what they leave behind.

All paths are relative: a test works in an empty folder of its own.
"""

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from minigrad.checkpoints import Checkpoints
from minigrad.train import main
from minigrad.trainer import Trainer


def run(name: str, *overrides: str) -> dict[str, Any]:
    """Run to the end in a new directory; return the summary."""
    assert main([f"run_dir={name}", *overrides]) == 0
    return summary(name)


def resume(name: str, *overrides: str) -> dict[str, Any]:
    """Resume and run to the end; return the summary."""
    assert main([f"resume={name}", *overrides]) == 0
    return summary(name)


def summary(name: str) -> dict[str, Any]:
    """Return a run's summary."""
    found: dict[str, Any] = json.loads(Path(name, "summary.json").read_text())
    return found


def curves(name: str) -> dict[str, list[tuple[int, float]]]:
    """Return all curves as TensorBoard shows them: the steps and values by tag."""
    events = EventAccumulator(name, {"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def steps(curve: list[tuple[int, float]]) -> list[int]:
    """Return the steps of a curve."""
    return [step for step, _ in curve]


def checkpoints(name: str) -> list[int]:
    """Return the steps of a run's checkpoints."""
    return sorted(int(file.stem) for file in Path(name, "checkpoints").glob("*.pt"))


def last_checkpoint(name: str) -> dict[str, Any]:
    """Return the content of a run's newest checkpoint, which is whole."""
    content = Checkpoints(Path(name, "checkpoints"), keep=1).newest(complain=pytest.fail)
    assert content is not None
    return content


def bits(value: Any) -> Any:
    """Return a checkpoint's content as plain values that are equal only if all its bits are."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, Mapping):
        return {key: bits(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [bits(inner) for inner in value]
    return value.hex() if isinstance(value, float) else value


def outcome(name: str) -> dict[str, Any]:
    """Return all that two runs have in common if the one is the other, interrupted and resumed."""
    content = last_checkpoint(name)
    del content["seconds"]
    ended = {key: value for key, value in summary(name).items() if key not in ("seconds", "steps_per_second")}
    best = json.loads(Path(name, "checkpoints", "best.json").read_text())
    return {"checkpoint": bits(content), "curves": curves(name), "summary": ended, "best": best}


def module(code: str) -> str:
    """Write a module that was never imported into the current folder; return its name."""
    name = f"mine_{uuid4().hex}"
    Path(f"{name}.py").write_text(code)
    return name


@contextmanager
def signalled_after(step: int, number: int = signal.SIGINT) -> Iterator[None]:
    """Send this process a signal when a trainer has made so many steps."""
    whole = Trainer.step

    def step_and_signal(self: Trainer) -> Any:
        report = whole(self)
        if self.steps == step:
            signal.raise_signal(number)
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step_and_signal)
        yield
