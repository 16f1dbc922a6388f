import torch

import minigrad
from minigrad.autodiff.allocation import LiveStorages


def test_memory_is_what_the_tensors_hold_at_a_time():
    x = torch.ones(1000)
    with LiveStorages() as storages:
        y = x + 1
        z = y.view(10, 100) * 2  # two: a view holds nothing of its own
        del y
        z.add_(1)
        z = z + 1  # two again, the new and the old, and then one
    assert storages.peak == 2 * x.nbytes


def test_memory_within_minigrad_s_operations_counts():
    x = torch.ones(1000)
    with LiveStorages() as storages:
        minigrad.derivative("tanh", x, 3)
    assert 3 * x.nbytes <= storages.peak < 3.1 * x.nbytes  # e^u, 1 / (e^u + e^-u)^2 and the result


def test_what_was_there_before_does_not_count():
    x = torch.ones(1000)
    with LiveStorages() as storages:
        x.t().mul_(2)
        x.detach().view(10, 100)
        torch.add(x, 1, out=x)
    assert storages.peak == 0
