import copy
import gc
import io
import itertools
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn as torch_nn

import cases
import reference
from minigrad import nn
from minigrad.errors import UserError
from minigrad.monitoring.layers import Layers
from minigrad.monitoring.monitor import GradientMonitor
from minigrad.monitoring.readings import FLOW
from minigrad.monitoring.thresholds import Thresholds

SHARE = Thresholds().share
RELATIVE = 1e-5  # on a GPU partial sums are float32; on the CPU they are float64
COUNTED = ("zeros", "saturated", "nonfinite", "false_zeros")
WIDTHS = (7, 13, 9, 5)  # odd ones, so that no vector loads fit


def layered(make):
    """Return linear layers with what `make()` returns between them."""
    sizes = itertools.pairwise(WIDTHS)
    parts = [part for n_in, n_out in sizes for part in (torch_nn.Linear(n_in, n_out), make())]
    return torch_nn.Sequential(*parts, torch_nn.Linear(WIDTHS[-1], 2))


KINDS = {
    "sigmoid": lambda: layered(nn.Sigmoid),
    "tanh": lambda: layered(nn.Tanh),
    "relu": lambda: layered(nn.ReLU),
    "sigmoid, saving output": lambda: layered(lambda: nn.Sigmoid(save="output")),
    "tanh, saving output": lambda: layered(lambda: nn.Tanh(save="output")),
    "fused sigmoid": lambda: nn.MLP([*WIDTHS, 2], "sigmoid"),
    "fused tanh": lambda: nn.MLP([*WIDTHS, 2], "tanh"),
    "fused relu": lambda: nn.MLP([*WIDTHS, 2], "relu"),
    "fused tanh, saving output": lambda: nn.MLP([*WIDTHS, 2], "tanh", save="output"),
    "PyTorch's sigmoid": lambda: layered(torch_nn.Sigmoid),
    "PyTorch's tanh": lambda: layered(torch_nn.Tanh),
    "PyTorch's relu": lambda: layered(torch_nn.ReLU),
    "PyTorch's relu in place": lambda: layered(lambda: torch_nn.ReLU(inplace=True)),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def seeded(make, dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    return make().to(device, dtype)


def batches(n_steps, dtype=torch.float32, device="cpu", rows=11):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn((rows, WIDTHS[0]), generator=generator).to(device, dtype) for _ in range(n_steps)]


def watched(model, **options):
    """Return a monitor that is attached, without the warning that it gives for PyTorch's modules."""
    monitor = GradientMonitor(model, **options)
    with pytest.warns(UserWarning, match="hooks") if monitor._layers.through_hooks else nullcontext():
        return monitor.attach()


def train(model, inputs, monitor=None, optimizer=torch.optim.SGD, learning_rate=0.1):
    optimizer = optimizer(model.parameters(), lr=learning_rate)
    for x in inputs:
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        if monitor is not None:
            monitor.step()


class Captured:
    """Keeps what goes into and comes out of a module, forward and back, with PyTorch's own hooks."""

    def __init__(self, module):
        self._module = module
        self.passes = []
        module.register_forward_pre_hook(self._before)
        module.register_forward_hook(self._after)

    def _before(self, module, inputs):
        (x,) = inputs
        one = {"x": wide(x)}
        if isinstance(module, nn.Linear):  # by hand, as what is inside cannot be captured
            one["x"] = one["x"] @ wide(module.weight).T + wide(module.bias)
        else:
            x.register_hook(lambda dx: one.update(dx=wide(dx)))
        self.passes.append(one)

    def _after(self, module, inputs, y):
        one = self.passes[-1]
        one["y"] = wide(y)
        y.register_hook(lambda g: one.update(g=wide(g)))

    def statistics(self, activation, passes=slice(None)):
        """Return what a monitor should say of some passes together, in float64."""
        for one in self.passes:
            one.setdefault("dx", one["g"] * reference.derivative(activation, one["x"], 1))
        x, y, g, dx = (torch.cat([one[key].flatten() for one in self.passes[passes]]) for key in ("x", "y", "g", "dx"))
        if activation != "relu" and getattr(self._module, "save", "output") == "input":
            slope = reference.derivative(activation, x, 1) * (4 if activation == "sigmoid" else 1)
        else:  # as it is known from the output
            slope = {"sigmoid": 4 * y * (1 - y), "tanh": 1 - y * y, "relu": (y > 0).double()}[activation]
        false_zeros = (dx == 0) & (g != 0) if activation != "relu" else torch.zeros(1)
        return {
            "upstream_rms": rms(g),
            "rms": rms(dx),
            "norm": dx.norm().item(),
            "gain": rms(dx) / rms(g),
            "largest": dx.abs().max().item(),
            "zeros": (dx == 0).sum().item() / x.numel(),
            "saturated": (slope < SHARE).sum().item() / x.numel(),
            "nonfinite": (~dx.isfinite()).sum().item() / x.numel(),
            "false_zeros": false_zeros.sum().item() / x.numel(),
            "mean": y.mean().item(),
            "deviation": y.std(correction=0).item(),
        }


def wide(tensor):
    return tensor.detach().cpu().double().clone()


def rms(values):
    return values.square().mean().sqrt().item()


def assert_are(found, expected, context=""):
    """Compare a step's statistics of a layer: counts exactly, the rest relatively."""
    for name, value in expected.items():
        relative = 0 if name in COUNTED else RELATIVE
        absolute = RELATIVE * expected["deviation"] if name == "mean" else 0  # a mean cancels
        assert found[name].item() == pytest.approx(value, rel=relative, abs=absolute), (name, context)


@pytest.mark.parametrize(
    ("kind", "dtype", "optimizer"),
    [
        *((kind, torch.float32, torch.optim.SGD) for kind in KINDS),
        *((kind, torch.float64, torch.optim.Adam) for kind in ("tanh", "fused sigmoid", "PyTorch's relu")),
        # The inner gradient of a fused layer is not to be captured, and in bfloat16 not to be computed to five digits.
        *((kind, torch.bfloat16, torch.optim.Adam) for kind in KINDS if "fused" not in kind),
    ],
    ids=str,
)
def test_every_steps_statistics_of_every_layer_are_float64s(kind, dtype, optimizer, device):
    model = seeded(KINDS[kind], dtype, device)
    activation = next(name for name in cases.ACTIVATIONS if name in kind)
    names = ["0", "1", "2"] if "fused" in kind else ["1", "3", "5"]
    captured = {name: Captured(model.get_submodule(name)) for name in names}
    monitor = watched(model)
    train(model, batches(4, dtype, device), monitor, optimizer)
    readings = monitor.read()
    assert readings.layers == dict.fromkeys(names, activation)
    for name in names:
        for step in range(4):
            found = {key: values[step] for key, values in readings.layer(name).items()}
            assert_are(found, captured[name].statistics(activation, slice(step, step + 1)), (name, step))


@pytest.mark.parametrize("kind", ["tanh", "fused sigmoid", "PyTorch's relu"])
def test_gradients_whose_squares_are_no_float32_have_their_flow(kind, device):
    flows = []
    for scale in (1.0, 1e-25):
        model = seeded(KINDS[kind], device=device)
        monitor = watched(model)
        (scale * model(batches(1, device=device)[0]).sum()).backward()
        flows.append(monitor.read())
    for name, factor in (("upstream_rms", 1e-25), ("rms", 1e-25), ("largest", 1e-25), ("gain", 1), ("zeros", 1)):
        plain, small = (readings.flow[0, :, FLOW.index(name)] for readings in flows)
        assert small.tolist() == pytest.approx((factor * plain).tolist(), rel=RELATIVE, abs=0), name


def test_false_zeros_of_pytorchs_tanh_are_counted_and_minigrads_has_none():
    x = torch.linspace(-8, 8, 1000).bfloat16()
    fractions = []
    for make in (torch_nn.Tanh, nn.Tanh):
        model = make()
        monitor = watched(model)
        model(x.clone().requires_grad_()).sum().backward()
        fractions.append(monitor.read().layer("Tanh")["false_zeros"].item())
    y = torch.tanh(x).double()
    assert fractions == [(y.abs() == 1).double().mean().item(), 0]
    assert fractions[0] > 0.5


def test_relu_in_place_on_a_view_has_the_statistics_of_relu():
    model = torch_nn.Sequential(torch_nn.Linear(4, 6), torch_nn.Flatten(), torch_nn.ReLU(inplace=True))
    monitor = watched(model)
    y = model(torch.randn(5, 3, 4))
    g = torch.randn(5, 18)
    y.backward(g)
    found = monitor.read().layer("2")
    dx = g.double() * (y > 0)
    assert (y > 0).double().mean() < 1
    assert found["gain"].item() == pytest.approx(rms(dx) / rms(g.double()), rel=RELATIVE)
    assert found["zeros"].item() == (y <= 0).double().mean().item()


def test_a_users_hook_that_changes_the_output_changes_no_statistic():
    model = torch_nn.Tanh()
    model.register_forward_hook(lambda module, inputs, y: 10 * y)
    monitor = watched(model)
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    found = monitor.read().layer("Tanh")
    assert found["upstream_rms"].item() == pytest.approx(10, rel=RELATIVE)
    assert found["rms"].item() == pytest.approx(rms(10 / torch.cosh(x.detach()) ** 2), rel=RELATIVE)
    assert found["deviation"].item() < 1


def test_a_subclass_of_pytorchs_activations_is_not_watched_as_it_may_compute_something_else():
    class Scaled(torch_nn.Tanh):
        def forward(self, x):
            return 1.7 * super().forward(x)

    assert Layers(torch_nn.Sequential(Scaled(), nn.Tanh()), SHARE).names == ["1"]


class First(torch.autograd.Function):
    """x + y, which sends y no gradient."""

    @staticmethod
    def forward(ctx, x, y):
        return x + y

    @staticmethod
    def backward(ctx, g):
        return g, None


def test_a_layer_of_pytorchs_that_no_gradient_arrives_at_has_none():
    model = torch_nn.Tanh()
    monitor = watched(model)
    x, y = torch.randn(2, 5, requires_grad=True)
    First.apply(x, model(y + 0)).sum().backward()
    found = monitor.read().layer("Tanh")
    assert found["rms"].isnan().item()
    assert not found["mean"].isnan().item()


@pytest.mark.parametrize(
    ("module", "make"),
    [
        (torch_nn.Tanh(), lambda: torch.ones(4, dtype=torch.complex64)),
        (torch_nn.ReLU(), lambda: torch.eye(4).to_sparse()),
        (torch_nn.ReLU(), lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])),
    ],
    ids=["complex", "sparse", "nested"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_is_no_dense_real_tensor_is_not_seen_and_not_disturbed(module, make):
    monitor = watched(module)
    x = make().requires_grad_()
    y = module(x)
    y.backward(y.detach())
    assert x.grad is not None
    assert monitor.read().flow.shape[0] == 0


def test_pytorchs_modules_are_not_seen_in_a_compiled_graph_and_do_not_break_it():
    model = torch_nn.Sequential(torch_nn.Linear(3, 4), torch_nn.Tanh())
    monitor = watched(model)
    torch.compile(model, backend="eager", fullgraph=True)(torch.ones(2, 3)).sum().backward()
    assert len(monitor.read()) == 0


def test_layers_have_their_names_in_the_model_in_the_order_of_registration():
    inner = torch_nn.ModuleDict({"gate": nn.Sigmoid(), "body": nn.MLP([2, 3, 4, 1], "relu")})
    layers = Layers(torch_nn.Sequential(inner, torch_nn.Linear(2, 2), torch_nn.Tanh(), nn.Linear(2, 2)), SHARE)
    assert layers.names == ["0.gate", "0.body.0", "0.body.1", "2"]
    assert layers.activations == ["sigmoid", "relu", "relu", "tanh"]
    assert layers.through_hooks == ["2"]


def test_a_module_used_twice_is_one_layer_with_the_statistics_of_both_uses():
    shared = nn.Tanh()
    model = torch_nn.Sequential(torch_nn.Linear(7, 7), shared, torch_nn.Linear(7, 7), shared)
    captured = Captured(shared)
    monitor = watched(model)
    train(model, batches(1), monitor)
    readings = monitor.read()
    assert list(readings.layers) == ["1"]
    assert len(captured.passes) == 2
    assert_are(readings.layer("1"), captured.statistics("tanh"))


@pytest.mark.parametrize("make", [nn.Tanh, torch_nn.Tanh])
def test_a_module_that_is_not_used_in_a_step_has_no_number_in_it(make):
    model = layered(make)
    monitor = watched(model)
    train(model, batches(1), monitor)
    train(model[2:], [torch.randn(3, WIDTHS[1])], monitor)
    gains = monitor.read().flow
    assert not gains[0].isnan().any()
    assert gains[1, 0].isnan().all()
    assert not gains[1, 1:].isnan().any()


def test_what_a_hook_sees_is_freed_with_the_graph():
    def alive():
        gc.collect()
        return sum(type(each) is torch.Tensor and each.shape == (71, 16) for each in gc.get_objects())

    model = torch_nn.Sequential(torch_nn.Linear(8, 16), torch_nn.Tanh(), torch_nn.Linear(16, 1))
    watched(model)
    loss = model(torch.ones(71, 8)).sum()
    loss.backward(retain_graph=True)
    assert alive() > 0
    loss.backward()
    assert alive() == 0  # though the loss, and with it the graph, is still there


def test_an_empty_batch_has_no_numbers():
    model = nn.MLP([7, 3, 1], "relu")
    monitor = watched(model)
    train(model, [torch.zeros(0, 7)], monitor)
    assert monitor.read().flow.isnan().all()


# No trace.


def nodes(output):
    """Return the names of an output's autograd nodes, in the order in which they are reached."""
    names, waiting = [], [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.append(node.name())
            waiting += [previous for previous, _ in node.next_functions]
    return names


def hooks(model):
    return [getattr(part, kind) for part in model.modules() for kind in vars(part) if kind.endswith("_hooks")]


@EVERY_KIND
def test_attaching_and_detaching_leaves_no_trace(kind):
    model = seeded(KINDS[kind])
    x = batches(1)[0]
    before, keys = nodes(model(x)), [set(vars(part)) for part in model.modules()]
    GradientMonitor(model)  # by itself changes nothing
    assert nodes(model(x)) == before
    for _ in range(2):
        monitor = watched(model)
        train(model, [x], monitor)
        attached = nodes(model(x))
        monitor.detach()
        assert nodes(model(x)) == before
        assert not any(hooks(model))
        assert [set(vars(part)) for part in model.modules()] == keys
        is_torchs = kind.startswith("PyTorch's")
        assert ("WatchedBackward" in attached) == (not is_torchs)
        assert (attached == before) == is_torchs


@EVERY_KIND
def test_twenty_steps_have_the_same_bits_with_and_without_a_monitor(kind, device):
    trained = []
    for is_watched in (False, True):
        model = seeded(KINDS[kind], device=device)
        train(model, batches(20, device=device), watched(model) if is_watched else None, torch.optim.Adam, 0.01)
        trained.append([parameter.detach().cpu() for parameter in model.parameters()])
    assert all(map(torch.equal, *trained))


@pytest.mark.parametrize("make", [nn.Tanh, torch_nn.Tanh])
def test_a_backward_pass_after_detaching_is_not_seen_and_right(make):
    model = make()
    monitor = watched(model)
    x = torch.randn(5, requires_grad=True)
    y = model(x)
    monitor.detach()
    y.sum().backward()
    assert torch.allclose(x.grad, 1 / torch.cosh(x.detach()) ** 2)
    assert monitor.read().layer("Tanh")["rms"].isnan().item()


@pytest.mark.parametrize("make", [nn.Tanh, torch_nn.Tanh])
def test_a_second_monitor_is_refused_and_nothing_is_left_of_it(make):
    model = torch_nn.Sequential(nn.Tanh(), make())
    first = Layers(model[1:], SHARE)
    first.attach()
    with pytest.raises(RuntimeError, match="layer 1 is watched by another monitor: detach that one first"):
        Layers(model, SHARE).attach()
    first.detach()
    assert not any(hooks(model))
    assert "probe" not in vars(model[0])
    Layers(model, SHARE).attach()


# Copies.


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved])
@pytest.mark.parametrize("kind", ["tanh", "fused relu", "PyTorch's tanh", "PyTorch's relu in place"])
def test_a_copy_of_a_watched_model_is_not_watched_and_works(kind, copied):
    model = seeded(KINDS[kind])
    monitor = watched(model)
    x = batches(1)[0]
    train(model, [x], monitor)
    other = copied(model)
    assert nodes(other(x)) == nodes(KINDS[kind]()(x))
    train(other, [x])
    assert len(monitor.read()) == 1
    assert not torch.equal(other(x), model(x))
    its_own = watched(other)  # can be watched in turn
    train(other, [x], its_own)
    its_own.detach()
    assert not its_own.read().flow.isnan().any()
    train(model, [x], monitor)  # and the model still is
    assert not monitor.read().flow.isnan().any()


def test_the_state_of_a_watched_model_is_that_of_the_model():
    model = seeded(KINDS["fused tanh"])
    before = list(model.state_dict())
    monitor = watched(model)
    assert list(model.state_dict()) == before
    fresh = KINDS["fused tanh"]()
    fresh.load_state_dict(model.state_dict())
    model.load_state_dict(fresh.state_dict())
    monitor.detach()


# Dead units.


class Units(torch_nn.Module):
    """ReLU of what it is given, with a parameter, so that something is trained."""

    def __init__(self, activation):
        super().__init__()
        self.scale = torch_nn.Parameter(torch.ones(()))
        self.act = activation

    def forward(self, x):
        return self.act(self.scale * x)


def fire(model, monitor, *batches):
    """Make one step for each batch, a list of rows of inputs of units."""
    for batch in batches:
        model(torch.tensor(batch, dtype=torch.float32)).sum().backward()
        monitor.step()


BOTH_RELUS = pytest.mark.parametrize("make", [nn.ReLU, torch_nn.ReLU, lambda: torch_nn.ReLU(inplace=True)])


@BOTH_RELUS
def test_a_unit_silent_for_a_whole_window_is_dead_and_one_that_fired_once_is_not(make):
    model = Units(make())
    monitor = watched(model, window=3)
    silent, once = [-1.0, -1.0, 0.0, 1.0], [-1.0, 1.0, 0.0, 1.0]
    fire(model, monitor, [silent, silent], [silent])
    assert monitor.read().dead == {}  # no window is over
    fire(model, monitor, [silent, once])
    assert monitor.read().dead["act"].tolist() == [True, False, True, False]
    fire(model, monitor, [once], [silent])
    assert monitor.read().dead["act"].tolist() == [True, False, True, False]


@BOTH_RELUS
def test_a_unit_that_fires_again_is_no_longer_dead_and_one_that_stops_is_after_a_whole_window(make):
    model = Units(make())
    monitor = watched(model, window=2)
    fire(model, monitor, *[[[-1.0, 1.0]]] * 2)
    assert monitor.read().dead["act"].tolist() == [True, False]
    fire(model, monitor, [[1.0, 1.0]])
    assert monitor.read().dead["act"].tolist() == [False, False]
    fire(model, monitor, *[[[1.0, -1.0]]] * 2)
    assert monitor.read().dead["act"].tolist() == [False, False]  # silent in 4 and 5, but no window is only of such
    fire(model, monitor, [[1.0, -1.0]])
    assert monitor.read().dead["act"].tolist() == [False, True]


def test_the_batch_size_may_vary_and_where_the_number_of_units_does_none_are_called_dead():
    model = Units(nn.ReLU())
    monitor = watched(model, window=2)
    fire(model, monitor, [[-1.0, 1.0]] * 3, [[-1.0, 1.0]], [[-1.0, 1.0]] * 2)
    assert monitor.read().dead["act"].tolist() == [True, False]
    fire(model, monitor, [[-1.0]])
    for _ in range(3):
        fire(model, monitor, [[-1.0, 1.0]] * 3, [[-1.0, 1.0]])
        assert monitor.read().dead == {}


def test_units_of_images_are_channels():
    model = Units(nn.ReLU())
    monitor = watched(model, window=1)
    x = -torch.ones(2, 3, 4, 5)
    x[1, 2, 0, 0] = 1
    model(x).sum().backward()
    monitor.step()
    assert monitor.read().dead["act"].tolist() == [True, True, False]


@pytest.mark.parametrize("make", [nn.ReLU, torch_nn.ReLU])
@pytest.mark.parametrize("normalised", [False, True])
def test_units_after_a_convolution_over_time_are_channels(normalised, make):
    torch.manual_seed(0)
    between = [torch_nn.BatchNorm1d(6, affine=normalised)] if normalised else []
    model = torch_nn.Sequential(torch_nn.Conv1d(2, 6, 3), *between, make(), torch_nn.Linear(8, 5), make())
    silenced = between[0] if normalised else model[0]
    with torch.no_grad():
        silenced.bias[:4] = -100
    monitor = watched(model, window=1)
    for _ in range(2):
        model(torch.randn(3, 2, 10)).sum().backward()
        monitor.step()
    dead = monitor.read().dead
    first, second = dead
    assert dead[first].tolist() == [True] * 4 + [False] * 2
    assert len(dead[second]) == 5


def test_a_layer_unused_for_a_whole_window_has_no_dead_units():
    model = Units(nn.ReLU())
    monitor = watched(model, window=2)
    fire(model, monitor, *[[[-1.0, 1.0]]] * 2)
    monitor.step()
    assert monitor.read().dead["act"].tolist() == [True, False]
    monitor.step()
    assert monitor.read().dead == {}


def test_units_fire_in_evaluation_without_its_counting():
    model = Units(nn.ReLU())
    monitor = watched(model, window=1)
    with torch.no_grad():
        model(torch.ones(1, 2))
    fire(model, monitor, [[-1.0, 1.0]])
    assert monitor.read().dead["act"].tolist() == [True, False]


def test_what_has_fired_goes_on_from_a_state_that_knows_of_units_that_varied():
    model = Units(nn.ReLU())
    monitor = watched(model, window=2)
    fire(model, monitor, [[-1.0, 1.0]], [[-1.0]])
    monitor.detach()
    other = watched(model, window=2)
    other._layers.load_state_dict(copy.deepcopy(monitor._layers.state_dict()))
    fire(model, other, *[[[-1.0, 1.0]]] * 4)
    assert other.read().dead == {}


def test_what_is_loaded_is_a_copy():
    model = Units(nn.ReLU())
    monitor = watched(model, window=2)
    fire(model, monitor, [[-1.0, 1.0]])
    state = monitor._layers.state_dict()
    monitor.detach()
    other = watched(model, window=2)
    other._layers.load_state_dict(state)
    fire(model, other, [[1.0, -1.0]])
    assert state["act"]["fired"][0].tolist() == [0, 1]


def test_the_state_of_other_layers_is_refused():
    here, there = Layers(torch_nn.Sequential(nn.ReLU(), nn.Tanh()), SHARE), Layers(nn.ReLU(), SHARE)
    with pytest.raises(UserError, match=r"saved ReLU layers are ReLU, and here they are 0: they do not fit"):
        here.load_state_dict(there.state_dict())
