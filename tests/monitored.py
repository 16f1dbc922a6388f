"""Networks that a monitor watches: what the tests of monitoring share."""

import warnings

import pytest
import torch
from torch import nn as torch_nn

from cases import ACTIVATIONS
from minigrad import nn
from minigrad.monitoring.monitor import GradientMonitor

RELATIVE = 1e-5
WINDOW = 4


def network(activation="tanh", depth=2, width=16, seed=0):
    torch.manual_seed(seed)
    return nn.MLP([8, *[width] * depth, 1], activation)


def torchs(activation=torch_nn.Tanh):
    torch.manual_seed(0)
    return torch_nn.Sequential(torch_nn.Linear(8, 16), activation(), torch_nn.Linear(16, 16), activation())


def batch(step=0, rows=32):
    """Return inputs and targets that a network can learn."""
    x = torch.randn((rows, 8), generator=torch.Generator().manual_seed(step))
    return x, x.sin().sum(1, keepdim=True) / 4


def loss_of(model, step=0, rows=32):
    x, target = batch(step, rows)
    return (model(x) - target).square().mean()


def one_step(model, optimizer, monitor, step=0, scale=1.0):
    optimizer.zero_grad()
    (scale * loss_of(model, step)).backward()
    optimizer.step()
    monitor.step()


def train(model, monitor, n_steps=2 * WINDOW, learning_rate=0.05, optimizer=torch.optim.SGD):
    optimizer = optimizer(model.parameters(), lr=learning_rate)
    for step in range(n_steps):
        one_step(model, optimizer, monitor, step)


def watched(model, **options):
    """Return a monitor that is attached, without the warning that it gives for PyTorch's modules."""
    monitor = GradientMonitor(model, **options)
    with warnings.catch_warnings(action="ignore"):
        return monitor.attach()


def seen(model, passes):
    """Return the flow, (layers, statistics), of what a function of the model does in one step."""
    monitor = watched(model)
    model.zero_grad()
    passes(model)
    monitor.step()
    monitor.detach()
    return monitor.read().flow[0]


def assert_same(found, expected, relative=0.0):
    torch.testing.assert_close(found, expected, rtol=relative, atol=0, equal_nan=True)


MODELS = {**{name: lambda name=name: network(name) for name in ACTIVATIONS}, "PyTorch's": torchs}
EVERY_MODEL = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
OURS_AND_TORCHS = pytest.mark.parametrize("make", [network, torchs], ids=["minigrad's", "PyTorch's"])


def scaled(model, factor, which=slice(None)):
    """Return a network whose weights, or some of them, are larger by a factor."""
    with torch.no_grad():
        for layer in list(model)[which]:
            layer.weight.mul_(factor)
    return model


def naive(activation, deviation):
    """Return a network of 12 layers whose weights are normal with one deviation in all, and its biases 0."""
    model = network(activation, depth=12)
    with torch.no_grad():
        for layer in model:
            layer.weight.normal_(0, deviation)
            layer.bias.zero_()
    return model


def silenced():
    """Return a network most of whose first layer is never active."""
    model = network("relu")
    with torch.no_grad():
        model[0].bias[:10] = -100
    return model
