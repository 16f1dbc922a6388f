"""The exact values in float64, and distances from them in ULP, on any device.

An ULP is the spacing of a dtype's numbers at the exact value. The half types are judged by a stricter ruler: how many
of their numbers lie between a result and the exact value rounded once, subnormal numbers included.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EXPONENT = 0x7FF0_0000_0000_0000  # the bits of float64 that hold it


def exact(activation: str, x: Tensor, order: int) -> Tensor:
    """Return f(x) or f'(x) in float64, accurate relative to itself also where it is small."""
    x = x.double()
    if activation == "relu":
        return torch.relu(x) if order == 0 else (~(x <= 0)).double()
    if order == 0 and activation == "tanh":
        return torch.tanh(x)
    u = x if activation == "sigmoid" else 2 * x
    e = torch.exp(-u.abs())
    if order == 0:
        return torch.where(x >= 0, 1.0, e) / (1 + e)
    return e / (1 + e).square() * (1 if activation == "sigmoid" else 4)


def spacing(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the spacing of a dtype's numbers at finite float64 values; below its normal numbers, that of subnormal."""
    info = torch.finfo(dtype)
    power = (value.abs().clamp(min=info.tiny).view(torch.int64) & _EXPONENT).view(torch.float64)
    return power * info.eps


def ulps(actual: Tensor, expected: Tensor) -> Tensor:
    """Return the distance from float64 values in ULP, infinite where one of the two is NaN and the other is not."""
    difference = (actual.double() - expected).abs() / spacing(expected, actual.dtype)
    same = (actual.double() == expected) | (actual.isnan() & expected.isnan())
    return torch.where(same, 0.0, difference.nan_to_num(nan=math.inf, posinf=math.inf))


def steps(actual: Tensor, expected: Tensor) -> Tensor:
    """Return how many numbers of a half type lie between results and float64 values rounded to it once."""
    rounded = _round_once(expected, actual.dtype)
    distance = (_place(actual) - _place(rounded)).abs().double()
    distance = torch.where(actual.isnan() != rounded.isnan(), math.inf, distance)
    return torch.where(actual.isnan() & rounded.isnan(), 0.0, distance)


def distance(actual: Tensor, expected: Tensor) -> Tensor:
    """Return `steps` for the half types and `ulps` for the others."""
    return steps(actual, expected) if actual.dtype.itemsize == 2 else ulps(actual, expected)


def _round_once(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to a half type by way of float32 rounded to odd, which makes one rounding of two."""
    single = value.float()
    bits = single.view(torch.int32)
    toward_zero = torch.where(single.double().abs() > value.abs(), bits - 1, bits)
    inexact = (single.double() != value) & value.isfinite()
    return torch.where(inexact, toward_zero | 1, bits).view(torch.float32).to(dtype)


def _place(tensor: Tensor) -> Tensor:
    """Return the place of half-type numbers among all of them in their order; both zeros have one."""
    bits = tensor.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)
