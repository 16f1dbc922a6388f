"""The same operations in plain PyTorch, for every device that has no Triton kernel.

The first derivatives come from a sigmoid of a negative number, which is small where they are and accurate relative to
itself:

    sigmoid'(x) = y (1 - y), y = sigmoid(-|x|),        tanh'(x) = 4 y (1 - y), y = sigmoid(-2|x|).

and `sigmoid_backward(g, y)` is g (1 - y) y in one pass over memory. Higher orders evaluate the polynomials of
`polynomials` in sech^2. Half types are computed in float32 and rounded once. A first derivative too small for a normal
number of the dtype that it is computed in may come out as 0, except in the half types.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from minigrad_kernels.polynomials import scaled_polynomial

# The derivatives that torch itself calls.
sigmoid_backward = torch.ops.aten.sigmoid_backward
sigmoid_backward_into = torch.ops.aten.sigmoid_backward.grad_input
softplus_backward_into = torch.ops.aten.softplus_backward.grad_input
tanh_backward = torch.ops.aten.tanh_backward
threshold_backward = torch.ops.aten.threshold_backward

_ONE_BEYOND = 40.0  # sigmoid(40) rounds to 1 in float64


def derivative(x: torch.Tensor, upstream: torch.Tensor | None, activation: str, order: int) -> torch.Tensor:
    """Return f^(order)(x), times `upstream` unless that is None, as a new tensor laid out as torch would."""
    if activation == "relu":
        return _relu_derivative(x, upstream, order)
    if order == 0 and activation == "tanh":
        return torch.tanh(x)
    wide = _widen(x)
    if order == 0:
        return torch.sigmoid(x) if wide is x else _sigmoid_with_subnormals_(wide).to(x.dtype)
    g = _ones(wide) if upstream is None else _widen(upstream)
    if order > 1:
        result = _higher_derivative(wide, g, activation, order)
    else:
        result = _first_derivative(wide, g, activation, torch.sigmoid_ if wide is x else _sigmoid_with_subnormals_)
    return result if wide is x else result.to(x.dtype)


def double_backward(
    v: torch.Tensor, upstream: torch.Tensor, x: torch.Tensor, activation: str, order: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return v f^(order)(x) and v upstream f^(order+1)(x), for sigmoid and tanh."""
    dg = derivative(x, v, activation, order)
    dx = derivative(_widen(x), _widen(v), activation, order + 1).mul_(_widen(upstream))
    return dg, dx.to(x.dtype)


def backward_from_output(upstream: torch.Tensor, y: torch.Tensor, activation: str) -> torch.Tensor:
    """Return upstream f'(x) from the stored output y = f(x), as torch computes it."""
    if activation == "relu":
        return _laid_out_as(threshold_backward(upstream, y, 0), y)
    backward = tanh_backward if activation == "tanh" else sigmoid_backward
    return _laid_out_as(backward(upstream, y), y)


def bias_activation(x: torch.Tensor, bias: torch.Tensor, activation: str) -> torch.Tensor:
    """Return f(x + bias), rounded once."""
    return derivative(_widen(x) + _widen(bias), None, activation, 0).to(x.dtype)


def bias_activation_backward(
    upstream: torch.Tensor, saved: torch.Tensor, bias: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return upstream f'(x + bias) and its sum over rows, the sum taken before any rounding.

    From the saved x and bias or, without bias, the saved output.
    """
    if bias is not None:
        dz = derivative(_widen(saved) + _widen(bias), _widen(upstream), activation, 1)
    else:
        dz = backward_from_output(_widen(upstream), _widen(saved), activation)
    db = dz.sum(dim=tuple(range(dz.dim() - 1))) if dz.dim() > 1 else dz.clone()
    return dz.to(saved.dtype), db.to(saved.dtype)


def _relu_derivative(x: torch.Tensor, upstream: torch.Tensor | None, order: int) -> torch.Tensor:
    if order == 0:
        return torch.relu(x)
    if order >= 2:
        return torch.zeros_like(x)
    return backward_from_output(_ones(x) if upstream is None else upstream, x, "relu")  # relu(x) > 0 where x > 0


def _first_derivative(
    x: torch.Tensor, upstream: torch.Tensor, activation: str, sigmoid_: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    y = torch.copysign(x, -1.0)  # -|x| in one pass; all else happens in its memory, and in x's layout
    if activation == "tanh":
        y.mul_(2.0)
    sigmoid_(y)
    sigmoid_backward_into(upstream, y, grad_input=y)
    return y.mul_(4.0) if activation == "tanh" else y


def _higher_derivative(x: torch.Tensor, upstream: torch.Tensor, activation: str, order: int) -> torch.Tensor:
    u = x if activation == "tanh" else 0.5 * x
    half_sech = torch.exp(u)
    scratch = half_sech.reciprocal()  # three buffers for all: fresh memory costs more than the arithmetic
    half_sech.add_(scratch).reciprocal_()  # 1 / (e^u + e^-u), in a third of the time of 1 / cosh(u)
    quarter_s = torch.square(half_sech, out=scratch)
    coefficients = [c * 4.0 ** (power + 1) for power, c in enumerate(scaled_polynomial(activation, order))]
    value = torch.full_like(u, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value.mul_(quarter_s).add_(coefficient)
    value.mul_(half_sech)
    if order % 2 == 0:
        value.mul_(torch.tanh(u, out=scratch))
    return value.mul_(upstream).mul_(half_sech)  # between the two factors: a large gradient meets a small one in time


def _sigmoid_with_subnormals_(x: torch.Tensor) -> torch.Tensor:
    """Apply sigmoid in place, with the subnormal results that torch.sigmoid_ makes 0 and bfloat16 can hold."""
    return softplus_backward_into(_ones(x), x, 1.0, _ONE_BEYOND, grad_input=x)  # type: ignore[no-any-return]


def _laid_out_as(result: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return `result` in the layout of torch.empty_like(x), where torch may have followed the gradient's instead."""
    if result.stride() == x.stride():
        return result
    layout = torch.empty_like(x)
    return result if result.stride() == layout.stride() else layout.copy_(result)


def _ones(x: torch.Tensor) -> torch.Tensor:
    return x.new_ones(()).expand_as(x)


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
