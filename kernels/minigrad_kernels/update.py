"""The kernels of the fused update: one launch changes all parameters of a dtype, by any rule of `update_rules`.

A table on the device says where parameters, gradients and state lie; tensors are cut into tiles, one program each, so
that many small tensors take one launch and large ones all of the card. A step is three launches:

    squares    the sum of squares of each tile of the gradients; of many tiles, a launch more adds up some at a time
    prepare    adds them up in a fixed order: the norm of each gradient and of all; from these whether the step is to be
               made and what the gradient is clipped by; the count of updates, and the coefficients of the step
    update     reads each gradient, parameter and state once, and writes parameter and state once, if it is to be

A fourth adds up what a monitor wants to know of the step, which the third has reduced while it held it. Nothing is read
by the host: the learning rate, the count of updates and the verdict on the step are numbers on the device, so that a
step can be captured in a CUDA graph. `prepare` and the fourth alone have float64 instructions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from minigrad_kernels.arithmetic import narrow, widen
from minigrad_kernels.double_word import minus, over, root, times, two_product
from minigrad_kernels.plain_statistics import COLUMNS
from minigrad_kernels.statistics import column_of, scale_of, scales, write_squares
from minigrad_kernels.update_rules import (
    CLIP,
    CLIP_NORM,
    FIRST,
    LEARNING_RATE,
    ROOT_FACTOR,
    SECOND,
    SHRINK,
    STEP_SIZE,
    WEIGHT_DECAY,
    updated,
)

# What the table has for each tensor: its elements, where its tiles begin among those of its dtype and how many it has,
# whether it is float64, and the addresses of its parameter, gradient (0: none), direction of the last gradient, state.
ENTRY = 9
_N_ELEMENTS, _FIRST_TILE, _N_TILES, _IS_DOUBLE = map(tl.constexpr, range(4))
_PARAMETER, _GRADIENT, _DIRECTION, _STATE = map(tl.constexpr, range(4, 8))
_ENTRY = tl.constexpr(ENTRY)
# A row of a tile's sums: squares of the gradient, of the parameter, of its change, and the gradient times the direction
# of the last; each with the magnitude by which it was scaled. The first has a second word where the next will be.
_COLUMNS = tl.constexpr(COLUMNS)
# A report on the step: the loss, the norm of the gradient, whether it was applied, then each tensor's gradient's norm.
REPORTED = 3
_LOSS, _NORM, _APPLIED, _NORMS = map(tl.constexpr, range(1 + REPORTED))


@triton.jit
def _place(table_ptr, tiles_ptr, BLOCK: tl.constexpr):
    """Return the row of this program's tile, the entry of its tensor, its offsets, and whether it is a whole one."""
    tile_ptr = tiles_ptr + 3 * tl.program_id(0).to(tl.int64)
    entry_ptr = table_ptr + tl.load(tile_ptr).to(tl.int64) * _ENTRY
    start = tl.load(tile_ptr + 1).to(tl.int64) * BLOCK
    row = tl.load(tile_ptr + 2).to(tl.int64)
    is_whole = start + BLOCK <= tl.load(entry_ptr + _N_ELEMENTS)
    return row, entry_ptr, start + tl.arange(0, BLOCK), is_whole


@triton.jit
def _pointer(entry_ptr, OPERAND: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    address = tl.load(entry_ptr + OPERAND)
    if ALIGNED:
        return tl.multiple_of(address.to(tl.pointer_type(DTYPE)), 16)
    else:
        return address.to(tl.pointer_type(DTYPE))


@triton.jit
def _load(entry_ptr, OPERAND: tl.constexpr, offsets, DTYPE: tl.constexpr, MASKED: tl.constexpr):
    """Load a tile of an operand, widened; one that is MASKED may be incomplete, and its address any."""
    ptr = _pointer(entry_ptr, OPERAND, DTYPE, not MASKED) + offsets
    if MASKED:
        return widen(tl.load(ptr, mask=offsets < tl.load(entry_ptr + _N_ELEMENTS), other=0.0))
    else:
        return widen(tl.load(ptr))


@triton.jit
def _store(entry_ptr, OPERAND: tl.constexpr, offsets, value, DTYPE: tl.constexpr, MASKED: tl.constexpr):
    """Store a tile of an operand, rounded; return it as it is stored, widened again."""
    ptr = _pointer(entry_ptr, OPERAND, DTYPE, not MASKED) + offsets
    value = narrow(value, DTYPE)
    if MASKED:
        tl.store(ptr, value, mask=offsets < tl.load(entry_ptr + _N_ELEMENTS))
    else:
        tl.store(ptr, value)
    return widen(value)


@triton.jit
def _write_gradient_squares(row_ptr, g, WORDS: tl.constexpr):
    """Write a tile's sum of squares, in float32 in two words: by what follows from it the gradient is clipped."""
    write_squares(row_ptr, g)
    tl.store(row_ptr + 2, 0.0)
    if WORDS == 2 and g.dtype == tl.float32:
        scaled = g * scale_of(tl.max(tl.abs(g)))
        square, error = two_product(scaled, scaled)  # below 4, whose sum below 2^12 as a whole number of 2^-50
        total = tl.sum((square * 2.0**50).to(tl.int64) + (error * 2.0**50).to(tl.int64))
        high = total.to(tl.float32)
        low = (total - high.to(tl.int64)).to(tl.float32)
        if tl.sum(square) < float("inf"):
            tl.store(row_ptr, high * 2.0**-50)
            tl.store(row_ptr + 2, low * 2.0**-50)


@triton.jit
def _squares_kernel(
    rows_ptr, table_ptr, tiles_ptr,
    DTYPE: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, entry_ptr, offsets, is_whole = _place(table_ptr, tiles_ptr, BLOCK)
    gradient = tl.load(entry_ptr + _GRADIENT)
    row_ptr = rows_ptr + row * _COLUMNS
    if gradient == 0:
        tl.store(row_ptr, 0.0)
        tl.store(row_ptr + 1, 1.0)
        tl.store(row_ptr + 2, 0.0)
    elif is_whole & (gradient % 16 == 0):
        _write_gradient_squares(row_ptr, _load(entry_ptr, _GRADIENT, offsets, DTYPE, False), WORDS)
    else:
        _write_gradient_squares(row_ptr, _load(entry_ptr, _GRADIENT, offsets, DTYPE, True), WORDS)


@triton.jit(do_not_specialize=["n_single_rows", "n_double_rows"])
def _combine_kernel(
    sums_ptr, single_rows_ptr, double_rows_ptr, n_single_rows, n_double_rows,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Add up the squares of as many tiles as are read at a time, of both precisions, into a row of float64 sums."""
    program = tl.program_id(0).to(tl.int64)
    first = program * ROWS
    n_single, n_double = n_single_rows - first, n_double_rows - first
    squares = _sum_of_squares(single_rows_ptr + first * _COLUMNS, 0, tl.minimum(n_single, ROWS), ROWS)
    squares += _sum_of_squares(double_rows_ptr + first * _COLUMNS, 0, tl.minimum(n_double, ROWS), ROWS)
    tl.store(sums_ptr + program * _COLUMNS, squares)
    tl.store(sums_ptr + program * _COLUMNS + 1, 1.0)
    tl.store(sums_ptr + program * _COLUMNS + 2, 0.0)


@triton.jit(do_not_specialize=["n_single_rows", "n_double_rows", "n_sums"])
def _prepare_kernel(
    report_ptr, norms_ptr, single_ptr, double_ptr, applied_ptr, sound_ptr, updates_ptr, loss_ptr, learning_rate_ptr,
    single_rows_ptr, double_rows_ptr, sums_ptr, table_ptr, n_single_rows, n_double_rows, n_sums,
    RULE: tl.constexpr, CLIPS: tl.constexpr, STOPS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    if report_ptr is None:
        _write_coefficients(single_ptr, double_ptr, updates_ptr, learning_rate_ptr, 1, RULE)
    elif tl.program_id(0) > 0:
        tensor = tl.program_id(0).to(tl.int64) - 1
        entry_ptr = table_ptr + tensor * _ENTRY
        first, n_rows = tl.load(entry_ptr + _FIRST_TILE), tl.load(entry_ptr + _N_TILES)
        if tl.load(entry_ptr + _IS_DOUBLE) == 1:
            norm = tl.sqrt(_sum_of_squares(double_rows_ptr + first * _COLUMNS, 0, n_rows, ROWS))
        else:
            norm = tl.sqrt(_sum_of_squares(single_rows_ptr + first * _COLUMNS, 0, n_rows, ROWS))
        tl.store(report_ptr + _NORMS + tensor, norm)
        tl.store(norms_ptr + tensor, norm.to(tl.float32))
    else:
        if sums_ptr is None:
            squares = _sum_of_squares(single_rows_ptr, 0, n_single_rows, ROWS)
            squares += _sum_of_squares(double_rows_ptr, 0, n_double_rows, ROWS)
        else:
            squares = _sum_of_squares(sums_ptr, 0, n_sums, ROWS)
        norm = tl.sqrt(squares)
        loss = float("nan")
        is_finite = norm < float("inf")
        if loss_ptr is not None:
            loss = tl.load(loss_ptr).to(tl.float64)
            is_finite = is_finite & (tl.abs(loss) < float("inf"))
        applied = is_finite.to(tl.int32)
        if STOPS:
            applied = applied & tl.load(sound_ptr)
            tl.store(sound_ptr, applied)
        tl.store(report_ptr + _LOSS, loss)
        tl.store(report_ptr + _NORM, norm)
        tl.store(report_ptr + _APPLIED, applied.to(tl.float64))
        tl.store(applied_ptr, applied)
        if CLIPS:
            ratio = tl.load(double_ptr + 2 * CLIP_NORM) / norm
            _set(single_ptr, double_ptr, CLIP, (tl.where(ratio < 1.0, ratio, 1.0), 0.0 * norm))
        _write_coefficients(single_ptr, double_ptr, updates_ptr, learning_rate_ptr, applied, RULE)


@triton.jit
def _write_coefficients(single_ptr, double_ptr, updates_ptr, learning_rate_ptr, applied, RULE: tl.constexpr):
    """Write what follows from the learning rate and the count of updates, and count this one if it is applied."""
    zero = 0.0 * tl.load(double_ptr + 2 * WEIGHT_DECAY)
    one = (zero + 1.0, zero)
    learning_rate = (tl.load(learning_rate_ptr), zero)
    _set(single_ptr, double_ptr, LEARNING_RATE, learning_rate)
    if RULE == "adamw":
        decay = (tl.load(double_ptr + 2 * WEIGHT_DECAY), zero)
        _set(single_ptr, double_ptr, SHRINK, minus(one, times(learning_rate, decay)))
    if updates_ptr is not None:
        updates = tl.load(updates_ptr) + 1.0
        rest = minus(one, _power(tl.load(double_ptr + 2 * FIRST), updates))
        _set(single_ptr, double_ptr, STEP_SIZE, over(learning_rate, rest))
        rest = minus(one, _power(tl.load(double_ptr + 2 * SECOND), updates))
        _set(single_ptr, double_ptr, ROOT_FACTOR, over(one, root(rest)))
        tl.store(updates_ptr, updates - (1 - applied))


@triton.jit
def _sum_of_squares(rows_ptr, COLUMN: tl.constexpr, n_rows, ROWS: tl.constexpr):
    """Return the sum of squares that a column and the next have, of which the first has two words, in float64."""
    total = tl.zeros([ROWS], dtype=tl.float64)
    for start in range(0, n_rows, ROWS):
        rows = start + tl.arange(0, ROWS).to(tl.int64)  # [ROWS]
        scale = scales(rows_ptr, rows, COLUMN + 1, n_rows)
        squares = column_of(rows_ptr, rows, COLUMN, n_rows)
        if COLUMN == 0:
            squares += column_of(rows_ptr, rows, 2, n_rows)
        total += squares / scale / scale
    return tl.sum(total)


@triton.jit
def _power(base, exponent):
    """Return base^exponent for a whole exponent >= 0, in two words of float64."""
    n = exponent.to(tl.int64)
    high, low = 0.0 * base + 1.0, 0.0 * base
    square_high, square_low = base, 0.0 * base
    while n > 0:
        if n % 2 == 1:
            high, low = times((high, low), (square_high, square_low))
        square_high, square_low = times((square_high, square_low), (square_high, square_low))
        n = n // 2
    return high, low


@triton.jit
def _set(single_ptr, double_ptr, INDEX: tl.constexpr, value):
    """Write a coefficient of two float64 words to both tables."""
    tl.store(double_ptr + 2 * INDEX, value[0])
    tl.store(double_ptr + 2 * INDEX + 1, value[1])
    high = value[0].to(tl.float32)
    tl.store(single_ptr + 2 * INDEX, high)
    tl.store(single_ptr + 2 * INDEX + 1, ((value[0] - high.to(tl.float64)) + value[1]).to(tl.float32))


@triton.jit
def _update_tile(
    row_ptr, entry_ptr, offsets, coefficients_ptr, applied, norm_ptr,
    RULE: tl.constexpr, CLIPS: tl.constexpr, DECAYS: tl.constexpr, N_STATES: tl.constexpr,
    DTYPE: tl.constexpr, WORDS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    p = _load(entry_ptr, _PARAMETER, offsets, DTYPE, MASKED)  # [BLOCK]
    g = _load(entry_ptr, _GRADIENT, offsets, DTYPE, MASKED)
    state = ()
    for i in tl.static_range(N_STATES):
        more = (_load(entry_ptr, _STATE + i, offsets, DTYPE, MASKED),)
        state = state + more  # type: ignore[assignment]
    new, new_state = updated(p, g, state, coefficients_ptr, RULE, CLIPS, DECAYS, WORDS)
    if applied != 0:
        _store(entry_ptr, _PARAMETER, offsets, new, DTYPE, MASKED)
        for i in tl.static_range(N_STATES):
            _store(entry_ptr, _STATE + i, offsets, new_state[i], DTYPE, MASKED)
    if row_ptr is not None:
        change = widen(narrow(new, DTYPE)) - p
        write_squares(row_ptr + 2, p)
        write_squares(row_ptr + 4, tl.where(applied != 0, change, 0.0))
        last = _load(entry_ptr, _DIRECTION, offsets, p.dtype, MASKED)
        largest = tl.max(tl.abs(g))
        tl.store(row_ptr + 6, tl.sum(g * scale_of(largest) * last))
        tl.store(row_ptr + 7, largest)
        _store(entry_ptr, _DIRECTION, offsets, g / tl.load(norm_ptr), p.dtype, MASKED)


@triton.jit
def _update_kernel(
    rows_ptr, table_ptr, tiles_ptr, coefficients_ptr, applied_ptr, norms_ptr,
    RULE: tl.constexpr, CLIPS: tl.constexpr, DECAYS: tl.constexpr, N_STATES: tl.constexpr,
    DTYPE: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, entry_ptr, offsets, is_whole = _place(table_ptr, tiles_ptr, BLOCK)
    applied = 1 if applied_ptr is None else tl.load(applied_ptr)
    addresses = tl.load(entry_ptr + _PARAMETER) | tl.load(entry_ptr + _GRADIENT)
    row_ptr = None
    norm_ptr = None
    if rows_ptr is not None:
        row_ptr = rows_ptr + row * _COLUMNS
        norm_ptr = norms_ptr + tl.load(tiles_ptr + 3 * tl.program_id(0).to(tl.int64))
        addresses = addresses | tl.load(entry_ptr + _DIRECTION)
    for i in tl.static_range(N_STATES):
        addresses = addresses | tl.load(entry_ptr + _STATE + i)
    if tl.load(entry_ptr + _GRADIENT) != 0:
        if is_whole & (addresses % 16 == 0):
            _update_tile(
                row_ptr, entry_ptr, offsets, coefficients_ptr, applied, norm_ptr,
                RULE, CLIPS, DECAYS, N_STATES, DTYPE, WORDS, MASKED=False,
            )  # fmt: skip
        else:
            _update_tile(
                row_ptr, entry_ptr, offsets, coefficients_ptr, applied, norm_ptr,
                RULE, CLIPS, DECAYS, N_STATES, DTYPE, WORDS, MASKED=True,
            )  # fmt: skip


@triton.jit(do_not_specialize=["n_tensors"])
def _measure_kernel(
    measured_ptr, report_ptr, single_rows_ptr, double_rows_ptr, table_ptr, n_tensors,
    ROWS: tl.constexpr,
):  # fmt: skip
    tensor = tl.program_id(0).to(tl.int64)
    n_tensors = n_tensors.to(tl.int64)
    entry_ptr = table_ptr + tensor * _ENTRY
    if tl.load(entry_ptr + _IS_DOUBLE) == 1:
        _measure(measured_ptr + tensor, report_ptr + _NORMS + tensor, double_rows_ptr, entry_ptr, n_tensors, ROWS)
    else:
        _measure(measured_ptr + tensor, report_ptr + _NORMS + tensor, single_rows_ptr, entry_ptr, n_tensors, ROWS)


@triton.jit
def _measure(measured_ptr, norm_ptr, rows_ptr, entry_ptr, n_tensors, ROWS: tl.constexpr):
    rows_ptr += tl.load(entry_ptr + _FIRST_TILE) * _COLUMNS
    n_rows = tl.load(entry_ptr + _N_TILES)
    product = tl.zeros([ROWS], dtype=tl.float64)
    for start in range(0, n_rows, ROWS):
        rows = start + tl.arange(0, ROWS).to(tl.int64)  # [ROWS]
        product += column_of(rows_ptr, rows, 6, n_rows) / scales(rows_ptr, rows, 7, n_rows)
    norm = tl.load(norm_ptr)
    missing = tl.where(tl.load(entry_ptr + _GRADIENT) == 0, float("nan"), 0.0)
    tl.store(measured_ptr, norm + missing)
    tl.store(measured_ptr + n_tensors, tl.sqrt(_sum_of_squares(rows_ptr, 2, n_rows, ROWS)) + missing)
    tl.store(measured_ptr + 2 * n_tensors, tl.sqrt(_sum_of_squares(rows_ptr, 4, n_rows, ROWS)) + missing)
    tl.store(measured_ptr + 3 * n_tensors, tl.sum(product) / norm + missing)
