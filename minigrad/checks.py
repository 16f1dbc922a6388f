"""What the public functions accept, and what they say when something else comes."""

from __future__ import annotations

import torch

import minigrad_kernels as kernels

_DTYPES = frozenset(kernels.DTYPES)


def check_tensor(tensor: torch.Tensor, name: str) -> None:
    """Raise a TypeError unless `tensor` is a dense tensor of a supported floating-point dtype."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"`{name}` is {type(tensor).__name__}: pass a torch.Tensor")
    if tensor.dtype in _DTYPES and tensor.layout is torch.strided and not tensor.is_nested:
        return
    if tensor.is_nested:
        raise TypeError(f"`{name}` is a nested tensor: convert it with torch.nested.to_padded_tensor")
    if tensor.layout is not torch.strided:
        raise TypeError(f"`{name}` has layout {tensor.layout}: convert it with .to_dense()")
    if tensor.dtype.is_complex:
        raise TypeError(f"`{name}` is {tensor.dtype}, and these activations are real: pass .real and .imag apart")
    accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in kernels.DTYPES)
    raise TypeError(f"`{name}` is {tensor.dtype}: convert it to one of {accepted}")


def check_activation(activation: str) -> None:
    """Raise a TypeError or ValueError unless `activation` is one of the three."""
    if not isinstance(activation, str):
        raise TypeError(f"`activation` is {type(activation).__name__}: pass one of {', '.join(kernels.ACTIVATIONS)}")
    if activation not in kernels.ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; there are: {', '.join(kernels.ACTIVATIONS)}")


def check_save(save: str) -> None:
    """Raise a ValueError unless `save` is "input" or "output"."""
    if save not in ("input", "output"):
        raise ValueError(f'`save` is {save!r}: pass "input", for exact gradients, or "output", for less memory')


def check_bias(x: torch.Tensor, bias: torch.Tensor) -> None:
    """Raise unless `bias` is (N,) for an x of (..., N), on one device and, autocast aside, of one dtype."""
    if x.dim() == 0 or bias.dim() != 1 or bias.shape[0] != x.shape[-1]:
        advice = f"pass a bias of ({x.shape[-1]},)" if x.dim() else "pass an x of at least one dimension, the bias's"
        raise ValueError(f"`bias` is {tuple(bias.shape)} and `x` is {tuple(x.shape)}: {advice}")
    if bias.device != x.device:
        raise ValueError(f"`bias` is on {bias.device} and `x` on {x.device}: move one with .to(...)")
    if bias.dtype == x.dtype:
        return
    kind = x.device.type
    # The compiler does not trace the first question before PyTorch 2.13, and answers the second for its own devices.
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(kind)
    under_autocast = available and torch.is_autocast_enabled(kind)
    if not under_autocast or torch.float64 in (bias.dtype, x.dtype):
        raise TypeError(f"`bias` is {bias.dtype} and `x` is {x.dtype}: convert one with .to(...)")


def check_order(order: int) -> None:
    """Raise a TypeError or ValueError unless `order` is an integer from 0 to 10."""
    if not isinstance(order, int) or isinstance(order, bool):
        raise TypeError(f"`order` is {order!r}, a {type(order).__name__}: pass an int from 0 to {kernels.MAX_ORDER}")
    if not 0 <= order <= kernels.MAX_ORDER:
        raise ValueError(f"`order` is {order}: pass 0 to {kernels.MAX_ORDER}; beyond, float32 keeps too few digits")
