"""What the tests compare with: the activations and their derivatives in float64, and distances in ULP.

The formulas are not those of the package: polynomials in t = tanh(u), R_1 = 1, R_{n+1} = -2 t R_n + (1 - t^2) R_n',
where the package has polynomials in sech^2(u). In float64 they are good to 1e-9 relative to the result up to order 10;
`test_polynomials.py` compares them with mpmath.
"""

from functools import cache

import numpy as np
import torch
from numpy.polynomial import Polynomial


@cache
def tanh_factor(order: int) -> Polynomial:
    """Return R_n with tanh^(n)(u) = sech^2(u) R_n(tanh(u))."""
    factor = Polynomial([1.0])
    for _ in range(order - 1):
        factor = Polynomial([0, -2]) * factor + Polynomial([1, 0, -1]) * factor.deriv()
    return factor


def derivative(activation: str, x: torch.Tensor, order: int) -> torch.Tensor:
    """Return f^(order)(x) in float64."""
    x = x.double()
    if activation == "relu":
        return torch.relu(x) if order == 0 else ~(x <= 0) * (1.0 if order == 1 else 0.0)
    if order == 0:
        return torch.tanh(x) if activation == "tanh" else _sigmoid(x)
    u = x if activation == "tanh" else x / 2
    value = sech_squared(u) * torch.as_tensor(tanh_factor(order)(torch.tanh(u).numpy()))
    return value if activation == "tanh" else value / 2.0 ** (order + 1)


def scale(activation: str, x: torch.Tensor, order: int) -> torch.Tensor:
    """Return s * max(1, max |R_n| on [-1, 1]), to which the contract's errors of order n are relative, in float64."""
    t = np.linspace(-1, 1, 20001)
    largest = max(1.0, float(np.abs(tanh_factor(order)(t)).max()))
    x = x.double()
    return sech_squared(x) * largest if activation == "tanh" else sech_squared(x / 2) * largest / 2.0 ** (order + 1)


def sech_squared(u: torch.Tensor) -> torch.Tensor:
    """Return 4 e / (1 + e)^2 with e = exp(-2|u|), which does not cancel."""
    e = torch.exp(-2 * u.abs())
    return 4 * e / (1 + e) ** 2


def _sigmoid(x: torch.Tensor) -> torch.Tensor:
    e = torch.exp(-x.abs())
    return torch.where(x >= 0, 1 / (1 + e), e / (1 + e))


def ulp(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the spacing of `dtype`'s numbers at a float64 `value`; below the normal numbers, that of the subnormal."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(value.abs().clamp(min=info.tiny))
    return torch.from_numpy(np.ldexp(info.eps, (exponent - 1).numpy()))


def ulp_error(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return |actual - expected| in ULP of actual's dtype at `expected`; both infinite or both NaN count as 0."""
    difference = (actual.double() - expected).abs() / ulp(expected, actual.dtype)
    same = (actual.double() == expected) | (actual.isnan() & expected.isnan())
    return torch.where(same, 0.0, difference)


def half_distance(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return how many half-precision numbers lie between `actual` and the correctly rounded `expected` (float64)."""
    rounded = _round_once(expected, actual.dtype)
    distance = (_ordinal(actual) - _ordinal(rounded)).abs()
    return torch.where(actual.isnan() & rounded.isnan(), 0, distance)


def _round_once(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round float64 to a half type, by way of float32 rounded to odd, so that two roundings are one."""
    single = value.float()
    bits = single.view(torch.int32)
    toward_zero = torch.where(single.double().abs() > value.abs(), bits - 1, bits)
    inexact = (single.double() != value) & value.isfinite()
    odd = torch.where(inexact, toward_zero | 1, bits).view(torch.float32)
    return odd.to(dtype)


def _ordinal(tensor: torch.Tensor) -> torch.Tensor:
    bits = tensor.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)
