"""What the benchmarks share: a row of a table, how it is summarised, printed and written."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        section: the group of measurements.
        case: what was measured.
        ours: median time of minigrad's side, in microseconds.
        theirs: median time of the other side, in microseconds.
        ratio: ours over theirs where small is good, theirs over ours for `derivative`.
        low: first quartile of the ratios pair by pair.
        high: third quartile.
        bound: what the ratio has to reach.
    """

    section: str
    case: str
    ours: float
    theirs: float
    ratio: float
    low: float
    high: float
    bound: str

    @property
    def reached(self) -> bool:
        """Whether the ratio is within its bound; true where there is none."""
        if not self.bound:
            return True
        sign, limit = self.bound.split()
        return self.ratio <= float(limit) if sign == "<=" else self.ratio >= float(limit)


def row(section: str, case: str, times: list[list[float]], bound: str, inverse: bool = False) -> Row:
    """Summarise the times of both sides."""
    ours, theirs = (statistics.median(side) for side in times)
    pairs = [b / a if inverse else a / b for a, b in zip(*times, strict=True)]
    low, _, high = statistics.quantiles(pairs, n=4)
    return Row(section, case, ours, theirs, theirs / ours if inverse else ours / theirs, low, high, bound)


def show(rows: Iterable[Row]) -> list[Row]:
    """Print rows as they come, and return them."""
    shown = []
    print(f"{'section':11} {'case':48} {'ours us':>11} {'theirs us':>11} {'ratio':>8}  middle half      bound")
    for r in rows:
        spread = f"{r.low:.2f} to {r.high:.2f}"
        bound = r.bound if r.reached else f"{r.bound}  missed"
        print(
            f"{r.section:11} {r.case:48} {r.ours:11.1f} {r.theirs:11.1f} {r.ratio:8.2f}  {spread:16} {bound}",
            flush=True,
        )
        shown.append(r)
    return shown


def write(name: str, title: str, rows: list[Row], conditions: dict[str, str], command: str = "") -> None:
    """Write the rows and the conditions of a benchmark as JSON, and as a table in Markdown.

    Args:
        name: of the files, without ending.
        title: of the table.
        rows: of the table.
        conditions: under which it was taken.
        command: that takes it; by default that of the benchmark of the files' name.
    """
    RESULTS.mkdir(exist_ok=True)
    content = {"conditions": conditions, "rows": [asdict(r) for r in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2))
    lines = [f"# {title}", "", f"`{command or f'python kernels/bench/{name}.py --write'}`", ""]
    lines += [f"- {name}: {value}" for name, value in conditions.items()]
    lines += ["", "| section | case | ratio | middle half | bound | |", "| --- | --- | --- | --- | --- | --- |"]
    for r in rows:
        spread, verdict = f"{r.low:.2f} to {r.high:.2f}", "" if r.reached else "missed"
        lines.append(f"| {r.section} | {r.case} | {r.ratio:.2f} | {spread} | {r.bound} | {verdict} |")
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


def conditions(threads: int) -> dict[str, str]:
    """Return what the figures depend on: machine, versions, date and commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent, check=False
    )
    return {
        "processor": f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(threads),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
    }
