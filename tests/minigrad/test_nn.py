"""The modules: drop-ins for torch.nn's, exact, copied, saved, and trained by several processes."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch

import cases
import minigrad
from cases import INTERPRETED
from minigrad.nn import MLP, Linear, ReLU, Sigmoid, Tanh, replace_activations

EVERY_ACTIVATION = pytest.mark.parametrize("activation", cases.ACTIVATIONS)
MODULES = {"sigmoid": Sigmoid, "tanh": Tanh, "relu": ReLU}


def matrix(device, *shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).to(device)


@EVERY_ACTIVATION
def test_activation_module_equals_the_function(activation, device):
    x = matrix(device, 3, 4).requires_grad_()
    module, function = MODULES[activation](), getattr(minigrad, activation)
    assert torch.equal(module(x), function(x))
    assert torch.equal(*(torch.autograd.grad(f(x).sum(), x)[0] for f in (module, function)))
    assert list(module.state_dict()) == []
    assert repr(module) == f"{MODULES[activation].__name__}()"


@pytest.mark.parametrize("activation", cases.SMOOTH)
def test_activation_module_passes_save_on(activation, device):
    x = matrix(device, 3, 4, dtype=torch.bfloat16).requires_grad_()
    module, function = MODULES[activation]("output"), getattr(minigrad, activation)
    assert torch.equal(*(torch.autograd.grad(f(x).sum(), x)[0] for f in (module, lambda x: function(x, "output"))))
    assert repr(module) == f"{MODULES[activation].__name__}(save='output')"


@EVERY_ACTIVATION
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("save", ["input", "output"])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6), (0, 6)], ids=str)
def test_linear_equals_torchs_composite_in_float64(activation, bias, save, shape, device):
    ours = Linear(6, 4, bias=bias, activation=activation, save=save, device=device, dtype=torch.float64)
    torchs = torch.nn.Linear(6, 4, bias=bias, device=device, dtype=torch.float64)
    torchs.load_state_dict(ours.state_dict())
    x = matrix(device, *shape, dtype=torch.float64).requires_grad_()
    results = []
    for y, module in ((ours(x), ours), (getattr(torch, activation)(torchs(x)), torchs)):
        results.append((y, *torch.autograd.grad(y.sin().sum(), (x, *module.parameters()))))
    # one rounding of the sum more or less, in torch or here
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", [None, *cases.ACTIVATIONS])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_starts_as_torchs_does_and_loads_its_parameters(activation, bias, device):
    layers = []
    for kind, options in ((Linear, {"activation": activation}), (torch.nn.Linear, {})):
        torch.manual_seed(3)
        layers.append(kind(7, 5, bias=bias, device=device, **options))
    ours, torchs = layers
    assert isinstance(ours, torch.nn.Linear)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), torchs.parameters(), strict=True))
    other = torch.nn.Linear(7, 5, bias=bias, device=device)
    ours.load_state_dict(other.state_dict())
    torchs.load_state_dict(ours.state_dict())
    assert torch.equal(ours.weight, other.weight)
    assert torch.equal(torchs.weight, other.weight)


def test_linear_without_activation_is_torchs_bit_for_bit(device):
    layer, x = Linear(6, 4, device=device), matrix(device, 5, 6)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


def test_linear_names_what_differs_from_the_default():
    assert repr(Linear(2, 3)) == "Linear(in_features=2, out_features=3, bias=True)"
    assert Linear(2, 3, bias=False, activation="relu").extra_repr().endswith("bias=False, activation='relu'")
    assert Linear(2, 3, activation="tanh", save="output").extra_repr().endswith("activation='tanh', save='output'")


@EVERY_ACTIVATION
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_linear_under_autocast_has_torchs_dtype_and_trains(activation, dtype, device):
    ours, torchs = Linear(6, 4, activation=activation, device=device), torch.nn.Linear(6, 4, device=device)
    x = matrix(device, 5, 6)
    with torch.autocast(device.type, dtype):
        y, expected = ours(x), getattr(torch, activation)(torchs(x))
    assert y.dtype == expected.dtype == dtype
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in ours.parameters())


def composite(model, x, activation):
    """Return the MLP's output from torch's own functions."""
    *hidden, last = model
    for layer in hidden:
        x = getattr(torch, activation)(torch.nn.functional.linear(x, layer.weight, layer.bias))
    return torch.nn.functional.linear(x, last.weight, last.bias)


@EVERY_ACTIVATION
@pytest.mark.parametrize("sizes", [[3, 2], [3, 5, 2], (4, 6, 5, 1)], ids=str)
def test_mlp_equals_torchs_composite_in_float64(activation, sizes, device):
    model = MLP(sizes, activation, device=device).to(torch.float64)
    assert [layer.activation for layer in model] == [activation] * (len(sizes) - 2) + [None]
    assert [tuple(layer.weight.shape) for layer in model] == list(zip(sizes[1:], sizes[:-1], strict=True))
    x = matrix(device, 2, 4, sizes[0], dtype=torch.float64)
    y, expected = model(x), composite(model, x, activation)
    assert y.shape == (2, 4, sizes[-1])
    gradients = [torch.autograd.grad(z.square().sum(), model.parameters()) for z in (y, expected)]
    torch.testing.assert_close((y, *gradients[0]), (expected, *gradients[1]), rtol=1e-12, atol=1e-12)


REFUSED = {
    "no widths": (lambda: MLP([]), ["`sizes` is []", "at least two"]),
    "one width": (lambda: MLP([3]), ["`sizes` is [3]", "at least two"]),
    "a width of 0": (lambda: MLP([3, 0, 2]), ["`sizes` is [3, 0, 2]", "at least 1"]),
    "a negative width": (lambda: MLP((3, -2)), ["`sizes` is [3, -2]", "at least 1"]),
    "activation of an MLP": (lambda: MLP([3, 2], "gelu"), ["'gelu'", "sigmoid, tanh, relu"]),
    "activation of a layer": (lambda: Linear(3, 2, activation="Tanh"), ["'Tanh'", "sigmoid, tanh, relu"]),
    "save of an MLP": (lambda: MLP([3, 2], save="both"), ["`save` is 'both'", '"input"', '"output"']),
    "save of a layer": (lambda: Linear(3, 2, save="both"), ["`save` is 'both'", '"input"', '"output"']),
    "save of tanh": (lambda: Tanh("both"), ["`save` is 'both'", '"input"', '"output"']),
    "save of sigmoid": (lambda: Sigmoid(None), ["`save` is None", '"input"', '"output"']),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_module_argument_is_named_with_what_to_do(case):
    build, parts = REFUSED[case]
    with pytest.raises(ValueError, match=r"^(`|unknown)") as error:
        build()
    assert all(part in str(error.value) for part in parts)


def test_linear_refuses_a_dtype_without_kernels(device):
    layer = Linear(3, 2, activation="tanh", device=device)
    with pytest.raises(RuntimeError, match="same dtype"):  # torch's own words, as in torch.nn.Linear
        layer(matrix(device, 4, 3, dtype=torch.float64))


def test_copies_and_files_keep_the_model(device):
    model, x = MLP([4, 5, 2], "sigmoid", save="output", device=device), matrix(device, 3, 4)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = MLP([4, 5, 2], "sigmoid", save="output", device=device)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert repr(same) == repr(model)
        assert torch.equal(same(x), model(x))
        assert same[0].weight is not model[0].weight


class Reused(torch.nn.Module):
    """A model with one activation in two places, one that a base class defines anew, and one that is a function."""

    class Doubled(torch.nn.Tanh):
        def forward(self, x):
            return 2 * super().forward(x)

    def __init__(self):
        super().__init__()
        self.shared = torch.nn.Tanh()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 4), self.shared, torch.nn.Linear(4, 4), torch.nn.Sigmoid())
        self.blocks = torch.nn.ModuleDict({"relu": torch.nn.ReLU(inplace=True), "own": self.Doubled()})
        self.nothing = None

    def forward(self, x):
        return self.blocks["own"](self.blocks["relu"](torch.relu(self.shared(self.layers(x)) - 0.5) - 0.1))


def test_replaced_activations_are_minigrads_and_compute_the_same(device):
    torch.manual_seed(4)
    model = Reused().to(device, torch.float64)
    model.layers[3].eval()
    expected, x = copy.deepcopy(model), matrix(device, 5, 4, dtype=torch.float64)
    state = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert replace_activations(model) is model
    assert [type(m) for m in (*model.layers[1::2], *model.blocks.values())] == [Tanh, Sigmoid, ReLU, Reused.Doubled]
    assert model.shared is model.layers[1]
    assert [m.training for m in (model.layers[1], model.layers[3])] == [True, False]
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == state
    results = [(m(x), *torch.autograd.grad(m(x).sum(), m.parameters())) for m in (model, expected)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    assert replace_activations(model).shared is model.shared  # nothing is left to do


@EVERY_ACTIVATION
def test_activation_that_is_the_whole_model_is_replaced(activation):
    torchs = {"sigmoid": torch.nn.Sigmoid, "tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[activation]
    assert type(replace_activations(torchs())) is MODULES[activation]
    with_weights = torch.nn.Linear(2, 2)
    assert replace_activations(with_weights) is with_weights


@pytest.mark.parametrize(
    "add",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_activation_with_hooks_is_not_replaced(add):
    model = torch.nn.Sequential(torch.nn.Sigmoid(), torch.nn.Tanh())
    handle = getattr(model[1], add)(lambda *_: None)
    with pytest.raises(ValueError, match=r"Tanh\(\) has hooks, which would be lost: remove them"):
        replace_activations(model)
    assert type(model[0]) is torch.nn.Sigmoid  # nothing is replaced
    handle.remove()
    assert type(replace_activations(model)[1]) is Tanh


DATA_PARALLEL = """
import sys
import torch
from torch import distributed
from minigrad.nn import MLP

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(rank)  # rank 0's parameters become everyone's
x = torch.randn(16, 6, generator=torch.Generator().manual_seed(9))
for activation in ("tanh", "relu"):
    model = MLP([6, 8, 8, 3], activation)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    parallel(x[rank::2]).square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    alone = torch.autograd.grad(model(x).square().mean(), model.parameters())
    for gradient, expected in zip(gradients, alone, strict=True):  # the mean of two means, in another order
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
        assert gradient.abs().sum() > 0
distributed.destroy_process_group()
"""


@pytest.mark.skipif(INTERPRETED, reason="the plain path shows it: DDP sees parameters and gradients, no kernels")
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_two_data_parallel_processes_give_the_gradient_of_one(tmp_path):
    store = str(tmp_path / "store")
    ranks = [subprocess.Popen([sys.executable, "-c", DATA_PARALLEL, str(i), store]) for i in range(2)]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
