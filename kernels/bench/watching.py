"""What it costs to watch a network train, as `monitor.py` measures it, on a network of a GPU's size."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench import monitor
from bench.lines import Cell, Figure, Line
from bench.measure import Row
from bench.setting import CheckFailed, Setting

REPEATS, STEPS = 15, 10


def measure(setting: Setting) -> Iterator[Line]:
    """Check the monitor's figures, and compare steps that are watched with steps that are not."""
    repeats, steps = (2, 1) if setting.dry else (REPEATS, STEPS)
    problem = problem_for(setting)
    try:
        monitor.check(problem)
    except AssertionError as error:
        raise CheckFailed(f"a figure of the monitor is not that of float64: {error}") from error
    sections = [monitor.step, monitor.others] + ([monitor.launches] if setting.device.type == "cuda" else [])
    for section in setting.in_time(sections):
        yield from map(line_of, section(problem, repeats, steps))


def problem_for(setting: Setting) -> monitor.Problem:
    """Return the network that is trained."""
    if setting.dry:
        return monitor.Problem(16, 32, setting.device, torch.float32)
    return monitor.problem_for(setting.device)


def line_of(row: Row) -> Line:
    """Return a row of monitor.py, whose two sides are the watched and the unwatched, as a line."""
    if row.section == "launches":
        cells: dict[str, Cell] = {"watched": row.ours, "not watched": row.theirs, "more": row.ratio}
        return Line({"what": row.case}, cells, {"more": row.bound})
    cells = {"watched us": row.ours, "not watched us": row.theirs, "ratio": Figure(row.ratio, row.low, row.high)}
    return Line({"what": row.case}, cells, {"ratio": row.bound} if row.bound else {})
