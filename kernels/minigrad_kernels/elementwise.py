"""Elementwise kernels: an activation, its n-th derivative, their products with a gradient, and the double backward.

    y  = f^(n)(x)                 n = 0, the activation itself, to 10
    dx = g f^(n)(x)               the backward of order n; n = 1 is the ordinary one
    dg = v f^(n)(x)               the double backward: v is the gradient that arrives at dx;
    dx = v g f^(n+1)(x)           both results from one reading of v, g and x

Nothing but x is saved: the derivative is recomputed from it (see `arithmetic`), since these kernels wait for memory,
not for arithmetic. ReLU may be given its output in place of x, which has the same derivative. `backward_from_output`
is for those who keep the output of sigmoid or tanh instead of the input, at PyTorch's accuracy.

Half types are computed in float32; every result is rounded once. Source of the mathematics: `polynomials`.

A kernel sees memory, not shapes: operands lie densely in one common order of strides. A program whose block lies wholly
inside the tensor loads and stores without a mask, so the hardware's widest accesses serve whatever the size; only
the last program masks. An operand whose address is not a multiple of 16 bytes is read narrowly, the others stay wide.

The activation itself and its backward can be asked for statistics of what they hold (`statistics`), and ReLU for which
of its units fire; a kernel that is given no place for these has no trace of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from minigrad_kernels.arithmetic import activation as _activation
from minigrad_kernels.arithmetic import derivative as _derivative
from minigrad_kernels.arithmetic import narrow, widen
from minigrad_kernels.blocks import BLOCKS, cdiv
from minigrad_kernels.launch import launch
from minigrad_kernels.statistics import write_backward, write_forward
from minigrad_kernels.watch import Watch, seen_by


@triton.jit
def _load(ptr, offsets, n_elements, MASKED: tl.constexpr, EXPANDED: tl.constexpr):
    """Load a block, widened; an EXPANDED operand is one element that stands for all."""
    if EXPANDED:
        return widen(tl.load(ptr))
    elif MASKED:
        return widen(tl.load(ptr + offsets, mask=offsets < n_elements, other=0.0))
    else:
        return widen(tl.load(ptr + offsets))


@triton.jit
def _store(ptr, offsets, value, n_elements, MASKED: tl.constexpr):
    """Store a block, rounded; return it as it is stored, widened again."""
    value = narrow(value, ptr.dtype.element_ty)
    if MASKED:
        tl.store(ptr + offsets, value, mask=offsets < n_elements)
    else:
        tl.store(ptr + offsets, value)
    return widen(value)


@triton.jit
def _mark_fired(fired_ptr, y, start, n_elements, unit_stride, period):
    """Set the flag of every unit with an output above 0, or NaN; programs that set the same flag write the same."""
    within = (start % period).to(tl.int32) + tl.arange(0, y.shape[0])  # [BLOCK], in 32 bits: division is slow in 64
    unit = within % period // unit_stride
    fires = (start + tl.arange(0, y.shape[0]) < n_elements) & ~(y <= 0.0)
    flag_ptr = fired_ptr + unit.to(tl.int64)
    seen = tl.load(flag_ptr, mask=fires, other=1)  # most have been set before: read, and seldom write
    tl.store(flag_ptr, 1, mask=fires & (seen == 0))


@triton.jit
def times_derivative(g, x, ACTIVATION: tl.constexpr, ORDER: tl.constexpr):
    """Return g f^(ORDER)(x), ORDER >= 1. ReLU passes g where x > 0 or x is NaN, as torch does; order 2 is 0."""
    if ACTIVATION == "relu":
        return tl.where(x <= 0.0, 0.0, g) if ORDER == 1 else tl.zeros_like(x)
    else:
        a, b = _derivative(x, ACTIVATION, ORDER)
        return (g * a) * b


@triton.jit
def times_derivative_from_output(g, y, ACTIVATION: tl.constexpr):
    """Return g f'(x) where y = f(x) is known, rounded, and not x."""
    if ACTIVATION == "relu":
        return tl.where(y <= 0.0, 0.0, g)
    elif ACTIVATION == "tanh":
        return g * ((1.0 - y) * (1.0 + y))
    else:
        return g * ((1.0 - y) * y)


@triton.jit
def _derivative_block(
    out_ptr, g_ptr, x_ptr, offsets, n_elements,
    ACTIVATION: tl.constexpr, ORDER: tl.constexpr,
    UPSTREAM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Return the upstream gradient, x and the result as they are in memory, widened."""
    if UPSTREAM != "none":  # g is read before x: two registers less, and no spill on sm_100
        g = _load(g_ptr, offsets, n_elements, MASKED, UPSTREAM == "expanded")
    x = _load(x_ptr, offsets, n_elements, MASKED, False)  # [BLOCK]
    if UPSTREAM == "none":
        g = tl.full(x.shape, 1.0, x.dtype)
    elif UPSTREAM == "expanded":
        g = tl.broadcast_to(g, x.shape)
    if ORDER == 0:
        out = _activation(x, ACTIVATION)
    else:
        out = times_derivative(g, x, ACTIVATION, ORDER)
    return g, x, _store(out_ptr, offsets, out, n_elements, MASKED)


@triton.jit
def _derivative_kernel(
    out_ptr, g_ptr, x_ptr, statistics_ptr, fired_ptr, n_elements, low, high, unit_stride, period,
    ACTIVATION: tl.constexpr, ORDER: tl.constexpr,
    UPSTREAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)  # [BLOCK], 64-bit: a tensor may have more than 2^31 elements
    if start + BLOCK <= n_elements:
        g, x, out = _derivative_block(out_ptr, g_ptr, x_ptr, offsets, n_elements, ACTIVATION, ORDER, UPSTREAM, False)
    else:
        g, x, out = _derivative_block(out_ptr, g_ptr, x_ptr, offsets, n_elements, ACTIVATION, ORDER, UPSTREAM, True)
    if statistics_ptr is not None:
        valid = offsets < n_elements
        if ORDER == 0:
            write_forward(statistics_ptr, tl.program_id(0), out, valid)
        else:
            g, out = tl.where(valid, g, 0.0), tl.where(valid, out, 0.0)
            write_backward(statistics_ptr, tl.program_id(0), g, out, x, valid, low, high, ACTIVATION, False)
    if fired_ptr is not None:
        _mark_fired(fired_ptr, out, start, n_elements, unit_stride, period)


@triton.jit
def _double_backward_block(
    dg_ptr, dx_ptr, v_ptr, g_ptr, x_ptr, offsets, n_elements,
    ACTIVATION: tl.constexpr, ORDER: tl.constexpr,
    V_EXPANDED: tl.constexpr, G_EXPANDED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    x = _load(x_ptr, offsets, n_elements, MASKED, False)  # [BLOCK]
    g = _load(g_ptr, offsets, n_elements, MASKED, G_EXPANDED)
    v = _load(v_ptr, offsets, n_elements, MASKED, V_EXPANDED)
    dg = times_derivative(v, x, ACTIVATION, ORDER)
    a, b = _derivative(x, ACTIVATION, ORDER + 1)
    dx = (v * a) * (g * b)  # v g alone may overflow where dx does not
    _store(dg_ptr, offsets, dg, n_elements, MASKED)
    _store(dx_ptr, offsets, dx, n_elements, MASKED)


@triton.jit
def _double_backward_kernel(
    dg_ptr, dx_ptr, v_ptr, g_ptr, x_ptr, n_elements,
    ACTIVATION: tl.constexpr, ORDER: tl.constexpr,
    V_EXPANDED: tl.constexpr, G_EXPANDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)  # [BLOCK]
    if start + BLOCK <= n_elements:
        _double_backward_block(
            dg_ptr, dx_ptr, v_ptr, g_ptr, x_ptr, offsets, n_elements,
            ACTIVATION, ORDER, V_EXPANDED, G_EXPANDED, MASKED=False,
        )  # fmt: skip
    else:
        _double_backward_block(
            dg_ptr, dx_ptr, v_ptr, g_ptr, x_ptr, offsets, n_elements,
            ACTIVATION, ORDER, V_EXPANDED, G_EXPANDED, MASKED=True,
        )  # fmt: skip


@triton.jit
def _output_block(
    dx_ptr, g_ptr, y_ptr, offsets, n_elements,
    ACTIVATION: tl.constexpr, G_EXPANDED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Return the upstream gradient, y and the result as they are in memory, widened."""
    g = _load(g_ptr, offsets, n_elements, MASKED, G_EXPANDED)
    y = _load(y_ptr, offsets, n_elements, MASKED, False)  # [BLOCK]
    dx = times_derivative_from_output(g, y, ACTIVATION)
    return tl.broadcast_to(g, y.shape), y, _store(dx_ptr, offsets, dx, n_elements, MASKED)


@triton.jit
def _backward_from_output_kernel(
    dx_ptr, g_ptr, y_ptr, statistics_ptr, n_elements, low, high,
    ACTIVATION: tl.constexpr, G_EXPANDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)  # [BLOCK]
    if start + BLOCK <= n_elements:
        g, y, dx = _output_block(dx_ptr, g_ptr, y_ptr, offsets, n_elements, ACTIVATION, G_EXPANDED, MASKED=False)
    else:
        g, y, dx = _output_block(dx_ptr, g_ptr, y_ptr, offsets, n_elements, ACTIVATION, G_EXPANDED, MASKED=True)
    if statistics_ptr is not None:
        valid = offsets < n_elements
        g, dx = tl.where(valid, g, 0.0), tl.where(valid, dx, 0.0)
        write_backward(statistics_ptr, tl.program_id(0), g, dx, y, valid, low, high, ACTIVATION, True)


def derivative(
    x: torch.Tensor,
    upstream: torch.Tensor | None,
    activation: str,
    order: int,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Launch f^(order)(x), times `upstream` unless that is None. Returns a new tensor laid out as torch would.

    The activation itself (order 0) and its backward (order 1 with `upstream`) can be watched; `tiles` says in how many
    rows.
    """
    out = torch.empty_like(x)
    x = as_laid_out(x, out)
    if upstream is None:
        mode = "none"
    else:
        upstream, expanded = _operand(upstream, out)
        mode = "expanded" if expanded else "dense"
    flags, stride, period = None, None, None
    if watch is not None and watch.fired is not None:
        flags = watch.fired.flags
        stride = out.stride(watch.fired.dimension) if out.dim() else 1
        period = stride * len(flags)  # of the units in memory, where `out` lies densely
        if period > 2**31 - BLOCKS.elementwise:
            raise ValueError(f"a sample of a ReLU layer has {period} elements: only those below 2^31 can be watched")
    if out.numel():
        rows, low, high = seen_by(watch)
        launch(
            _derivative_kernel, tiles(out), out,
            out_ptr=out, g_ptr=upstream, x_ptr=x, statistics_ptr=rows, fired_ptr=flags,
            n_elements=out.numel(), low=low, high=high, unit_stride=stride, period=period,
            ACTIVATION=activation, ORDER=order, UPSTREAM=mode, BLOCK=block_size(out.element_size()),
            num_warps=BLOCKS.num_warps,
        )  # fmt: skip
    return out


def double_backward(
    v: torch.Tensor, upstream: torch.Tensor, x: torch.Tensor, activation: str, order: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch v f^(order)(x) and v upstream f^(order+1)(x) in one kernel, for sigmoid and tanh."""
    dg, dx = torch.empty_like(x), torch.empty_like(x)
    x = as_laid_out(x, dx)
    v, v_expanded = _operand(v, dx)
    upstream, g_expanded = _operand(upstream, dx)
    if dx.numel():
        launch(
            _double_backward_kernel, tiles(dx), dx,
            dg_ptr=dg, dx_ptr=dx, v_ptr=v, g_ptr=upstream, x_ptr=x, n_elements=dx.numel(),
            ACTIVATION=activation, ORDER=order,
            V_EXPANDED=v_expanded, G_EXPANDED=g_expanded, BLOCK=block_size(dx.element_size()),
            num_warps=BLOCKS.num_warps,
        )  # fmt: skip
    return dg, dx


def backward_from_output(
    upstream: torch.Tensor,
    y: torch.Tensor,
    activation: str,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Launch the first-order backward from the stored output y; `tiles` says in how many rows it is watched."""
    dx = torch.empty_like(y)
    y = as_laid_out(y, dx)
    upstream, expanded = _operand(upstream, dx)
    if dx.numel():
        rows, low, high = seen_by(watch)
        launch(
            _backward_from_output_kernel, tiles(dx), dx,
            dx_ptr=dx, g_ptr=upstream, y_ptr=y, statistics_ptr=rows, n_elements=dx.numel(), low=low, high=high,
            ACTIVATION=activation, G_EXPANDED=expanded, BLOCK=block_size(dx.element_size()),
            num_warps=BLOCKS.num_warps,
        )  # fmt: skip
    return dx


def as_laid_out(operand: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return `operand` in memory as a kernel reads it: `like`'s strides, no pending negation; a copy if need be.

    Raises:
        ValueError: the shapes differ.
    """
    if operand.shape != like.shape:
        raise ValueError(f"an operand is {tuple(operand.shape)} and its partner {tuple(like.shape)}: pass equal shapes")
    if operand.stride() == like.stride() and is_in_memory(operand):
        return operand
    return torch.empty_like(like, dtype=operand.dtype).copy_(operand)


def block_size(itemsize: int) -> int:
    """Return the number of elements that one program takes, for elements of `itemsize` bytes."""
    return BLOCKS.elementwise // itemsize


def tiles(x: torch.Tensor) -> int:
    """Return the number of tiles in which the kernels here take a tensor, one each."""
    return cdiv(x.numel(), block_size(x.element_size()))


def is_in_memory(operand: torch.Tensor) -> bool:
    """Return whether memory holds the values: no negation is pending, and autograd's zeros have been written."""
    return not operand.is_neg() and not operand._is_zerotensor()


def _operand(operand: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return a gradient as the kernel reads it, and whether it is one element expanded, as `.sum()` sends it."""
    is_expanded = operand.shape == like.shape and not any(operand.stride()) and is_in_memory(operand)
    return (operand, True) if is_expanded else (as_laid_out(operand, like), False)
