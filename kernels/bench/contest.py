"""One case timed: minigrad, copies of the same bytes, and its peers, on the GPU alone and from Python."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bench import copies, peers
from bench.lines import Cell, Figure
from bench.setting import Setting
from bench.timing import ROUNDS, Absent, Contestant, Times, fastest, figure, gpu_times, ratio, wall_times

OURS = "minigrad"
BOUND_BY_MEMORY = 2**26
"""Elements from which on a copy of the same bytes is the limit."""


def hold(
    ours: Contestant,
    others: Sequence[Contestant | Absent],
    read: Sequence[tuple[Tensor, ...]],
    n_bytes: int,
    calls: int,
    setting: Setting,
    writes: int = 1,
) -> tuple[dict[str, Cell], Times]:
    """Time all of them and return the cells of a table, and the GPU times for what a section compares besides.

    Args:
        ours: what minigrad does.
        others: who else does the same.
        read: the large tensors that a call reads, several times; a copy that is the limit reads as many.
        n_bytes: that a call has to move.
        calls: of a replay.
        setting: of the section.
        writes: how many tensors as large a call writes.
    """
    rounds = 2 if setting.dry else ROUNDS
    moved = copies.contestants(read, writes)
    times = gpu_times([ours, *moved, *others], setting.device, calls, rounds)
    from_python = [other for other in others if other.name != peers.JAX]  # JAX's GPU time is one from Python already
    wall = wall_times([ours, *from_python], setting.device, calls, rounds)
    copy, share = copies.compared(times, ours.name)
    taken = figure(times, ours.name)
    assert isinstance(taken, Figure)
    cells: dict[str, Cell] = {
        f"{ours.name} us": taken,
        "GB/s": n_bytes / taken.median / 1e3,
        "copy us": copy,
        "of copy": share,
        **{f"{other.name} us": figure(times, other.name) for other in others},
        "over best": ratio(times, ours.name, fastest(times, [other.name for other in others])),
        **{f"{name} wall us": figure(wall, name) for name in wall},
    }
    return cells, times
