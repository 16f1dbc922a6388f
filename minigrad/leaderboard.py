"""The runs of a sweep compared, best first: as a table, as CSV, and their final test loss over every key swept."""

import csv
import io
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from minigrad.figures import BLUE, GREY, ORANGE, RED, legend_below, mark, panels
from minigrad.tables import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

JUDGED = ("test/loss", "test/accuracy", "test/r2", "distance_to_minimum")

_WIDE = 8  # the largest over the smallest from which on an axis is logarithmic
_MOST_ACROSS = 3  # panels in a row
_STYLES = ((BLUE, "o", "-"), (RED, "s", "--"), (ORANGE, "^", ":"), (GREY, "D", "-."))  # apart in greyscale too
_SHIFT = 0.14  # of one colour from the next, where words lie side by side at a distance of 1
_CROSSES = 0.05  # of the height, for the crosses of one colour
_INSIDE = 0.8  # of a panel's width: what its axes have
_LETTER, _GAP = 0.085, 0.1  # inches: a letter of a value's label on average, and between two labels at least
_MOST_LETTERS = 20  # of such a label
_FEW_DECADES = 3  # below which there is room for more ticks than the powers of ten


@dataclass(frozen=True)
class Entry:
    """One run of a sweep.

    Attributes:
        name: of its directory in the sweep's.
        overrides: values by key, as on the command line.
        status: "finished", "failed", "refused", "interrupted" or "running".
        summary: content of its `summary.json`; empty where there is none.
    """

    name: str
    overrides: dict[str, str]
    status: str
    summary: dict[str, Any]

    @property
    def loss(self) -> float:
        """The final test loss of a finished run; NaN if there is none, or if it is not finite: a summary has null."""
        loss = self.summary.get("test/loss")
        return float(loss) if self.status == "finished" and loss is not None and math.isfinite(loss) else math.nan

    @property
    def has_diverged(self) -> bool:
        """Whether the run failed, or finished with a test loss that is not finite."""
        return self.status == "failed" or (
            self.status == "finished" and "test/loss" in self.summary and math.isnan(self.loss)
        )


def best_first(entries: Iterable[Entry]) -> list[Entry]:
    """Return the lowest final test loss first, then what finished without one, then the rest, each in their order."""

    def rank(entry: Entry) -> tuple[bool, float]:
        return entry.status != "finished", math.inf if math.isnan(entry.loss) else entry.loss

    return sorted(entries, key=rank)


def differing(entries: Sequence[Entry]) -> list[str]:
    """Return the keys whose values differ, in the order in which they appear; one that some lack differs."""
    return [key for key in _keys(entries) if len({entry.overrides.get(key) for entry in entries}) > 1]


def table(entries: Sequence[Entry]) -> tuple[list[str], list[list[Cell]]]:
    """Return columns and rows, best first: the keys that differ, how the runs were judged, what they took.

    A column is there if any run has something for it, `status` only if not all have finished.
    """
    ordered = best_first(entries)
    columns = _columns(ordered, differing(entries), JUDGED)
    if all(entry.status == "finished" for entry in ordered):
        del columns["status"]
    return list(columns), [[cells[i] for cells in columns.values()] for i in range(len(ordered))]


def as_csv(entries: Sequence[Entry]) -> str:
    """Return the table with every key, the name, train/loss and the error of each run, all digits, as in RFC 4180."""
    ordered = best_first(entries)
    columns = {
        "name": [entry.name for entry in ordered],
        **_columns(ordered, _keys(entries), ("train/loss", *JUDGED)),
        "error": [_cell(entry.summary.get("error")) for entry in ordered],
    }
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def draw(entries: Sequence[Entry]) -> "Figure | None":
    """Draw the final test loss over the values of every key that differs, a panel each.

    Runs that agree in all other keys are joined where the values are numbers. A colour means the same in all panels: a
    value of the first key that has few of them. Runs that diverged are crosses at the upper edge.

    Returns: None if no run has a finite test loss, or no key differs.
    """
    keys = differing(entries)
    losses = [entry.loss for entry in entries if math.isfinite(entry.loss)]
    if not keys or not losses:
        return None
    rows = math.ceil(len(keys) / _MOST_ACROSS)
    figure, grid = panels(rows, math.ceil(len(keys) / rows), sharey=True)
    for unused in grid.flat[len(keys) :]:
        unused.remove()
    width = _INSIDE * figure.get_figwidth() / grid.shape[1]
    colours = _Colours(entries, keys)
    _set_losses(figure.axes[0], losses, _CROSSES * len(colours.diverged))
    for key, axes in zip(keys, figure.axes, strict=True):
        axes.set_xlabel(key)
        _draw_panel(axes, width, key, [other for other in keys if other != key], colours, entries)
    for axes in grid[:, 0]:
        axes.set_ylabel("final test/loss")
    if colours.diverged:
        figure.axes[0].plot([], [], "x", color="black", label="failed")
    legend_below(figure)
    return figure


class _Colours:
    """What the colours of the runs mean: values of the first key that has few, if more than one differs.

    Attributes:
        key: that key, or None: all runs have one colour.
        values: its values, None for that of runs without the key.
        diverged: the numbers of those at which runs have diverged.
    """

    def __init__(self, entries: Sequence[Entry], keys: Sequence[str]) -> None:
        few = [key for key in keys if len(keys) > 1 and len(_values(entries, key)) <= len(_STYLES)]
        self.key = few[0] if few else None
        self.values: list[str | None] = _values(entries, few[0]) if few else [None]
        self.diverged = sorted({self.number(entry) for entry in entries if entry.has_diverged})

    def number(self, run: Entry) -> int:
        """Return which of the values a run has."""
        return 0 if self.key is None else self.values.index(run.overrides.get(self.key))

    def label(self, number: int) -> str:
        """Return what a legend says of a value."""
        value = self.values[number]
        if value is None:
            return "run" if self.key is None else f"no {self.key}"
        return f"{self.key}={_shortened(value)}"


def _draw_panel(
    axes: "Axes", width: float, key: str, others: Sequence[str], colours: _Colours, entries: Sequence[Entry]
) -> None:
    """Draw the runs that have a value of the key over its values."""
    runs = [entry for entry in entries if key in entry.overrides]
    places = _set_values(axes, list(dict.fromkeys(run.overrides[key] for run in runs)), width)
    are_numbers = _numbers(places) is not None

    def x(run: Entry) -> float:
        shift = 0 if are_numbers or key == colours.key else colours.number(run) - (len(colours.values) - 1) / 2
        return places[run.overrides[key]] + _SHIFT * shift

    finished = sorted((run for run in runs if math.isfinite(run.loss)), key=x)
    if are_numbers:
        for joined in _alike(finished, others):
            numbers = {colours.number(run) for run in joined}
            color, _, line = _STYLES[numbers.pop()] if len(numbers) == 1 else (GREY, "", "-")
            axes.plot([x(run) for run in joined], [run.loss for run in joined], line, color=color, lw=0.9, alpha=0.75)
    for number in range(len(colours.values)):
        color, marker, _ = _STYLES[number]
        group = [run for run in finished if colours.number(run) == number]
        y = [run.loss for run in group]
        axes.plot([x(run) for run in group], y, marker, color=color, ms=4.5, zorder=4, label=colours.label(number))
    axes.fill_between([0, 1], 1 - _CROSSES * len(colours.diverged), 1, transform=axes.transAxes, color="0.94", lw=0)
    for row, number in enumerate(colours.diverged):
        crosses = [x(run) for run in runs if run.has_diverged and colours.number(run) == number]
        height = [1 - (row + 0.5) * _CROSSES] * len(crosses)
        axes.plot(crosses, height, "x", color=_STYLES[number][0], transform=axes.get_xaxis_transform())
    best = best_first(entries)[0]
    if best in runs:
        mark(axes, x(best), best.loss, f"best: {best.loss:.4g}")


def _alike(runs: Iterable[Entry], keys: Sequence[str]) -> list[list[Entry]]:
    """Return the runs that have the same values of the keys together, in their order."""
    found: dict[tuple[str | None, ...], list[Entry]] = {}
    for run in runs:
        found.setdefault(tuple(run.overrides.get(key) for key in keys), []).append(run)
    return list(found.values())


def _set_losses(axes: "Axes", losses: Sequence[float], above: float) -> None:
    """Scale the vertical axis for the losses, with a part of its height left free above them."""
    from matplotlib.ticker import LogLocator, NullFormatter

    is_log = _are_wide(losses)
    ends = [math.log10(loss) if is_log else loss for loss in (min(losses), max(losses))]
    margin = 0.06 * (ends[1] - ends[0]) or 0.1 * abs(ends[0]) or 1.0
    most = 200.0 if is_log else 1e200  # far enough from where the limits below would overflow
    low, high = max(ends[0] - margin, -most), min(ends[1] + margin, most)
    high += (high - low) * above / (1 - above)
    if not is_log:
        axes.set_ylim(low, high)
        return
    axes.set(yscale="log", ylim=(10**low, 10**high))
    if high - low < _FEW_DECADES:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _set_values(axes: "Axes", values: Sequence[str], width: float) -> dict[str, float]:
    """Scale the horizontal axis for the values of a key, label them, and return where each lies.

    Words lie side by side, numbers where they belong; of those as many are labelled as there is room for.

    Args:
        axes: of the panel.
        values: as on the command line, each once.
        width: of the axes in inches.
    """
    from matplotlib.ticker import NullFormatter

    numbers = _numbers(values)
    if numbers is None:
        labels = [_shortened(value) for value in values]
        is_tight = not _fit(labels, range(len(labels)), width / len(labels))
        tilt: dict[str, Any] = (
            {"rotation": 40, "ha": "right", "rotation_mode": "anchor", "fontsize": 8} if is_tight else {}
        )
        axes.set_xticks(range(len(labels)), labels, **tilt)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        return {value: float(i) for i, value in enumerate(values)}
    ordered = sorted((x, value) for value, x in numbers.items())
    is_log = _are_wide(numbers.values())
    along = [math.log(x) if is_log else x for x, _ in ordered]
    inches = width / (along[-1] - along[0] or 1)
    strides = range(1, len(ordered) + 1)  # the last leaves one label, which fits
    stride = next(n for n in strides if _fit([value for _, value in ordered[::n]], along[::n], inches))
    axes.set_xscale("log" if is_log else "linear")
    axes.set_xticks([x for x, _ in ordered[::stride]], [value for _, value in ordered[::stride]])
    axes.set_xticks([x for x, _ in ordered], minor=True)
    axes.xaxis.set_minor_formatter(NullFormatter())
    return numbers


def _fit(labels: Sequence[str], places: Sequence[float], inches: float) -> bool:
    """Return whether labels side by side do not run into each other, where 1 is so many inches."""
    return all(
        inches * (right - left) > _LETTER * (len(one) + len(other)) / 2 + _GAP
        for (one, left), (other, right) in pairwise(zip(labels, places, strict=True))
    )


def _numbers(values: Iterable[str]) -> dict[str, float] | None:
    """Return the numbers that values of the command line are, or None if one is not a finite number."""
    try:
        numbers = {value: float(value) for value in values}
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers.values())) else None


def _are_wide(numbers: Collection[float]) -> bool:
    return min(numbers) > 0 and max(numbers) >= _WIDE * min(numbers)


def _values(entries: Iterable[Entry], key: str) -> list[str | None]:
    """Return the values of a key, each once, None for runs without it."""
    return list(dict.fromkeys(entry.overrides.get(key) for entry in entries))


def _shortened(text: str) -> str:
    half = _MOST_LETTERS // 2
    return text if len(text) <= _MOST_LETTERS else f"{text[:half]}…{text[1 - half :]}"


def _keys(entries: Iterable[Entry]) -> list[str]:
    return list(dict.fromkeys(key for entry in entries for key in entry.overrides))


def _columns(entries: Sequence[Entry], keys: Sequence[str], tags: Sequence[str]) -> dict[str, list[Cell]]:
    """Return the cells by column: overrides, what any summary has of the tags and of what a run took, the status."""
    columns: dict[str, list[Cell]] = {key: [entry.overrides.get(key, "") for entry in entries] for key in keys}
    for tag in (*tags, "steps", "seconds", "verdicts"):
        cells = [_cell(entry.summary.get(tag)) for entry in entries]
        if any(cell != "" for cell in cells):
            columns["steps made" if tag == "steps" and tag in keys else tag] = cells
    columns["status"] = [entry.status for entry in entries]
    return columns


def _cell(value: Any) -> Cell:
    """Return a value of a summary as it stands in a table: null is a gap, texts are listed once each."""
    if isinstance(value, list):
        return ", ".join(dict.fromkeys(value))
    cell: Cell = "" if value is None else value
    return cell
