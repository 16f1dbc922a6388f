"""Double-word arithmetic: device functions on numbers that are the unevaluated sum of two floating-point words.

A number is a tuple of its words: `(high,)`, computed as the hardware does, or `(high, low)` with |low| at most half an
ULP of `high`, computed to about twice the digits. Both come out of the same formulas: what a kernel loads decides which
it computes in. Where `high` is infinite or not a number, `low` is 0, so that an overflow stays an infinity.

Nothing may contract a product and a sum here: launch with `enable_fp_fusion=False`.

Sources: M. Joldes, J.-M. Muller and V. Popescu, "Tight and rigorous error bounds for basic building blocks of
double-word arithmetic", ACM Transactions on Mathematical Software 44(2), 2017, algorithms 1 to 3, 6, 12 and 17; for the
root V. Lefèvre, N. Louvet, J.-M. Muller, J. Picot and L. Rideau, "Accurate calculation of Euclidean norms using
double-word arithmetic", ACM Transactions on Mathematical Software 49(1), 2023, algorithm 8.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

from minigrad_kernels.arithmetic import divide

_INTERPRETED = tl.constexpr(knobs.runtime.interpret)
_SPLITTER = tl.constexpr(2.0**27 + 1)  # cuts a float64 in two halves whose products are exact


@triton.jit
def _finite(error):
    return tl.where(tl.abs(error) < float("inf"), error, 0.0)


@triton.jit
def _root(x):
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def _two_sum(a, b):
    """Return a + b rounded, and what the rounding left out."""
    total = a + b
    b_there = total - a
    return total, _finite((a - (total - b_there)) + (b - b_there))


@triton.jit
def _fast_two_sum(a, b):
    """Return the same for |a| >= |b|."""
    total = a + b
    return total, _finite(b - (total - a))


@triton.jit
def two_product(a, b):
    """Return a b rounded, and what the rounding left out."""
    product = a * b
    if not _INTERPRETED:
        error = tl.fma(a, b, -product)
    elif product.dtype == tl.float32:  # the interpreter's fma rounds twice
        error = (a.to(tl.float64) * b.to(tl.float64) - product.to(tl.float64)).to(tl.float32)
    else:
        a_high, a_low = _halves(a)
        b_high, b_low = _halves(b)
        error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, _finite(error)


@triton.jit
def _halves(a):
    shifted = a * _SPLITTER
    high = shifted - (shifted - a)
    return high, a - high


@triton.jit
def plus(a, b):
    """Return a + b."""
    if len(a) == 1:
        return (a[0] + b[0],)
    else:
        high, error = _two_sum(a[0], b[0])
        low, low_error = _two_sum(a[1], b[1])
        high, error = _fast_two_sum(high, error + low)
        return _fast_two_sum(high, error + low_error)


@triton.jit
def minus(a, b):
    """Return a - b."""
    if len(a) == 1:
        return (a[0] - b[0],)
    else:
        return plus(a, (-b[0], -b[1]))


@triton.jit
def times(a, b):
    """Return a b."""
    if len(a) == 1:
        return (a[0] * b[0],)
    else:
        high, error = two_product(a[0], b[0])
        return _fast_two_sum(high, _finite(error + (a[0] * b[1] + a[1] * b[0])))


@triton.jit
def over(a, b):
    """Return a / b."""
    if len(a) == 1:
        return (divide(a[0], b[0]),)
    else:
        quotient = divide(a[0], b[0])
        product, error = two_product(b[0], quotient)
        product, error = _fast_two_sum(product, error + b[1] * quotient)
        rest = (a[0] - product) + (a[1] - error)
        return _fast_two_sum(quotient, _finite(divide(rest, b[0])))


@triton.jit
def root(a):
    """Return the square root of a >= 0."""
    if len(a) == 1:
        return (_root(a[0]),)
    else:
        high = _root(a[0])
        square, error = two_product(high, high)
        rest = ((a[0] - square) - error) + a[1]
        return _fast_two_sum(high, _finite(divide(rest, 2.0 * high)))
