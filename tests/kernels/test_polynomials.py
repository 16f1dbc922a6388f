"""The polynomials of the derivatives: exact, and better conditioned than the textbook's."""

import mpmath
import numpy as np
import pytest
import torch

import reference
from minigrad_kernels.polynomials import MAX_ORDER, scaled_polynomial, tanh_polynomial

ORDERS = range(1, MAX_ORDER + 1)


def test_first_polynomials_are_the_known_ones():
    assert [tanh_polynomial(n) for n in range(1, 6)] == [(1,), (-2,), (4, -6), (-8, 24), (16, -120, 120)]


@pytest.mark.parametrize("order", ORDERS)
def test_polynomial_in_sech_squared_equals_the_derivative(order):
    with mpmath.workdps(60):
        for u in (mpmath.mpf("-2.5"), mpmath.mpf("0.3"), mpmath.mpf("7.125")):
            t, s = mpmath.tanh(u), mpmath.sech(u) ** 2
            value = s * mpmath.polyval(tanh_polynomial(order)[::-1], s) * (t if order % 2 == 0 else 1)
            assert mpmath.almosteq(value, mpmath.diff(mpmath.tanh, u, order), rel_eps=mpmath.mpf(10) ** -20)


@pytest.mark.parametrize("order", ORDERS)
def test_reference_agrees_with_mpmath(order):
    x = torch.tensor([-9.0, -1.25, 0.1, 0.75, 3.0, 12.0], dtype=torch.float64)
    for activation, function in (("tanh", mpmath.tanh), ("sigmoid", lambda x: 1 / (1 + mpmath.exp(-x)))):
        with mpmath.workdps(60):
            expected = [float(mpmath.diff(function, mpmath.mpf(float(v)), order)) for v in x]
        torch.testing.assert_close(
            reference.derivative(activation, x, order), torch.tensor(expected, dtype=torch.float64), rtol=2e-9, atol=0
        )


@pytest.mark.parametrize("order", ORDERS)
def test_coefficients_are_exact_in_float32(order):
    for activation in ("tanh", "sigmoid"):
        coefficients = scaled_polynomial(activation, order)
        assert [float(np.float32(c)) for c in coefficients] == list(coefficients)


def test_sech_squared_keeps_in_saturation_what_tanh_loses():
    u = np.linspace(4, 40, 4001)
    t, s = np.tanh(u).astype(np.float32), (1 / np.cosh(u) ** 2).astype(np.float32)

    def relative_error(polynomial, at, parity):
        value = np.zeros_like(at)
        for coefficient in reversed(polynomial):
            value = (value * at + np.float32(coefficient)).astype(np.float32)
        exact = sum(c * (1 / np.cosh(u) ** 2) ** i for i, c in enumerate(tanh_polynomial(10))) * np.tanh(u)
        return np.abs(value * (t if parity else 1) / exact - 1).max()

    in_t = [round(c) for c in reference.tanh_factor(10).coef]
    assert relative_error(tanh_polynomial(10), s, parity=True) < 4e-7
    assert relative_error(in_t, t, parity=False) > 1e-3
