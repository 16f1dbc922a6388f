"""What the benchmarks share: a row of a table, how it is summarised, printed and written."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
        return is_within(self.ratio, self.bound)


def is_within(value: float, bound: str) -> bool:
    """Return whether a figure is within a bound such as "<= 1.5" or ">= 100"; anything is within none, ""."""
    if not bound:
        return True
    sign, limit = bound.split()
    return value <= float(limit) if sign == "<=" else value >= float(limit)


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
    lines = ["| section | case | ratio | middle half | bound | |", "| --- | --- | --- | --- | --- | --- |"]
    for r in rows:
        spread, verdict = f"{r.low:.2f} to {r.high:.2f}", "" if r.reached else "missed"
        lines.append(f"| {r.section} | {r.case} | {r.ratio:.2f} | {spread} | {r.bound} | {verdict} |")
    content = {"rows": [asdict(r) for r in rows]}
    write_files(name, title, content, lines, conditions, command or f"python kernels/bench/{name}.py --write")


def write_files(
    name: str, title: str, content: dict[str, Any], lines: list[str], conditions: dict[str, str], command: str
) -> None:
    """Write a benchmark's result: what was measured as JSON, and the same for readers in Markdown.

    Args:
        name: of the files, without ending.
        title: of the page.
        content: of the JSON, besides the conditions.
        lines: of the page, below the conditions.
        conditions: under which it was taken.
        command: that takes it.
    """
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"conditions": conditions, **content}, indent=2))
    head = [f"# {title}", "", f"`{command}`", "", *(f"- {name}: {value}" for name, value in conditions.items()), ""]
    (RESULTS / f"{name}.md").write_text("\n".join(head + lines) + "\n")


def conditions(threads: int) -> dict[str, str]:
    """Return what the figures depend on: machine, versions, date and commit."""
    return {
        "processor": f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(threads),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
    }


def _processor() -> str:
    """Return the processor's name as Linux has it, or its architecture."""
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def gpu_conditions(device: torch.device) -> dict[str, str]:
    """Return what the figures of a GPU depend on besides: the card, and the versions of what drives it."""
    card = torch.cuda.get_device_properties(device)
    multiprocessors, cache, memory = card.multi_processor_count, card.L2_cache_size, card.total_memory
    return {
        "device": f"{card.name}, {multiprocessors} multiprocessors, L2 of {cache / 2**20:.0f} MiB, "
        f"memory of {memory / 2**30:.0f} GiB",
        "CUDA or ROCm": str(torch.version.cuda or torch.version.hip),
        "jax": version("jax"),
    }


def commit() -> str:
    """Return the commit that is checked out, "-dirty" if files differ from it, or "unknown" where git cannot tell."""
    if shutil.which("git") is None:
        return "unknown"
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent, check=False
    )
    return described.stdout.strip() or "unknown"


def version(package: str) -> str:
    """Return the installed version of a package, or "absent"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
