"""What gradient comes back through a function: ReLU, sigmoid, tanh, square and sine over an interval, and its zeros.

A backward pass multiplies what comes from behind by the derivative. ReLU's is 0 or 1: it passes on or it blocks (at 0,
where there is none, PyTorch takes 0). Sigmoid's is 1/4 at most: every layer passes on a quarter of what comes, or less.
Tanh's reaches 1, but only around 0. Those of square and sine grow with x or change their sign.

Then bfloat16, in which much is trained: PyTorch finds the derivatives of sigmoid and tanh from their rounded output,
y (1 - y) and 1 - y^2, and where y has rounded to 1 nothing comes back at all, although bfloat16 has numbers for what
should. These are false zeros: only rounding has put them there. minigrad, which computes from x, has none.

Statistics are taken in float64 over equidistant points; the standard deviation is that of the points, divided by N.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import minigrad
from minigrad.config import RunConfig, check, check_at_least
from minigrad.figures import BLUE, GREY, RED, legend_below, panels
from minigrad.run import Run
from minigrad.verification import verify

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Each function, and its derivative written out, to be evaluated in float64.
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (minigrad.relu, lambda x: (x > 0).double()),
    "sigmoid": (minigrad.sigmoid, lambda x: 1 / (2 * (x / 2).cosh()).square()),
    "tanh": (minigrad.tanh, lambda x: 1 / x.cosh().square()),
    "square": (torch.square, lambda x: 2 * x),
    "sine": (torch.sin, lambda x: x.cos()),
}
# What there is to know of a gradient (N,).
STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "standard_deviation": lambda gradient: gradient.std(correction=0),
    "smallest": torch.amin,
    "largest": torch.amax,
    "zeros": lambda gradient: (gradient == 0).sum(),
}


@dataclass
class Config(RunConfig):
    """The keys of this experiment."""

    points: int
    reach: float
    bfloat16_reach: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("points", self.points, 2)
        for key, value in (("reach", self.reach), ("bfloat16_reach", self.bfloat16_reach)):
            check(0 < value <= 40, key, value, "a number above 0, 40 at most, where every derivative has its numbers")


@dataclass(frozen=True)
class Flow:
    """A function and its gradient over an interval, all (N,) float64 on the host.

    Attributes:
        x: increasing.
        y: the function's value, as computed in its dtype.
        gradient: likewise.
        true: the derivative.
    """

    x: Tensor
    y: Tensor
    gradient: Tensor
    true: Tensor

    @property
    def false_zeros(self) -> Tensor:
        """Return where a gradient in bfloat16 is 0 although bfloat16 has a number for the derivative, (N,) bool."""
        return (self.gradient == 0) & (self.true.bfloat16() != 0)


def flow(function: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor], x: Tensor) -> Flow:
    """Send a gradient of ones back through an elementwise function at x (N,)."""
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    y.backward(torch.ones_like(y))
    assert leaf.grad is not None
    exact = x.cpu().double()
    return Flow(exact, y.detach().cpu().double(), leaf.grad.cpu().double(), derivative(exact))


def run(config: Config, run: Run) -> str:
    """Send gradients back through the functions, in float32 and in bfloat16; show and verify what arrives."""
    steps = torch.arange(1 - config.points, config.points, 2, device=run.device)
    x = config.reach / (config.points - 1) * steps  # linspace misses 0 by a rounding
    flows = {name: flow(function, derivative, x) for name, (function, derivative) in FUNCTIONS.items()}
    print(f"gradients at {config.points} points from {-config.reach:g} to {config.reach:g}, float32")
    found = {name: {key: float(of(flow.gradient)) for key, of in STATISTICS.items()} for name, flow in flows.items()}
    columns = ("function", *(key.replace("_", " ") for key in STATISTICS))
    run.table("gradient_flow/float32", columns, [(name, *values.values()) for name, values in found.items()])
    for name, values in found.items():
        run.scalars(0, {f"gradient_flow/{name}/{key}": value for key, value in values.items()})
    run.figure("gradient_flow", draw(flows, found))

    x = every_bfloat16(config.bfloat16_reach).to(run.device)
    pairs = {
        name: (flow(getattr(torch, name), FUNCTIONS[name][1], x), flow(*FUNCTIONS[name], x))
        for name in ("relu", "sigmoid", "tanh")
    }
    print(f"false zeros among the {len(x)} numbers of bfloat16 from {x[0].item():g} to {x[-1].item():g}")
    columns = ("function", "PyTorch's", "from", "where it should be", "minigrad's")
    run.table("gradient_flow/bfloat16", columns, [(name, *_false_zeros(*pair)) for name, pair in pairs.items()])
    for name, (theirs, ours) in pairs.items():
        run.scalars(0, {f"gradient_flow/{name}/torch_false_zeros": int(theirs.false_zeros.sum())})
        run.scalars(0, {f"gradient_flow/{name}/minigrad_false_zeros": int(ours.false_zeros.sum())})
    run.figure("gradient_flow_bfloat16", draw_bfloat16({name: pairs[name] for name in ("sigmoid", "tanh")}))

    for name, values in found.items():
        verify_gradient(name, flows[name], values)
    for name, (_, ours) in pairs.items():
        verify_bfloat16(name, ours)
    return "verified: the statistics of all five, and minigrad's gradients in bfloat16, which have no false zero"


def every_bfloat16(reach: float) -> Tensor:
    """Return every number of bfloat16 from -reach to reach, both zeros among them, (N,) increasing."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return x[x.abs() <= reach].sort().values


def verify_gradient(name: str, flow: Flow, found: dict[str, float]) -> None:
    """Hold a gradient in float32 and its statistics to the derivative, within a millionth of its largest magnitude."""
    within = 1e-6 * float(flow.true.abs().max())
    verify(f"gradient of {name}", flow.gradient, flow.true, within)
    for key, statistic in STATISTICS.items():
        expected = float(statistic(flow.true))
        verify(f"{key} of the gradient of {name}", found[key], expected, within=0 if key == "zeros" else within)


def verify_bfloat16(name: str, flow: Flow) -> None:
    """Hold a gradient in bfloat16, nowhere negative, to the rounded derivative or its neighbours; no false zero.

    The bits of numbers from 0 on, read as integers, count these numbers, so neighbours differ by 1.
    """
    verify(f"number of false zeros of {name} in bfloat16", int(flow.false_zeros.sum()), 0)
    found, expected = (gradient.bfloat16().view(torch.int16) for gradient in (flow.gradient, flow.true))
    verify(f"gradient of {name} in bfloat16, its bits", found, expected, within=1)


def _false_zeros(theirs: Flow, ours: Flow) -> tuple[int, str, str, int]:
    at = theirs.x[theirs.false_zeros]
    if len(at) == 0:
        return 0, "nowhere", "", int(ours.false_zeros.sum())
    start = (
        f"x = {float(at.min()):.4g}" if at.min() > 0 else f"|x| = {float(at.abs().min()):.4g}"
    )  # sigmoid's, or tanh's
    should = theirs.true[theirs.false_zeros][at.abs().argmin()]
    return len(at), start, f"{float(should):.2g}", int(ours.false_zeros.sum())


def draw(flows: dict[str, Flow], statistics: dict[str, dict[str, float]]) -> "Figure":
    """Draw each function with its gradient, and the statistics of all gradients in the last panel."""
    figure, grid = panels(2, 3)
    *each, last = grid.flat
    for axes, (name, flow) in zip(each, flows.items(), strict=True):
        axes.plot(flow.x, flow.y, color=BLUE, lw=2, label="function")
        axes.plot(flow.x, flow.gradient, color=RED, lw=1.8, ls="--", label="gradient")
        axes.set(xlabel="x", title=f"{name}: {statistics[name]['zeros']:.0f} of {len(flow.x)} gradients are 0")
    for place, values in enumerate(statistics.values()):
        mean, deviation, *span, _ = values.values()
        last.plot([place, place], span, color=GREY, lw=9, solid_capstyle="butt", label="range of the gradient")
        last.errorbar(place, mean, deviation, fmt="o", color="black", capsize=5, label="mean ± standard deviation")
    last.set_xticks(range(len(statistics)), statistics)
    last.set_yscale("symlog", base=2, linthresh=1)
    last.yaxis.set_major_formatter("{x:g}")
    last.set(ylabel="gradient (logarithmic beyond ±1)", title="the gradients compared")
    legend_below(figure)
    return figure


def draw_bfloat16(pairs: dict[str, tuple[Flow, Flow]]) -> "Figure":
    """Draw PyTorch's and minigrad's gradients in bfloat16 on a logarithmic scale, and PyTorch's false zeros."""
    figure, ((*row,),) = panels(1, len(pairs))
    for axes, (name, (theirs, ours)) in zip(row, pairs.items(), strict=True):
        axes.plot(ours.x, ours.gradient, color=BLUE, lw=4, alpha=0.5, label="minigrad")
        arrives = theirs.gradient.masked_fill(theirs.gradient == 0, torch.nan)
        axes.plot(theirs.x, arrives, color=RED, ls="--", lw=1.6, label="PyTorch")
        zeros = theirs.x[theirs.false_zeros]
        bottom = torch.full_like(zeros, float(ours.true.min()) / 3)
        axes.plot(zeros, bottom, "x", color=RED, markevery=8, label="PyTorch: a false zero (every 8th shown)")
        axes.set(yscale="log", xlabel="x", ylabel="gradient", title=f"{name} in bfloat16")
    legend_below(figure)
    return figure
