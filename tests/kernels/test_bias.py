"""Bias and activation in one kernel, and the bias gradient summed in a fixed order."""

import pytest
import torch

import cases
import minigrad_kernels as kernels
import reference

pytestmark = pytest.mark.usefixtures("poisoned")
SHAPES = [(1,), (16,), (1, 1), (5, 63), (200, 3), (141, 32), (3, 600), (2, 3, 40), (0, 8), (3, 0), (2, 0, 5)]
RELATIVE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 2e-6, torch.float64: 1e-13}


def case(shape, dtype, device):
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    tensors = [2 * torch.randn(s, generator=generator, dtype=torch.float64) for s in (shape, shape[-1:], shape)]
    return [t.to(dtype).to(device) for t in tensors]


def expected_gradients(g, x, bias, activation):
    z = x.double() + bias.double()
    slope = reference.derivative(activation, z.cpu(), 1).to(z.device)
    dx = g.double() * slope
    return z, dx, dx.sum(dim=tuple(range(dx.dim() - 1))) if dx.dim() > 1 else dx


def assert_gradients_are_right(g, x, bias, activation, sum_atol=1e-5):
    """Compare both gradients of float32 operands with float64."""
    _, dx, db = expected_gradients(g, x, bias, activation)
    actual_dx, actual_db = kernels.bias_activation_backward(g, x, bias, activation)
    torch.testing.assert_close(actual_dx.double(), dx, rtol=4e-6, atol=4e-6)
    torch.testing.assert_close(actual_db.double(), db, rtol=1e-5, atol=sum_atol)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_values_and_gradients(activation, dtype, shape, device):
    x, bias, g = case(shape, dtype, device)
    z, dx, db = expected_gradients(g, x, bias, activation)
    y = kernels.bias_activation(x, bias, activation)
    tolerance = RELATIVE[dtype]
    expected = reference.derivative(activation, z.cpu(), 0)
    torch.testing.assert_close(y.double().cpu(), expected, rtol=tolerance, atol=tolerance)

    saved = (y, None) if activation == "relu" else (x, bias)
    actual_dx, actual_db = kernels.bias_activation_backward(g, *saved, activation)
    assert actual_db.shape == bias.shape
    assert actual_db.dtype == dtype
    torch.testing.assert_close(actual_dx.double(), dx, rtol=tolerance, atol=tolerance)
    magnitude = dx.abs().sum(dim=tuple(range(dx.dim() - 1))) if dx.dim() > 1 else dx.abs()
    info = torch.finfo(dtype)
    rounding = 2 * info.eps * db.abs() + info.tiny * info.eps + 4e-6 * magnitude
    assert ((actual_db.double() - db).abs() <= rounding).all()


@pytest.mark.parametrize("activation", cases.SMOOTH)
def test_from_output_equals_from_input_in_float64(activation, device):
    x, bias, g = case((37, 48), torch.float64, device)
    y = kernels.bias_activation(x, bias, activation)
    for actual, expected in zip(
        kernels.bias_activation_backward(g, y, None, activation),
        kernels.bias_activation_backward(g, x, bias, activation),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [lambda x: x.t().contiguous().t(), lambda x: x[:, ::2], lambda x: x[1:, 3:]])
def test_strided_input_gives_torchs_layout(make, device):
    x, _, g = case((21, 64), torch.float32, device)
    x, g = make(x), make(g)
    bias = torch.linspace(-1, 1, 2 * x.shape[-1], device=device)[::2]
    y = kernels.bias_activation(x, bias, "tanh")
    assert y.stride() == torch.tanh(x).stride()
    torch.testing.assert_close(y, torch.tanh(x + bias))
    assert_gradients_are_right(g, x, bias, "tanh")


def test_upstream_gradient_of_a_sum_is_read_in_bounds(device):
    x, bias, _ = case((33, 48), torch.float32, device)
    g = torch.ones((), device=device).expand(x.shape)
    assert_gradients_are_right(g, x, bias, "sigmoid")


@pytest.mark.parametrize("dtype", cases.HALVES, ids=str)
def test_sum_of_half_gradients_is_rounded_once(dtype, device):
    x = torch.zeros(1024, 16, dtype=dtype, device=device)
    g = torch.full_like(x, 1 + torch.finfo(dtype).eps)
    _, db = kernels.bias_activation_backward(g, x, torch.zeros_like(x[0]), "tanh")
    assert torch.equal(db, (g.double().sum(0)).to(dtype))


def test_program_adds_up_many_tiles(device, change_blocks):
    if kernels.path_for(device) == "plain":
        pytest.skip("the plain path has no programs")
    change_blocks(programs=1)
    x, bias, g = case((700, 48), torch.float32, device)
    assert_gradients_are_right(g, x, bias, "tanh", sum_atol=1e-4)  # 700 rows


def test_same_inputs_give_the_same_bits(device):
    x, bias, g = case((300, 24), torch.float32, device)
    first = kernels.bias_activation_backward(g, x, bias, "tanh")[1]
    assert all(torch.equal(first, kernels.bias_activation_backward(g, x, bias, "tanh")[1]) for _ in range(3))


def test_nan_stays_nan_and_passes_relus_gradient(device):
    x = torch.tensor([[float("nan"), 1.0], [-1.0, float("nan")]], device=device)
    y = kernels.bias_activation(x, torch.zeros(2, device=device), "relu")
    assert torch.equal(y.isnan(), x.isnan())
    dx, db = kernels.bias_activation_backward(torch.ones_like(x), y, None, "relu")
    assert dx.tolist() == [[1, 1], [0, 1]]
    assert db.tolist() == [1, 2]
