import math

import pytest
import torch
from torch.nn import Embedding, Module, Parameter

from minigrad import nn
from minigrad.errors import UserError
from minigrad.monitoring.monitor import GradientMonitor
from minigrad.monitoring.updates import MEASURED, Updates

RELATIVE = 1e-5
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.3),
    "SGD with momentum and decay": lambda parameters: torch.optim.SGD(
        parameters, lr=0.1, momentum=0.9, weight_decay=0.1
    ),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
}


class Several(Module):
    """A loss of parameters of 0, 1, 2 and 4 dimensions, of one that it does not depend on, and of a frozen one."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.scale = Parameter(torch.tensor(1.5, dtype=dtype))
        self.bias = Parameter(torch.zeros(5, dtype=dtype))
        self.weight = Parameter(torch.randn(5, 3, dtype=dtype))
        self.transposed = Parameter(torch.randn(3, 5, dtype=dtype).t())
        self.filters = Parameter(torch.randn(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last))
        self.unused = Parameter(torch.ones(4, dtype=dtype))
        self.frozen = Parameter(torch.ones(3, dtype=dtype), requires_grad=False)
        self.counts = Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)

    def forward(self, x):
        y = nn.Tanh()(x @ (self.weight * self.frozen + self.transposed).T + self.bias)
        return (self.scale * y).square().sum() + self.filters.square().sum()


def double(tensor):
    """Return a copy in float64 on the host."""
    return tensor.detach().to_dense().cpu().double().clone()


def expected(before, after, gradient, previous):
    """Return the statistics of an update, in float64."""
    gradient_norm, norm, update_norm = (tensor.norm().item() for tensor in (gradient, before, after - before))
    cosine = math.nan
    if previous is not None:
        cosine = ((gradient * previous).sum() / gradient.norm() / previous.norm()).item()
    return {
        "gradient_norm": gradient_norm,
        "parameter_norm": norm,
        "update_norm": update_norm,
        "update_ratio": update_norm / norm if norm else math.inf,
        "gradient_cosine": cosine,
    }


def assert_are(found, values, step):
    for name, value in values.items():
        options = {"abs": 1e-5} if name == "gradient_cosine" else {"rel": RELATIVE}
        assert found[name][step].item() == pytest.approx(value, **options, nan_ok=True), (name, step)


@pytest.mark.filterwarnings("ignore:the model has no module")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_parameters_statistics_of_every_step_are_float64s(optimizer, dtype, device):
    model = Several(dtype).to(device)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    generator = torch.Generator().manual_seed(1)
    truth = []
    previous = {}
    with GradientMonitor(model) as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn((7, 3), generator=generator).to(device, dtype)).backward()
            gradients = {name: double(p.grad) for name, p in model.named_parameters() if p.grad is not None}
            before = {name: double(p) for name, p in model.named_parameters()}
            optimizer.step()
            monitor.step()
            after = {name: double(p) for name, p in model.named_parameters()}
            truth.append({n: expected(before[n], after[n], g, previous.get(n)) for n, g in gradients.items()})
            previous = gradients
    readings = monitor.read()
    dependent = ["scale", "bias", "weight", "transposed", "filters"]
    assert list(readings.parameters) == [*dependent, "unused"]
    assert [len(shape) for shape in readings.parameters.values()] == [0, 1, 2, 2, 4, 1]
    assert list(truth[0]) == dependent
    for name in dependent:
        for step in range(4):
            assert_are(readings.parameter(name), truth[step][name], step)
    assert all(values.isnan().all() for values in readings.parameter("unused").values())


def test_an_update_of_a_half_type_is_not_rounded_to_it():
    weight = Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    updates = Updates([weight])
    updates.begin()
    weight.grad = torch.ones_like(weight)
    weight.data.fill_(-0.00390625)  # 1 + 2^-8 needs nine bits, and bfloat16 has eight
    _, measured = updates.measure()
    assert measured[MEASURED.index("update_norm")].item() == 1.00390625


class Weight(Module):
    """One weight, whose gradient the test sets."""

    def __init__(self, values, dtype=torch.float32):
        super().__init__()
        self.weight = Parameter(torch.tensor(values, dtype=dtype))


def of_gradients(*gradients, dtype=torch.float32):
    """Return the readings of a weight that has one gradient after the other, and does not change."""
    model = Weight([3.0, 4.0], dtype)
    with GradientMonitor(model) as monitor:
        for gradient in gradients:
            model.weight.grad = None if gradient is None else torch.tensor(gradient, dtype=dtype)
            monitor.step()
    return monitor.read().parameter("weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gradients_whose_squares_are_no_numbers_of_their_type_have_norms_and_cosines(dtype):
    found = of_gradients([3e-25, 4e-25], [4e-25, -3e-25], [8e-25, 6e-25], [-8e-25, -6e-25], dtype=dtype)
    rounded = {torch.bfloat16: 2**-8}.get(dtype, RELATIVE)  # the gradients that were set are
    assert found["gradient_norm"].tolist() == pytest.approx([5e-25, 5e-25, 1e-24, 1e-24], rel=rounded, abs=0)
    assert found["gradient_cosine"].tolist()[1:] == pytest.approx([0, 0.28, -1], abs=max(rounded, 1e-5))


def test_gradients_of_more_than_half_a_types_range_have_norms():
    found = of_gradients([3e38, 3e38])
    assert found["gradient_norm"].item() == pytest.approx(3e38 * math.sqrt(2), rel=RELATIVE)


def test_the_cosine_is_that_of_successive_gradients_and_nan_where_one_is_missing_or_0():
    found = of_gradients([1, 0], [1, 1], None, [1, 0], [0, 0], [1, 0], [2, 0])["gradient_cosine"].tolist()
    nan = math.nan
    assert found == pytest.approx([nan, math.sqrt(0.5), nan, nan, nan, nan, 1], nan_ok=True)


def test_the_gradient_is_that_which_the_update_got():
    model = Weight([3.0, 4.0])
    with GradientMonitor(model) as monitor:
        (100 * model.weight).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        monitor.step()
    assert monitor.read().parameter("weight")["gradient_norm"].item() == pytest.approx(1, rel=RELATIVE)


def test_without_a_gradient_at_all_there_are_no_numbers():
    assert all(values.isnan().all() for values in of_gradients(None, None).values())


def test_an_update_of_what_is_0_is_infinitely_large():
    model = Weight([0.0, 0.0])
    with GradientMonitor(model) as monitor:
        model.weight.grad = torch.ones(2)
        torch.optim.SGD(model.parameters(), lr=1).step()
        monitor.step()
    assert monitor.read().parameter("weight")["update_ratio"].item() == math.inf


def test_a_parameter_without_elements_has_norm_0():
    model = Weight([])
    with GradientMonitor(model) as monitor:
        model.weight.grad = torch.ones(0)
        monitor.step()
    assert monitor.read().parameter("weight")["parameter_norm"].item() == 0


@pytest.mark.parametrize("times", [1, 2])
def test_sparse_gradients_are_those_of_the_whole_embedding(times):
    """Coalesced or not: an index that occurs twice has two entries."""
    torch.manual_seed(0)
    model = Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    previous = None
    with GradientMonitor(model) as monitor:
        for step in range(3):
            optimizer.zero_grad()
            rows = torch.tensor([step, 5, 7] * times)
            (model(rows) * torch.randn(3 * times, 4)).sum().backward()
            assert model.weight.grad.is_sparse
            before, gradient = double(model.weight), double(model.weight.grad)
            optimizer.step()
            monitor.step()
            values = expected(before, double(model.weight), gradient, previous)
            assert_are(monitor.read().parameter("weight"), values, 0)
            previous = gradient


def test_parameters_of_several_dtypes_are_measured_together():
    dtypes = (torch.bfloat16, torch.float64, torch.float32, torch.float16)
    model = torch.nn.ModuleList(Weight([3.0, 4.0], dtype) for dtype in dtypes)
    with GradientMonitor(model) as monitor:
        for part in model:
            part.weight.grad = part.weight.detach() / 4
            part.weight.data *= 2
        monitor.step()
    assert monitor.read().updates[0].tolist() == [pytest.approx([1.25, 5, 5, 1, math.nan], nan_ok=True)] * 4


def test_what_changes_before_the_monitor_is_attached_is_no_update():
    model = Weight([3.0, 4.0])
    monitor = GradientMonitor(model)
    model.weight.data += 1
    with monitor:
        model.weight.grad = torch.ones(2)
        monitor.step()
    model.weight.data += 1
    with monitor:
        monitor.step()
    assert monitor.read().parameter("weight")["update_norm"].tolist() == [0, 0]


def test_a_model_may_change_its_dtype_between_the_monitors_making_and_its_attaching():
    model = Weight([3.0, 4.0])
    monitor = GradientMonitor(model)
    model.double()
    with monitor:
        for gradient in ([3e-60, 4e-60], [4e-60, 3e-60]):  # no float32
            model.weight.grad = torch.tensor(gradient, dtype=torch.float64)
            monitor.step()
    found = monitor.read().parameter("weight")
    assert found["gradient_norm"].tolist() == pytest.approx([5e-60] * 2, rel=RELATIVE, abs=0)
    assert found["gradient_cosine"][1].item() == pytest.approx(0.96, rel=RELATIVE)


def test_measuring_reads_nothing_from_the_device():
    """On the meta device, whose tensors have no values: to read one raises."""
    parameters = [Parameter(torch.empty(shape, device="meta")) for shape in ((), (3,), (4, 5))]
    updates = Updates(parameters)
    updates.begin()
    for parameter in parameters[1:]:
        parameter.grad = torch.empty_like(parameter)
    here, measured = updates.measure()
    assert here == [1, 2]
    assert measured.shape == (2 * len(MEASURED),)
    with pytest.raises(RuntimeError, match="meta"):
        measured[0].item()


def test_the_state_of_other_parameters_is_refused():
    one, other = (Updates([torch.zeros(n)]) for n in (2, 3))
    with pytest.raises(UserError, match="directions of the gradients do not fit"):
        one.load_state_dict(other.state_dict())


def test_what_an_update_has_measured_is_taken_and_the_next_change_is_not_made_up():
    parameters = [Parameter(torch.ones(3)), Parameter(torch.ones(2))]
    updates = Updates(parameters)
    updates.begin()
    assert updates.directions_of(parameters[::-1]) is None
    directions = updates.directions_of(parameters)
    for direction in directions:
        direction.fill_(0.6)
    told = torch.arange(8.0, dtype=torch.float64).view(4, 2)
    here, measured = updates.measure(told)
    assert (here, measured.tolist()) == ([0, 1], told.view(-1).tolist())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    _, measured = updates.measure()  # by who did not measure: what the parameters were before, nobody knows
    rows = dict(zip(MEASURED, measured.view(4, 2), strict=True))
    assert rows["gradient_norm"].tolist() == pytest.approx([math.sqrt(3), math.sqrt(2)])
    assert rows["update_norm"].isnan().all()
    assert rows["gradient_cosine"].tolist() == pytest.approx([0.6 * math.sqrt(3), 0.6 * math.sqrt(2)])
    _, measured = updates.measure()
    assert measured.view(4, 2)[MEASURED.index("update_norm")].tolist() == [0, 0]
