"""Any shape, any stride, any alignment: the right values in torch's own layout, and every element written."""

import pytest
import torch

import cases
import minigrad_kernels as kernels
import reference

pytestmark = pytest.mark.usefixtures("poisoned")
LAYOUTS = pytest.mark.parametrize("layout", cases.LAYOUTS)
DTYPES = pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
RELATIVE = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 4e-6, torch.float64: 1e-13}


def close(actual, expected, dtype):
    torch.testing.assert_close(actual.double().cpu(), expected.cpu(), rtol=RELATIVE[dtype], atol=RELATIVE[dtype])


def upstreams(x):
    """Yield gradients of x's shape: contiguous, expanded from one number as `.sum()` does, transposed, a column."""
    yield torch.linspace(-2, 2, x.numel(), dtype=torch.float64).to(x.dtype).to(x.device).reshape(x.shape)
    yield torch.tensor(0.5, dtype=x.dtype, device=x.device).expand(x.shape)
    if x.dim() >= 2:
        yield torch.ones_like(x.transpose(0, -1), memory_format=torch.contiguous_format).mul_(3).transpose(0, -1)
        column = torch.linspace(-1, 1, x.shape[0], dtype=torch.float64).to(x.dtype).to(x.device)
        yield column.reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape)


@LAYOUTS
@DTYPES
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_forward_has_torchs_values_and_strides(activation, dtype, layout, device):
    x = cases.LAYOUTS[layout](dtype, device)
    y = kernels.derivative(x, None, activation, 0)
    torchs = getattr(torch, activation)(x)
    assert (y.shape, y.dtype, y.stride()) == (torchs.shape, torchs.dtype, torchs.stride())
    close(y, reference.derivative(activation, x.cpu(), 0), dtype)


@LAYOUTS
@DTYPES
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
@pytest.mark.parametrize("order", [1, 2])
def test_backward_takes_any_upstream_gradient(order, activation, dtype, layout, device):
    x = cases.LAYOUTS[layout](dtype, device)
    for g in upstreams(x):
        dx = kernels.derivative(x, g, activation, order)
        assert dx.stride() == torch.empty_like(x).stride()
        close(dx, g.double().cpu() * reference.derivative(activation, x.cpu(), order), dtype)


@LAYOUTS
@DTYPES
@pytest.mark.parametrize("activation", cases.SMOOTH)
def test_double_backward_equals_its_two_parts(activation, dtype, layout, device):
    x = cases.LAYOUTS[layout](dtype, device)
    for v, g in zip(upstreams(x), reversed(list(upstreams(x))), strict=True):
        dg, dx = kernels.double_backward(v, g, x, activation, 1)
        close(dg, v.double().cpu() * reference.derivative(activation, x.cpu(), 1), dtype)
        both = v.double().cpu() * g.double().cpu()
        close(dx, both * reference.derivative(activation, x.cpu(), 2), dtype)


@LAYOUTS
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_backward_from_output_has_any_layout(activation, layout, device):
    y = getattr(torch, activation)(cases.LAYOUTS[layout](torch.float64, device))
    slope = {"tanh": 1 - y * y, "sigmoid": y * (1 - y), "relu": (y > 0).double()}[activation]
    for g in upstreams(y):
        close(kernels.backward_from_output(g, y, activation), (g * slope).cpu(), torch.float64)


def test_negative_views_are_resolved(device):
    conjugate = torch.randn(100, dtype=torch.complex64, device=device).conj()
    x = conjugate.imag
    assert x.is_neg()
    close(kernels.derivative(x, None, "tanh", 0), torch.tanh(x.double()).cpu(), torch.float32)
    close(kernels.derivative(x, x, "tanh", 1), (x.double() / torch.cosh(x.double()) ** 2).cpu(), torch.float32)


def test_source_is_not_written(device):
    x = cases.LAYOUTS["several blocks and a rest"](torch.float32, device)
    before, version = x.clone(), x._version
    kernels.derivative(x, x, "tanh", 1)
    kernels.bias_activation(x, x, "tanh")
    assert torch.equal(x, before)
    assert x._version == version


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements():
    n = 2**31 + 4096
    needed = 6 * n * 2
    if not torch.cuda.is_available() or torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of free GPU memory")
    x = torch.full((n,), 0.5, dtype=torch.bfloat16, device="cuda")
    x[-5000:] = torch.linspace(-3, 3, 5000, device="cuda").bfloat16()
    tail = x[-5000:].cpu()
    for activation in cases.ACTIVATIONS:
        y = kernels.derivative(x, None, activation, 0)
        dx = kernels.derivative(x, y, activation, 1)
        close(y[-5000:], reference.derivative(activation, tail, 0), torch.bfloat16)
        close(dx[-5000:], reference.derivative(activation, tail, 1) * y[-5000:].double().cpu(), torch.bfloat16)
        assert (y[: n - 5000] == y[0]).all()
        for rows in (x.view(-1, 4096), x.view(2, -1)):
            assert torch.equal(kernels.bias_activation(rows, torch.zeros_like(rows[0]), activation).view(-1), y)
