"""A table of the GPU benchmark: a line for every case, with medians, their spread and the bounds they have to reach."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.measure import is_within
from minigrad import tables


@dataclass(frozen=True)
class Figure:
    """What a quantity came to in several rounds.

    Attributes:
        median: of the rounds.
        low: first quartile.
        high: third quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Figure:
        """Summarise two rounds or more."""
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        """Return the median and half the distance of the quartiles, in percent of it."""
        return f"{self.median:.4g} +-{50 * (self.high - self.low) / self.median:.1f}%"


Cell = Figure | float | str


@dataclass(frozen=True)
class Line:
    """One case.

    Attributes:
        case: what was measured, by column.
        cells: the figures by column; where there is none, a string says why.
        bounds: what a column has to reach, such as "<= 1.03".
    """

    case: Mapping[str, str]
    cells: Mapping[str, Cell]
    bounds: Mapping[str, str] = field(default_factory=dict)

    @property
    def judged(self) -> dict[str, bool]:
        """Whether each bound is reached, by column; without those for which there is no figure."""
        values = {column: _value(self.cells[column]) for column in self.bounds}
        return {column: is_within(v, self.bounds[column]) for column, v in values.items() if v is not None}

    @property
    def verdict(self) -> str:
        """The bounds that are missed, or that all are reached; nothing where there is none."""
        missed = [f"{column} {self.bounds[column]}" for column, reached in self.judged.items() if not reached]
        return f"missed: {', '.join(missed)}" if missed else "reached" if self.judged else ""

    def as_json(self) -> dict[str, Any]:
        """Return what a JSON file holds of it."""
        cells = {column: vars(cell) if isinstance(cell, Figure) else cell for column, cell in self.cells.items()}
        return {"case": dict(self.case), "cells": cells, "bounds": dict(self.bounds), "verdict": self.verdict}


def plain(lines: Sequence[Line], judge: bool) -> str:
    """Return the table for a terminal, with verdicts or without."""
    return tables.plain(*_table(lines, judge))


def markdown(lines: Sequence[Line]) -> str:
    """Return the table in Markdown, with verdicts."""
    return tables.markdown(*_table(lines, judge=True))


def _table(lines: Sequence[Line], judge: bool) -> tuple[list[str], list[list[tables.Cell]]]:
    columns = list(dict.fromkeys(column for line in lines for column in (*line.case, *line.cells)))
    rows: list[list[tables.Cell]] = []
    for line in lines:
        values = {**line.case, **line.cells}
        cells = (values.get(column, "") for column in columns)
        rows.append([f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells])
        if judge:
            rows[-1].append(line.verdict)
    return [*columns, "bounds"] if judge else columns, rows


def _value(cell: Cell) -> float | None:
    if isinstance(cell, str):
        return None
    return cell.median if isinstance(cell, Figure) else cell
