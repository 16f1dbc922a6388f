"""What a gradient is, and what PyTorch keeps to find it: z = x^2 + 2y + 1, by default at x = 2, y = 3.

A tensor made with `requires_grad=True` is a leaf: a variable to differentiate by. What is computed from it requires a
gradient too, is no leaf, and remembers in its `grad_fn` how it was computed. `z.backward()` follows these memories back
and leaves in each leaf's `.grad` how fast z changes with it, the slope of the tangent: dz/dx = 2x and dz/dy = 2. What
is computed on the way keeps no `.grad`: the gradient passes through it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minigrad.config import RunConfig, check
from minigrad.figures import BLUE, RED, legend_below, mark, panels
from minigrad.run import Run
from minigrad.verification import verify, verify_that

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Config(RunConfig):
    """The keys of this experiment."""

    x: float
    y: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value in (("x", self.x), ("y", self.y)):
            check(abs(value) <= 1e18, key, value, "a number from -1e18 to 1e18, whose square float32 can hold")


def run(config: Config, run: Run) -> str:
    """Differentiate, show what became of each tensor, and verify the two slopes."""
    x = torch.tensor(config.x, device=run.device, requires_grad=True)
    y = torch.tensor(config.y, device=run.device, requires_grad=True)
    square = x**2
    z = square + 2 * y + 1
    z.backward()
    assert x.grad is not None
    assert y.grad is not None
    dx, dy = x.grad.item(), y.grad.item()

    tensors = {"x": x, "y": y, "x^2": square, "z": z}
    columns = ("tensor", "value", "requires_grad", "grad_fn", "is_leaf", "grad")
    run.table("gradient_basics/tensors", columns, [(name, *_row(tensor)) for name, tensor in tensors.items()])
    run.scalars(0, {"gradient_basics/z": z.item(), "gradient_basics/dx": dx, "gradient_basics/dy": dy})
    run.figure("gradient_basics", draw(config.x, config.y, dx, dy))

    exact = config.x**2 + 2 * config.y + 1
    verify("z", z, exact, within=1e-6 * (config.x**2 + 2 * abs(config.y) + 1))  # some roundings of float32
    verify("dz/dx", dx, 2 * x)
    verify("dz/dy", dy, 2)
    verify_that("x and y are leaves, and z is not", x.is_leaf and y.is_leaf and not z.is_leaf)
    verify_that("z knows how it was computed, and a leaf does not", z.grad_fn is not None and x.grad_fn is None)
    return f"verified: dz/dx = {dx:g}, dz/dy = {dy:g}"


def _row(tensor: Tensor) -> tuple[str, ...]:
    made_by = "none" if tensor.grad_fn is None else tensor.grad_fn.name()
    gradient = f"{tensor.grad.item():g}" if tensor.is_leaf and tensor.grad is not None else "none"
    return f"{tensor.item():g}", str(tensor.requires_grad), made_by, str(tensor.is_leaf), gradient


def draw(x: float, y: float, dx: float, dy: float) -> "Figure":
    """Draw z over each variable, the other held fixed, and the tangent whose slope is the gradient."""
    figure, ((over_x, over_y),) = panels(1, 2)
    around, z = torch.linspace(-3, 3, 101), x**2 + 2 * y + 1
    for axes, name, at, values, slope in (
        (over_x, "x", x, (x + around) ** 2 + 2 * y + 1, dx),
        (over_y, "y", y, x**2 + 2 * (y + around) + 1, dy),
    ):
        tangent = z + slope * around
        axes.plot(at + around, values, color=BLUE, lw=2, label="z")
        axes.plot(at + around, tangent, color=RED, ls="--", lw=1.6, label="tangent: its slope is the gradient")
        mark(axes, at, z, "the point")
        axes.set(xlabel=name, ylabel="z", title=f"dz/d{name} = {slope:g}")
    legend_below(figure)
    return figure
