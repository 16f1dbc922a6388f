import math
import warnings

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn as torch_nn
from torch.utils.checkpoint import checkpoint
from torch.utils.tensorboard import SummaryWriter

from cases import ACTIVATIONS
from minigrad import nn
from minigrad.monitoring.monitor import GradientMonitor
from minigrad.monitoring.readings import FLOW
from minigrad.monitoring.thresholds import Thresholds
from monitored import (
    EVERY_MODEL,
    OURS_AND_TORCHS,
    RELATIVE,
    WINDOW,
    assert_same,
    batch,
    loss_of,
    network,
    one_step,
    scaled,
    seen,
    torchs,
    train,
    watched,
)

# What is counted.


def whole(model):
    loss_of(model).backward()


@pytest.mark.parametrize("parts", [2, 8])
@EVERY_MODEL
def test_an_accumulated_gradient_has_the_figures_of_the_whole_batch(make, parts):
    def accumulated(model):
        x, target = batch()
        for inputs, wanted in zip(x.chunk(parts), target.chunk(parts), strict=True):
            ((model(inputs) - wanted).square().mean() / parts).backward()

    model = make()
    found, expected = seen(model, accumulated), seen(model, whole)
    assert not expected[:, :-2].isnan().any()
    for name, values in zip(FLOW, found.unbind(-1), strict=True):
        is_counted = name in ("zeros", "saturated", "nonfinite", "false_zeros")
        assert_same(values, expected[:, FLOW.index(name)], 0 if is_counted else RELATIVE)


@EVERY_MODEL
def test_a_gradient_penalty_is_not_counted_as_a_second_pass(make):
    def penalized(model):
        loss = loss_of(model)
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        (loss + sum(gradient.square().sum() for gradient in gradients)).backward()

    model = make()
    assert_same(seen(model, penalized), seen(model, whole))


@EVERY_MODEL
def test_of_a_penalty_whose_inner_pass_is_paused_the_training_pass_is_counted(make):
    model = make()
    monitor = watched(model)

    def both(model):
        loss = loss_of(model)
        with monitor.paused():
            gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        (loss + 0 * sum(gradient.square().sum() for gradient in gradients)).backward()

    both(model)
    monitor.step()
    monitor.detach()
    assert_same(monitor.read().flow[0], seen(model, whole), RELATIVE)


@EVERY_MODEL
def test_a_hessian_vector_product_is_not_counted_as_a_second_pass(make):
    def product(model):
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(loss_of(model), parameters, create_graph=True)
        for _ in range(2):
            torch.autograd.grad(gradients, parameters, [torch.ones_like(p) for p in parameters], retain_graph=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.detach()

    model = make()
    assert_same(seen(model, product), seen(model, whole))


@EVERY_MODEL
def test_evaluation_paused_passes_and_transforms_are_not_counted(make):
    def others_between(model):
        x, _ = batch(1)
        with torch.no_grad():
            model(x)
        with torch.inference_mode():
            model(x)
        torch.func.grad(lambda inputs: model(inputs).sum())(x)
        torch.func.jvp(model, (x,), (x,))
        torch.autograd.functional.jacobian(lambda inputs: model(inputs).sum(0), x, vectorize=True)
        whole(model)

    model = make()
    expected = seen(model, whole)
    found = seen(model, others_between)
    of_a_pass = [FLOW.index(name) for name in FLOW if name not in ("mean", "deviation")]
    assert_same(found[:, of_a_pass], expected[:, of_a_pass])  # the vectorized one records its forward pass


@EVERY_MODEL
def test_what_happens_in_a_pause_is_not_counted(make):
    monitor = None

    def interrupted(model):
        loss = loss_of(model)
        with monitor.paused():
            with monitor.paused():
                loss_of(model, 1).backward()
            (3 * loss).backward(retain_graph=True)
        model.zero_grad()
        loss.backward()

    model = make()
    expected = seen(model, whole)
    monitor = watched(model)
    interrupted(model)
    monitor.step()
    assert_same(monitor.read().flow[0], expected)


def test_a_pause_around_attaching_ends_with_it():
    model = network()
    monitor = GradientMonitor(model)
    with monitor.paused():
        monitor.attach()
        whole(model)
    monitor.step()
    whole(model)
    monitor.step()
    assert monitor.read().flow.isnan().all(-1).all(-1).tolist() == [True, False]


@pytest.mark.parametrize("use_reentrant", [False, True])
@EVERY_MODEL
def test_checkpointing_has_the_statistics_and_the_gradients_of_a_plain_pass(make, use_reentrant):
    def recomputed(model):
        x, target = batch()
        y = checkpoint(model, x.requires_grad_(), use_reentrant=use_reentrant)
        (y - target).square().mean().backward()

    model = make()
    expected, gradients = seen(model, whole), [p.grad.clone() for p in model.parameters()]
    # A pass that is counted twice, forward, as it is recomputed, has the same mean but for its last bits.
    assert_same(seen(model, recomputed), expected, 1e-12)
    assert all(map(torch.equal, gradients, [p.grad for p in model.parameters()]))


def test_autocast_is_watched_in_the_dtype_that_it_computes_in():
    def in_bfloat16(model):
        with torch.autocast("cpu", torch.bfloat16):
            whole(model)

    model = network()
    found, expected = seen(model, in_bfloat16), seen(model, whole)
    rounded = 0.02  # some roundings to eight bits
    assert_same(found[:, FLOW.index("gain")], expected[:, FLOW.index("gain")], rounded)
    assert not torch.equal(found, expected)


# Reading.


@OURS_AND_TORCHS
def test_steps_are_read_in_order_however_many_at_a_time(make):
    every_step, model, at_once = [], make(), make()
    monitor = watched(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(5):
        one_step(model, optimizer, monitor, step)
        every_step.append(monitor.read())
        assert (len(every_step[-1]), every_step[-1].first_step) == (1, step)
    monitor = watched(at_once)
    train(at_once, monitor, 5)
    readings = monitor.read()
    assert (len(readings), readings.first_step) == (5, 0)
    assert_same(readings.flow, torch.cat([one.flow for one in every_step]))
    assert_same(readings.updates, torch.cat([one.updates for one in every_step]))


def test_what_was_read_is_not_read_again_and_the_history_keeps_a_window_of_it():
    model = network("relu")
    monitor = watched(model, window=WINDOW)
    assert len(monitor.history) == len(monitor.read()) == 0
    train(model, monitor, 3)
    first = monitor.read()
    assert len(monitor.read()) == 0
    train(model, monitor, 6)
    assert len(monitor.history) == 3
    later = monitor.read()
    assert (len(later), later.first_step) == (6, 3)
    monitor.read()
    assert (len(monitor.history), monitor.history.first_step) == (WINDOW, 9 - WINDOW)
    assert_same(monitor.history.flow, torch.cat([first.flow, later.flow])[-WINDOW:])
    assert monitor.history.dead.keys() == {"0", "1"}


def test_the_highest_update_ratio_survives_readings_of_nothing():
    model = network()
    monitor = watched(model, window=1)
    train(model, monitor, 3)
    monitor.read()
    monitor.read()
    model.zero_grad()
    monitor.step()  # without an update
    monitor.read()
    train(model, monitor, 3, learning_rate=1e-12)
    monitor.read()
    assert monitor.verdicts() == []  # small updates, but they have not always been


def test_without_step_each_reading_is_one():
    model = network("relu")
    monitor = watched(model, window=2)
    for i in range(3):
        whole(model)
        readings = monitor.read()
        assert (len(readings), readings.first_step) == (1, i)
        assert not readings.flow[..., :-3].isnan().any()
        assert readings.updates.isnan().all()
    assert readings.dead.keys() == {"0", "1"}  # a window is over
    assert len(monitor.read()) == 0


def test_passes_after_the_last_step_wait_for_the_step_that_they_belong_to():
    model = network()
    monitor = watched(model)
    train(model, monitor, 1)
    whole(model)
    assert len(monitor.read()) == 1
    monitor.step()
    assert monitor.read().flow[0, 0, FLOW.index("gain")].item() > 0


def test_a_reading_within_a_step_does_not_end_it():
    model = network()
    monitor = watched(model)
    train(model, monitor, 1)
    monitor.read()
    for _ in range(3):
        whole(model)
        assert len(monitor.read()) == 0
        monitor.step()
        assert len(monitor.read()) == 1
    assert len(monitor.history) == 4
    assert not monitor.history.updates[:, :, :-1].isnan().any()


def test_verdicts_go_by_steps_that_have_not_been_read_and_leave_them_to_be_read():
    model = scaled(network("tanh"), 12, slice(1))
    monitor = watched(model, window=WINDOW)
    train(model, monitor, WINDOW, learning_rate=0.005)
    assert [verdict.kind for verdict in monitor.verdicts()] == ["saturated"]
    train(model, monitor, 2, learning_rate=0.005)
    assert len(monitor.verdicts()) == 1
    readings = monitor.read()
    assert (len(readings), readings.first_step, len(monitor.read())) == (WINDOW + 2, 0, 0)
    assert len(monitor.history) == WINDOW


class Backwards(torch_nn.Module):
    """Layers that are registered in another order than they compute in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.last, self.first = torch_nn.Linear(16, 1), torch_nn.Linear(8, 16)
        self.second, self.one, self.unused = nn.Sigmoid(), nn.Tanh(), nn.ReLU()

    def forward(self, x):
        return self.last(self.second(self.one(self.first(x))))


def test_layers_are_in_the_order_in_which_they_compute():
    model = Backwards()
    with GradientMonitor(model) as monitor:
        assert list(monitor.history.layers) == ["second", "one", "unused"]
        train(model, monitor, 3)
        readings, history = monitor.read(), monitor.history
    for found in (readings, history):
        assert found.layers == {"one": "tanh", "second": "sigmoid", "unused": "relu"}
        second, one = found.layer("second"), found.layer("one")
        assert torch.allclose(second["rms"], one["upstream_rms"], rtol=RELATIVE, atol=0)
        assert found.layer("unused")["rms"].isnan().all()
    other = GradientMonitor(model)
    other.load_state_dict(monitor.state_dict())
    assert other.history.layers == readings.layers


def test_a_model_without_layers_or_parameters_can_be_watched():
    model = torch_nn.Linear(3, 3).requires_grad_(False)
    with GradientMonitor(model) as monitor:
        monitor.step()
        readings = monitor.read()
        assert (len(readings), readings.points()) == (1, [{}])
        assert monitor.verdicts() == []


def test_replaced_activations_are_watched_without_a_warning_and_with_the_same_figures():
    theirs, ours = torchs(), nn.replace_activations(torchs())
    with warnings.catch_warnings(action="error"), GradientMonitor(ours):
        pass
    assert_same(seen(ours, whole), seen(theirs, whole), RELATIVE)


def test_the_warning_says_how_many_modules_are_watched_through_hooks_and_what_to_do():
    text = (
        r"2 activation modules are PyTorch's own .*: minigrad\.nn\.replace_activations\(model\), before the "
        r"monitor is made, makes them minigrad's"
    )
    with pytest.warns(UserWarning, match=text) as warned, GradientMonitor(torchs()):
        pass
    assert [warning.filename for warning in warned] == [__file__]


def test_one_module_watched_through_hooks_is_told_in_the_singular():
    with pytest.warns(UserWarning, match="^1 activation module is PyTorch's own"), GradientMonitor(torch_nn.Tanh()):
        pass


def test_activations_that_are_no_modules_are_warned_of_where_there_may_be_some():
    layers = torch_nn.Linear(3, 3), torch_nn.Linear(3, 1)
    text = "no module of sigmoid, tanh or ReLU, and activations called as functions are not seen"
    with pytest.warns(UserWarning, match=text), GradientMonitor(torch_nn.Sequential(*layers)):
        pass
    with warnings.catch_warnings(action="error"), GradientMonitor(layers[0]):
        pass


def test_activations_replaced_after_the_monitor_was_made_are_warned_of():
    model = torchs()
    with warnings.catch_warnings(action="ignore"):
        monitor = GradientMonitor(model)
        nn.replace_activations(model)
        monitor.attach()
        train(model, monitor, 2)
    with pytest.warns(
        UserWarning, match=r"no pass .* in 3 steps: have they been replaced since the monitor was made\?"
    ):
        train(model, monitor, 2)


def test_replacing_the_activations_of_a_watched_model_says_to_detach_the_monitor():
    model = torchs()
    watched(model)
    with pytest.raises(ValueError, match=r"those of a GradientMonitor go with its detach\(\)"):
        nn.replace_activations(model)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([1, 2],), r"`module` is \[1, 2\]: pass a torch\.nn\.Module"),
        ((network(), 50), r"`thresholds` is 50: pass minigrad\.Thresholds"),
        ((network(), Thresholds(), 1.5), r"`window` is 1\.5: pass a number of steps, an integer"),
        ((network(), Thresholds(), "x"), "`window` is 'x': pass a number of steps, an integer"),
    ],
)
def test_what_is_no_model_no_thresholds_or_no_number_is_refused(arguments, text):
    with pytest.raises(TypeError, match=text):
        GradientMonitor(*arguments)


# Attaching.


def hooks(model):
    return [hook for part in model.modules() for hook in part._forward_hooks]


@OURS_AND_TORCHS
def test_what_is_raised_inside_detaches(make):
    model = make()
    monitor = GradientMonitor(model)
    with pytest.raises(ZeroDivisionError), warnings.catch_warnings(action="ignore"), monitor:
        raise ZeroDivisionError
    assert hooks(model) == []
    assert all("probe" not in vars(part) for part in model.modules())
    monitor.detach()  # once more does no harm


def test_a_warning_turned_into_an_error_leaves_the_model_as_it_was():
    model = torchs()
    with pytest.raises(UserWarning), warnings.catch_warnings(action="error"), GradientMonitor(model):
        pass
    assert hooks(model) == []


@OURS_AND_TORCHS
def test_attaching_twice_and_two_monitors_are_errors_that_say_what_to_do(make):
    model = make()
    monitor = watched(model)
    with pytest.raises(RuntimeError, match="attached already: detach it first"):
        watched_again = monitor.attach()
    with pytest.raises(RuntimeError, match="is watched by another monitor: detach that one first"):
        watched_again = watched(model)
    monitor.detach()
    watched_again = watched(model)
    assert len(watched_again.read()) == 0


def test_a_step_of_a_monitor_that_is_not_attached_is_an_error_and_what_was_measured_can_be_read():
    model = network()
    monitor = GradientMonitor(model)
    with pytest.raises(RuntimeError, match=r"not attached: call attach\(\), or use it as a context"):
        monitor.step()
    with monitor:
        train(model, monitor, 2)
    with pytest.raises(RuntimeError, match="not attached"):
        monitor.step()
    assert len(monitor.read()) == 2


@OURS_AND_TORCHS
def test_a_step_after_the_gradients_are_gone_is_warned_of(make):
    model = make()
    monitor = watched(model)
    whole(model)
    model.zero_grad()
    with pytest.warns(UserWarning, match=r"no parameter has a gradient: call step\(\) before optimizer\.zero_grad\(\)"):
        monitor.step()
    monitor.step()  # nothing has happened in this one
    readings = monitor.read()
    assert readings.updates.isnan().all()
    assert not readings.flow[0].isnan().any()


def test_a_window_without_steps_is_an_error():
    with pytest.raises(ValueError, match="`window` is 0: pass a number of steps, at least 1"):
        GradientMonitor(network(), window=0)


# TensorBoard.


class Writer:
    """Keeps what is written."""

    def __init__(self):
        self.scalars, self.texts = {}, []

    def add_scalar(self, tag, scalar_value, global_step):
        self.scalars[tag, global_step] = scalar_value

    def add_text(self, tag, text_string, global_step):
        self.texts.append((tag, text_string, global_step))


def test_medians_are_logged_under_their_tags():
    model = network("relu")
    monitor, writer = watched(model, window=2), Writer()
    train(model, monitor, 5)
    readings = monitor.log(writer, 17)
    assert len(readings) == 5
    written = {tag: value for (tag, step), value in writer.scalars.items() if step == 17}
    assert len(written) == len(writer.scalars)
    assert written["flow/0/gain"] == readings.layer("0")["gain"].median().item()
    assert written["update_ratio/1.weight"] == readings.parameter("1.weight")["update_ratio"].median().item()
    assert written["flow/1/dead"] == readings.dead["1"].double().mean().item()
    assert not any(math.isnan(value) for value in written.values())


def test_verdicts_are_written_when_they_change():
    model = network("tanh", depth=1)
    monitor, writer = watched(model, window=1), Writer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def logged(step, scale):
        one_step(model, optimizer, monitor, 0, scale)
        monitor.log(writer, step)

    logged(0, 1.0)
    assert writer.texts == []
    logged(1, math.nan)
    (text,) = writer.texts
    assert text == ("flow/verdicts", str(monitor.verdicts()[0]), 1)
    assert text[1].startswith("layer 0 (tanh): non-finite: 100 % of the gradient")
    writer.texts.clear()
    monitor.log(writer, 2)
    assert writer.texts == []
    model.load_state_dict(network("tanh", depth=1).state_dict())
    logged(3, 1.0)
    logged(4, 1.0)
    assert writer.texts == [("flow/verdicts", "nothing is wrong", 3)]


def test_pytorchs_writer_takes_it(tmp_path):
    model = network("sigmoid")
    with torch.no_grad():
        model[1].weight.mul_(200)
    monitor = watched(model, window=2)
    train(model, monitor, 2)
    with SummaryWriter(str(tmp_path)) as writer:
        readings = monitor.log(writer, 2)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == readings.points()[-1].keys() | readings.points()[0].keys()
    (event,) = events.Scalars("flow/1/gain")
    assert event.value == pytest.approx(readings.layer("1")["gain"].min().item(), rel=1e-6)
    (text,) = events.Tensors("flow/verdicts/text_summary")
    assert b"layer 1 (sigmoid): vanishing" in text.tensor_proto.string_val[0]


# No waiting.


@OURS_AND_TORCHS
def test_a_step_reads_nothing_from_the_device(make):
    """On the meta device, whose tensors have no values: to read one raises."""
    model = make().to("meta")
    monitor = watched(model, window=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.empty(4, 8, device="meta")).sum().backward()
        optimizer.step()
        monitor.step()
    with pytest.raises(RuntimeError, match="meta"):
        monitor.read()


@OURS_AND_TORCHS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nothing_waits_for_a_gpu_between_readings(make, activation, device):
    model = (network(activation) if make is network else make()).to(device)
    monitor = watched(model, window=2)
    inputs = batch()[0].to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def steps(n_steps):
        for _ in range(n_steps):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            monitor.step()

    steps(3)  # the kernels are compiled, the buffers are made
    monitor.read()
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        steps(5)
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert len(monitor.read()) == 5
