"""Statistics of what an activation's kernels already hold: device functions that write them, and their second stage.

A kernel that is given a place for them reduces each of its tiles to a row of `COLUMNS` numbers, of values as they are
stored. A second kernel adds up the rows of all layers of a pass in a fixed order, one program for each layer, so the
same inputs give the same bits. Forward and backward of a layer write

    forward    a pivot, the largest deviation from it, the sums of the deviations and of their squares, and their number
    backward   sum of squares of the upstream gradient and its largest magnitude; the same of the outgoing one; how many
               elements of that are 0, saturated, not finite, and 0 only because the dtype is too small

A square of a small gradient would not be a float32 any more (1e-25 is no unusual gradient of a deep network), so a tile
is scaled by the power of two that brings its largest magnitude to [1, 2) before it is squared, and its mean is
subtracted before deviations are. The second stage undoes both in float64; it alone has float64 instructions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from minigrad_kernels.blocks import BLOCKS
from minigrad_kernels.launch import launch
from minigrad_kernels.plain_statistics import COLUMNS
from minigrad_kernels.watch import BACKWARD

_COLUMNS = tl.constexpr(COLUMNS)
_BACKWARD = tl.constexpr(BACKWARD)
_MOST_COUNTED = tl.constexpr(1 << 15)  # elements of a tile: two counts share 32 bits


@triton.jit
def write_forward(statistics_ptr, row, y, valid):
    """Write a tile's row: y as stored, widened, any shape; `valid` says which elements are there, at least one."""
    count = tl.sum(valid.to(y.dtype))
    pivot = tl.sum(tl.where(valid, y, 0.0) * (1.0 / count))  # about their mean; a sum first might overflow
    deviation = tl.where(valid, y - pivot, 0.0)
    deviation = tl.where(tl.abs(pivot) < float("inf"), deviation, 0.0)  # where the mean is infinite, it says all
    largest = tl.max(tl.abs(deviation))
    deviation = deviation * scale_of(largest)
    row_ptr = statistics_ptr + row.to(tl.int64) * _COLUMNS
    tl.store(row_ptr, pivot)
    tl.store(row_ptr + 1, largest)
    tl.store(row_ptr + 2, tl.sum(deviation))
    tl.store(row_ptr + 3, tl.sum(deviation * deviation))
    tl.store(row_ptr + 4, count)


@triton.jit
def write_backward(
    statistics_ptr, row, g, dx, value, valid, low, high,
    ACTIVATION: tl.constexpr, FROM_OUTPUT: tl.constexpr,
):  # fmt: skip
    """Write a tile's row: g and dx as stored, `value` the activation's input or output, all widened, of one shape.

    Where an element is not `valid`, g and dx are 0. Sigmoid and tanh are saturated where `value` is below `low` or
    above `high`, ReLU where its derivative is 0.
    """
    tl.static_assert(value.numel < _MOST_COUNTED)
    row_ptr = statistics_ptr + row.to(tl.int64) * _COLUMNS
    write_squares(row_ptr, g)
    write_squares(row_ptr + 2, dx)
    zero = valid & (dx == 0.0)
    infinite = ~(tl.abs(dx) < float("inf"))
    if ACTIVATION == "relu":
        saturated = valid & (value <= 0.0)
        false = tl.zeros_like(zero)
    else:
        saturated = valid & ((value < low) | (value > high))
        finite = (value == value) if FROM_OUTPUT else (tl.abs(value) < float("inf"))
        false = zero & (g != 0.0) & finite
    counts = tl.sum(zero.to(tl.int32) + (saturated.to(tl.int32) << 16))
    others = tl.sum(infinite.to(tl.int32) + (false.to(tl.int32) << 16))
    tl.store(row_ptr + 4, (counts & 0xFFFF).to(dx.dtype))
    tl.store(row_ptr + 5, (counts >> 16).to(dx.dtype))
    tl.store(row_ptr + 6, (others & 0xFFFF).to(dx.dtype))
    tl.store(row_ptr + 7, (others >> 16).to(dx.dtype))


@triton.jit
def write_squares(ptr, value):
    """Write the sum of squares of a tile, scaled, and its largest magnitude, by which it was."""
    largest = tl.max(tl.abs(value))
    scaled = value * scale_of(largest)
    tl.store(ptr, tl.sum(scaled * scaled))
    tl.store(ptr + 1, largest)


@triton.jit
def scale_of(largest):
    """Return the power of two that brings `largest` to [1, 2), or as near as a float32 can; 1 in float64."""
    if largest.dtype == tl.float64:
        return 1.0
    else:
        exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
        return (tl.maximum(254 - exponent, 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _second_stage_kernel(
    out_ptr, partial_ptr, segments_ptr,
    ROWS: tl.constexpr,
):  # fmt: skip
    segment = tl.program_id(0).to(tl.int64)
    segment_ptr = segments_ptr + segment * 4
    row_ptr = partial_ptr + tl.load(segment_ptr) * _COLUMNS
    n_rows = tl.load(segment_ptr + 1)
    out_ptr += segment * _COLUMNS
    n_elements = tl.load(segment_ptr + 2).to(tl.float64)
    tl.store(out_ptr, n_elements)
    if tl.load(segment_ptr + 3) == _BACKWARD:
        _add_up_backward(out_ptr, row_ptr, n_rows, ROWS)
    else:
        _add_up_forward(out_ptr, row_ptr, n_rows, n_elements, ROWS)


@triton.jit
def _add_up_forward(out_ptr, row_ptr, n_rows, n_elements, ROWS: tl.constexpr):
    total = tl.zeros([ROWS], dtype=tl.float64)
    for start in range(0, n_rows, ROWS):
        rows = start + tl.arange(0, ROWS)  # [ROWS]
        deviations = column_of(row_ptr, rows, 2, n_rows) / scales(row_ptr, rows, 1, n_rows)
        total += column_of(row_ptr, rows, 4, n_rows) * column_of(row_ptr, rows, 0, n_rows) + deviations
    mean = tl.sum(total) / n_elements
    squares = tl.zeros([ROWS], dtype=tl.float64)
    for start in range(0, n_rows, ROWS):
        rows = start + tl.arange(0, ROWS)  # [ROWS]
        scale = scales(row_ptr, rows, 1, n_rows)
        deviations = column_of(row_ptr, rows, 2, n_rows) / scale
        offset = column_of(row_ptr, rows, 0, n_rows) - mean
        squares += column_of(row_ptr, rows, 3, n_rows) / scale / scale
        squares += offset * (2.0 * deviations + column_of(row_ptr, rows, 4, n_rows) * offset)
    tl.store(out_ptr + 1, mean)
    tl.store(out_ptr + 2, tl.sum(squares))
    for column in tl.static_range(3, _COLUMNS):
        tl.store(out_ptr + column, 0.0)


@triton.jit
def _add_up_backward(out_ptr, row_ptr, n_rows, ROWS: tl.constexpr):
    upstream_squares = tl.zeros([ROWS], dtype=tl.float64)
    squares = tl.zeros([ROWS], dtype=tl.float64)
    largest = tl.zeros([ROWS], dtype=tl.float64)
    for start in range(0, n_rows, ROWS):
        rows = start + tl.arange(0, ROWS)  # [ROWS]
        scale = scales(row_ptr, rows, 1, n_rows)
        upstream_squares += column_of(row_ptr, rows, 0, n_rows) / scale / scale
        scale = scales(row_ptr, rows, 3, n_rows)
        squares += column_of(row_ptr, rows, 2, n_rows) / scale / scale
        largest = tl.maximum(largest, column_of(row_ptr, rows, 3, n_rows))
    total = tl.sum(squares)
    tl.store(out_ptr + 1, tl.sum(upstream_squares))
    tl.store(out_ptr + 2, total)
    tl.store(out_ptr + 3, tl.where(total == total, tl.max(largest), total))  # a device's maximum may drop NaN
    for column in tl.static_range(4, _COLUMNS):
        counted = tl.zeros([ROWS], dtype=tl.float64)
        for start in range(0, n_rows, ROWS):
            counted += column_of(row_ptr, start + tl.arange(0, ROWS), column, n_rows)
        tl.store(out_ptr + column, tl.sum(counted))


@triton.jit
def column_of(row_ptr, rows, COLUMN: tl.constexpr, n_rows):
    """Return a column of some rows, numbered in 64 bits, in float64; 0 where there is no row."""
    return tl.load(row_ptr + (rows * _COLUMNS + COLUMN), mask=rows < n_rows, other=0.0).to(tl.float64)


@triton.jit
def scales(row_ptr, rows, COLUMN: tl.constexpr, n_rows):
    """Return by what some rows were scaled, in float64, from the column with their largest magnitudes."""
    largest = tl.load(row_ptr + (rows * _COLUMNS + COLUMN), mask=rows < n_rows, other=1.0)
    return scale_of(largest) + tl.zeros_like(largest).to(tl.float64)


def second_stage(partials: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Launch the second stage: add up the rows of every segment.

    Args:
        partials: (rows, COLUMNS) float32, or float64 for layers in float64.
        segments: (segments, 4) int64: first row, number of rows, number of elements, and which pass they are of,
            FORWARD or BACKWARD of `watch`.
    Returns: (segments, COLUMNS) float64, as `plain_statistics` has them.
    """
    out = torch.empty((len(segments), COLUMNS), dtype=torch.float64, device=partials.device)
    launch(
        _second_stage_kernel, len(segments), partials,
        out_ptr=out, partial_ptr=partials, segments_ptr=segments, ROWS=BLOCKS.statistics, num_warps=BLOCKS.num_warps,
    )  # fmt: skip
    return out
