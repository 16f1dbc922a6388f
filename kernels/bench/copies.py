"""What a kernel that waits for memory is compared with: copies that move the same bytes, with as many reads and writes.

There are several, and the fastest of them is the limit: torch's own, and the kernel of `move_kernel`, in which nothing
but the number of the tensors is chosen.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.lines import Figure
from bench.timing import Contestant, Times, fastest, figure, ratio
from minigrad_kernels import path_for

MOST_READS, MOST_WRITES = 4, 3
BY_TRITON, BY_TORCH = "copy by Triton", "copy by torch"


def move(*read: Tensor, writes: int = 1) -> tuple[Tensor, ...]:
    """Read tensors and write as many new ones, each the bitwise exclusive or of all that is read.

    Args:
        read: one to four dense tensors of one size in bytes, a multiple of 4.
        writes: one to three.
    Returns: tensors of 32-bit integers, flat.
    """
    if not (1 <= len(read) <= MOST_READS and 1 <= writes <= MOST_WRITES):
        raise ValueError(
            f"a copy of {len(read)} reads and {writes} writes was asked for: "
            f"there are those of 1 to {MOST_READS} and 1 to {MOST_WRITES}"
        )
    words = [tensor.view(-1).view(torch.int32) for tensor in read]
    if path_for(read[0].device) == "plain":
        moved = functools.reduce(operator.xor, words)
        return tuple(moved.clone() for _ in range(writes))
    import triton

    from bench.move_kernel import BLOCK, NUM_WARPS, _move_kernel

    out = [torch.empty_like(words[0]) for _ in range(writes)]
    places = [*out, *[None] * (MOST_WRITES - writes), *words, *[None] * (MOST_READS - len(read))]
    n_words = words[0].numel()
    with torch.cuda.device_of(words[0]):
        _move_kernel[(triton.cdiv(n_words, BLOCK),)](*places, n_words, BLOCK=BLOCK, num_warps=NUM_WARPS)
    return tuple(out)


def contestants(copies: Sequence[tuple[Tensor, ...]], writes: int = 1) -> list[Contestant]:
    """Return the copies that read what a case reads and write as much, `writes` times.

    Args:
        copies: what a call reads, several times.
        writes: how many tensors it writes, each as large as one that it reads.
    """
    found = [Contestant(BY_TRITON, functools.partial(move, writes=writes), copies)]
    torchs: dict[tuple[int, int], Callable[..., Any]] = {(1, 1): torch.clone, (2, 1): torch.add}
    if own := torchs.get((len(copies[0]), writes)):
        found.append(Contestant(BY_TORCH, own, copies))
    return found


def compared(times: Times, ours: str) -> tuple[Figure | str, Figure | str]:
    """Return the time of the fastest copy, and its ratio to ours: the part of the limit that ours reaches."""
    best = fastest(times, [name for name in (BY_TRITON, BY_TORCH) if name in times])
    return figure(times, best), ratio(times, best, ours)
