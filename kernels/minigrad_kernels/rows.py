"""A row of a table, at a place that only the device knows: what a captured step reports, written beside the others."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from minigrad_kernels.blocks import BLOCKS, cdiv
from minigrad_kernels.launch import launch


@triton.jit(do_not_specialize=["n_columns"])
def _put_row_kernel(table_ptr, values_ptr, row_ptr, n_columns, BLOCK: tl.constexpr):
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    row = tl.load(row_ptr).to(tl.int64)
    values = tl.load(values_ptr + columns, mask=columns < n_columns, other=0.0)
    tl.store(table_ptr + (row * n_columns.to(tl.int64) + columns), values, mask=columns < n_columns)


def put_row(table: torch.Tensor, row: torch.Tensor, values: torch.Tensor) -> None:
    """Launch table[row] = values.

    Args:
        table: (rows, n), contiguous; changed in place.
        row: one int64, below `rows`, on the same device.
        values: (n,), contiguous, of the table's dtype.
    """
    n_columns = values.numel()
    if n_columns == 0:
        return
    launch(
        _put_row_kernel, cdiv(n_columns, BLOCKS.row), table,
        table_ptr=table, values_ptr=values, row_ptr=row, n_columns=n_columns,
        BLOCK=BLOCKS.row, num_warps=BLOCKS.num_warps,
    )  # fmt: skip


def is_captured(tensor: torch.Tensor) -> bool:
    """Return whether what is launched on a tensor now is recorded for a CUDA graph, and not computed."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
