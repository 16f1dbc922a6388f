import math

import pytest
import torch

from minigrad.monitoring.readings import FLOW, UPDATES, Readings

LAYERS = {"0": "relu", "block.act": "tanh"}
PARAMETERS = {"0.weight": (3, 2), "0.bias": (3,), "scale": ()}


def readings(n_steps, first_step=0, dead=None):
    """Return readings whose numbers are all different, counted up from 1000 * first_step."""
    flow, updates = (
        torch.arange(n_steps * n * k, dtype=torch.float64).view(n_steps, n, k) + start
        for n, k, start in (
            (len(LAYERS), len(FLOW), 1000 * first_step),
            (len(PARAMETERS), len(UPDATES), 1000 * first_step + 500),
        )
    )
    return Readings(first_step, LAYERS, flow, PARAMETERS, updates, dead or {})


def test_a_layer_and_a_parameter_give_their_statistics_by_name_step_by_step():
    found = readings(3)
    assert len(found) == 3
    assert list(found.layer("block.act")) == list(FLOW)
    assert found.layer("0")["upstream_rms"].tolist() == [0, 22, 44]
    assert found.layer("block.act")["gain"].tolist() == [14, 36, 58]
    assert list(found.parameter("scale")) == list(UPDATES)
    assert found.parameter("0.bias")["update_ratio"].tolist() == [508, 523, 538]


def test_a_name_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(KeyError, match=r"no layer is called 'act'; there are: 0, block\.act"):
        readings(1).layer("act")
    with pytest.raises(KeyError, match=r"no parameter is called 'weight'; there are: 0\.weight, 0\.bias, scale"):
        readings(1).parameter("weight")
    nothing = Readings(0, {}, torch.zeros(1, 0, len(FLOW)), {}, torch.zeros(1, 0, len(UPDATES)), {})
    with pytest.raises(KeyError, match="no layer is called '0'; there are: none"):
        nothing.layer("0")


def test_the_first_and_the_last_of_the_steps():
    given = readings(5, first_step=10, dead={"0": torch.tensor([True])})
    first, last = given.until(2), given.last(2)
    assert (first.first_step, last.first_step) == (10, 13)
    for part, place in ((first, slice(0, 2)), (last, slice(3, 5))):
        assert torch.equal(part.flow, given.flow[place])
        assert torch.equal(part.updates, given.updates[place])
        assert part.dead == given.dead
    assert (len(given.last(9)), given.last(9).first_step) == (5, 10)
    assert (len(given.last(0)), given.last(0).first_step) == (0, 15)
    assert len(given.until(0)) == 0
    assert last.flow.untyped_storage().nbytes() == last.flow.nbytes  # what is left out can be freed


def test_readings_that_follow_one_another_are_one_list_with_the_later_ones_dead_units():
    earlier, later = readings(2, dead={"0": torch.tensor([True])}), readings(3, 2, {"0": torch.tensor([False])})
    both = earlier.followed_by(later)
    assert (len(both), both.first_step) == (5, 0)
    assert torch.equal(both.flow, torch.cat([earlier.flow, later.flow]))
    assert torch.equal(both.updates, torch.cat([earlier.updates, later.updates]))
    assert both.dead == later.dead


def test_the_median_is_that_of_the_steps_that_have_a_number():
    given = readings(4)
    given.flow[:2, 0, 0] = math.nan
    given.flow[:, 1, 1] = math.nan
    found = given.median()
    assert (len(found), found.dead) == (1, given.dead)
    assert found.layer("0")["upstream_rms"].tolist() == [44]  # of 44 and 66 the lower
    assert found.layer("0")["rms"].tolist() == [23]
    assert found.layer("block.act")["rms"].isnan().all()
    assert found.parameter("scale")["update_ratio"].tolist() == [528]


def test_the_median_of_no_steps_has_no_numbers():
    found = readings(0).median()
    assert len(found) == 1
    assert found.flow.isnan().all()
    assert found.updates.isnan().all()


def test_points_have_the_tags_of_tensorboard_without_what_is_no_number():
    given = readings(2, dead={"0": torch.tensor([True, False, False, True])})
    given.updates[0, 0] = math.nan
    first, last = given.points()
    assert first["flow/block.act/mean"] == 20
    assert first["update_ratio/0.bias"] == 508
    assert first["gradient_norm/scale"] == 510
    assert last.keys() - first.keys() == {f"{name}/0.weight" for name in UPDATES} | {"flow/0/dead"}
    assert last["flow/0/dead"] == 0.5
    assert len(last) == 2 * len(FLOW) + 3 * len(UPDATES) + 1
    assert readings(0).points() == []
