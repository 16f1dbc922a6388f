"""Gradient descent by hand, a few lines of PyTorch: by default 20 steps down (x - 3)^2 + 1 from x = 0.

The gradient points where the loss rises fastest, so every step goes against it, `learning_rate` times as far as the
gradient is long. `descend` below is all there is to it, for one variable and for a network:

1. Zero the gradient, because `backward` adds to what is there.
2. Compute the loss, and by `backward` its gradient.
3. Change the parameters, inside `torch.no_grad()`: the update is no part of what is differentiated.

On the parabola a step multiplies the distance to the minimum by 1 - 2 learning_rate: x creeps there below 1/2, is there
at once at 1/2, goes to and fro above it, at 1 between two points, and away for good above. What the loop does is
compared with that, and with `minigrad.Trainer`, which has to end at the same bits.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minigrad import path
from minigrad.config import check, check_learning_rate, show
from minigrad.errors import RunFailed
from minigrad.figures import BLUE, RED, panels
from minigrad.objectives.function import Function
from minigrad.objectives.landscapes import parabola
from minigrad.objectives.objective import Objective
from minigrad.recipe import ObjectiveConfig
from minigrad.rules import gradient_descent
from minigrad.run import Run
from minigrad.tensors import total_norm
from minigrad.trainer import Trainer
from minigrad.verification import verify

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 12  # of the table at either end; a run that is not much longer is shown whole


@dataclass(kw_only=True)
class Config(ObjectiveConfig):
    """The keys of this experiment."""

    learning_rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_learning_rate("learning_rate", self.learning_rate)
        beside = self.epochs is None or self.steps is None
        check(beside, "epochs", self.epochs, f"null beside steps={show(self.steps)}; give steps=null")


def descend(objective: Objective, learning_rate: float, steps: int) -> list[Tensor]:
    """Descend, and return what was seen before every step and after the last, a row of `look` each."""
    parameters = objective.parameters().values()
    seen = []
    for step in range(steps + 1):
        for p in parameters:
            p.grad = None  # zeroed: `backward` makes a new one
        loss = objective.loss(objective.batch(step))
        loss.backward()
        seen.append(look(objective, loss))
        if step == steps:
            break  # the last look goes no further
        with torch.no_grad():
            for p in parameters:
                assert p.grad is not None
                p.sub_(p.grad, alpha=learning_rate)  # p -= learning_rate * p.grad, rounded once and not twice
    return seen


def look(objective: Objective, loss: Tensor) -> Tensor:
    """Return the loss, the gradient's length, and where there are one or two variables these and their gradient."""
    gradients = [p.grad for p in objective.parameters().values() if p.grad is not None]
    numbers = [loss.detach(), total_norm([torch.linalg.vector_norm(gradient) for gradient in gradients])]
    x = variables(objective)
    if x is not None:
        assert x.grad is not None
        numbers += [*x.detach().view(-1), *x.grad.view(-1)]
    return torch.stack(numbers)  # on the device, a copy: nothing here waits for it


def variables(objective: Objective) -> Tensor | None:
    """Return the point that moves, if it is one of one or two variables."""
    return objective.x if isinstance(objective, Function) and objective.x.numel() <= 2 else None


@dataclass(frozen=True)
class Descent:
    """What was seen before every step and after the last, on the host in float64.

    Attributes:
        loss: (steps + 1,).
        gradient_norm: (steps + 1,), Euclidean, of all parameters together.
        x: (steps + 1, D), D = 0 where there are more than two variables.
        gradient: (steps + 1, D), by each of them.
    """

    loss: Tensor
    gradient_norm: Tensor
    x: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, seen: list[Tensor]) -> "Descent":
        """Copy what was seen to the host, at once."""
        table = torch.stack(seen).cpu().double()
        loss, norm, *rest = table.unbind(1)
        d = len(rest) // 2
        return cls(loss, norm, table[:, 2 : 2 + d], table[:, 2 + d :])

    @property
    def finite(self) -> int:
        """How many there are before the first loss or gradient that is not finite."""
        bad = ~(self.loss.isfinite() & self.gradient_norm.isfinite())
        return int(bad.long().argmax()) if bad.any() else len(bad)


def run(config: Config, run: Run) -> str:
    """Descend, show every step, and verify where it led."""
    objective = config.new_objective(run.device)
    for note in objective.notes:
        print(note, flush=True)
    steps = config.total_steps(objective)
    descent = Descent.of(descend(objective, config.learning_rate, steps))
    run.steps = min(steps, descent.finite)
    report(run, descent)
    if descent.finite <= steps:
        loss, norm = float(descent.loss[run.steps]), float(descent.gradient_norm[run.steps])
        smaller = f"a smaller learning_rate than {config.learning_rate:g} may help"
        advice = smaller if run.steps > 0 else "start where they are finite"
        raise RunFailed(f"step {run.steps}: the loss is {loss:g}, the norm of the gradient {norm:g}; {advice}")
    judged = {tag: value.item() for tag, value in objective.judge().items()}
    run.scalars(steps, judged)
    draw(run, objective, descent, config.learning_rate)

    verify_against_trainer(config.new_objective(run.device), objective, descent, config.learning_rate)
    found = f"the trainer's {steps} steps end at the same bits"
    if isinstance(objective, Function) and objective.landscape.value is parabola:
        verify_parabola(descent, config.learning_rate)
        found += ", and every x is 3 + (x_0 - 3) (1 - 2 learning_rate)^k"
    return f"verified: {found}; " + ", ".join(f"{tag} {value:.4g}" for tag, value in judged.items())


def report(run: Run, descent: Descent) -> None:
    """Write the curves as far as they are finite, and print the first and the last steps of them."""
    d = descent.x.shape[1]
    names = ("x", "y")[:d]
    columns = ("step", *names, "loss", "gradient" if d == 1 else "gradient norm")
    last = descent.gradient[:, 0] if d == 1 else descent.gradient_norm
    rows = [(i, *descent.x[i].tolist(), float(descent.loss[i]), float(last[i])) for i in range(descent.finite)]
    for i, (_, *x, loss, _) in enumerate(rows):
        values = {"train/loss": loss, "gradient_norm": float(descent.gradient_norm[i])}
        run.scalars(i, values if d != 1 else {**values, "x": x[0]})
    if len(rows) > 3 * ROWS:
        print(f"the first {ROWS} and the last {ROWS} of {len(rows)} rows, all of them in TensorBoard's curves:")
        rows = rows[:ROWS] + rows[-ROWS:]
    run.table("manual_descent/steps", columns, rows)


def verify_against_trainer(fresh: Objective, objective: Objective, descent: Descent, learning_rate: float) -> None:
    """Hold the loop to the trainer's steps from the same start, over the same batches.

    Args:
        fresh: the objective as it starts.
        objective: where the loop has led it.
        descent: what the loop has seen.
        learning_rate: of both.

    Raises:
        RunFailed: a loss, a gradient's norm or a parameter differs.
    """
    trainer = Trainer(fresh, gradient_descent, learning_rate)
    record = trainer.advance(len(descent.loss) - 1)
    verify("the loss of every step", descent.loss[:-1], record.loss)
    norm = record.gradient_norm.double()
    # Summed in another order, perhaps: float32 keeps 1e-5 of the largest in any.
    verify("the gradient norm of every step", descent.gradient_norm[:-1], norm, within=1e-5 * float(norm.max()))
    for name, p in objective.parameters().items():
        verify(f"{name} after the last step", p, trainer.parameters[name])


def verify_parabola(descent: Descent, learning_rate: float) -> None:
    """Hold every x to 3 + (x_0 - 3) (1 - 2 learning_rate)^k, and loss and gradient to that x.

    float32 rounds to u = 2^-24 of the result: x - 3, the learning rate, its product with the gradient, and the new x,
    each step; the doubling in the gradient is exact. What this shifts x by is multiplied by the same factor as x. What
    is expected here is rounded too, to float64.

    Raises:
        RunFailed: one is further off than its rounding.
    """
    limits, double = torch.finfo(torch.float32), torch.finfo(torch.float64).eps
    u, smallest = limits.eps / 2, limits.tiny
    x, gradient = descent.x[:, 0], 2 * (descent.x[:, 0] - 3)
    verify("the gradient of every step", descent.gradient[:, 0], gradient, within=u * float(gradient.abs().max()))
    loss = (x - 3) ** 2 + 1
    verify("the loss of every step", descent.loss, loss, within=4 * u * float(loss.max()))
    factor, distance = 1 - 2 * learning_rate, float(x[0]) - 3
    off = double * (3 + abs(distance))
    for k, found in enumerate(x.tolist()):
        verify(f"x after {k} steps", found, 3 + distance, within=off)
        update = 2 * learning_rate * (abs(distance) + off)
        distance *= factor
        off = abs(factor) * off + u * (abs(3 + distance) + 4 * update) + double * (3 + abs(distance)) + smallest


def draw(run: Run, objective: Objective, descent: Descent, learning_rate: float) -> None:
    """Draw loss and gradient over the steps and, where it can be seen, the path over the function."""
    figure, ((left, right),) = panels(1, 2)
    floor = lowest(objective)
    if floor is None:
        _plot(left, descent.loss, "loss", BLUE, "-")
    else:
        _plot(left, (descent.loss - floor).clamp(min=0), f"loss above its minimum of {floor:.4g}", BLUE, "-")
        _logarithmic(left, descent.loss - floor)
    _plot(right, descent.gradient_norm, "norm of the gradient", RED, "--")
    _logarithmic(right, descent.gradient_norm)
    figure.suptitle(f"Gradient descent by hand, learning rate {learning_rate:g}")
    run.figure("manual_descent", figure)

    x = variables(objective)
    if x is not None:
        assert isinstance(objective, Function)
        passed = path.Path(len(descent.x) - 1)
        for step, point in enumerate(descent.x):
            passed.add(step, point)
        run.figure("path", path.draw(objective.landscape, passed, x))


def lowest(objective: Objective) -> float | None:
    """Return the least value that the function has anywhere; None where it is unknown."""
    if not isinstance(objective, Function) or not objective.landscape.minima:
        return None
    minimum = torch.tensor(objective.landscape.minima[0], dtype=torch.float64)
    return float(objective.landscape.value(minimum.reshape(objective.landscape.shape)))


def _plot(axes: "Axes", values: Tensor, name: str, color: str, line: str) -> None:
    steps = len(values)
    axes.plot(values, color=color, ls=line, lw=1.8, marker="o" if steps <= 60 else "", ms=4)
    axes.set(xlabel="step", ylabel=name, xlim=(-0.02 * steps, 1.02 * steps))
    axes.locator_params(axis="x", integer=True)


def _logarithmic(axes: "Axes", values: Tensor) -> None:
    """Scale an axis by the logarithm; where there are zeros, linearly between the least positive value and 0."""
    positive = values[values > 0]
    if len(positive) == len(values):
        axes.set_yscale("log")
    elif len(positive) > 0:
        axes.set_yscale("symlog", linthresh=float(positive.min()))
