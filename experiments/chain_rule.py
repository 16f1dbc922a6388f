"""The chain rule: y = sin(x^2) differentiated by hand, by autograd and by differences, by default at x = 1.

With u = x^2 in between, dy/dx = dy/du * du/dx = cos(u) * 2x. Autograd multiplies the same two factors, and agrees to
rounding. A central difference, (y(x + h) - y(x - h)) / 2h, knows nothing of the inside and is only an approximation:
its truncation error, h^2 |y'''| / 6, falls with h, while the rounding of y, some eps, is divided by ever smaller h.
With a step near eps^(1/3) ten or eleven of the sixteen digits can be counted on; the best of many steps may do better
by luck, where the two errors cancel.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import minigrad
from minigrad.config import RunConfig, check, check_at_least, check_one_of
from minigrad.figures import BLUE, ORANGE, RED, legend_below, mark, panels
from minigrad.run import Run
from minigrad.verification import verify

EPS = torch.finfo(torch.float64).eps


# y = outer(u) and its first three derivatives by hand, u >= 0, without the cancellation of 1 - y where y is close to 1.


def _sin(u: float) -> tuple[float, float, float, float]:
    return math.sin(u), math.cos(u), -math.sin(u), -math.cos(u)


def _sigmoid(u: float) -> tuple[float, float, float, float]:
    e = math.exp(-u)
    y, s = 1 / (1 + e), e / (1 + e) ** 2
    return y, s, s * (1 - 2 * y), s * (1 - 6 * s)


def _tanh(u: float) -> tuple[float, float, float, float]:
    e = math.exp(-2 * u)
    y, s = (1 - e) / (1 + e), 4 * e / (1 + e) ** 2
    return y, s, -2 * y * s, s * (4 - 6 * s)


Outer = Callable[[Tensor], Tensor]
# The function, the name of its derivative, and what it is by hand.
OUTER: dict[str, tuple[Outer, str, Callable[[float], tuple[float, float, float, float]]]] = {
    "sin": (torch.sin, "cos(u)", _sin),
    "sigmoid": (minigrad.sigmoid, "e^-u / (1 + e^-u)^2", _sigmoid),
    "tanh": (minigrad.tanh, "1 / cosh(u)^2", _tanh),
}


@dataclass
class Config(RunConfig):
    """The keys of this experiment."""

    x: float
    outer: str
    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        # Further out the rounding of x^2, which the outer function takes for a change of x, costs differences too much.
        check(-100 <= self.x <= 100, "x", self.x, "a number from -100 to 100")
        check_one_of("outer", self.outer, OUTER)
        check_at_least("steps", self.steps, 10)


def run(config: Config, run: Run) -> str:
    """Differentiate in three ways, show the factors and the errors, and verify that all agree."""
    outer, derivative_name, by_hand = OUTER[config.outer]
    x0 = config.x
    u0 = x0 * x0
    y0, g1, g2, g3 = by_hand(u0)
    first, second, third = 2 * x0 * g1, 2 * g1 + 4 * u0 * g2, 12 * x0 * g2 + 8 * x0 * u0 * g3  # of y by x

    x = torch.tensor(x0, dtype=torch.float64, device=run.device, requires_grad=True)
    u = x**2
    y = outer(u)
    dy_du, dy_dx = torch.autograd.grad(y, (u, x), retain_graph=True)
    (du_dx,) = torch.autograd.grad(u, x)

    rows = [
        ("u = x^2", u0, u.item()),
        (f"y = {config.outer}(u)", y0, y.item()),
        ("du/dx = 2x", 2 * x0, du_dx.item()),
        (f"dy/du = {derivative_name}", g1, dy_du.item()),
        ("dy/dx = dy/du * du/dx", first, dy_dx.item()),
    ]
    columns = ("step", "by hand", "autograd", "difference")
    cells = [(name, f"{hand:.15g}", f"{auto:.15g}", f"{abs(auto - hand):.1e}") for name, hand, auto in rows]
    run.table("chain_rule/factors", columns, cells)

    size = max(1.0, abs(x0))
    # The function changes over lengths of 1/x, and so do the steps that suit it; those that x + h cannot hold do not.
    h = torch.logspace(math.log10(1e-13 * size), math.log10(1 / size), config.steps, dtype=torch.float64)
    found = differences(outer, x0, h.to(run.device)).cpu()
    error = (found - first).abs()
    # Rounding: of y itself, and of u, which moves y by g1 times as much; half an eps each, of two values, over 2h.
    truncation, rounding = h**2 * abs(third) / 6, EPS * (abs(y0) + u0 * abs(g1)) / (2 * h)
    best = int(error.argmin())
    run.scalars(
        0,
        {
            "chain_rule/y": y.item(),
            "chain_rule/dy_dx": dy_dx.item(),
            "chain_rule/best_step": h[best].item(),
            "chain_rule/best_error": error[best].item(),
        },
    )
    _draw(run, config, h, error, truncation, rounding, best)

    report = minigrad.check_gradients(
        lambda x: outer(x**2),
        x,
        closed_forms=[lambda x: torch.full_like(x, first), lambda x: torch.full_like(x, second)],
        step=EPS ** (1 / 3) / size**2,  # times |x| that is eps^(1/3) of the length over which the function changes
        rounding=1000 * EPS * size**2,  # the two terms of the second derivative grow as x^2 and may cancel
    )
    print(f"{report}\n", flush=True)
    run.text("chain_rule/report", f"```\n{report}\n```")

    for name, hand, auto in rows:
        # To 1e-12 of the value where it is large: float64 gives each number 16 digits, wherever its point is.
        verify(name, auto, hand, within=1e-12 * max(1.0, abs(hand)))
    # The best that differences can do grows with x: y''' as x^3 and the rounding of u as x^2 make it x^(7/3).
    verify("dy/dx by differences, at the best step", found[best], first, within=1e-8 * size ** (7 / 3))
    # Twice the two lines; what the rounding of points and values at x + h adds where h is larger than x, some eps h;
    # and for the h^4 that follows h^2, at most 2500 max(1, |x|)^5 / 120 for all three.
    bound = 2 * (truncation + rounding) + 4 * EPS * h + 2500 / 120 * h**4 * size**5
    over = (error - bound).clamp(min=0)[h * size <= 0.1]
    verify("by how much the error of differences is more than truncation and rounding explain", over, 0)
    return f"verified: dy/dx = {dy_dx.item():.12g}, by hand and by autograd; by differences within {error[best]:.1g}"


def differences(outer: Outer, x: float, h: Tensor) -> Tensor:
    """Return the central differences of outer(x^2) at x for all steps h, (steps,) float64."""
    up, down = x + h, x - h
    return (outer(up**2) - outer(down**2)) / (up - down)  # up - down is 2h as the two points were rounded


def _draw(run: Run, config: Config, h: Tensor, error: Tensor, truncation: Tensor, rounding: Tensor, best: int) -> None:
    """Draw the V of the error over the step, between the two lines that bound it."""
    figure, ((axes,),) = panels()
    floor = EPS / 100  # where an error of 0, which has no place on a logarithmic axis, is drawn
    axes.loglog(h, error.clamp(min=floor), ".-", color=BLUE, lw=1, ms=4, label="error of the central difference")
    axes.loglog(h, truncation, color=RED, ls="--", lw=1.6, label="truncation: $h^2 |y'''| / 6$")
    axes.loglog(
        h, rounding, color=ORANGE, ls=":", lw=2.4, label=r"rounding: at most $\epsilon (|y| + |u\, dy/du|) / 2h$"
    )
    if error[best] > 0:
        mark(axes, h[best].item(), max(error[best].item(), floor), f"the best step: h = {h[best]:.1e}")
    axes.set(
        xlabel="step h",
        ylabel="absolute error of dy/dx",
        title=f"y = {config.outer}(x$^2$) at x = {config.x:g}",
        ylim=(floor / 2, max(10 * error.max().item(), 1e-6)),
    )
    legend_below(figure)
    run.figure("chain_rule", figure)
