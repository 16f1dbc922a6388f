"""The public functions: torch's values, layouts and modes, and what they keep in memory."""

import weakref

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import cases
import minigrad
from minigrad_kernels import plain

EVERY_ACTIVATION = pytest.mark.parametrize("activation", cases.ACTIVATIONS)
DTYPES = pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
# Two roundings to the dtype, ours and torch's; in float32 and float64 the contract's bounds with room for torch's.
RELATIVE = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 4e-6, torch.float64: 1e-13}


def variants(activation):
    """Return the ways to apply an activation to one matrix (..., 4), by name."""
    ways = {
        "alone": getattr(minigrad, activation),
        "derivative 0": lambda x: minigrad.derivative(activation, x, 0),
        "with bias": lambda x: minigrad.bias_activation(x, torch.zeros_like(x[0]), activation),
        "with bias, output": lambda x: minigrad.bias_activation(x, torch.zeros_like(x[0]), activation, "output"),
    }
    if activation != "relu":
        ways["output"] = lambda x: getattr(minigrad, activation)(x, save="output")
    return ways


VARIANTS = {f"{a} {name}": (way, getattr(torch, a)) for a in cases.ACTIVATIONS for name, way in variants(a).items()}
EVERY_VARIANT = pytest.mark.parametrize("name", VARIANTS)


def matrix(device, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(3, 4, generator=generator, dtype=torch.float64)).to(dtype).to(device)


def close(actual, expected):
    tolerance = RELATIVE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@DTYPES
@EVERY_ACTIVATION
def test_value_gradient_and_strides_are_torchs(activation, dtype, layout, device):
    x = cases.LAYOUTS[layout](dtype, device).requires_grad_()
    y, torchs = getattr(minigrad, activation)(x), getattr(torch, activation)(x)
    assert (y.shape, y.dtype, y.stride(), y.device) == (torchs.shape, torchs.dtype, torchs.stride(), torchs.device)
    wide = x.detach().double().requires_grad_()
    expected = getattr(torch, activation)(wide)
    close(y, expected)
    close(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(expected.sum(), wide)[0])


@EVERY_ACTIVATION
def test_bias_has_the_value_and_the_gradients_of_torchs_sum(activation, device):
    x, bias = matrix(device).requires_grad_(), matrix(device, seed=1)[0].requires_grad_()
    wide, wide_bias = x.detach().double().requires_grad_(), bias.detach().double().requires_grad_()
    y, expected = minigrad.bias_activation(x, bias, activation), getattr(torch, activation)(wide + wide_bias)
    close(y, expected)
    for only in ((x, bias), (x,), (bias,)):
        pairs = {x: wide, bias: wide_bias}
        actual = torch.autograd.grad(y.sum(), only, retain_graph=True)
        reference = torch.autograd.grad(expected.sum(), [pairs[t] for t in only], retain_graph=True)
        for a, e in zip(actual, reference, strict=True):
            close(a, e)


HEADS = {
    "sum": lambda y: y.sum(),
    "sum of rows": lambda y: (y.sum(0) * y.sum(0).detach()).sum(),
    "cat": lambda y: (torch.cat([y, 2 * y]) * torch.arange(6.0).to(y)[:, None]).sum(),
    "expand": lambda y: (y.expand(5, 3, 4) * torch.arange(5.0).to(y)[:, None, None]).sum(),
    "transpose": lambda y: (y.t() * torch.arange(12.0).to(y).reshape(4, 3)).sum(),
    "matmul with a transposed": lambda y: (y @ torch.arange(8.0).to(y).reshape(2, 4).t()).sum(),
    "slice": lambda y: y[1:, ::2].sum(),
}


@pytest.mark.parametrize("head", HEADS)
@EVERY_VARIANT
def test_gradient_arrives_through_any_view(name, head, device):
    function, torchs = VARIANTS[name]
    x = matrix(device).requires_grad_()
    wide = x.detach().double().requires_grad_()
    (actual,) = torch.autograd.grad(HEADS[head](function(x)), x)
    (expected,) = torch.autograd.grad(HEADS[head](torchs(wide)), wide)
    magnitude = expected.abs().max()  # a gradient summed over several ways is as exact as its largest term
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=4e-6 * float(magnitude))


@pytest.mark.parametrize("use", [lambda f, x: x * f(x), lambda f, x: f(x) + f(x), lambda f, x: f(f(x)) * f(x)])
@EVERY_VARIANT
def test_one_tensor_may_be_used_twice(name, use, device):
    function, torchs = VARIANTS[name]
    x = matrix(device, torch.float64).requires_grad_()
    (actual,) = torch.autograd.grad(use(function, x).sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(use(torchs, x).sum(), x, create_graph=True)
    close(actual, expected)
    close(torch.autograd.grad(actual.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])


@EVERY_VARIANT
def test_retained_graph_gives_the_same_bits_again(name, device):
    x = matrix(device).requires_grad_()
    y = VARIANTS[name][0](x).sum()
    first, second = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    y.backward()
    assert torch.equal(first, x.grad)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


def saved_by(call):
    """Return the result of `call` and the tensors that autograd saved for it."""
    saved = []
    with saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        result = call()
    return result, saved


@pytest.mark.parametrize("order", [1, 2, 3])
def test_first_use_in_inference_mode_leaves_training_exact(order):
    plain._constant.cache_clear()
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    with torch.inference_mode():
        values = [minigrad.derivative("tanh", x, n) for n in (order, order + 1)]
    leaf = x.clone().requires_grad_()
    y = minigrad.derivative("tanh", leaf, order)
    (dx,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
    dx.sum().backward()
    torch.testing.assert_close([y.detach(), dx.detach()], [value.clone() for value in values], rtol=1e-15, atol=1e-15)


@EVERY_VARIANT
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_saved_without_grad(mode, name, device):
    x = matrix(device).requires_grad_()
    with mode():
        y, saved = saved_by(lambda: VARIANTS[name][0](x))
    assert saved == []
    assert y.grad_fn is None
    assert not y.requires_grad
    assert y.is_inference() == (mode is torch.inference_mode)
    source = torch.zeros_like(x)
    with mode():
        y = VARIANTS[name][0](source)
    alive = weakref.ref(source)
    del source
    assert alive() is None


@pytest.mark.parametrize("activation", cases.SMOOTH)
def test_smooth_activation_saves_its_input_alone_and_no_copy(activation, device):
    x = matrix(device).requires_grad_()
    _, saved = saved_by(lambda: getattr(minigrad, activation)(x))
    assert [tensor.data_ptr() for tensor in saved] == [x.data_ptr()]


@pytest.mark.parametrize("function", [minigrad.relu, lambda x: minigrad.tanh(x, "output")], ids=["relu", "save=output"])
def test_relu_and_save_output_save_the_output_alone(function, device):
    y, saved = saved_by(lambda: function(matrix(device).requires_grad_()))
    assert [tensor.data_ptr() for tensor in saved] == [y.data_ptr()]


@pytest.mark.parametrize("save", ["input", "output"])
@EVERY_ACTIVATION
def test_bias_saves_input_and_bias_or_the_output_alone(activation, save, device):
    x, bias = matrix(device).requires_grad_(), torch.zeros(4, device=device)
    y, saved = saved_by(lambda: minigrad.bias_activation(x, bias, activation, save))
    expected = [y] if save == "output" or activation == "relu" else [x, bias]
    assert [tensor.data_ptr() for tensor in saved] == [tensor.data_ptr() for tensor in expected]


@EVERY_VARIANT
def test_saved_tensors_are_freed_by_the_backward_pass(name, device):
    leaf = matrix(device).requires_grad_()
    x = leaf * 1  # saves nothing
    y = VARIANTS[name][0](x)
    (gradient,) = torch.autograd.grad(y.sum(), leaf, retain_graph=True)
    keeps_input = "relu" not in name and "output" not in name
    watched = weakref.ref(x)
    del x
    assert (watched() is not None) == keeps_input
    y.sum().backward()
    assert watched() is None
    assert torch.equal(leaf.grad, gradient)


@EVERY_VARIANT
def test_modified_saved_tensor_is_an_error(name, device):
    x = matrix(device).requires_grad_() * 1
    y = VARIANTS[name][0](x)
    saved = y if "relu" in name or "output" in name else x
    with torch.no_grad():
        saved.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@EVERY_VARIANT
@DTYPES
def test_autocast_gives_torchs_dtype_and_backward_works(dtype, name, device):
    x = matrix(device, dtype).requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        y, expected = (function(x) for function in VARIANTS[name])
    assert y.dtype == expected.dtype
    y.sum().backward()
    assert x.grad.dtype == dtype


@EVERY_ACTIVATION
def test_autocast_casts_the_bias_as_torchs_linear_layer_does(activation, device):
    x, weight, bias = (matrix(device, seed=i)[:, :3].requires_grad_() for i in range(3))
    bias = bias[0].detach().requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        y = minigrad.bias_activation(torch.nn.functional.linear(x, weight), bias, activation)
        assert y.dtype == torch.nn.functional.linear(x, weight, bias).dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad.dtype == weight.grad.dtype == bias.grad.dtype == torch.float32


@pytest.mark.gpu
@EVERY_ACTIVATION
def test_cuda_graph_replays_forward_and_backward_with_eagers_bits(activation):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA or ROCm device")

    def step(x, bias):
        y = getattr(minigrad, activation)(minigrad.bias_activation(x, bias, activation))
        return y, *torch.autograd.grad(y, (x, bias), torch.cos(y.detach()))

    def inputs(seed):
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(s, generator=generator).cuda().requires_grad_() for s in ((1000, 257), (257,))]

    static = inputs(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles the kernels, which a capture could not
        for _ in range(3):
            step(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*static)
    for seed in (1, 2):
        fresh = inputs(seed)
        with torch.no_grad():
            for target, source in zip(static, fresh, strict=True):
                target.copy_(source)
        graph.replay()
        assert all(torch.equal(a, e) for a, e in zip(captured, step(*fresh), strict=True))


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_of_a_row_and_its_bias_are_two_tensors(create_graph, device):
    x, bias = (torch.randn(5, device=device, requires_grad=True) for _ in range(2))
    y = minigrad.bias_activation(x, bias, "tanh").sum()
    dx, db = torch.autograd.grad(y, (x, bias), create_graph=create_graph)
    assert dx.data_ptr() != db.data_ptr()
    assert torch.equal(dx, db)
