"""A monitor that goes on in another process."""

import io

import pytest
import torch

from minigrad.errors import UserError
from minigrad.monitoring.monitor import GradientMonitor
from monitored import WINDOW, assert_same, network, one_step, scaled, silenced, train, watched


def a_run(make, n_steps, interrupted_after=None, attached_first=True):
    """Train, and return the readings of each step, and the monitor.

    After `interrupted_after` steps everything is saved, and loaded into new objects.
    """
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = watched(model, window=WINDOW)
    found = []
    for step in range(n_steps):
        if step == interrupted_after:
            file = io.BytesIO()
            torch.save((model.state_dict(), optimizer.state_dict(), monitor.state_dict()), file)
            monitor.detach()
            file.seek(0)
            states = torch.load(file, weights_only=True)
            model = scaled(make(), 0.5)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            monitor = watched(model, window=WINDOW)
            if not attached_first:
                monitor.detach()
            for each, state in zip((model, optimizer, monitor), states, strict=True):
                each.load_state_dict(state)
            if not attached_first:
                monitor.attach()
        one_step(model, optimizer, monitor, step)
        found.append(monitor.read())
    return found, monitor


@pytest.mark.parametrize(("after", "attached_first"), [(1, False), (WINDOW, False), (2 * WINDOW - 1, True)])
def test_a_monitor_goes_on_in_a_new_process_as_if_never_interrupted(after, attached_first):
    (expected, monitor), (found, resumed) = (a_run(silenced, 11, stop, attached_first) for stop in (None, after))
    for one, other in zip([*found, resumed.history], [*expected, monitor.history], strict=True):
        assert one.first_step == other.first_step
        assert_same(one.flow, other.flow)
        assert_same(one.updates, other.updates)
        assert {name: units.tolist() for name, units in one.dead.items()} == {
            name: units.tolist() for name, units in other.dead.items()
        }
    assert resumed.history.dead["0"].tolist() == [True] * 10 + [False] * 6
    assert monitor.verdicts() == resumed.verdicts()
    assert [verdict.kind for verdict in resumed.verdicts()] == ["dead"]
    assert not found[after].parameter("0.weight")["gradient_cosine"].isnan().item()


def test_the_highest_update_ratio_is_part_of_the_state():
    model = network()
    monitor = watched(model, window=WINDOW)
    train(model, monitor)
    monitor.read()
    monitor.detach()
    with GradientMonitor(model, window=WINDOW) as other:
        other.load_state_dict(monitor.state_dict())
        train(model, other, learning_rate=1e-9)
        other.read()
        assert other.verdicts() == []


def test_the_state_of_a_monitor_that_has_seen_nothing_can_be_loaded():
    monitor = GradientMonitor(network("relu"))
    GradientMonitor(network("relu")).load_state_dict(monitor.state_dict())


def test_what_has_not_been_read_is_no_part_of_a_state():
    model = network()
    monitor = watched(model)
    train(model, monitor, 3)
    with pytest.raises(RuntimeError, match=r"3 steps have not been read: call read\(\) or log\(\) first"):
        monitor.state_dict()


def test_the_state_of_another_models_monitor_is_refused():
    saved = GradientMonitor(network(depth=3)).state_dict()
    message = r"\(3, 8\) activation layers and parameters, and here there are \(2, 6\): they do not fit"
    with pytest.raises(UserError, match=message):
        GradientMonitor(network(depth=2)).load_state_dict(saved)
