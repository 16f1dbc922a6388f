"""The fused and the captured step of the trainer: the same training as step by step, watched or not.

A CUDA graph is played here by a function that is called anew; with `-m gpu` it is one.
"""

import copy
import math
import subprocess
import sys
from contextlib import nullcontext
from functools import partial

import pytest
import torch

import cases
import minigrad
from minigrad import GradientMonitor, Trainer, captured, trainer
from minigrad.errors import UserError
from minigrad.objectives import LANDSCAPES, Function
from minigrad.objectives.order import Order
from minigrad.record import NonFiniteError
from minigrad.rules import RULES
from minigrad.tensors import flatten

if not cases.INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs Triton's kernels: a GPU, or the interpreter", allow_module_level=True)
from minigrad_kernels import tally

FIGURES = ("loss", "gradient_norm", "gradient_norms", "applied", "learning_rate")


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu)] if not cases.INTERPRETED else ["cpu"])
def device(request):
    return torch.device(request.param)


class Played:
    """A graph on the CPU: what it captures is called at every replay, and undone after it was captured."""

    kept = ()  # returns the tensors that a step changes
    captures_now = False

    def __init__(self, device):
        self.captures = 0

    def stream(self):
        return nullcontext()

    def capture(self, function):
        self.captures += 1
        self._function = function
        before = [tensor.clone() for tensor in Played.kept()]
        Played.captures_now = True
        try:
            function()
        finally:
            Played.captures_now = False
        with torch.no_grad():
            for tensor, old in zip(Played.kept(), before, strict=True):
                tensor.copy_(old)

    def replay(self):
        self._function()


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    if cases.INTERPRETED:
        monkeypatch.setattr(trainer, "Graph", Played)
        monkeypatch.setattr(captured, "WARM_UP", 1)  # nothing is compiled there
        monkeypatch.setattr(tally, "is_captured", lambda tensor: Played.captures_now)


class Classified:
    """A small network on noise, whose batches the device chooses."""

    def __init__(self, device, activation="tanh", dtype=torch.float32, bad_from=math.inf):
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = minigrad.nn.MLP([5, 7, 3], activation=activation).to(device, dtype)
        self.inputs = torch.randn(23, 5, generator=generator).to(device, dtype)
        self.targets = torch.randint(3, (23,), generator=generator).to(device)
        self.order = Order(23, 4, seed=1, device=device)
        self.calls = torch.zeros((), device=device)
        self.bad_from = bad_from

    def parameters(self):
        return dict(self.network.named_parameters())

    def batch(self, index):
        return self.batch_at(self.places(index, 1)[0])

    def places(self, first, count):
        return self.order.places(first, count)

    def batch_at(self, places):
        return self.inputs[places], self.targets[places]

    def loss(self, batch):
        inputs, targets = batch
        loss = torch.nn.functional.cross_entropy(self.network(inputs).float(), targets)
        self.calls += 1
        return loss * torch.where(self.calls > self.bad_from, math.nan, 1.0)


def kept_by(made, monitor=None):
    """Return the tensors that a step of a trainer changes."""
    watched = () if monitor is None else monitor._layers._probes
    return [
        *made._tensors,
        *flatten(made.state),
        *([] if made._captured is None else [made._captured._row]),
        *([] if monitor is None else monitor._updates._directions),
        *(probe.fired.flags for probe in watched if probe.fired is not None),
        *([made.objective.calls] if isinstance(made.objective, Classified) else []),
    ]


def train(objective, execution, steps, rule="momentum", watched=False, fused=True, **options):
    """Train for so many steps, in portions; return the figures of all, the monitor's and the verdicts, the trainer."""
    monitor = GradientMonitor(objective.network, window=4) if watched else None
    rate = options.pop("rate", lambda step: 0.02 / (1 + step))
    made = Trainer(objective, RULES[rule], rate, execution=execution, monitor=monitor, **options)
    if not fused:
        made._fused = None
    Played.kept = partial(kept_by, made, monitor)
    with monitor or nullcontext():
        records, readings = [], []
        for portion in steps:
            records.append(made.advance(portion))
            if monitor is not None:
                readings.append((monitor.read(), [str(verdict) for verdict in monitor.verdicts()]))
    figures = {name: torch.cat([getattr(record, name).double() for record in records]) for name in FIGURES}
    return figures, readings, made


def assert_same(ours, theirs, equal=torch.equal):
    for (figures, readings, made), (others, other_readings, other) in [(ours, theirs)]:
        for name in FIGURES:
            assert equal(figures[name], others[name]), name
        for (reading, said), (other_reading, other_said) in zip(readings, other_readings, strict=True):
            assert equal(reading.flow, other_reading.flow)
            assert equal(reading.updates, other_reading.updates)
            assert list(reading.dead) == list(other_reading.dead)
            assert all(map(torch.equal, reading.dead.values(), other_reading.dead.values()))
            assert said == other_said
        tensors, expected = ([*t.parameters.values(), *flatten(t.state)] for t in (made, other))
        assert all(map(equal, tensors, expected))
        assert made.steps == other.steps


def same_but_for_nan(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def nearly(a, b):
    torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-7, equal_nan=True)
    return True


@pytest.mark.parametrize(("rule", "options"), [("momentum", {}), ("adamw", {"clip_norm": 0.3, "accumulate": 2})])
def test_the_fused_step_is_the_step_that_is_written_out(rule, options, device):
    ours, theirs = (
        train(Classified(device), "eager", [3, 2], rule, watched=True, fused=fused, **options)
        for fused in (True, False)
    )
    assert_same(ours, theirs, nearly)


@pytest.mark.parametrize(
    ("activation", "rule", "options"),
    [("tanh", "adam", {}), ("relu", "momentum", {"clip_norm": 0.3, "accumulate": 2})],
    ids=["plain", "clipped, accumulated"],
)
def test_the_captured_step_gives_the_bits_of_the_eager_one(activation, rule, options, device):
    """Over warm-up, capture, several portions, the ends of an epoch and of windows."""
    ours, theirs = (
        train(Classified(device, activation), execution, [1, 4, 1, 4], rule, watched=True, **options)
        for execution in ("graph", "eager")
    )
    assert_same(ours, theirs, same_but_for_nan)


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_a_step_that_is_not_finite_is_held_back_in_a_graph_too(on_nonfinite, device):
    results = []
    for execution in ("graph", "eager"):
        objective = Classified(device, bad_from=4)
        if on_nonfinite == "skip":
            results.append(train(objective, execution, [6], on_nonfinite="skip"))
            continue
        with pytest.raises(NonFiniteError, match="step 4: the loss is nan") as error:
            train(objective, execution, [6])
        results.append([*error.value.record.loss.tolist(), *(p.tolist() for p in objective.parameters().values())])
    if on_nonfinite == "skip":
        assert_same(*results, same_but_for_nan)
        assert results[0][0]["applied"].tolist() == [1] * 4 + [0] * 2
    else:
        assert results[0] == results[1]


def test_a_stop_ends_the_replays_and_the_next_portion_goes_on_there(device):
    objective = Classified(device)
    _, _, made = train(objective, "graph", [3])
    calls = iter([False, False, True])
    record = made.advance(100, stop=lambda: next(calls))
    assert (len(record), record.first_step, made.steps) == (3, 3, 6)
    made.advance(1)
    expected = train(Classified(device), "eager", [7])[2]
    assert all(map(torch.equal, made.parameters.values(), expected.parameters.values()))


def test_it_goes_on_from_a_state_of_either_execution(device):
    """Both ways, in the middle of an epoch; and a function, which has no data to choose from, is captured too."""
    for before, after in (("graph", "eager"), ("eager", "graph")):
        _, _, made = train(Classified(device), before, [6])
        saved = copy.deepcopy(made.state_dict())
        other = Trainer(Classified(device), RULES["momentum"], lambda step: 0.02 / (1 + step), execution=after)
        Played.kept = partial(kept_by, other)
        other.load_state_dict(saved)
        other.advance(4)
        made.advance(4)
        assert all(map(torch.equal, made.parameters.values(), other.parameters.values()))


def test_a_large_batch_leaves_room_for_fewer_steps_at_a_time(device, monkeypatch):
    monkeypatch.setattr(captured, "PLACES_BYTES", 2 * 4 * 8)  # two steps' places
    ours, theirs = (train(Classified(device), execution, [7]) for execution in ("graph", "eager"))
    assert_same(ours, theirs)
    assert len(ours[2]._captured._places) == 2


def test_a_function_is_captured_too(device):
    points = []
    for execution in ("graph", "eager"):
        made = Trainer(Function(LANDSCAPES["beale"], device), RULES["momentum"], 1e-3, execution=execution)
        Played.kept = partial(kept_by, made)
        made.advance(5)
        points.append(made.objective.x)
    assert torch.equal(*points)


def test_it_is_captured_again_where_shapes_change_or_the_monitor_pauses(device):
    objective = Classified(device)
    monitor = GradientMonitor(objective.network)
    made = Trainer(objective, RULES["momentum"], 0.01, execution="graph", monitor=monitor)
    Played.kept = partial(kept_by, made, monitor)
    graph = made._captured._graph
    counted = []
    capture = graph.capture
    graph.capture = lambda function: (counted.append(1), capture(function))
    with monitor:
        made.advance(7)
        assert len(counted) == 2  # the first for the monitor's numbers
        made.advance(2)
        objective.loss(objective.batch(0)).backward()  # seen, and no part of a step
        assert len(counted) == 2
        objective.order = Order(23, 6, seed=1, device=device)
        made.advance(6)
        assert len(counted) == 4
        made.step()  # not replayed: other gradients for a while
        made.advance(1)
        assert len(counted) == 4
        with monitor.paused():
            made.advance(5)
        assert len(counted) == 6
    assert len(monitor.read()) == 22
    with pytest.raises(RuntimeError, match="the monitor is not attached"):
        made.advance(1)


@pytest.mark.skipif(not cases.INTERPRETED, reason="leaves a GPU's process unfit for other tests")
def test_what_cannot_be_captured_is_said_and_nothing_half_captured_is_replayed(device, monkeypatch):
    objective = Classified(device)
    monitor = GradientMonitor(objective.network)
    made = Trainer(objective, RULES["momentum"], 0.01, execution="graph", monitor=monitor)
    Played.kept = partial(kept_by, made, monitor)
    capture = Played.capture

    def refuse(self, function):
        capture(self, function)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    with monitor:
        made.advance(7)
        monkeypatch.setattr(Played, "capture", refuse)
        objective.order, before = Order(23, 6, seed=1, device=device), objective.order
        with pytest.raises(UserError, match=r"cannot be captured; .* \(CUDA error: operation not permitted [a-z ]*\)$"):
            made.advance(7)
        monkeypatch.setattr(Played, "capture", capture)
        objective.order, steps = before, made.steps
        made.advance(7)  # captured anew, and not what was half captured
        assert made.steps == steps + 7
        flow = monitor.read().flow
    assert flow.isfinite().all()


@pytest.mark.gpu
def test_a_loss_that_reads_its_number_on_the_host_cannot_be_captured():
    """In a process of its own: a capture that fails leaves PyTorch's random numbers on the GPU in disorder."""
    program = """
import torch, minigrad
from minigrad.objectives import LANDSCAPES, Function
from minigrad.rules import adam

objective = Function(LANDSCAPES["beale"], "cuda")
value = objective.loss
objective.loss = lambda batch: value(batch) * (1 + 0 * objective.x.sum().item())
minigrad.Trainer(objective, adam, 0.1, execution="graph").advance(20)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "execution=graph: the step cannot be captured; its loss may read a number on the host" in result.stderr


@pytest.mark.gpu
def test_deterministic_operations_can_be_captured():
    torch.use_deterministic_algorithms(True, warn_only=True)  # cuBLAS wants a variable in the environment
    try:
        device = torch.device("cuda")
        ours, theirs = (train(Classified(device), execution, [8], watched=True) for execution in ("graph", "eager"))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(ours, theirs, same_but_for_nan)


def test_a_loss_from_before_the_replays_cannot_go_back_after_them(device):
    objective = Classified(device)
    _, _, made = train(objective, "graph", [5])
    loss = made.loss(0)
    made.advance(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_a_graph_needs_is_said(device):
    class Streaming:
        def __init__(self):
            self.parameters, self.batch, self.loss = whole.parameters, whole.batch, whole.loss

    whole = Classified(device)
    with pytest.raises(UserError, match=r"execution=graph: the objective has no places\(\) and batch_at\(\)"):
        Trainer(Streaming(), RULES["adam"], 0.1, execution="graph")
    with pytest.raises(UserError, match=r"execution=graph: the rule is not one of minigrad\.rules"):
        Trainer(whole, lambda parameters, gradients, learning_rate: None, 0.1, execution="graph")
    with pytest.raises(UserError, match="execution=fast: expected one of eager, graph, compile"):
        Trainer(whole, RULES["adam"], 0.1, execution="fast")


def test_another_rule_goes_the_plain_way(device):
    def rule(parameters, gradients, learning_rate):
        torch._foreach_add_(parameters, gradients, alpha=-learning_rate)

    objectives = [Classified(device) for _ in range(2)]
    for objective, function in zip(objectives, (rule, partial(RULES["gradient_descent"])), strict=True):
        Trainer(objective, function, 0.1).advance(3)
    for a, b in zip(*(objective.parameters().values() for objective in objectives), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.gpu
def test_nothing_waits_between_readings():
    objective = Classified(torch.device("cuda"))
    _, _, made = train(objective, "graph", [6])
    places = captured.CapturedStep.advance

    def silent(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return places(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured.CapturedStep, "advance", silent)
        made.advance(40)
