"""A watched layer gives the bits of one that is not, however it is differentiated; its probe sees just its passes."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap

import cases
import minigrad_kernels as kernels
from cases import INTERPRETED
from minigrad import check_gradients, saved_for_backward
from minigrad.autodiff import graph
from minigrad.nn import Linear, ReLU, Sigmoid, Tanh
from minigrad_kernels import BACKWARD, FORWARD, Layer

MODULES = {
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "relu": ReLU,
    "sigmoid saving output": lambda: Sigmoid("output"),
    "tanh saving output": lambda: Tanh("output"),
    **{f"linear {a}": lambda a=a: Linear(5, 4, activation=a) for a in cases.ACTIVATIONS},
    **{f"linear {a} saving output": lambda a=a: Linear(5, 4, activation=a, save="output") for a in cases.SMOOTH},
    "linear tanh without bias": lambda: Linear(5, 4, bias=False, activation="tanh"),
}
EVERY_MODULE = pytest.mark.parametrize("name", MODULES)


class Watching:
    """A probe: computes one of minigrad's modules with a tally, and says which passes it has seen."""

    is_on = True

    def __init__(self, module, device):
        biased = getattr(module, "bias", None) is not None
        from_output = module.activation == "relu" or module.save == "output"
        self.layer = Layer(0, module.activation, biased, from_output, 0.1)
        self.tally = kernels.new_tally(device)
        module.probe = self

    def forward(self, x, bias):
        return self.tally.forward(self.layer, x, bias)

    def backward(self, upstream, saved, bias):
        return self.tally.backward(self.layer, upstream, saved, bias)

    @property
    def seen(self):
        """The passes seen since the last time, F and B; their rows are thrown away."""
        return "".join("FB"[direction] for _, direction in self.tally.take()[0])


def twins(name, device, dtype=torch.float32):
    """Return a module that is watched, its probe, and the same module not watched."""
    torch.manual_seed(2)
    plain = MODULES[name]().to(device, dtype)
    module = copy.deepcopy(plain)
    return module, Watching(module, device), plain


def inputs(device, dtype=torch.float32, requires_grad=True):
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return x.to(dtype).to(device).requires_grad_(requires_grad)


def gradients(module, x, **options):
    return torch.autograd.grad(module(x).sin().sum(), (x, *module.parameters()), **options)


def same(actual, expected):
    return all(
        torch.equal(a, e) and a.stride() == e.stride() and a.dtype == e.dtype
        for a, e in zip(actual, expected, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@EVERY_MODULE
def test_output_and_gradients_have_the_same_bits_and_layout(name, dtype, device):
    module, probe, plain = twins(name, device, dtype)
    x = inputs(device, dtype)
    for layout in (x, x.t().contiguous().t().detach().requires_grad_()):
        results = []
        for m in (module, plain):
            y = m(layout)
            results.append((y, *torch.autograd.grad(y.sin().sum(), (layout, *m.parameters()))))
        assert same(*results)
        assert probe.seen == "FB"


def test_what_is_seen_is_of_the_tensors_that_passed(device):
    module, probe, _ = twins("tanh", device)
    x = inputs(device)
    y = module(x)
    (dx,) = torch.autograd.grad(y, x, 0.5 * torch.ones_like(y))
    keys, rows = probe.tally.take()
    rows = dict(zip([direction for _, direction in keys], rows.tolist(), strict=True))
    expected = [15, y.double().mean().item(), 15 * y.double().var(correction=0).item()]
    assert rows[FORWARD][:3] == pytest.approx(expected, rel=1e-5)
    expected = [15, 15 * 0.25, dx.double().square().sum().item(), dx.abs().max().item()]
    assert rows[BACKWARD][:4] == pytest.approx(expected, rel=1e-5)


@EVERY_MODULE
def test_what_records_no_gradient_is_not_seen(name, device):
    module, probe, plain = twins(name, device)
    x = inputs(device, requires_grad=False)
    with torch.no_grad():
        assert torch.equal(module(x), plain(x))
    with torch.inference_mode():
        assert torch.equal(module(x), plain(x))
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(module(x), plain(x))
    assert probe.seen == ""


@EVERY_MODULE
def test_a_probe_that_is_off_sees_nothing_and_leaves_no_node(name, device):
    module, probe, plain = twins(name, device)
    x = inputs(device)
    probe.is_on = False
    assert type(module(x).grad_fn) is type(plain(x).grad_fn)
    assert same(gradients(module, x), gradients(plain, x))
    probe.is_on = True
    y = module(x).sin().sum()
    probe.is_on = False  # between the passes: the backward pass is not seen
    assert same(torch.autograd.grad(y, (x, *module.parameters())), gradients(plain, x))
    assert probe.seen == "F"


TRANSFORMED = {
    "grad": lambda module, x: grad(lambda x: module(x).sin().sum())(x),
    "vmap": lambda module, x: vmap(module)(x),
    "jvp": lambda module, x: jvp(module, (x,), (torch.cos(x),)),
    "grad of a functional call": lambda module, x: grad(
        lambda parameters: functional_call(module, parameters, (x,)).sin().sum()
    )({name: parameter.detach() for name, parameter in module.named_parameters()}),
}


def dual(module, x):
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(module(forward_ad.make_dual(x, torch.cos(x)))))


@pytest.mark.parametrize("transform", [*TRANSFORMED.values(), dual], ids=[*TRANSFORMED, "dual numbers"])
@EVERY_MODULE
def test_transforms_are_right_and_not_seen(name, transform, device):
    module, probe, plain = twins(name, device, torch.float64)
    for x in (inputs(device, torch.float64, requires_grad=False), inputs(device, torch.float64)):
        torch.testing.assert_close(transform(module, x), transform(plain, x), rtol=0, atol=0)
    assert probe.seen == ""


@EVERY_MODULE
def test_double_backward_has_the_same_bits_and_the_gradient_is_seen_once(name, device):
    seconds = []
    module, probe, plain = twins(name, device)
    for m in (module, plain):
        x = inputs(device)
        first = gradients(m, x, create_graph=True)
        norm = sum(g.square().sum() for g in first)
        seconds.append((*first, *torch.autograd.grad(norm, (x, *m.parameters()))))
    assert same(*seconds)
    assert probe.seen == "FB"


def test_what_goes_through_a_graph_of_the_gradient_is_not_seen(device):
    module, probe, _ = twins("tanh", device)
    x = inputs(device)
    y = module(x).sum()
    (dx,) = torch.autograd.grad(y, x, create_graph=True)
    (y + dx.square().sum()).backward()  # once more through the layer itself
    assert probe.seen == "FB"


@EVERY_MODULE
def test_a_second_pass_over_the_same_graph_is_seen_too(name, device):
    module, probe, plain = twins(name, device)
    x = inputs(device)
    y = module(x).sin().sum()
    for _ in range(2):
        assert same(torch.autograd.grad(y, (x, *module.parameters()), retain_graph=True), gradients(plain, x))
    assert probe.seen == "FBB"


@EVERY_MODULE
def test_a_batch_of_gradients_is_right_and_not_seen(name, device):
    module, probe, plain = twins(name, device, torch.float64)
    results = []
    for m in (module, plain):
        x = inputs(device, torch.float64)
        y = m(x)
        upstream = torch.stack([torch.ones_like(y), torch.cos(y.detach())])
        results.append(torch.autograd.grad(y, (x, *m.parameters()), upstream, is_grads_batched=True))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)  # a sum in another order
    assert probe.seen == "F"


@pytest.mark.parametrize("needed", [("bias",), ("weight",), ("x",), ("x", "bias"), ("weight", "bias")], ids=str)
@pytest.mark.parametrize("name", ["linear tanh", "linear tanh saving output", "linear relu"])
def test_only_the_gradients_that_are_needed_are_given(name, needed, device):
    module, probe, plain = twins(name, device)
    gradients = []
    for m in (module, plain):
        tensors = {"x": inputs(device, requires_grad=False), **dict(m.named_parameters())}
        for each, tensor in tensors.items():
            tensor.requires_grad_(each in needed)
        m(tensors["x"]).sin().sum().backward()
        gradients.append({each: tensor.grad for each, tensor in tensors.items() if tensor.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == set(needed)
    assert same(gradients[0].values(), gradients[1].values())
    assert probe.seen == "FB"


@pytest.mark.parametrize("dtype", cases.HALVES, ids=str)
@EVERY_MODULE
def test_autocast_is_that_of_the_layer(name, dtype, device):
    module, probe, plain = twins(name, device)
    results = []
    for m in (module, plain):
        x = inputs(device)
        with torch.autocast(device.type, dtype):
            y = m(x)
        results.append((y, *torch.autograd.grad(y.float().sin().sum(), (x, *m.parameters()))))
    assert same(*results)
    assert probe.seen == "FB"


@EVERY_MODULE
def test_the_same_tensors_are_saved(name, device):
    module, _, plain = twins(name, device)
    kept = []
    for m in (module, plain):
        with saved_for_backward() as saved:
            y = m(inputs(device))
        kept.append([(tensor.kind, tensor.shape, tensor.bytes) for tensor in saved.tensors])
        del y
    assert kept[0] == kept[1] != []


@pytest.mark.parametrize(("name", "changed"), [("tanh", "input"), ("tanh saving output", "output"), ("relu", "output")])
def test_a_saved_tensor_that_is_changed_is_noticed(name, changed, device):
    module, probe, _ = twins(name, device)
    x = inputs(device) * 1
    y = module(x)
    with torch.no_grad():
        (x if changed == "input" else y).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    assert probe.seen == "F"


@EVERY_MODULE
def test_graph_is_read_as_that_of_the_layer(name, device):
    module, _, plain = twins(name, device)
    read = [graph.read(m(inputs(device))) for m in (module, plain)]
    labels, edges = zip(*(([node.label for node in each.nodes], each.edges) for each in read), strict=True)
    assert labels[0] == labels[1]
    assert edges[0] == edges[1]
    assert any(label.startswith("minigrad.") for label in labels[0])


@pytest.mark.skipif(INTERPRETED, reason="thousands of passes: the tests above compare the kernels' bits")
@pytest.mark.parametrize("name", ["sigmoid", "relu", "linear tanh", "linear sigmoid saving output"])
def test_module_under_a_probe_passes_check_gradients_to_second_order(name, device):
    module, probe, _ = twins(name, device, torch.float64)
    x = inputs(device, torch.float64)[:2].detach().requires_grad_()
    check_gradients(module, x, order=2)
    assert {*probe.seen} == {"F", "B"}


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own doing
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.skipif(INTERPRETED, reason="the plain path shows it: the layer leaves the compiled graph")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("name", "backend"), [("relu", "eager"), ("linear tanh", "aot_eager")])
def test_compiled_module_leaves_the_graph_and_is_seen(name, backend, device):
    module, probe, plain = twins(name, device)
    counter, x = CompileCounterWithBackend(backend), inputs(device)
    compiled = torch.compile(lambda x: module(x.sin()).cos(), backend=counter)
    for _ in range(2):
        y, expected = compiled(x), plain(x.sin()).cos()
        assert same([y], [expected])
        assert same(*(torch.autograd.grad(z.sum(), x) for z in (y, expected)))
        assert probe.seen == "FB"
    assert counter.frame_count >= 2  # what comes before the layer, and what after
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(module, backend=backend, fullgraph=True)(x)
