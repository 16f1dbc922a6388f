"""How much of its tensors a program of each kernel takes: one table, with a row for every GPU that has none of its own.

None of these numbers is a measurement. They follow from the width of a load, 16 bytes for each thread, and from what
the compilers make of them (`python kernels/bench/aot.py`): what would spill registers is smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True)
class Blocks:
    """What one program takes.

    Attributes:
        num_warps: of every program.
        elementwise: bytes of each operand of an elementwise kernel: two accesses in flight for every thread of 32 in a
            warp.
        tile: bytes of a tile of a matrix, likewise.
        tile_row: bytes of a tile's row at most: one access for every thread of a warp.
        most_tiles: that a program of the backward with a bias adds up, where the matrix is large: the partial sums are
            then 1/128 of it or less.
        programs: below so many such programs each takes fewer tiles, so that a small matrix still occupies a GPU.
        column_sum: rows and columns of partial bias gradients that are read at a time.
        statistics: rows of statistics that are read at a time.
        update: elements of a tile of the fused update, by the bytes of one: an access or two for every thread, and as
            many as numbers of one or two words leave registers for.
        norms: tiles of the fused update whose sums are read at a time.
        many_tiles: from which on one program alone would add them up for longer than a launch takes.
        row: elements of a table's row that are written at a time.
    """

    num_warps: int = 4
    elementwise: int = 4096
    tile: int = 4096
    tile_row: int = 512
    most_tiles: int = 16
    programs: int = 1024
    column_sum: tuple[int, int] = (64, 32)
    statistics: int = 512
    update: Mapping[int, int] = field(default_factory=lambda: {2: 1024, 4: 1024, 8: 256})
    norms: int = 1024
    many_tiles: int = 8192
    row: int = 1024

    def tile_shape(self, itemsize: int, n_columns: int) -> tuple[int, int]:
        """Return the rows and columns of a tile of a matrix, powers of two: as wide as it needs, up to `tile_row`."""
        columns = min(self.tile_row // itemsize, 1 << (n_columns - 1).bit_length())
        return self.tile // (itemsize * columns), columns


DEFAULT = Blocks()
TABLE = {"hip": replace(DEFAULT, update={2: 2048, 4: 1024, 8: 512})}  # a warp of AMD's has 64 threads


def blocks_on(backend: str) -> Blocks:
    """Return the row of the GPUs of a kind: "cuda" or "hip", as Triton calls them."""
    return TABLE.get(backend, DEFAULT)


BLOCKS = blocks_on("hip" if torch.version.hip else "cuda")


def cdiv(n: int, size: int) -> int:
    """Return how many parts of a size n has, the last perhaps smaller; Triton's own function is slow on the host."""
    return -(-n // size)
