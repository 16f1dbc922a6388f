"""How exact the gradients of sigmoid and tanh are: PyTorch's and minigrad's against float64, over x, in every dtype.

PyTorch rebuilds the derivative from the rounded output y: 1 - y^2 for tanh, y (1 - y) for sigmoid. Where y has come
close to 1 the difference keeps few of its digits, and where y has rounded to 1 it is exactly 0: a vanished gradient
that is only rounding. minigrad computes the derivative from x, 1 / cosh(x)^2 or 1 / (2 cosh(x / 2))^2, and keeps its
digits everywhere.

An error is given in ULP: the spacing of the dtype's numbers at the true value. The best possible is half of one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import minigrad
from minigrad import tables
from minigrad.config import RunConfig, check, check_at_least, check_one_of
from minigrad.errors import RunFailed
from minigrad.figures import BLUE, RED, legend_below, panels
from minigrad.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACTIVATIONS = {"sigmoid": (torch.sigmoid, minigrad.sigmoid), "tanh": (torch.tanh, minigrad.tanh)}
COLUMNS = ("activation", "dtype", "PyTorch, ULP", "minigrad, ULP", "PyTorch's is 0 from", "where it should be")
# What minigrad's first derivative promises in each dtype, in ULP.
LIMITS = {"float16": 1.0, "bfloat16": 1.0, "float32": 8.0}


@dataclass
class Config(RunConfig):
    """The keys of this experiment."""

    activations: list[str]
    dtypes: list[str]
    points: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.activations) > 0, "activations", self.activations, "at least one")
        check(len(self.dtypes) > 0, "dtypes", self.dtypes, "at least one")
        for activation in self.activations:
            check_one_of("activations", activation, ACTIVATIONS)
        for dtype in self.dtypes:
            check_one_of("dtypes", dtype, LIMITS)
        check_at_least("points", self.points, 1000)


@dataclass(frozen=True)
class Comparison:
    """One activation in one dtype: the true derivative and both gradients, all (N,) float64 on the host.

    Attributes:
        x: increasing, exactly representable in the dtype.
        true: the derivative at x.
        spacing: distance of the dtype's numbers at `true`.
        counts: (N,) bool, where the result is judged.
    """

    activation: str
    dtype: str
    x: Tensor
    true: Tensor
    spacing: Tensor
    counts: Tensor
    torch_gradient: Tensor
    minigrad_gradient: Tensor

    def worst(self, gradient: Tensor) -> float:
        """Return the largest error of a gradient in ULP."""
        return float((gradient - self.true).div(self.spacing).abs()[self.counts].max())

    def false_zeros(self, gradient: Tensor) -> Tensor:
        """Return (N,) bool: the gradient is 0 although the dtype has a number for the true one."""
        return (gradient == 0) & (self.true > self.spacing / 2) & self.counts


def sample(dtype: torch.dtype, points: int) -> Tensor:
    """Return every finite value of a half type, or `points` values of float32 between -110 and 110, (N,) increasing."""
    if dtype.itemsize == 2:
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        return x[x.isfinite()].sort().values
    dense = torch.linspace(-110, 110, points // 2, dtype=torch.float64)
    small = torch.logspace(-38, 2, points // 4, dtype=torch.float64)
    return torch.cat((dense, small, -small)).to(dtype).sort().values


def compare(activation: str, dtype_name: str, points: int, device: torch.device) -> Comparison:
    """Take both gradients of an activation in a dtype and the derivative in float64."""
    dtype: torch.dtype = getattr(torch, dtype_name)
    x = sample(dtype, points)
    gradients = []
    for function in ACTIVATIONS[activation]:
        leaf = x.clone().to(device).requires_grad_()
        y = function(leaf)
        gradients.append(torch.autograd.grad(y, leaf, torch.ones_like(y))[0].cpu().double())
    exact = x.double()
    true = 1 / exact.cosh().square() if activation == "tanh" else 1 / (2 * (exact / 2).cosh()).square()
    limits = torch.finfo(dtype)
    spacing = 2.0 ** true.clamp(min=limits.smallest_normal).log2().floor() * limits.eps
    # float32 is judged where the result is normal; the half types also below, unless the device flushes float32 there.
    flushed = dtype is torch.float32 or device.type != "cpu"
    counts = true >= (torch.finfo(torch.float32).smallest_normal if flushed else 0)
    return Comparison(activation, dtype_name, exact, true, spacing, counts, *gradients)


def run(config: Config, run: Run) -> str:
    """Compare, show, plot and verify; return what was found."""
    comparisons = [
        compare(activation, dtype, config.points, run.device)
        for activation in dict.fromkeys(config.activations)
        for dtype in dict.fromkeys(config.dtypes)
    ]
    run.table("exactness/errors", COLUMNS, [row(comparison) for comparison in comparisons])
    for comparison in comparisons:
        tag = f"exactness/{comparison.activation}/{comparison.dtype}"
        run.scalars(
            0,
            {
                f"{tag}/torch_ulp": comparison.worst(comparison.torch_gradient),
                f"{tag}/minigrad_ulp": comparison.worst(comparison.minigrad_gradient),
                f"{tag}/torch_false_zeros": int(comparison.false_zeros(comparison.torch_gradient).sum()),
                f"{tag}/minigrad_false_zeros": int(comparison.false_zeros(comparison.minigrad_gradient).sum()),
            },
        )
    run.figure("exactness", draw(comparisons))
    verify(comparisons)
    return f"verified: minigrad's gradients keep their promise in {len(comparisons)} of {len(comparisons)} cases"


def verify(comparisons: list[Comparison]) -> None:
    """Hold minigrad's gradients to their limits.

    Raises:
        RunFailed: one is beyond its limit; the message names it and gives the numbers.
    """
    wrong = []
    for comparison in comparisons:
        error, limit = comparison.worst(comparison.minigrad_gradient), LIMITS[comparison.dtype]
        # Half types: within so many ULP of the *correctly rounded* value, which itself is half a one from the true one.
        allowed = limit + 0.5 if limit == 1 else limit
        if not error <= allowed:
            wrong.append(f"{comparison.activation} in {comparison.dtype}: {error:.3g} ULP, allowed {allowed:g}")
    if wrong:
        raise RunFailed(f"minigrad's gradient is off: {'; '.join(wrong)}")


def row(comparison: Comparison) -> tuple[tables.Cell, ...]:
    """Return the largest errors, and where PyTorch's gradient vanishes, for the table."""
    zeros = comparison.false_zeros(comparison.torch_gradient)
    start, true = "nowhere", ""
    if zeros.any():
        places = comparison.x[zeros]
        nearest = places.abs().argmin()
        sides = "|x|" if places.min() < 0 else "x"  # sigmoid rounds to 1 on one side alone
        start, true = f"{sides} = {places[nearest].abs():.4g}", f"{comparison.true[zeros][nearest]:.2g}"
    errors = [f"{comparison.worst(g):,.3g}" for g in (comparison.torch_gradient, comparison.minigrad_gradient)]
    return comparison.activation, comparison.dtype, *errors, start, true


def draw(comparisons: list[Comparison]) -> "Figure":
    """Draw the relative error over x, one row an activation and one column a dtype."""
    activations = list(dict.fromkeys(comparison.activation for comparison in comparisons))
    columns = len(comparisons) // len(activations)
    figure, grid = panels(len(activations), columns, sharey=True)
    for axes, comparison in zip(grid.flat, comparisons, strict=True):
        _draw_one(axes, comparison)
    for axes in grid[-1]:
        axes.set_xlabel("x")
    for axes in grid[:, 0]:
        axes.set_ylabel("relative error")
    figure.suptitle("Error of the first derivative against float64, largest in each of 200 intervals of x")
    legend_below(figure)
    return figure


def _draw_one(axes: "Axes", comparison: Comparison) -> None:
    dtype: torch.dtype = getattr(torch, comparison.dtype)
    eps = torch.finfo(dtype).eps
    normal = comparison.true >= torch.finfo(dtype).smallest_normal
    reach = float(comparison.x[normal].abs().max())
    zeros = comparison.x[comparison.false_zeros(comparison.torch_gradient) & normal]
    for side in (zeros[zeros < 0], zeros[zeros > 0]):
        if len(side) > 0:
            nearest, sign = float(side.abs().min()), float(side[0].sign())
            axes.axvspan(sign * nearest, sign * reach, color="0.85", lw=0, label="PyTorch's gradient is exactly 0")
    axes.axhline(eps / 2, color="black", lw=0.8, ls=":", label="rounding to the dtype alone", zorder=3)
    for gradient, name, color, line in (
        (comparison.torch_gradient, "PyTorch", RED, "--"),
        (comparison.minigrad_gradient, "minigrad", BLUE, "-"),
    ):
        error = (gradient / comparison.true - 1).abs()[normal].clamp(min=eps / 32)
        axes.plot(*_largest_in_bins(comparison.x[normal], error, 200), label=name, color=color, ls=line, lw=1.6)
    axes.set(yscale="log", ylim=(1e-9, 10), xlim=(-reach, reach), title=f"{comparison.activation}, {comparison.dtype}")


def _largest_in_bins(x: Tensor, y: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Return the centres of the intervals of x that hold any point, and the largest y in each."""
    low, high = float(x.min()), float(x.max())
    place = ((x - low) / (high - low) * bins).long().clamp(max=bins - 1)
    largest = torch.full((bins,), -1.0, dtype=y.dtype).scatter_reduce(0, place, y, "amax")
    centres = low + (torch.arange(bins) + 0.5) * (high - low) / bins
    return centres[largest >= 0], largest[largest >= 0]
