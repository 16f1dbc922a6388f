"""The path of a point over a function of one or two variables: gathered while it moves, and drawn over the contours."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigrad.figures import RED
from minigrad.objectives.landscapes import Landscape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 500  # more can hardly be told apart
_GRID = 200  # points per side
_COARSE_GRID = 60  # of a function without bounds: the user's own, which takes one point at a time


class Path:
    """The points that a run has passed, at every step of a short run and evenly spaced ones of a long.

    Args:
        steps: of the run.

    Attributes:
        stride: every how many steps a point is kept, a power of two.
    """

    def __init__(self, steps: int) -> None:
        self.stride = 1
        while steps > _MOST_POINTS * self.stride:
            self.stride *= 2
        self._loaded: list[list[float]] = []
        self._added: list[Tensor] = []  # where they were made: to keep one waits for nothing

    @property
    def points(self) -> list[list[float]]:
        """Those of the steps 0, stride, 2 stride and so on, a number per variable each."""
        return self._loaded + (torch.stack(self._added).tolist() if self._added else [])

    def add(self, step: int, point: Tensor) -> None:
        """Keep the point from which a step starts, if it is one of those to keep."""
        if step % self.stride == 0 and step // self.stride == len(self._loaded) + len(self._added):
            self._added.append(point.detach().view(-1).clone())

    def state_dict(self) -> dict[str, Any]:
        """Return what was gathered, for a checkpoint."""
        return {"stride": self.stride, "points": self.points}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, perhaps in a longer run."""
        self.stride = max(self.stride, saved["stride"])
        self._loaded, self._added = saved["points"][:: self.stride // saved["stride"]], []


def draw(landscape: Landscape, path: Path, end: Tensor) -> "Figure":
    """Draw a path over its landscape: over the graph for one variable, over the contours for two.

    Args:
        landscape: the function; where it gives no bounds, those of the path are taken.
        path: the points passed.
        end: the last point, of the landscape's shape.
    """
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    points = torch.tensor([*path.points, end.detach().view(-1).tolist()], dtype=torch.float64)
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    axes = figure.subplots()
    size = _GRID if landscape.bounds else _COARSE_GRID
    sides = [torch.linspace(low, high, size, dtype=torch.float64) for low, high in _bounds(landscape, points)]
    if len(sides) == 1:
        heights = _values(landscape, points.view(-1), end)
        axes.plot(sides[0], _values(landscape, sides[0], end), color="0.6", label=landscape.name)
        axes.set(xlabel="x", ylabel="f(x)")
        places = [points[:, 0], heights]
        minima = [(x, float(_values(landscape, torch.tensor(x), end))) for (x,) in landscape.minima]
    else:
        grid = torch.stack(torch.meshgrid(*sides, indexing="xy"), dim=-1)
        heights = _values(landscape, grid, end)
        heights = heights.where(heights.isfinite(), math.nan)  # which is left blank
        above = heights - heights.nan_to_num(math.inf).min()
        # The logarithm shows valley floors and steep walls alike; the offset keeps it finite at the lowest point.
        offset = 1e-5 * float(above.nan_to_num(0).max()) or 1.0
        shades = axes.contourf(*sides, (above + offset).log10(), levels=24, cmap="viridis")
        figure.colorbar(shades, label="log10 of the height above the lowest point drawn")
        axes.set(xlabel="x", ylabel="y")
        places = [points[:, 0], points[:, 1]]
        minima = [(x, y) for x, y in landscape.minima]
    axes.axis(axes.axis())  # fixed: a path that leaves for infinity is cut off
    # White on black: seen on every shade of the contours, in greyscale too.
    dot = 2.5 if len(points) > 60 else 4
    outline = [withStroke(linewidth=3, foreground="black")]
    axes.plot(*places, "o", color="black", ms=dot + 2)
    axes.plot(*places, color="white", lw=1.4, path_effects=outline, label="path")
    axes.plot(*places, "o", color="white", ms=dot)
    axes.plot(*(place[0] for place in places), "s", color="white", mec="black", ms=8, label="start")
    axes.plot(*(place[-1] for place in places), "o", color=RED, mec="black", ms=8, zorder=4, label="end")
    for i, minimum in enumerate(minima):
        axes.plot(*minimum, "*", color="gold", mec="black", ms=14, label="minimum" if i == 0 else None, zorder=3)
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    axes.set_title(f"{landscape.name}: {points.shape[0] - 1:,} points of the path" + _every(path.stride))
    return figure


def _every(stride: int) -> str:
    return "" if stride == 1 else f", one in {stride} steps"


@torch.no_grad()
def _values(landscape: Landscape, points: Tensor, like: Tensor) -> Tensor:
    """Evaluate where and in what the function was minimised: the user's own may know no other dtype or device."""
    return landscape.value(points.to(like)).double().cpu()


def _bounds(landscape: Landscape, points: Tensor) -> list[tuple[float, float]]:
    """Return what to draw: the landscape's bounds, widened to hold the path, but not to more than threefold."""
    lows, highs = points.min(dim=0).values.tolist(), points.max(dim=0).values.tolist()
    if not landscape.bounds:
        margins = [0.1 * (high - low) or 1.0 for low, high in zip(lows, highs, strict=True)]
        return [(low - m, high + m) for low, high, m in zip(lows, highs, margins, strict=True)]
    return [
        (max(min(low, at_least), 2 * low - high), min(max(high, at_most), 2 * high - low))
        for (low, high), at_least, at_most in zip(landscape.bounds, lows, highs, strict=True)
    ]
