import math

import pytest
import torch

from minigrad.monitoring.readings import FLOW, UPDATES
from minigrad.monitoring.steps import Step, flow_of, on_host, order_of, updates_of
from minigrad.monitoring.updates import MEASURED
from minigrad_kernels import BACKWARD, FORWARD


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def flow(*steps, n_layers=1):
    """Return the statistics of steps, each the passes' keys and rows, as (layer, direction): row, by step and layer."""
    made = [Step([([key for key, _ in passes], rows(*(row for _, row in passes)))], [], None) for passes in steps]
    values = flow_of(made, n_layers)
    assert values.shape == (len(steps), n_layers, len(FLOW))
    return [[dict(zip(FLOW, layer, strict=True)) for layer in step] for step in values.tolist()]


# Of a mean of 1 and a variance of 7 together: 4 elements around 2, and 6 around 1/3.
FORWARDS = [((0, FORWARD), [4, 2, 4, 0, 0, 0, 0, 0]), ((0, FORWARD), [6, 1 / 3, 60 - 2 / 3, 0, 0, 0, 0, 0])]
BACKWARDS = [((0, BACKWARD), [4, 64, 4, 1.5, 1, 2, 0, 0]), ((0, BACKWARD), [6, 26, 6, 1.25, 0, 3, 1, 2])]


def test_the_passes_of_a_step_are_one_whole():
    ((found,),) = flow([*FORWARDS, *BACKWARDS])
    assert found == {
        "upstream_rms": 3,
        "rms": 1,
        "norm": pytest.approx(math.sqrt(10), rel=1e-15),
        "gain": pytest.approx(1 / 3, rel=1e-15),
        "largest": 1.5,
        "zeros": 0.1,
        "saturated": 0.5,
        "nonfinite": 0.1,
        "false_zeros": 0.2,
        "mean": pytest.approx(1, rel=1e-15),
        "deviation": pytest.approx(math.sqrt(7), rel=1e-15),
    }


def test_rows_of_several_devices_and_in_any_order_are_added():
    (together,) = flow([*FORWARDS, *BACKWARDS])
    taken = [([key], rows(row)) for key, row in (BACKWARDS[1], FORWARDS[1], FORWARDS[0], BACKWARDS[0])]
    apart = flow_of([Step(taken, [], None)], 1)
    assert apart[0, 0].tolist() == list(together[0].values())


def test_steps_and_layers_are_kept_apart_and_what_was_not_seen_has_no_number():
    steps = flow(FORWARDS, [((1, BACKWARD), [1, 4, 1, 1, 0, 0, 0, 0])], [], n_layers=2)
    seen = [[{name for name, value in layer.items() if value == value} for layer in step] for step in steps]
    assert seen == [[{"mean", "deviation"}, set()], [set(), set(FLOW) - {"mean", "deviation"}], [set(), set()]]
    assert steps[1][1]["gain"] == 0.5


def test_a_gradient_that_is_not_finite_is_the_largest():
    nan = flow([((0, BACKWARD), [2, 1, math.nan, math.nan, 0, 0, 1, 0]), BACKWARDS[0]])[0][0]
    assert math.isnan(nan["largest"])
    assert flow([((0, BACKWARD), [2, 1, math.inf, math.inf, 0, 0, 1, 0]), BACKWARDS[0]])[0][0]["largest"] == math.inf


def test_a_deviation_far_smaller_than_the_mean_keeps_its_digits():
    row = (0, FORWARD), [4, 1, 4e-20, 0, 0, 0, 0, 0]
    for passes in ([row], [row, row]):
        assert flow(passes)[0][0]["deviation"] == pytest.approx(1e-10, rel=1e-12)


def test_no_gradient_that_arrives_has_no_gain():
    found = flow([((0, BACKWARD), [4, 0, 0, 0, 4, 0, 0, 0])])[0][0]
    assert (found["rms"], found["zeros"]) == (0, 1)
    assert math.isnan(found["gain"])


def test_layers_are_in_the_order_in_which_the_gradient_came_back_reversed():
    def order(*passes, n_layers=5):
        return order_of(Step([(list(passes), rows(*([0] * 8 for _ in passes)))], [], None), n_layers)

    # 3 feeds 1, which feeds 4; computed twice; 0 has no gradient, 2 is not used
    backward = [(4, BACKWARD), (1, BACKWARD), (3, BACKWARD)]
    assert order((0, FORWARD), (3, FORWARD), (1, FORWARD), (4, FORWARD), *backward, *backward) == [3, 1, 4, 0, 2]
    assert order(*backward, (3, FORWARD), (4, FORWARD)) == [3, 1, 4, 0, 2]  # recomputed in another order
    assert order_of(Step([], [], None), 3) == [0, 1, 2]


def test_what_was_measured_is_put_at_its_parameters():
    measured = torch.arange(1.0, 1 + 2 * len(MEASURED), dtype=torch.float64)  # of parameters 2 and 0
    values = updates_of([Step([], [2, 0], measured), Step([], [], None)], 3)
    assert values.shape == (2, 3, len(UPDATES))
    # of a parameter the norms of gradient, parameter and update, the ratio and the cosine
    assert values[0, [0, 2]].tolist() == [[2, 4, 6, 6 / 4, 8], [1, 3, 5, 5 / 3, 7]]
    assert values[0, 1].isnan().all()
    assert values[1].isnan().all()


def test_tensors_come_to_the_host_in_float64_with_their_shapes(device):
    given = [torch.ones(2, 3, dtype=torch.float64), torch.tensor([True, False]), torch.tensor(0.5), torch.zeros(0, 4)]
    found = on_host([tensor.to(device) for tensor in given])
    assert [(tensor.dtype, tensor.device.type) for tensor in found] == [(torch.float64, "cpu")] * 4
    assert all(map(torch.equal, found, [tensor.double() for tensor in given]))
    assert on_host([]) == []
