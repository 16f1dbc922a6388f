"""The derivatives of tanh and sigmoid as integer polynomials, known before anything runs.

With t = tanh(u) and s = sech^2(u) = 1 - t^2, so that dt/du = s and ds/du = -2 t s, every derivative has the form

    tanh^(n)(u) = s * Q_n(s)          for odd n,
    tanh^(n)(u) = s * t * Q_n(s)      for even n,

and writing P_n(s) = s Q_n(s), differentiation is a step between the two forms:

    P_1 = s,    P_{n+1} = -2 s P_n'                      from odd to even n,
                P_{n+1} = s P_n - 2 s (1 - s) P_n'       from even to odd n.

Sigmoid is tanh in another coordinate, sigmoid(x) = (1 + tanh(x / 2)) / 2, hence
sigmoid^(n)(x) = 2^-(n+1) tanh^(n)(x / 2): the same polynomials, scaled exactly.

Why polynomials in s and not in t: both cancel between -1 and 1, but s goes to 0 where the function saturates, so there
the sum ends in its constant term and the derivative keeps its *relative* accuracy. In float32 at order 10 the worst
relative error for |u| > 4 is 2e-7 in s and 2e-3 in t (`tests/kernels/test_polynomials.py` measures both).
"""

from __future__ import annotations

from functools import cache

MAX_ORDER = 10
"""Largest order offered: cancellation in Q_n leaves too little of float32 beyond it."""


@cache
def tanh_polynomial(order: int) -> tuple[int, ...]:
    """Return the integer coefficients of Q_n(s), constant term first, for n = `order` >= 1."""
    coefficients = [0, 1]  # P_1(s) = s
    for n in range(1, order):
        slope = [i * c for i, c in enumerate(coefficients)]  # s P'(s), aligned with P
        if n % 2 == 1:
            coefficients = [-2 * c for c in slope]
        else:
            raised = [0, *coefficients]  # s P(s)
            coefficients = [
                r - 2 * d + 2 * e for r, d, e in zip(raised, [*slope, 0], [0, *slope], strict=True)
            ]  # s P - 2 (s P') + 2 s (s P')
    return tuple(coefficients[1:])


@cache
def scaled_polynomial(activation: str, order: int) -> tuple[float, ...]:
    """Return the coefficients of the order's polynomial in s for "tanh" or "sigmoid", as floats.

    They are integers, for sigmoid times the exact power 2^-(n+1); each has at most 24 significant bits, so float32
    holds it exactly (a test says so).
    """
    scale = 1.0 if activation == "tanh" else 2.0 ** -(order + 1)
    return tuple(scale * c for c in tanh_polynomial(order))
