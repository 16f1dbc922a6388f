"""The look of every figure: colours that stay apart in greyscale, a light grid behind the data, labels that fit."""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From dark to light. Curves that cross also differ by their line: "-", "--", ":".
BLUE, RED, ORANGE, GREY = "#0b3d91", "#b5302a", "#f0a35e", "0.55"
DOTS_PER_INCH = 150  # of a figure in a file
_ROW, _COLUMN = 3.4, 4.6  # inches, of one panel
_HANDLE, _LETTER = 0.7, 0.075  # inches: what stands before a legend's entry, and a letter of it on average


def panels(rows: int = 1, columns: int = 1, **options: Any) -> "tuple[Figure, numpy.ndarray]":
    """Return a figure with a grid of panels, and their axes (rows, columns).

    Args:
        rows: at least 1.
        columns: at least 1; a single panel is made wider.
        options: `sharex`, `sharey` and what else `Figure.subplots` takes.
    """
    from matplotlib.figure import Figure

    width = _COLUMN * columns if columns > 1 else 1.5 * _COLUMN
    figure = Figure(figsize=(width, _ROW * rows + (0.8 if rows == 1 else 0)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    for axes in grid.flat:
        axes.grid(True, color="0.9", lw=0.5)
        axes.set_axisbelow(True)
    return figure, grid


def legend_below(figure: "Figure") -> None:
    """Put one legend of all panels below them, where it covers no data; what several panels show is named once."""
    entries = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    widest = _HANDLE + _LETTER * max(map(len, entries))
    columns = max(1, min(len(entries), int(figure.get_figwidth() / widest)))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, frameon=False)


def mark(axes: "Axes", x: float, y: float, label: str | None = None) -> None:
    """Mark a point of a curve."""
    axes.plot(x, y, "o", color="white", mec="black", ms=7, zorder=3, label=label)


def as_png(figure: "Figure") -> bytes:
    """Return a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()
