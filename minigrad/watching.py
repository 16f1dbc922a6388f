"""A run that is watched: what its monitor sees, as curves, in words, in a table and in a figure."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from minigrad import tables
from minigrad.errors import UserError
from minigrad.monitoring.monitor import GradientMonitor
from minigrad.monitoring.presentation import draw_gain, layer_rows, parameter_rows
from minigrad.monitoring.readings import FLOW
from minigrad.monitoring.thresholds import Thresholds
from minigrad.monitoring.verdicts import Verdict
from minigrad.options import options_of
from minigrad.run import Run

_MOST_COLUMNS = 500  # of the figure; narrower ones can hardly be seen
_DRAWN = [FLOW.index("gain"), FLOW.index("norm")]


class Watching:
    """A monitor, and what becomes of its readings in a run.

    Args:
        monitor: of what the run trains.
        run: where to report.
        total: steps of the run.
        thresholds: the monitor's.

    Attributes:
        monitor: watches while it is attached.
        verdicts: what was wrong when it was last judged.
    """

    def __init__(self, monitor: GradientMonitor, run: Run, total: int, thresholds: Thresholds) -> None:
        self.monitor = monitor
        self.verdicts: Sequence[Verdict] = ()
        self._run = run
        self._thresholds = thresholds
        self._said: set[tuple[str, bool]] = set()
        self._stride = 1
        while total > _MOST_COLUMNS * self._stride:
            self._stride *= 2
        self._drawn: dict[int, list[list[float]]] = {}  # by step, for each layer: its gain and its gradient's norm

    def points(self) -> list[dict[str, float]]:
        """Return the numbers of each step since the last time, by their tags."""
        readings = self.monitor.read()
        for i in range(-readings.first_step % self._stride, len(readings), self._stride):
            self._drawn[readings.first_step + i] = readings.flow[i, :, _DRAWN].tolist()
        return readings.points()

    def judge(self) -> None:
        """Say what is wrong in the last steps and was not before."""
        before = self.verdicts
        self._keep(self.monitor.verdicts())
        if list(map(str, before)) != list(map(str, self.verdicts)):
            words = "\n".join(f"- {verdict}" for verdict in self.verdicts)
            self._run.text("flow/verdicts", words or "nothing is wrong any more")
        for verdict in self.verdicts:
            key = (verdict.kind, verdict.where == "")  # the worst layer may be another each time
            if key not in self._said:
                self._said.add(key)
                print(f"step {self._run.steps}: {verdict}", flush=True)

    def _keep(self, verdicts: Sequence[Verdict]) -> None:
        self.verdicts = verdicts
        self._run.verdicts = list(dict.fromkeys(verdict.kind for verdict in verdicts))

    def end(self) -> None:
        """Show what the last steps were like, and say what is wrong yet."""
        self.show()
        for verdict in self.verdicts:
            print(verdict, flush=True)

    def show(self) -> None:
        """Show what the last steps were like: a table, and a figure over all the run."""
        history = self.monitor.history
        if len(history) == 0:
            return
        self._run.text("flow/parameters", tables.markdown(*parameter_rows(history, self.verdicts)))
        if history.layers:
            print(f"the layers, medians over the last {len(history)} steps:")
            self._run.table("flow/layers", *layer_rows(history, self.verdicts))
            gains, norms = torch.tensor(list(self._drawn.values()), dtype=torch.float64).unbind(-1)  # (times, layers)
            self._run.figure("flow", draw_gain(list(self._drawn), gains, norms, list(history.layers), self._thresholds))

    def state_dict(self) -> dict[str, Any]:
        """Return all that later points, verdicts and the figure depend on; the tensors are those in use."""
        return {
            "monitor": self.monitor.state_dict(),
            "said": sorted(self._said),
            "verdicts": [[v.kind, v.where, v.message, list(v.also)] for v in self.verdicts],
            "stride": self._stride,
            "steps": list(self._drawn),
            "drawn": torch.tensor(list(self._drawn.values()), dtype=torch.float64),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, perhaps in a longer run, once the model has its parameters of then."""
        self.monitor.load_state_dict(saved["monitor"])
        self._said = {(str(kind), bool(whole)) for kind, whole in saved["said"]}
        self._keep([Verdict(kind, where, message, tuple(also)) for kind, where, message, also in saved["verdicts"]])
        self._stride = max(self._stride, int(saved["stride"]))
        drawn = zip(saved["steps"], saved["drawn"].tolist(), strict=True)
        self._drawn = {step: layers for step, layers in drawn if step % self._stride == 0}


def gradients(
    model: nn.Module,
    run: Run,
    total: int,
    *,
    window: int,
    share: float,
    vanishing: float,
    depth_vanishing: float,
    exploding: float,
    saturated: float,
    dead: float,
    false_zeros: float,
    ratio_high: float,
    ratio_low: float,
) -> Watching:
    """Watch the gradient in every layer and every step; the options are those of `GradientMonitor` and `Thresholds`."""
    thresholds = Thresholds(
        share, vanishing, depth_vanishing, exploding, saturated, dead, false_zeros, ratio_high, ratio_low
    )
    return Watching(GradientMonitor(model, thresholds, window, run.ranks), run, total, thresholds)


def none(model: nn.Module, run: Run, total: int) -> None:
    """Watch nothing."""


MONITORS: dict[str, Callable[..., Watching | None]] = {"gradients": gradients, "none": none}


def check_monitor(monitor: Callable[..., Watching | None]) -> None:
    """Check the options that a monitor is bound to.

    Args:
        monitor: an entry of MONITORS, or a functools.partial of one that binds its options.

    Raises:
        UserError: an option is out of its range.
    """
    options = options_of(monitor)
    window = options.pop("window", 1)
    if window < 1:
        raise UserError(f"monitor.window={window}: expected an integer from 1 on")
    try:
        Thresholds(**options)
    except UserError as error:
        raise UserError(f"monitor.{error}") from None
