"""Learning-rate schedules: the factor of the learning rate, as a pure function of the step.

Every schedule is called as `schedule(step, steps)`, with `step` counted from 0 in a run of `steps`. Its keyword-only
parameters are its options, set from `configs/schedule/<name>.yaml`; `check_schedule` checks their ranges, once.
"""

import math
from collections.abc import Callable

from minigrad.errors import UserError
from minigrad.options import Range, check_options

Schedule = Callable[[int, int], float]


def constant(step: int, steps: int) -> float:
    """Return 1: the learning rate stays as it is.

    Args:
        step: from 0 to below `steps`.
        steps: of the run.
    """
    return 1.0


def step_decay(step: int, steps: int, *, every: int = 500, factor: float = 0.1) -> float:
    """Return `factor` to the number of times that `every` steps have passed.

    Args:
        step: from 0 to below `steps`.
        steps: of the run.
        every: steps between two drops, at least 1.
        factor: of each drop, above 0, at most 1.
    """
    return factor ** (step // every)


def exponential(step: int, steps: int, *, factor: float = 0.999) -> float:
    """Return `factor` to the power of `step`.

    Args:
        step: from 0 to below `steps`.
        steps: of the run.
        factor: per step, above 0, at most 1.
    """
    return factor**step


def cosine(step: int, steps: int, *, final: float = 0.0) -> float:
    """Return half a cosine, from 1 at the first step to `final` when all steps are made.

    The last step is one short of `final`: with `final` 0 it would else change nothing.

    Args:
        step: from 0 to below `steps`.
        steps: of the run.
        final: from 0 to 1.

    Source: I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, equation 5,
        without restarts.
    """
    return _half_cosine(1.0, final, step / steps)


def one_cycle(step: int, steps: int, *, start: float = 0.04, final: float = 4e-6, peak_at: float = 0.3) -> float:
    """Return a rise from `start` to 1 and a fall to `final`, each along half a cosine.

    As in torch.optim.lr_scheduler.OneCycleLR with its cosine strategy and two phases, the last step is at `final`, and
    1 is reached at step `peak_at * steps - 1`. The source rises and falls along straight lines. Where there is no step
    before the peak, the first step is at 1.

    Args:
        step: from 0 to below `steps`.
        steps: of the run.
        start: from 0 to 1.
        final: from 0 to 1.
        peak_at: fraction of the run, from 0 to 1.

    Source: L. N. Smith and N. Topin, "Super-convergence: very fast training of neural networks using large learning
        rates", arXiv 1708.07120, 2018.
    """
    peak = max(peak_at * steps - 1, 0.0)
    if step < peak:
        return _half_cosine(start, 1.0, step / peak)
    fall = steps - 1 - peak
    return _half_cosine(1.0, final, (step - peak) / fall) if fall > 0 else 1.0


def _half_cosine(begin: float, end: float, done: float) -> float:
    """Return the value between `begin` and `end` when the fraction `done` of the way is made."""
    remaining = (1 + math.cos(math.pi * done)) / 2
    return remaining * begin + (1 - remaining) * end


def warm_up(schedule: Schedule, warmup_steps: int) -> Schedule:
    """Return a schedule that rises linearly to where another one begins, then runs it over the remaining steps.

    A step of the rise has `(step + 1) / warmup_steps` of that height, so the first step is not lost. A run that is not
    longer than the rise ends within it.

    Args:
        schedule: begins when the rise is over.
        warmup_steps: length of the rise, from 0 on; 0 leaves the schedule as it is.

    Raises:
        UserError: `warmup_steps` is negative.

    Source: P. Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", arXiv 1706.02677, 2017,
        section 2.2.
    """
    if warmup_steps < 0:
        raise UserError(f"warmup_steps={warmup_steps}: expected an integer from 0 on")

    def warmed_up(step: int, steps: int) -> float:
        remaining = max(steps - warmup_steps, 1)
        if step < warmup_steps:
            return (step + 1) / warmup_steps * schedule(0, remaining)
        return schedule(step - warmup_steps, remaining)

    return warmed_up


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "step": step_decay,
    "exponential": exponential,
    "cosine": cosine,
    "one_cycle": one_cycle,
}

_FRACTION: Range = (lambda value: 0 <= value <= 1, "a number from 0 to 1")

RANGES: dict[str, Range] = {
    "every": (lambda value: isinstance(value, int) and value >= 1, "an integer from 1 on"),
    "factor": (lambda value: 0 < value <= 1, "a number above 0, at most 1"),
    "start": _FRACTION,
    "final": _FRACTION,
    "peak_at": _FRACTION,
}


def check_schedule(schedule: Callable[..., float]) -> None:
    """Check the options that a schedule is bound to, its defaults included; do so before `warm_up` hides them.

    Args:
        schedule: an entry of SCHEDULES, or a functools.partial of one that binds its options.

    Raises:
        UserError: an option is out of its range; the message names it, its value and what was expected.
    """
    check_options(schedule, "schedule", RANGES)
