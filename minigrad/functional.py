"""The activations and their derivatives, as functions of tensors."""

from __future__ import annotations

from torch import Tensor

from minigrad import functions, watched
from minigrad.checks import check_activation, check_bias, check_order, check_save, check_tensor


def sigmoid(x: Tensor, save: str = "input") -> Tensor:
    """Apply 1 / (1 + e^-x) to each element: `torch.sigmoid` with exact gradients.

    Differentiable to the tenth order, in reverse and forward mode and under torch.func.

    Args:
        x: any shape and strides; float16, bfloat16, float32 or float64.
        save: what the backward pass keeps: "input" for exact gradients, or "output", which the next layer often keeps
            anyway, for PyTorch's memory and PyTorch's rounding. That is reverse mode; forward mode and torch.func are
            exact and keep the input.
    Returns: x's shape, dtype and layout.

    Raises:
        TypeError: x is no dense floating-point tensor of these dtypes.
        ValueError: `save` is neither.
    """
    return activate(x, "sigmoid", save)


def tanh(x: Tensor, save: str = "input") -> Tensor:
    """Apply the hyperbolic tangent to each element: `torch.tanh` with exact gradients.

    Differentiable to the tenth order, in reverse and forward mode and under torch.func.

    Args:
        x: any shape and strides; float16, bfloat16, float32 or float64.
        save: what the backward pass keeps: "input" for exact gradients, or "output", which the next layer often keeps
            anyway, for PyTorch's memory and PyTorch's rounding. That is reverse mode; forward mode and torch.func are
            exact and keep the input.
    Returns: x's shape, dtype and layout.

    Raises:
        TypeError: x is no dense floating-point tensor of these dtypes.
        ValueError: `save` is neither.
    """
    return activate(x, "tanh", save)


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0) for each element, as `torch.relu`.

    NaN stays NaN and passes the gradient; the gradient at 0 is 0. Saves its output, which loses nothing. Every
    derivative from the second on is 0.

    Args:
        x: any shape and strides; float16, bfloat16, float32 or float64.
    Returns: x's shape, dtype and layout.

    Raises:
        TypeError: x is no dense floating-point tensor of these dtypes.
    """
    return activate(x, "relu")


def bias_activation(x: Tensor, bias: Tensor, activation: str, save: str = "input") -> Tensor:
    """Return activation(x + bias), rounded once, in one kernel; its backward sums the bias gradient in a fixed order.

    Differentiable as the activation is. Under autocast `bias` is cast to x's dtype, as torch's linear layer does.

    Args:
        x: (..., N), at least one dimension; float16, bfloat16, float32 or float64.
        bias: (N,), x's dtype and device.
        activation: "sigmoid", "tanh" or "relu".
        save: as for `sigmoid` and `tanh`; ReLU always saves its output.
    Returns: x's shape, dtype and layout.

    Raises:
        TypeError: a dtype that is not supported, or two different ones.
        ValueError: shapes or devices that do not fit; an unknown activation or `save`.
    """
    check_activation(activation)
    check_save(save)
    return activate_biased(x, bias, activation, save)


def derivative(activation: str, x: Tensor, order: int) -> Tensor:
    """Return the n-th derivative f^(n)(x) of each element, n = `order`, from one kernel; differentiable in turn.

    Args:
        activation: "sigmoid", "tanh" or "relu".
        x: any shape and strides; float16, bfloat16, float32 or float64.
        order: 0, the activation itself, to 10. ReLU's are 0 from the second on.
    Returns: x's shape, dtype and layout.

    Raises:
        TypeError: x is no dense floating-point tensor of these dtypes, or `order` no integer.
        ValueError: an unknown activation, or an order outside 0..10.
    """
    check_activation(activation)
    check_tensor(x, "x")
    check_order(order)
    return functions.derivative(x, None, activation, order)


def activate(x: Tensor, activation: str, save: str = "input", probe: watched.Probe | None = None) -> Tensor:
    """Apply the activation of that name, one of the three, to each element; see `sigmoid`, `tanh` and `relu`.

    A probe, if there is one, sees it where it can.
    """
    check_tensor(x, "x")
    if probe is not None and (y := watched.watched(x, None, probe)) is not None:
        return y
    if save == "input":
        return functions.derivative(x, None, activation, 0)
    check_save(save)
    return functions.saving_output(x, activation)


def activate_biased(
    x: Tensor, bias: Tensor, activation: str, save: str = "input", probe: watched.Probe | None = None
) -> Tensor:
    """Return activation(x + bias), both names being among those there are; see `bias_activation`, and `activate`."""
    check_tensor(x, "x")
    check_tensor(bias, "bias")
    check_bias(x, bias)
    if bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    if probe is not None and (y := watched.watched(x, bias, probe)) is not None:
        return y
    return functions.bias_activation(x, bias, activation, save)
