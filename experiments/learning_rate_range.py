"""Find a learning rate: raise it exponentially from step to step, and see where the loss falls and where it diverges.

While the learning rate is too small the loss hardly moves; then it falls; then it jumps about and diverges. The rate at
which it has fallen half of its way is suggested: it falls fastest about there, and the edge is some way off. A batch's
loss is noisy, so it is smoothed by an exponential moving average, corrected for its start.

Source: L. N. Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3; to take the middle
    of the fall is customary, not Smith's.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minigrad.config import check, check_at_least, check_learning_rate, check_positive, show
from minigrad.errors import RunFailed
from minigrad.figures import BLUE, RED, panels
from minigrad.interruption import requested
from minigrad.progress import progress
from minigrad.recipe import Recipe
from minigrad.record import NonFiniteError, Record
from minigrad.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORY = 0.95  # of the moving average: what remains of it at every step
DIVERGED = 3.0  # times what it has fallen, or half of what it was at first, above the lowest: there the test ends
LOOK_EVERY = 10  # steps


@dataclass(kw_only=True)
class Config(Recipe):
    """The keys of this experiment; the learning rate is what it finds."""

    lowest: float
    highest: float

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.learning_rate
        check(given is None, "learning_rate", given, "null: this experiment finds it, from lowest to highest")
        check_positive("lowest", self.lowest)
        check_learning_rate("highest", self.highest)
        check(self.lowest < self.highest, "highest", self.highest, f"more than lowest={show(self.lowest)}")


@dataclass(frozen=True)
class Found:
    """What the test measured, and what follows.

    Attributes:
        rates: (steps,), the learning rate of each step.
        loss: (steps,), that of each step's batch.
        smoothed: (steps,), its moving average.
        lowest: the learning rate at which the smoothed loss is lowest.
        suggestion: the first learning rate at which it has fallen half of the way to there.
        diverged: whether the loss did, before the highest learning rate.
    """

    rates: Tensor
    loss: Tensor
    smoothed: Tensor
    lowest: float
    suggestion: float
    diverged: bool


def run(config: Config, run: Run) -> str:
    """Measure, plot and suggest; return the suggestion."""
    objective = config.new_objective(run.device)
    for note in objective.notes:
        print(note, flush=True)
    total = config.total_steps(objective)
    check_at_least("steps", total, 2 * LOOK_EVERY)
    growth = (config.highest / config.lowest) ** (1 / (total - 1))
    trainer = config.new_trainer(objective, lambda step: config.lowest * growth**step, on_nonfinite="stop")
    records: list[Record] = []
    diverged = False
    with requested() as interruption, progress(total) as report:
        while trainer.steps < total and not diverged:
            try:
                records.append(trainer.advance(min(LOOK_EVERY, total - trainer.steps), interruption.made))
            except NonFiniteError as error:
                records.append(error.record)
                diverged = True
            run.steps = trainer.steps
            write(run, records[-1])
            interruption.honour()
            loss = torch.cat([record.loss for record in records]).double()
            diverged = diverged or has_diverged(smooth(loss))
            if len(loss) > 0:
                report(trainer.steps, {"train/loss": float(loss[-1])})
    rates = torch.cat([record.learning_rate for record in records])
    found = find(rates, loss, diverged)
    run.metrics.update(suggestion=found.suggestion)
    run.figure("learning_rate_range", draw(found))
    higher = "" if found.diverged else f"; the loss has not diverged up to highest={config.highest:g}: try a higher one"
    return f"learning_rate={found.suggestion:.2g} is suggested{higher}"


def write(run: Run, record: Record) -> None:
    """Write the points of the curves."""
    for step, (rate, loss) in enumerate(
        zip(record.learning_rate.tolist(), record.loss.tolist(), strict=True), record.first_step
    ):
        run.scalars(step, {"learning_rate": rate, "train/loss": loss})


def smooth(loss: Tensor) -> Tensor:
    """Return the exponential moving average of (steps,) losses, corrected for its start at zero."""
    average, smoothed = 0.0, []
    for step, value in enumerate(loss.tolist(), 1):
        average = MEMORY * average + (1 - MEMORY) * value
        smoothed.append(average / (1 - MEMORY**step))
    return torch.tensor(smoothed, dtype=torch.float64)


def has_diverged(smoothed: Tensor) -> bool:
    """Return whether the loss has risen far above its lowest, measured by how far it has fallen."""
    if len(smoothed) == 0:
        return True
    first, lowest, last = smoothed[0], smoothed.min(), smoothed[-1]
    return bool(last - lowest > DIVERGED * torch.maximum(first - lowest, first.abs() / 2))


def find(rates: Tensor, loss: Tensor, diverged: bool) -> Found:
    """Return what (steps,) learning rates and the losses under them show.

    Raises:
        RunFailed: the loss does not fall.
    """
    smoothed = smooth(loss)
    if len(smoothed) == 0 or not smoothed.min() < smoothed[0]:
        raise RunFailed("the loss falls at none of these learning rates; try a smaller lowest")
    halfway = (smoothed[0] + smoothed.min()) / 2
    lowest, suggestion = (float(rates[i]) for i in (smoothed.argmin(), (smoothed <= halfway).nonzero()[0, 0]))
    return Found(rates, loss, smoothed, lowest, suggestion, diverged)


def draw(found: Found) -> "Figure":
    """Draw the loss and its moving average over the learning rate, and mark the suggestion."""
    figure, ((axes,),) = panels()
    axes.plot(found.rates, found.loss, color="0.75", lw=0.8, label="loss of the batch")
    axes.plot(found.rates, found.smoothed, color=BLUE, lw=1.8, label="moving average")
    axes.axvline(found.lowest, color="0.4", ls=":", label=f"lowest: {found.lowest:.2g}")
    axes.axvline(found.suggestion, color=RED, ls="--", label=f"suggested: {found.suggestion:.2g}")
    low, first = float(found.smoothed.min()), float(found.smoothed[0])
    margin = 0.3 * (first - low)
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(low - margin, first + 2 * margin))
    axes.set_title("Loss while the learning rate rises from step to step")
    axes.legend(frameon=False)
    return figure
