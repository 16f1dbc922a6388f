"""The numerical contract, on whichever path the device runs: plain, Triton's interpreter, or a GPU."""

import math
from functools import cache

import mpmath
import pytest
import torch

import cases
import minigrad_kernels as kernels
import reference

pytestmark = pytest.mark.usefixtures("large_blocks")
FORWARD_ULP = {"tanh": 2.0, "sigmoid": 4.0}


def evaluate(activation, x, order, device):
    return kernels.derivative(x.to(device), None, activation, order).cpu()


def worst(error, x):
    index = int(error.argmax())
    return f"{float(error[index]):.3f} at x = {float(x[index])!r}"


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
@pytest.mark.parametrize("dtype", cases.HALVES, ids=str)
def test_every_half_number_is_within_one_ulp(dtype, activation, order, device):
    x = cases.all_halves(dtype)
    distance = reference.half_distance(
        evaluate(activation, x, order, device), reference.derivative(activation, x, order)
    )
    assert distance.max() <= 1, worst(distance, x)


@pytest.mark.parametrize("order", range(2, 11))
@pytest.mark.parametrize("activation", cases.SMOOTH)
@pytest.mark.parametrize("dtype", cases.HALVES, ids=str)
def test_every_half_number_keeps_its_higher_derivatives(dtype, activation, order, device):
    x = cases.all_halves(dtype)
    x = x[x.isfinite()]
    expected = reference.derivative(activation, x, order)
    allowed = reference.ulp(expected, dtype) + float32_bound(order) * reference.scale(activation, x, order)
    excess = (evaluate(activation, x, order, device).double() - expected).abs() / allowed
    assert excess.max() <= 1, worst(excess, x)


@pytest.mark.parametrize("activation", cases.SMOOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forward_is_accurate_to_its_ulps(dtype, activation, device):
    x, expected = with_reference(activation, dtype, 0)
    error = normal_only(reference.ulp_error(evaluate(activation, x, 0, device), expected), expected, dtype)
    assert error.max() <= FORWARD_ULP[activation], worst(error, x)


@pytest.mark.parametrize("activation", cases.SMOOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_first_derivative_is_accurate_wherever_it_is_normal(dtype, activation, device):
    x, expected = with_reference(activation, dtype, 1)
    error = normal_only(reference.ulp_error(evaluate(activation, x, 1, device), expected), expected, dtype)
    assert error.max() <= 8, worst(error, x)


@pytest.mark.parametrize("order", range(1, 11))
@pytest.mark.parametrize("activation", cases.SMOOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_derivative_is_accurate_relative_to_its_scale(dtype, activation, order, device):
    x, expected = with_reference(activation, dtype, order)
    bound = float32_bound(order) if dtype == torch.float32 else 1e-13
    scale = reference.scale(activation, x, order)
    error = (evaluate(activation, x, order, device).double() - expected).abs() / scale.clamp(
        min=torch.finfo(dtype).tiny
    )
    assert error[scale >= torch.finfo(dtype).tiny].max() <= bound, worst(error, x)  # below, nothing is relative
    assert error.max() <= 1, worst(error, x)  # and no result is larger than the smallest normal number


@pytest.mark.parametrize("order", range(2, 11))
@pytest.mark.parametrize("activation", cases.SMOOTH)
def test_higher_derivatives_keep_their_relative_accuracy_in_saturation(activation, order, device):
    x = torch.linspace(9, 60 if activation == "sigmoid" else 40, 5001)
    expected = reference_in_tail(activation, x, order)
    error = (evaluate(activation, x, order, device).double() / expected - 1).abs()
    assert error.max() <= 2e-6, worst(error, x)


@pytest.mark.parametrize("x", [1e-6, -1e-6, 1e-20, 1e-38, 0.03, -0.2])
def test_tanh_near_zero_is_right_relative_to_itself(x, device):
    x = torch.tensor([x])
    actual = evaluate("tanh", x, 0, device)
    assert reference.ulp_error(actual, torch.tanh(x.double())).item() <= 2


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_special_values_are_torchs(dtype, device):
    x = cases.special_floats(dtype)
    for activation in cases.ACTIVATIONS:
        actual, torchs = evaluate(activation, x, 0, device), getattr(torch, activation)(x)
        assert torch.equal(actual.isnan(), torchs.isnan())
        limits = x.isinf() | (x == 0)
        assert torch.equal(actual[limits], torchs[limits])
        if activation == "tanh":
            assert torch.equal(actual[limits].signbit(), torchs[limits].signbit())


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("order", range(1, 11))
def test_derivatives_vanish_at_infinity_and_keep_nan(order, dtype, device):
    x = torch.tensor([math.inf, -math.inf, math.nan], dtype=dtype)
    for activation in cases.SMOOTH:
        at_plus, at_minus, at_nan = evaluate(activation, x, order, device)
        assert at_plus == 0
        assert at_minus == 0
        assert at_nan.isnan()


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_relu_gradient_is_zero_at_zero_and_passes_nan(dtype, device):
    x = torch.tensor([-1.0, -0.0, 0.0, 1.0, math.inf, -math.inf, math.nan], dtype=dtype)
    g = torch.full_like(x, 3.0)
    actual = kernels.derivative(x.to(device), g.to(device), "relu", 1).cpu()
    assert actual.tolist() == [0, 0, 0, 3, 3, 0, 3]


@pytest.mark.parametrize("order", range(1, 11))
@pytest.mark.parametrize("activation", cases.SMOOTH)
def test_sampled_float64_derivatives_agree_with_mpmath(activation, order, device):
    x = torch.tensor([-31.0, -7.5, -1.0, -0.1, 0.0, 1e-9, 0.5, 2.0, 12.25, 40.0], dtype=torch.float64)
    with mpmath.workdps(80):
        function = mpmath.tanh if activation == "tanh" else lambda v: 1 / (1 + mpmath.exp(-v))
        expected = torch.tensor([float(mpmath.diff(function, mpmath.mpf(float(v)), order)) for v in x], dtype=x.dtype)
    error = (evaluate(activation, x, order, device) - expected).abs() / reference.scale(activation, x, order)
    assert error.max() <= 1e-13, worst(error, x)


@pytest.mark.parametrize("n", [4, 20_000])
@pytest.mark.parametrize(("activation", "x"), [("tanh", 17.0), ("tanh", -40.0), ("sigmoid", 35.0), ("sigmoid", -85.0)])
def test_large_gradient_does_not_overflow_on_the_way(activation, x, n, device):
    x, g = torch.full((n,), x), torch.full((n,), 1e25)
    expected = g.double() * reference.derivative(activation, x, 1)
    actual = kernels.derivative(x.to(device), g.to(device), activation, 1).cpu()
    assert reference.ulp_error(actual, expected).max() <= 8


def test_product_of_two_large_gradients_does_not_overflow_on_the_way(device):
    x, g = torch.full((4,), 40.0), torch.full((4,), 1e25)
    _, dx = kernels.double_backward(g.to(device), g.to(device), x.to(device), "tanh", 1)
    expected = g.double() ** 2 * reference.derivative("tanh", x, 2)
    torch.testing.assert_close(dx.cpu().double(), expected, rtol=4e-6, atol=0)


def test_large_gradient_meets_small_derivative_without_loss(device):
    if kernels.path_for(device) == "plain":
        pytest.skip("the plain path multiplies by a derivative that may be subnormal")
    x = torch.tensor([45.0, 60.0, 80.0])
    g = torch.full_like(x, 1e38)
    actual = kernels.derivative(x.to(device), g.to(device), "tanh", 1).cpu()
    expected = g.double() * reference.sech_squared(x.double())
    assert (reference.ulp_error(actual, expected) <= 8).all()


def float32_bound(order):
    return 4e-6 if order <= 6 else 3e-5


def with_reference(activation, dtype, order):
    """Return finite numbers, dense and special, and the derivative there; mpmath's, for fewer of them, in float64."""
    x = torch.cat([cases.dense_floats(dtype), cases.special_floats(dtype)])
    x = x[x.isfinite()]
    if dtype == torch.float32:
        return x, reference.derivative(activation, x, order)
    x = x[:: max(1, len(x) // 1500)]
    with mpmath.workdps(60):
        return x, torch.tensor([float(exact(activation, mpmath.mpf(float(v)), order)) for v in x], dtype=torch.float64)


def exact(activation, x, order):
    """Return f^(order)(x) with mpmath, from the polynomial in tanh, whose cancellation 60 digits absorb."""
    u = x if activation == "tanh" else x / 2
    if order == 0:
        return mpmath.tanh(x) if activation == "tanh" else 1 / (1 + mpmath.exp(-x))
    coefficients = [round(c) for c in reference.tanh_factor(order).coef]
    sech_squared, tanh = sech_squared_and_tanh(u)
    value = sech_squared * mpmath.polyval(coefficients[::-1], tanh)
    return value if activation == "tanh" else value / 2 ** (order + 1)


@cache
def sech_squared_and_tanh(u):
    """Return both to 60 digits, which all orders share."""
    with mpmath.workdps(60):
        return mpmath.sech(u) ** 2, mpmath.tanh(u)


def reference_in_tail(activation, x, order):
    with mpmath.workdps(60):
        return torch.tensor([float(exact(activation, mpmath.mpf(float(v)), order)) for v in x], dtype=torch.float64)


def normal_only(error, expected, dtype):
    return torch.where(expected.abs() >= torch.finfo(dtype).tiny, error, 0.0)
