"""Bias and activation in one kernel: y = f(x + b) for x (..., N) and b (N,), and its backward with the bias gradient.

    y  = f(x + b)
    dx = g f'(x + b)
    db = sum over the rows of dx, from the unrounded dx

Saved: x and b, from which x + b is formed again; or only y, for ReLU, which loses nothing by it, and for those who
prefer less memory to exactness. Half types are computed and summed in float32; every result is rounded once. The sum
over rows has two stages, each in a fixed order and without atomics, so the same inputs give the same bits: a program
adds up some tiles of rows, and a second kernel adds the programs' partial sums in their order. How the rows are
cut depends on the shape alone, not on the device.

Rows are read as they lie, so x is made contiguous first. A row whose length is a multiple of 16 elements is read and
written at full width; other rows begin at unaligned addresses, and there is no aligned bulk to keep wide.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from minigrad_kernels.arithmetic import activation as _activation
from minigrad_kernels.arithmetic import narrow, widen
from minigrad_kernels.blocks import BLOCKS, cdiv
from minigrad_kernels.elementwise import as_laid_out, is_in_memory, times_derivative, times_derivative_from_output
from minigrad_kernels.launch import launch
from minigrad_kernels.statistics import write_backward, write_forward
from minigrad_kernels.watch import Watch, seen_by


@triton.jit
def _place(tiles_in_row):
    """Return the program's place among the rows of tiles and in its row; one grid dimension, as others are short."""
    program = tl.program_id(0).to(tl.int64)
    return program // tiles_in_row, program % tiles_in_row


@triton.jit
def _bias_activation_kernel(
    y_ptr, x_ptr, bias_ptr, statistics_ptr, fired_ptr, n_rows, n_columns, tiles_in_row,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = _place(tiles_in_row)
    rows = row * ROWS + tl.arange(0, ROWS)  # [ROWS], 64-bit: rows * n_columns may pass 2^31
    columns = column * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    offsets = rows[:, None] * n_columns + columns[None, :]  # [ROWS, BLOCK]
    mask = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    bias = widen(tl.load(bias_ptr + columns, mask=columns < n_columns, other=0.0))
    x = widen(tl.load(x_ptr + offsets, mask=mask, other=0.0))
    y = narrow(_activation(x + bias[None, :], ACTIVATION), y_ptr.dtype.element_ty)
    tl.store(y_ptr + offsets, y, mask=mask)
    if statistics_ptr is not None:
        write_forward(statistics_ptr, tl.program_id(0), widen(y), mask)
    if fired_ptr is not None:
        fires = tl.max((mask & ~(widen(y) <= 0.0)).to(tl.int32), axis=0)  # [BLOCK]
        tl.store(fired_ptr + columns, 1, mask=fires == 1)  # programs that set the same flag write the same


@triton.jit
def _bias_activation_backward_kernel(
    dx_ptr, partial_ptr, g_ptr, saved_ptr, bias_ptr, statistics_ptr,
    n_rows, n_columns, tiles_in_row, n_tiles, low, high,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = _place(tiles_in_row)
    columns = column * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    total = tl.zeros([ROWS, BLOCK], dtype=partial_ptr.dtype.element_ty)
    if bias_ptr is not None:
        bias = widen(tl.load(bias_ptr + columns, mask=columns < n_columns, other=0.0))[None, :]
    for tile in range(n_tiles):
        rows = (row * n_tiles + tile) * ROWS + tl.arange(0, ROWS)  # [ROWS]
        offsets = rows[:, None] * n_columns + columns[None, :]  # [ROWS, BLOCK]
        mask = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
        saved = widen(tl.load(saved_ptr + offsets, mask=mask, other=0.0))
        g = widen(tl.load(g_ptr + offsets, mask=mask, other=0.0))
        if bias_ptr is not None:
            saved += bias
            dx = times_derivative(g, saved, ACTIVATION, 1)
        else:
            dx = times_derivative_from_output(g, saved, ACTIVATION)
        stored = narrow(dx, dx_ptr.dtype.element_ty)
        tl.store(dx_ptr + offsets, stored, mask=mask)
        total += tl.where(mask, dx, 0.0)
        if statistics_ptr is not None:
            index = tl.program_id(0).to(tl.int64) * n_tiles + tile
            write_backward(
                statistics_ptr, index, g, widen(stored), saved, mask, low, high, ACTIVATION, bias_ptr is None
            )
    partial = tl.sum(total, axis=0)  # [BLOCK]
    tl.store(partial_ptr + row * n_columns + columns, partial, mask=columns < n_columns)


@triton.jit
def _column_sum_kernel(
    out_ptr, partial_ptr, n_rows, n_columns,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    total = tl.zeros([ROWS, BLOCK], dtype=partial_ptr.dtype.element_ty)
    for start in range(0, n_rows, ROWS):
        rows = start + tl.arange(0, ROWS).to(tl.int64)  # [ROWS]
        mask = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
        total += tl.load(partial_ptr + rows[:, None] * n_columns + columns[None, :], mask=mask, other=0.0)
    out = tl.sum(total, axis=0)  # [BLOCK]
    tl.store(out_ptr + columns, narrow(out, out_ptr.dtype.element_ty), mask=columns < n_columns)


def bias_activation(
    x: torch.Tensor,
    bias: torch.Tensor,
    activation: str,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Launch f(x + bias). x (..., N), bias (N,), same dtype. Returns a new tensor laid out as x.

    `tiles` says in how many rows it is watched.
    """
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel():
        n_rows, n_columns = _matrix(x)
        rows, block = BLOCKS.tile_shape(x.element_size(), n_columns)
        fired = None if watch is None else watch.fired
        launch(
            _bias_activation_kernel, tiles(x), x,
            y_ptr=y, x_ptr=as_laid_out(x, y), bias_ptr=_contiguous(bias),
            statistics_ptr=None if watch is None else watch.rows, fired_ptr=None if fired is None else fired.flags,
            n_rows=n_rows, n_columns=n_columns, tiles_in_row=cdiv(n_columns, block),
            ACTIVATION=activation, ROWS=rows, BLOCK=block, num_warps=BLOCKS.num_warps,
        )  # fmt: skip
    return _laid_out_as_input(y, x)


def bias_activation_backward(
    upstream: torch.Tensor,
    saved: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    watch: Watch | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch upstream f'(x + bias) and its sum over rows, from the saved x and bias or, without bias, the saved output.

    Returns dx (..., N), laid out as `saved`, and db (N,). `backward_tiles` says in how many rows it is watched.
    """
    dx = torch.empty_like(saved, memory_format=torch.contiguous_format)
    db = saved.new_empty(saved.shape[-1:])
    if dx.numel() == 0:
        return _laid_out_as_input(dx, saved), db.zero_()
    n_rows, n_columns = _matrix(saved)
    rows, block = BLOCKS.tile_shape(saved.element_size(), n_columns)
    tiles_in_row = cdiv(n_columns, block)
    n_partial, n_tiles = _division(saved)
    accumulation = torch.float64 if saved.dtype == torch.float64 else torch.float32
    partial = torch.empty((n_partial, n_columns), dtype=accumulation, device=saved.device)
    watched_rows, low, high = seen_by(watch)
    sum_rows, sum_block = BLOCKS.column_sum
    launch(
        _bias_activation_backward_kernel, n_partial * tiles_in_row, saved,
        dx_ptr=dx, partial_ptr=partial, g_ptr=as_laid_out(upstream, dx), saved_ptr=as_laid_out(saved, dx),
        bias_ptr=None if bias is None else _contiguous(bias), statistics_ptr=watched_rows,
        n_rows=n_rows, n_columns=n_columns, tiles_in_row=tiles_in_row, n_tiles=n_tiles, low=low, high=high,
        ACTIVATION=activation, ROWS=rows, BLOCK=block, num_warps=BLOCKS.num_warps,
    )  # fmt: skip
    launch(
        _column_sum_kernel, cdiv(n_columns, sum_block), saved,
        out_ptr=db, partial_ptr=partial, n_rows=n_partial, n_columns=n_columns,
        ROWS=sum_rows, BLOCK=sum_block, num_warps=BLOCKS.num_warps,
    )  # fmt: skip
    return _laid_out_as_input(dx, saved), db


def tiles(x: torch.Tensor) -> int:
    """Return the number of tiles in which the forward kernel takes x (..., N), not empty, one each."""
    n_rows, n_columns = _matrix(x)
    rows, block = BLOCKS.tile_shape(x.element_size(), n_columns)
    return cdiv(n_rows, rows) * cdiv(n_columns, block)


def backward_tiles(x: torch.Tensor) -> int:
    """Return the number of tiles in which the backward kernel takes x (..., N), not empty, those without rows too."""
    n_partial, n_tiles = _division(x)
    _, block = BLOCKS.tile_shape(x.element_size(), x.shape[-1])
    return n_partial * cdiv(x.shape[-1], block) * n_tiles


def _division(x: torch.Tensor) -> tuple[int, int]:
    """Return in how many parts the backward kernel takes the rows, and of how many tiles each."""
    rows, _ = BLOCKS.tile_shape(x.element_size(), x.shape[-1])
    n_tiles = min(BLOCKS.most_tiles, max(1, tiles(x) // BLOCKS.programs))
    return cdiv(_matrix(x)[0], rows * n_tiles), n_tiles


def _matrix(x: torch.Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]


def _contiguous(bias: torch.Tensor) -> torch.Tensor:
    if bias.is_contiguous() and is_in_memory(bias):
        return bias
    return as_laid_out(bias, torch.empty_like(bias, memory_format=torch.contiguous_format))


def _laid_out_as_input(result: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return result if x.is_contiguous() else torch.empty_like(x).copy_(result)
