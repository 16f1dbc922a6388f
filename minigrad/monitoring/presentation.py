"""How what a monitor measured is shown: tables for a terminal, and a figure of the gradient's flow."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minigrad.figures import GREY, RED, legend_below, panels
from minigrad.monitoring.readings import Readings
from minigrad.monitoring.thresholds import Thresholds
from minigrad.monitoring.verdicts import Verdict, flow_medians, update_medians
from minigrad.tables import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Column, statistic, and the factor between them.
_LAYER = (
    ("gain", "gain", 1),
    ("gradient's rms", "rms", 1),
    ("saturated %", "saturated", 100),
    ("zeros %", "zeros", 100),
    ("false zeros %", "false_zeros", 100),
    ("dead %", "dead", 100),
    ("output's mean", "mean", 1),
    ("deviation", "deviation", 1),
)
_PARAMETER = (
    ("gradient's norm", "gradient_norm", 1),
    ("norm", "parameter_norm", 1),
    ("update ratio", "update_ratio", 1),
    ("cosine", "gradient_cosine", 1),
)
_LOWEST = 1e-3  # gain that still has its own colour
_NAMES = 16  # of layers that fit beside the figure
_LETTERS = 24  # of a name that are shown
_LINES = (("0.65", ":"), ("0.5", "-."), ("0.35", "--"), ("black", "-"))  # of the times drawn, the last in black


def layer_rows(readings: Readings, verdicts: Sequence[Verdict]) -> tuple[list[str], list[list[Cell]]]:
    """Return the columns and the rows of a table of layers, from input to output: medians over the steps.

    The last column names what is wrong with a layer. A column of which no layer has a number is left out.
    """
    medians = flow_medians(readings)
    for name, layer in medians.items():
        if readings.layers[name] == "relu":
            layer["saturated"] = math.nan  # its units are zeros, which has a column of its own, and not at fault
        layer["dead"] = float(readings.dead[name].double().mean()) if name in readings.dead else math.nan
    firsts: dict[str, list[Cell]] = {name: [name, activation] for name, activation in readings.layers.items()}
    return _table(["layer", "activation"], firsts, _LAYER, medians, verdicts)


def parameter_rows(readings: Readings, verdicts: Sequence[Verdict]) -> tuple[list[str], list[list[Cell]]]:
    """Return the columns and the rows of a table of parameters, likewise."""
    firsts: dict[str, list[Cell]] = {name: [name] for name in readings.parameters}
    return _table(["parameter"], firsts, _PARAMETER, update_medians(readings), verdicts)


def _table(
    columns: list[str],
    firsts: dict[str, list[Cell]],
    statistics: Sequence[tuple[str, str, int]],
    medians: dict[str, dict[str, float]],
    verdicts: Sequence[Verdict],
) -> tuple[list[str], list[list[Cell]]]:
    shown = [
        (column, statistic, factor)
        for column, statistic, factor in statistics
        if not all(math.isnan(values[statistic]) for values in medians.values())
    ]
    rows = [
        [
            *first,
            *(_rounded(factor * medians[name][statistic]) for _, statistic, factor in shown),
            _mark(name, verdicts),
        ]
        for name, first in firsts.items()
    ]
    return [*columns, *(column for column, *_ in shown), "verdict"], rows


def _rounded(number: float) -> Cell:
    """Return a number in three digits, or nothing where there is none."""
    return "" if math.isnan(number) else float(f"{number:.3g}")


def _mark(name: str, verdicts: Sequence[Verdict]) -> str:
    return ", ".join(dict.fromkeys(verdict.kind for verdict in verdicts if name in (verdict.where, *verdict.also)))


def draw_gain(
    steps: Sequence[int],
    gains: Tensor,
    norms: Tensor,
    layers: Sequence[str],
    thresholds: Thresholds = Thresholds(),  # noqa: B008 - it never changes
) -> "Figure":
    """Draw the flow gain of every layer over time, and beside it how the gradient's size changes over depth.

    Args:
        steps: (times,) increasing, at least one; of more than some hundred the columns are too narrow to be seen.
        gains: (times, layers) float64, NaN where there is none.
        norms: (times, layers) float64, norm of the gradient that leaves a layer, NaN where there is none.
        layers: names, at least one, from input to output, which is from the bottom of the figure to its top.
        thresholds: where lines say that the gradient vanishes or explodes.
    """
    figure, ((heat, profile),) = panels(1, 2, sharey=True, width_ratios=[2, 1])
    figure.set_size_inches(10, 5)
    _draw_heat(heat, steps, gains, thresholds.vanishing)
    _draw_profiles(profile, steps, norms, thresholds)
    shown = range(0, len(layers), math.ceil(len(layers) / _NAMES))
    heat.set_yticks(shown, [_shortened(layers[i]) for i in shown])
    heat.set(xlabel="step", ylabel="layer, from input to output", ylim=(-0.5, len(layers) - 0.5))
    legend_below(figure)
    return figure


def _draw_heat(axes: "Axes", steps: Sequence[int], gains: Tensor, vanishing: float) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    colors = colormaps["magma"]  # from dark to pale, steadily: it reads in greyscale, where only a hatching stands out
    axes.patch.set(facecolor=GREY, hatch="///", edgecolor="white")
    corners = _edges(torch.tensor(steps, dtype=torch.float64)), torch.arange(gains.shape[1] + 1) - 0.5
    cells = (*corners, gains.clamp(min=_LOWEST).T)
    axes.grid(False)
    mesh = axes.pcolormesh(*(part.numpy() for part in cells), cmap=colors, norm=LogNorm(_LOWEST, 1), rasterized=True)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.set_title("flow gain of each layer over time")
    bar = axes.figure.colorbar(mesh, ax=axes, location="bottom", extend="min", aspect=40, format="{x:g}")
    label = "flow gain"
    if _LOWEST < vanishing < 1:
        bar.ax.axvline(vanishing, color="white", lw=2)
        label += f"; below {vanishing:g} (line) the gradient vanishes"
    bar.set_label(f"{label}; hatched: no number")


def _draw_profiles(axes: "Axes", steps: Sequence[int], norms: Tensor, thresholds: Thresholds) -> None:
    """Draw the gradient's size over depth, relative to the last layer's, at some of the times."""
    relative = norms / norms[:, -1:]
    relative = relative.where(relative.isfinite() & (relative > 0), math.nan)  # what a logarithmic axis can show
    places = torch.arange(norms.shape[1])
    drawable = (~relative.isnan()).any(1).nonzero().view(-1).tolist()
    times = [drawable[i] for i in _spread(len(drawable), len(_LINES))]
    for i, (color, line) in zip(times, _LINES[len(_LINES) - len(times) :], strict=True):
        axes.plot(relative[i], places, color=color, ls=line, marker="o", ms=3, label=f"step {steps[i]}")
    limits = [limit for limit in (thresholds.depth_vanishing, thresholds.exploding) if 0 < limit < math.inf]
    for limit in limits:
        axes.axvline(limit, color=RED, lw=1.2, ls=":", label="vanishing or exploding from here on")
    axes.set_xscale("log")
    axes.set(xlabel="relative to the last layer", title="norm of the gradient")


def _shortened(name: str) -> str:
    return name if len(name) <= _LETTERS else f"…{name[1 - _LETTERS :]}"


def _edges(centres: Tensor) -> Tensor:
    """Return the n + 1 edges of columns around n increasing centres, halfway between them."""
    half = centres.diff() / 2 if len(centres) > 1 else centres.new_tensor([0.5])
    return torch.cat([centres[:1] - half[:1], centres[:-1] + half, centres[-1:] + half[-1:]])


def _spread(n: int, most: int) -> list[int]:
    """Return at most `most` of the numbers below n, evenly spread, the first and the last among them."""
    return list(range(n)) if n <= most else [round(i * (n - 1) / (most - 1)) for i in range(most)]
