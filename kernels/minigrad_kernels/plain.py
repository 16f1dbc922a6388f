"""The same operations in plain PyTorch, for every device that has no Triton kernel.

The first derivatives come from a sigmoid of a negative number, which is small where they are and accurate relative to
itself:

    sigmoid'(x) = y (1 - y), y = sigmoid(-|x|),        tanh'(x) = 4 y (1 - y), y = sigmoid(-2|x|).

and `sigmoid_backward(g, y)` is g (1 - y) y in one pass over memory. Higher orders evaluate the polynomials of
`polynomials` in sech^2. Half types are computed in float32 and rounded once. A first derivative too small for a normal
number of the dtype that it is computed in may come out as 0, except in the half types.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from minigrad_kernels.polynomials import scaled_polynomial

# The derivatives that torch itself calls.
sigmoid_backward = torch.ops.aten.sigmoid_backward
sigmoid_backward_into = torch.ops.aten.sigmoid_backward.grad_input
softplus_backward_into = torch.ops.aten.softplus_backward.grad_input
tanh_backward = torch.ops.aten.tanh_backward
threshold_backward = torch.ops.aten.threshold_backward

_HALF_TYPES = (torch.float16, torch.bfloat16)
_ONE_BEYOND = 40.0  # sigmoid(40) rounds to 1 in float64


def derivative(x: torch.Tensor, upstream: torch.Tensor | None, activation: str, order: int) -> torch.Tensor:
    """Return f^(order)(x), times `upstream` unless that is None, as a new tensor laid out as torch would."""
    if activation == "relu":
        return _relu_derivative(x, upstream, order)
    if order == 0 and activation == "tanh":
        return torch.tanh(x)
    half = x.dtype in _HALF_TYPES
    if order == 0:
        return _sigmoid_with_subnormals_(x.float()).to(x.dtype) if half else torch.sigmoid(x)
    wide, g = x, upstream
    if half:
        wide, g = x.float(), None if upstream is None else upstream.float()
    if order > 1:
        result = _higher_derivative(wide, g, activation, order)
    else:
        g = _ones(wide) if g is None else g
        result = _first_derivative(wide, g, activation, _sigmoid_with_subnormals_ if half else torch.sigmoid_)
    return result.to(x.dtype) if half else result


def double_backward(
    v: torch.Tensor, upstream: torch.Tensor, x: torch.Tensor, activation: str, order: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return v f^(order)(x) and v upstream f^(order+1)(x), for sigmoid and tanh."""
    dg = derivative(x, v, activation, order)
    dx = derivative(widen(x), widen(v), activation, order + 1).mul_(widen(upstream))
    return dg, dx.to(x.dtype)


def backward_from_output(upstream: torch.Tensor, y: torch.Tensor, activation: str) -> torch.Tensor:
    """Return upstream f'(x) from the stored output y = f(x), as torch computes it."""
    if activation == "relu":
        return _laid_out_as(threshold_backward(upstream, y, 0), y)
    backward = tanh_backward if activation == "tanh" else sigmoid_backward
    return _laid_out_as(backward(upstream, y), y)


def bias_activation(x: torch.Tensor, bias: torch.Tensor, activation: str) -> torch.Tensor:
    """Return f(x + bias), rounded once."""
    return derivative(biased(x, bias), None, activation, 0).to(x.dtype)


def bias_activation_backward(
    upstream: torch.Tensor, saved: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return upstream f'(x + bias) and its sum over rows, the sum taken before any rounding.

    From the saved x and bias or, without bias, the saved output.
    """
    return biased_backward(upstream, biased(saved, bias), saved.dtype, activation, from_output=bias is None)


def biased(saved: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return x + bias or, without bias, what was saved; not rounded to a half type."""
    return widen(saved) if bias is None else widen(saved) + widen(bias)


def biased_backward(
    upstream: torch.Tensor, value: torch.Tensor, dtype: torch.dtype, activation: str, from_output: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return upstream f' and its sum over rows, in a dtype, from what `biased` returns."""
    if from_output:
        dz = backward_from_output(widen(upstream), value, activation)
    else:
        dz = derivative(value, widen(upstream), activation, 1)
    db = dz.sum(dim=tuple(range(dz.dim() - 1))) if dz.dim() > 1 else dz.clone()
    return dz.to(dtype), db.to(dtype)


def _relu_derivative(x: torch.Tensor, upstream: torch.Tensor | None, order: int) -> torch.Tensor:
    if order == 0:
        return torch.relu(x)
    if order >= 2:
        return torch.zeros_like(x)
    return backward_from_output(_ones(x) if upstream is None else upstream, x, "relu")  # relu(x) > 0 where x > 0


def _first_derivative(
    x: torch.Tensor, upstream: torch.Tensor, activation: str, sigmoid_: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    y = torch.copysign(x, _constant(-1.0, x.dtype, x.device))  # -|x| in one pass; all else happens in its memory
    if activation == "tanh":
        y.add_(y)
    sigmoid_(y)
    sigmoid_backward_into(upstream, y, grad_input=y)
    return y.mul_(_constant(4.0, x.dtype, x.device)) if activation == "tanh" else y


def _higher_derivative(x: torch.Tensor, upstream: torch.Tensor | None, activation: str, order: int) -> torch.Tensor:
    u = x if activation == "tanh" else 0.5 * x
    half_sech = torch.exp(u)
    value = half_sech.reciprocal()  # three buffers for all: fresh memory costs more than the arithmetic
    half_sech.add_(value).reciprocal_()  # 1 / (e^u + e^-u), in a third of the time of 1 / cosh(u)
    quarter_s = torch.square(half_sech)
    coefficients = [c * 4.0 ** (power + 1) for power, c in enumerate(scaled_polynomial(activation, order))]
    highest, *others = (_constant(c, x.dtype, x.device) for c in reversed(coefficients))
    if others:
        torch.addcmul(others[0], quarter_s, highest, out=value)
        for coefficient in others[1:]:
            torch.addcmul(coefficient, value, quarter_s, out=value)
        value.mul_(half_sech)
    else:
        torch.mul(half_sech, highest, out=value)
    if order % 2 == 0:
        value.mul_(torch.tanh(u, out=quarter_s))
    if upstream is not None:
        value.mul_(upstream)
    return value.mul_(half_sech)  # after the gradient: a large one meets the small factor in time


def _sigmoid_with_subnormals_(x: torch.Tensor) -> torch.Tensor:
    """Apply sigmoid in place, with the subnormal results that torch.sigmoid_ makes 0 and bfloat16 can hold."""
    return softplus_backward_into(_ones(x), x, 1.0, _ONE_BEYOND, grad_input=x)  # type: ignore[no-any-return]


def _laid_out_as(result: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return `result` in the layout of torch.empty_like(x), where torch may have followed the gradient's instead."""
    if result.stride() == x.stride():
        return result
    layout = torch.empty_like(x)
    return result if result.stride() == layout.stride() else layout.copy_(result)


@functools.cache
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a number as a tensor, made once: torch makes one of a Python number at every use, slower than it adds."""
    return torch.full((), value, dtype=dtype, device=device)


def _ones(x: torch.Tensor) -> torch.Tensor:
    return _constant(1.0, x.dtype, x.device).expand_as(x)


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of a half type in float32, and any other as it is."""
    return tensor.float() if tensor.dtype in _HALF_TYPES else tensor
