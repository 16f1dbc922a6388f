"""Device functions: exponential, tanh, sigmoid and their derivatives, accurate to the last bits.

Everything is built from one exponential, e^y = 2^k (1 + q) with |q| <= sqrt(2) - 1 and q = e^r - 1 from its Taylor
series. Keeping q beside 2^k gives e^y and e^y - 1 with small *relative* error, the second also near y = 0, where
`exp(y) - 1` cancels. `tl.exp` is `ex2.approx` of a rounded product, off by up to 64 ULP at |y| = 88, and libdevice does
not run in Triton's interpreter.

Float16 and bfloat16 are computed in float32 and rounded once, on the way out.

Sources: W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980, ch. 6 (range reduction);
J.-M. Muller, Elementary Functions, 3rd ed., 2016, ch. 11 (the same with a shift by 1.5 * 2^23).
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from triton import knobs

from minigrad_kernels.polynomials import MAX_ORDER, scaled_polynomial

_INTERPRETED = tl.constexpr(knobs.runtime.interpret)

_LOG2_E = tl.constexpr(1.0 / math.log(2.0))
# log 2 as a short head, whose product with a small integer is exact, and the rest.
_LOG_2_HEAD_32 = tl.constexpr(float.fromhex("0x1.62E4p-1"))
_LOG_2_TAIL_32 = tl.constexpr(float.fromhex("0x1.7F7D1CF79ABCAp-20"))
_LOG_2_HEAD_64 = tl.constexpr(float.fromhex("0x1.62E42FEEp-1"))
_LOG_2_TAIL_64 = tl.constexpr(float.fromhex("0x1.A39EF35793C76p-33"))
# Adding 1.5 * 2^(mantissa bits) rounds to an integer, which then stands in the low bits of the sum.
_SHIFT_32 = tl.constexpr(1.5 * 2.0**23)
_SHIFT_64 = tl.constexpr(1.5 * 2.0**52)
_SHIFT_BITS_32 = tl.constexpr(0x4B400000)
_SHIFT_BITS_64 = tl.constexpr(0x4338000000000000)
# The exponential of these is 0, subnormal numbers included.
_LOWEST_32 = tl.constexpr(-105.0)
_LOWEST_64 = tl.constexpr(-746.0)
# Degree of the Taylor polynomial of e^r - 1: the first omitted term is below 2^-30 (2^-61) of q.
_DEGREE_32 = tl.constexpr(8)
_DEGREE_64 = tl.constexpr(14)
# Coefficients of Q_n by activation and n; Triton hashes them with the kernel.
_POLYNOMIALS = tl.constexpr(
    {(name, n): scaled_polynomial(name, n) for name in ("sigmoid", "tanh") for n in range(1, MAX_ORDER + 1)}
)


@triton.constexpr_function
def _inverse_factorial(n):
    return 1.0 / math.factorial(n)


@triton.constexpr_function
def _coefficient(activation, order, power):
    return _POLYNOMIALS.value[activation, order][power]


@triton.jit
def _exponential_less_one(r, DEGREE: tl.constexpr):
    """Return e^r - 1 = r + r^2/2! + ... + r^DEGREE/DEGREE!, for |r| <= (log 2)/2."""
    tail = tl.full(r.shape, _inverse_factorial(DEGREE), r.dtype)
    for n in tl.static_range(DEGREE - 1, 1, -1):
        tail = tail * r + _inverse_factorial(n)
    return r + r * (r * tail)


@triton.jit
def _polynomial(s, ACTIVATION: tl.constexpr, ORDER: tl.constexpr):
    """Return Q_n(s) of `polynomials` for n = ORDER, scaled for sigmoid."""
    DEGREE: tl.constexpr = (ORDER - 1) // 2
    value = tl.full(s.shape, _coefficient(ACTIVATION, ORDER, DEGREE), s.dtype)
    for power in tl.static_range(DEGREE - 1, -1, -1):
        value = value * s + _coefficient(ACTIVATION, ORDER, power)
    return value


@triton.jit
def divide(numerator, denominator):
    """Return the correctly rounded quotient: `/` alone is off by up to 2 ULP in float32."""
    if numerator.dtype == tl.float64:
        return numerator / denominator
    else:
        return tl.math.div_rn(numerator, denominator)


@triton.jit
def _reduce(y):
    """Return an integer k and q with e^y = 2^k (1 + q), for y <= 40; NaN gives a NaN q."""
    if y.dtype == tl.float64:
        y = tl.maximum(y, _LOWEST_64, propagate_nan=tl.PropagateNan.ALL)
        shifted = y * _LOG2_E + _SHIFT_64
        k = shifted - _SHIFT_64
        r = (y - k * _LOG_2_HEAD_64) - k * _LOG_2_TAIL_64
        return shifted.to(tl.int64, bitcast=True) - _SHIFT_BITS_64, _exponential_less_one(r, _DEGREE_64)
    else:
        y = tl.maximum(y, _LOWEST_32, propagate_nan=tl.PropagateNan.ALL)
        shifted = y * _LOG2_E + _SHIFT_32
        k = shifted - _SHIFT_32
        r = (y - k * _LOG_2_HEAD_32) - k * _LOG_2_TAIL_32
        return shifted.to(tl.int32, bitcast=True) - _SHIFT_BITS_32, _exponential_less_one(r, _DEGREE_32)


@triton.jit
def _power_of_two(k):
    """Return 2^k, and 0 where it would be subnormal."""
    if k.dtype == tl.int64:
        return (tl.maximum(k + 1023, 0) << 52).to(tl.float64, bitcast=True)
    else:
        return (tl.maximum(k + 127, 0) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _with_sign_of(magnitude, x):
    """Return `magnitude` >= 0 with the sign of x; -0.0 counts as negative."""
    if x.dtype == tl.float64:
        sign = x.to(tl.uint64, bitcast=True) & 0x8000000000000000
        return (magnitude.to(tl.uint64, bitcast=True) | sign).to(tl.float64, bitcast=True)
    else:
        sign = x.to(tl.uint32, bitcast=True) & 0x80000000
        return (magnitude.to(tl.uint32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def _tanh(u):
    """Return tanh(u), with the sign of u, from m = (e^(2|u|) - 1) / 2.

    tanh |u| = m / (1 + m) is m - m^2 / (1 + m) up to m = 1, where the small second term carries the division's error,
    and 1 - 1 / (1 + m) beyond.
    """
    y = tl.minimum(2.0 * tl.abs(u), 40.0, propagate_nan=tl.PropagateNan.ALL)  # tanh(20) is 1 in float64
    k, q = _reduce(y)
    half_scale = _power_of_two(k - 1)
    m = half_scale * q + (half_scale - 0.5)
    quotient = divide(tl.where(m < 1.0, m * m, 1.0), 1.0 + m)
    return _with_sign_of(tl.where(m < 1.0, m, 1.0) - quotient, u)


@triton.jit
def _sigmoid(x):
    """Return 1 / (1 + e) for x >= 0 and e / (1 + e) below, where e = e^(-|x|), subnormal values of e included."""
    k, q = _reduce(-tl.abs(x))
    scale = _power_of_two(k >> 1)  # half of the exponent now, half at the end: 2^k alone may be subnormal
    e = (scale + scale * q) * _power_of_two(k - (k >> 1))
    return divide(tl.where(x >= 0.0, 1.0, e), 1.0 + e)


@triton.jit
def _sech_and_tanh(u):
    """Return sech(u) = 2h / (1 + h^2) and tanh(u), where h = e^-|u|."""
    k, q = _reduce(-tl.abs(u))
    scale = _power_of_two(k)
    h = scale + scale * q
    m = scale * q + (scale - 1.0)  # h - 1, accurate near 0
    m = m * (m + 2.0)  # h^2 - 1
    return divide(2.0 * h, 1.0 + h * h), _with_sign_of(divide(0.0 - m, m + 2.0), u)


@triton.jit
def derivative(x, ACTIVATION: tl.constexpr, ORDER: tl.constexpr):
    """Return two factors a, b with f^(ORDER)(x) = a * b, for ACTIVATION "sigmoid" or "tanh" and ORDER >= 1.

    b = sech(u), and a holds the rest. The factors stay apart so that an upstream gradient is multiplied in between: the
    product is right wherever *it* is normal, also where f^(ORDER)(x) alone is too small for float32.
    """
    u = x if ACTIVATION == "tanh" else 0.5 * x
    sech, t = _sech_and_tanh(u)
    a = sech * _polynomial(sech * sech, ACTIVATION, ORDER)
    if ORDER % 2 == 0:
        a = a * t
    return a, sech


@triton.jit
def activation(x, ACTIVATION: tl.constexpr):
    """Return f(x); relu(NaN) is NaN."""
    if ACTIVATION == "tanh":
        return _tanh(x)
    elif ACTIVATION == "sigmoid":
        return _sigmoid(x)
    else:
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def widen(x):
    """Return x in the dtype that it is computed in: float32 for the half types.

    Triton's interpreter loses subnormal bfloat16 numbers, so there the bits are widened by hand.
    """
    if x.dtype == tl.float64:
        return x
    elif _INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def narrow(value, DTYPE: tl.constexpr):
    """Return `value` rounded to DTYPE, to nearest and ties to even.

    Triton's interpreter truncates float32 to bfloat16, so there the rounding is done on the bits.
    """
    if _INTERPRETED and DTYPE == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(value != value, (bits >> 16) | 0x40, rounded)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(DTYPE)
