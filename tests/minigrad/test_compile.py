"""Under PyTorch's compiler and tracers: eager mode's bits and gradients, or an error; never zeros or torch's rounding.

Inputs lie so far in saturation that torch's own gradient is exactly 0 there and the true one is not: a test would see
torch's derivative in place of minigrad's, and zeros too.
"""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import cases
import minigrad
import reference
from minigrad.nn import MLP

pytestmark = [
    # Dynamo's own doing, for every autograd.Function and for every graph break
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
SATURATED = {  # where the rounded output is exactly 1
    ("tanh", torch.bfloat16): [3.5, 4.25, 5.0, 8.0],
    ("sigmoid", torch.bfloat16): [6.5, 7.0, 9.0, 20.0],
    ("tanh", torch.float32): [9.5, 10.0, 12.0, 20.0],
    ("sigmoid", torch.float32): [17.5, 18.0, 25.0, 40.0],
}
# 1 ULP of bfloat16; the contract's first order in float32, and its second order, which is relative to the same factor
RELATIVE = {torch.bfloat16: 2.0**-7, torch.float32: 4e-6}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function, **options):
    return torch.compile(function, backend="aot_eager", **options)


def saturated(activation, dtype, device):
    return torch.tensor(SATURATED[activation, dtype], dtype=dtype, device=device)


def exact(activation, x, order):
    return reference.derivative(activation, x.detach().cpu(), order).to(x.device)


def close(actual, expected, dtype=torch.float32):
    torch.testing.assert_close(actual.double(), expected, rtol=RELATIVE[dtype], atol=0)


def value_and_gradients(function, *inputs):
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs)
    return (y.detach(), *torch.autograd.grad(y.sum(), inputs))


@pytest.mark.parametrize(("activation", "dtype"), SATURATED, ids=str)
def test_torchs_own_gradient_is_zero_on_these_inputs(activation, dtype, device):
    x = saturated(activation, dtype, device)
    assert not value_and_gradients(getattr(torch, activation), x)[1].any()
    assert exact(activation, x, 1).all()


TRAINED = {
    "alone": lambda a: getattr(minigrad, a),
    "derivative 0": lambda a: lambda x: minigrad.derivative(a, x, 0),
    "bias": lambda a: lambda x: minigrad.bias_activation(x / 2, x[0] / 2, a) * 2,  # halves: 2 / 2 per input
}


@pytest.mark.parametrize("way", TRAINED)
@pytest.mark.parametrize(("activation", "dtype"), SATURATED, ids=str)
def test_full_graph_trains_with_the_exact_gradient(activation, dtype, way, device):
    function = TRAINED[way](activation)
    x = saturated(activation, dtype, device)[None]
    y, gradient = value_and_gradients(compiled(function, fullgraph=True), x)
    close(gradient, exact(activation, x, 1) * (2 if way == "bias" else 1), dtype)
    assert torch.equal(y, function(x))
    assert torch.equal(gradient, value_and_gradients(function, x)[1])


SAME_BITS = {
    **{f"{a}": getattr(minigrad, a) for a in cases.ACTIVATIONS},
    **{f"bias {a}": (lambda x, a=a: minigrad.bias_activation(x, x[0], a)) for a in cases.ACTIVATIONS},
    "tanh saving output": lambda x: minigrad.tanh(x, save="output"),
    "bias tanh saving output": lambda x: minigrad.bias_activation(x, x[0], "tanh", "output"),
    "derivative 3 of sigmoid": lambda x: minigrad.derivative("sigmoid", x, 3),
    "derivative 1 of relu": lambda x: minigrad.derivative("relu", x, 1),
    "twice in a row, transposed": lambda x: minigrad.sigmoid(minigrad.tanh(x.t())).t(),
}


@pytest.mark.parametrize("name", SAME_BITS)
def test_compiled_and_eager_give_the_same_bits(name, device):
    function, x = SAME_BITS[name], torch.linspace(-9, 9, 63, device=device).reshape(7, 9)
    ours, eager = value_and_gradients(compiled(function, fullgraph=True), x), value_and_gradients(function, x)
    assert all(torch.equal(a, e) for a, e in zip(ours, eager, strict=True))
    assert ours[1].any() or name == "derivative 1 of relu"


def changed_input(function):
    def run(x):
        z = x * 1
        y = function(z)
        z.mul_(2)
        return y

    return run


def changed_output(function):
    def run(x):
        y = function(x * 1)
        z = y * 1
        y.mul_(-1)
        return z

    return run


CHANGED = {
    "input": (changed_input, ["tanh", "sigmoid", "bias tanh", "derivative 3 of sigmoid"]),
    "output": (changed_output, ["relu", "bias relu", "tanh saving output", "bias tanh saving output"]),
}


@pytest.mark.parametrize(("saved", "name"), [(saved, name) for saved, (_, names) in CHANGED.items() for name in names])
def test_saved_tensor_changed_in_the_compiled_function_is_an_error(saved, name, device):
    function = CHANGED[saved][0](SAME_BITS[name])
    x = torch.linspace(0.1, 2, 12, device=device).reshape(3, 4)
    for run in (function, compiled(function, fullgraph=True)):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value_and_gradients(run, x)


@pytest.mark.parametrize("way", ["alone", "bias"])
def test_dynamic_shapes_compile_once_and_stay_exact(way, device):
    counter = CompileCounterWithBackend("aot_eager")
    function = TRAINED[way]("tanh")
    dynamic = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for rows, columns in ((3, 5), (4, 7), (9, 2)):
        x = torch.linspace(9.5, 20, rows * columns, device=device).reshape(rows, columns)
        y, gradient = value_and_gradients(dynamic, x)
        assert torch.equal(y, function(x))
        assert torch.equal(gradient, value_and_gradients(function, x)[1])
        if way == "alone":
            close(gradient, exact("tanh", x, 1))
    assert counter.frame_count == 1


@pytest.mark.parametrize("save", ["input", "output"])
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_compiled_mlp_trains_with_eagers_bits(activation, save, device):
    model = MLP([5, 8, 6, 3], activation, save, device=device)
    x = torch.linspace(-3, 3, 20, device=device).reshape(4, 5)
    gradients = [
        torch.autograd.grad(forward(x).square().sum(), model.parameters())
        for forward in (compiled(model, fullgraph=True), model)
    ]
    assert all(torch.equal(a, e) for a, e in zip(*gradients, strict=True))
    assert all(gradient.any() for gradient in gradients[0])


def test_compiled_mlp_trains_under_autocast(device):
    model = MLP([5, 8, 3], device=device)
    x = torch.linspace(-3, 3, 20, device=device).reshape(4, 5)
    with torch.autocast(device.type, torch.bfloat16):
        outputs = [compiled(model, fullgraph=True)(x), model(x)]
    gradients = [torch.autograd.grad(y.float().sum(), model.parameters()) for y in outputs]
    assert outputs[0].dtype == torch.bfloat16
    assert all(torch.equal(a, e) for a, e in zip(*gradients, strict=True))


def dual(function):
    def tangent(x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x)))).tangent

    return tangent


def through(forward):
    """Return a function that differentiates by autograd through `forward`, already compiled."""
    return lambda x: value_and_gradients(forward, x)[1]


def total(function):
    return lambda x: function(x).sum()


TRANSFORMS = {  # each gives f'(x), or the named order of it, from what is compiled
    "grad": (lambda f: grad(total(f)), 1),
    "vjp": (lambda f: lambda x: vjp(f, x)[1](torch.ones_like(x))[0], 1),
    "jvp": (lambda f: lambda x: jvp(f, (x,), (torch.ones_like(x),))[1], 1),
    "vmap of grad": (lambda f: lambda x: vmap(grad(total(f)))(x[:, None])[:, 0], 1),
    "jacrev": (lambda f: lambda x: jacrev(f)(x).diagonal(), 1),
    "jacfwd": (lambda f: lambda x: jacfwd(f)(x).diagonal(), 1),
    "hessian": (lambda f: lambda x: hessian(total(f))(x).diagonal(), 2),
}
TRANSFORMED = {
    "tanh": (minigrad.tanh, "tanh"),
    "sigmoid": (minigrad.sigmoid, "sigmoid"),
    "bias tanh": (lambda x: minigrad.bias_activation(x, torch.zeros_like(x), "tanh"), "tanh"),
}


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_compiled_transform_is_exact_and_with_full_graph_exact_or_an_error(transform, name, device):
    function, activation = TRANSFORMED[name]
    (make, order), x = TRANSFORMS[transform], saturated(activation, torch.float32, device)
    if transform in ("vjp", "jacrev") and torch.__version__ < "2.13":
        pytest.skip("there PyTorch itself loses the gradient of any Function")
    close(compiled(make(function))(x), exact(activation, x, order))
    torch._dynamo.reset()
    try:
        result = compiled(make(function), fullgraph=True)(x)
    except torch._dynamo.exc.Unsupported as error:
        assert "drops the backward of a Function inside a transform" in str(error)  # noqa: PT017
    else:
        close(result, exact(activation, x, order))


@pytest.mark.parametrize("name", TRANSFORMED)
def test_autograd_through_a_compiled_vmap_is_exact(name, device):
    function, activation = TRANSFORMED[name]
    x = saturated(activation, torch.float32, device)
    close(through(compiled(lambda x: vmap(function)(x[:, None])[:, 0]))(x), exact(activation, x, 1))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        through(compiled(lambda x: vmap(function)(x[:, None])[:, 0], fullgraph=True))(x)


@pytest.mark.parametrize("fullgraph", [True, False])
@pytest.mark.parametrize("name", TRANSFORMED)
def test_compiled_dual_numbers_are_an_error(name, fullgraph, device):
    function, activation = TRANSFORMED[name]
    x = saturated(activation, torch.float32, device)
    close(dual(function)(x), exact(activation, x, 1))
    for inside in (compiled(dual(function), fullgraph=fullgraph), dual(compiled(function, fullgraph=fullgraph))):
        with pytest.raises(RuntimeError, match="cannot be differentiated this way"):
            inside(x)


def backward_inside(function):
    def run(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]

    return run


@pytest.mark.parametrize("name", TRANSFORMED)
def test_backward_inside_the_compiled_function_is_exact(name, device):
    function, activation = TRANSFORMED[name]
    x = saturated(activation, torch.float32, device)
    close(compiled(backward_inside(function))(x), exact(activation, x, 1))


@pytest.mark.parametrize("name", [name for name in SAME_BITS if name != "derivative 1 of relu"])
def test_double_backward_through_a_compiled_function_is_an_error(name, device):
    x = torch.linspace(-2, 2, 12, device=device).reshape(3, 4).requires_grad_()
    y = compiled(SAME_BITS[name], fullgraph=True)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    # The second is that of PyTorch before 2.13, whose compiled gradients have no record.
    with pytest.raises(RuntimeError, match=r"does not currently support double backward|does not require grad"):
        gradient.sum().backward()


class Forward(torch.nn.Module):
    """A function as the module that torch.export wants, behind a layer that is to be trained."""

    def __init__(self, function, device):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4, device=device)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", ["tanh", "relu", "bias sigmoid", "tanh saving output", "derivative 3 of sigmoid"])
def test_exported_program_gives_eagers_bits_at_any_batch_size(name, strict, device):
    module, x = Forward(SAME_BITS[name], device), torch.linspace(-9, 9, 12, device=device).reshape(3, 4)
    program = torch.export.export(module, (x,), strict=strict, dynamic_shapes=({0: torch.export.Dim("rows")},))
    assert any(
        "minigrad." in str(node.target) for graph in program.graph_module.modules() for node in graph.graph.nodes
    )
    with torch.no_grad():
        for batch in (x, x[:2], torch.cat([x, x])):
            assert torch.equal(program.module()(batch), module(batch))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "name",
    ["tanh", "relu", "bias sigmoid", "tanh saving output", "bias tanh saving output", "derivative 3 of sigmoid"],
)
def test_training_an_exported_program_is_exact(name, strict, device):
    module, x = Forward(SAME_BITS[name], device), torch.linspace(-1, 1, 12, device=device).reshape(3, 4)
    expected = torch.autograd.grad(module(x).sum(), module.parameters())
    program = torch.export.export(module, (x,), strict=strict).module()
    program(x).sum().backward()
    torch.testing.assert_close([parameter.grad for parameter in program.parameters()], list(expected))


@pytest.mark.parametrize("name", SAME_BITS)
def test_fake_tensors_go_forward_and_backward(name, device):
    with FakeTensorMode():
        x = torch.empty(9, 7, dtype=torch.bfloat16, device=device).t().requires_grad_()
        y, gradient = value_and_gradients(SAME_BITS[name], x)
        assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
        assert (gradient.shape, gradient.stride(), gradient.dtype) == (x.shape, x.stride(), x.dtype)


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("differentiate", [lambda f: grad(total(f)), backward_inside], ids=["func", "autograd"])
def test_make_fx_traces_the_exact_backward(differentiate, name, device):
    function, activation = TRANSFORMED[name]
    x = saturated(activation, torch.float32, device)
    graph = make_fx(differentiate(function))(torch.linspace(-1, 1, 4, device=device))
    assert "torch.ops.minigrad." in graph.code
    close(graph(x), exact(activation, x, 1))
