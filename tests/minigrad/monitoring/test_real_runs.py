"""What a monitor says of real runs: each fault provoked, and healthy runs that get no word."""

import math

import pytest
import torch
from torch import nn as torch_nn

from minigrad import nn
from minigrad.monitoring.monitor import GradientMonitor
from minigrad.monitoring.thresholds import Thresholds
from minigrad.monitoring.verdicts import update_ratios
from monitored import EVERY_MODEL, WINDOW, batch, loss_of, naive, network, one_step, scaled, silenced, train, watched


def judged(model, learning_rate=0.02, optimizer=torch.optim.SGD, n_steps=2 * WINDOW, scale=1.0):
    """Train, and return where which verdict is given."""
    monitor = watched(model, window=WINDOW)
    optimizer = optimizer(model.parameters(), lr=learning_rate)
    for step in range(n_steps):
        one_step(model, optimizer, monitor, step, scale)
    monitor.read()
    monitor.detach()
    return {(verdict.kind, verdict.where): str(verdict) for verdict in monitor.verdicts()}


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@EVERY_MODEL
def test_a_healthy_run_gets_no_word(make, optimizer):
    assert judged(make(), 0.02 if optimizer is torch.optim.SGD else 0.005, optimizer) == {}


def test_a_layer_of_sigmoid_with_large_weights_vanishes():
    found = judged(scaled(network("sigmoid"), 60, slice(1, 2)))
    assert list(found) == [("vanishing", "1")]
    assert "layer 1 (sigmoid): vanishing: the gradient shrinks 22-fold here; 80 %" in found["vanishing", "1"]


def test_a_deep_network_with_small_weights_vanishes_over_depth():
    found = judged(naive("tanh", 0.1))
    assert list(found) == [("vanishing", "")]
    assert "from layer 11 back to layer 0 the gradient shrinks" in found["vanishing", ""]


def test_a_deep_network_with_large_weights_explodes():
    found = judged(naive("relu", 0.8), learning_rate=1e-20)
    assert list(found) == [("exploding", "")]
    assert "from layer 11 back to layer 0 the gradient grows" in found["exploding", ""]


def test_units_of_relu_with_a_large_negative_bias_are_dead():
    found = judged(silenced())
    assert list(found) == [("dead", "0")]
    assert "62 % of its 16 units fire on no input and learn nothing" in found["dead", "0"]


def test_tanh_with_large_weights_is_saturated():
    found = judged(scaled(network("tanh"), 12, slice(1)), learning_rate=0.005)
    assert list(found) == [("saturated", "0")]


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")  # of changing oneDNN's flags
@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1e-39), (torch.float16, 1e-6)], ids=str)
def test_gradients_too_small_for_the_dtype_are_false_zeros(dtype, scale):
    model = network("tanh").to(dtype)
    monitor = watched(model, window=WINDOW)
    with torch.backends.mkldnn.flags(enabled=False):  # its products in bfloat16 have no subnormal numbers on some CPUs
        for step in range(WINDOW):
            x, target = batch(step)
            model.zero_grad()
            ((model(x.to(dtype)) - target.to(dtype)) * scale).sum().backward()
            monitor.step()
    monitor.read()
    assert [verdict.kind for verdict in monitor.verdicts()] == ["false zeros"]


def test_a_learning_rate_too_large_is_told():
    found = judged(network("relu"), learning_rate=1.0, optimizer=torch.optim.Adam, n_steps=WINDOW)
    assert ("learning rate too large", "") in found
    assert judged(torch_nn.Linear(8, 1), learning_rate=1.0, n_steps=1) == {}  # it has small weights, and few


def test_a_learning_rate_that_was_too_large_once_is_told_with_what_it_did():
    model = network("tanh")
    monitor = watched(model, window=WINDOW)
    train(model, monitor, 1, learning_rate=50.0, optimizer=torch.optim.Adam)
    train(model, monitor, 3 * WINDOW, learning_rate=1e-4)
    cause, *effects = monitor.verdicts()
    assert cause.kind == "learning rate too large"
    assert "vanishing" in [verdict.kind for verdict in effects]
    assert all(verdict.message.endswith(". Try a smaller learning rate.") for verdict in effects)


def test_a_network_that_begins_ill_is_not_blamed_on_the_learning_rate():
    model = naive("tanh", 3.0)
    monitor = watched(model, window=WINDOW)
    train(model, monitor, 2 * WINDOW, learning_rate=0.5)
    other = GradientMonitor(model, window=WINDOW)
    readings = monitor.read()
    assert update_ratios(readings).max() > Thresholds().ratio_high
    other.load_state_dict(monitor.state_dict())
    for found in (monitor.verdicts(), other.verdicts()):
        assert [verdict.kind for verdict in found] == ["vanishing", "vanishing"]
        assert all("initial scale" in str(verdict) for verdict in found)


def test_a_classifier_that_is_sure_of_itself_gets_no_word():
    torch.manual_seed(0)
    model = torch_nn.Sequential(nn.MLP([2, 16, 1]), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(256, 2)
    target = (x.sum(1, keepdim=True) > 0).float()
    with GradientMonitor(model, window=50) as monitor:
        for _ in range(600):
            optimizer.zero_grad()
            loss = torch_nn.functional.binary_cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            monitor.step()
        assert loss < 0.05
        assert monitor.verdicts() == []
        output = monitor.history.layer("1")
        assert output["saturated"][-1] > 0.5  # of its units, which is right


def test_a_loss_scale_that_is_found_in_the_first_steps_is_no_fault():
    model = network()
    monitor = watched(model, window=WINDOW)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for step, scale in enumerate([math.inf, math.inf, 1.0, 1.0, 1.0]):
        optimizer.zero_grad()
        (scale * loss_of(model, step)).backward()
        if scale == 1:  # as a GradScaler, which skips the others
            optimizer.step()
        monitor.step()
    assert monitor.verdicts() == []


def test_a_learning_rate_too_small_is_told_once_a_window_is_over():
    assert judged(network(), learning_rate=1e-7, n_steps=WINDOW - 1) == {}
    assert list(judged(network(), learning_rate=1e-7)) == [("learning rate too small", "")]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@EVERY_MODEL
def test_the_first_step_that_is_not_finite_is_told_with_its_layer(make, value):
    model = make()
    monitor = watched(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step, scale in enumerate([1.0, 1.0, value, 1.0]):
        one_step(model, optimizer, monitor, step, scale)
    monitor.read()
    verdict = monitor.verdicts()[0]
    assert (verdict.kind, verdict.where) == ("non-finite", monitor._layers.names[-1])
    assert "at step 2, first on the way back from the loss" in str(verdict)
