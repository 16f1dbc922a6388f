import functools
import inspect
import math

import pytest
import torch
from omegaconf import OmegaConf
from torch.optim import lr_scheduler

from minigrad import catalog
from minigrad.config import bind
from minigrad.errors import UserError
from minigrad.schedules import (
    RANGES,
    SCHEDULES,
    check_schedule,
    constant,
    cosine,
    exponential,
    one_cycle,
    step_decay,
    warm_up,
)


def _options(name: str) -> dict[str, float]:
    parameters = inspect.signature(SCHEDULES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _factors(schedule, steps: int) -> list[float]:
    return [schedule(step, steps) for step in range(steps)]


def _peer(new_scheduler, steps: int) -> list[float]:
    """The learning rates of torch's scheduler over a learning rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = new_scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < steps:  # OneCycleLR refuses one more
            scheduler.step()
    return rates


@pytest.mark.parametrize("steps", [1, 7, 200])
@pytest.mark.parametrize(("every", "factor"), [(1, 0.9), (3, 0.1), (50, 0.5), (500, 2.0)])
def test_step_decay_is_torch_s(every, factor, steps):
    ours = _factors(functools.partial(step_decay, every=every, factor=factor), steps)
    assert ours == pytest.approx(_peer(lambda o: lr_scheduler.StepLR(o, every, factor), steps), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 200])
@pytest.mark.parametrize("factor", [0.9, 1.0, 1.01])
def test_exponential_is_torch_s(factor, steps):
    ours = _factors(functools.partial(exponential, factor=factor), steps)
    assert ours == pytest.approx(_peer(lambda o: lr_scheduler.ExponentialLR(o, factor), steps), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 200])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_cosine_is_torch_s(final, steps):
    ours = _factors(functools.partial(cosine, final=final), steps)
    theirs = _peer(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=steps, eta_min=final), steps)
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("steps", [10, 33, 200])
@pytest.mark.parametrize(("start", "final", "peak_at"), [(0.04, 4e-6, 0.3), (0.5, 0.1, 0.5), (0.1, 0.2, 0.9)])
def test_one_cycle_is_torch_s(start, final, peak_at, steps):
    theirs = _peer(
        lambda o: lr_scheduler.OneCycleLR(
            o,
            max_lr=1.0,
            total_steps=steps,
            pct_start=peak_at,
            div_factor=1 / start,
            final_div_factor=start / final,
            cycle_momentum=False,
        ),
        steps,
    )
    ours = _factors(functools.partial(one_cycle, start=start, final=final, peak_at=peak_at), steps)
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 100])
def test_every_factor_lies_between_the_ends(name, steps):
    factors = _factors(SCHEDULES[name], steps)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[0] == (0.04 if name == "one_cycle" and steps > 3 else 1.0)


def test_both_ends_are_as_stated():
    assert cosine(0, 100, final=0.25) == 1.0
    assert cosine(100, 100, final=0.25) == 0.25
    cycle = _factors(functools.partial(one_cycle, start=0.1, final=0.01, peak_at=0.3), 100)
    assert cycle[0] == pytest.approx(0.1, rel=1e-15)
    assert cycle[29] == max(cycle) == 1.0
    assert cycle[99] == pytest.approx(0.01, rel=1e-14)
    assert step_decay(499, 1000) == 1.0
    assert step_decay(500, 1000) == 0.1


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("peak_at", [0.0, 0.1, 0.5, 1.0])
def test_one_cycle_has_its_peak_anywhere_in_a_run_of_any_length(peak_at, steps):
    factors = _factors(functools.partial(one_cycle, start=0.1, final=0.2, peak_at=peak_at), steps)
    assert all(0.1 <= factor <= 1 for factor in factors)
    if peak_at == 0 or steps == 1:
        assert factors[0] == 1.0
    if peak_at == 1:
        assert factors[-1] == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_rises_linearly_to_where_the_schedule_begins(name):
    schedule = SCHEDULES[name]
    factors = _factors(warm_up(schedule, 4), 104)
    begin = schedule(0, 100)
    assert factors[:4] == pytest.approx([begin / 4, begin / 2, 3 * begin / 4, begin], rel=1e-15)
    assert factors[4:] == _factors(schedule, 100)


def test_warm_up_of_no_steps_is_the_schedule():
    assert _factors(warm_up(cosine, 0), 10) == _factors(cosine, 10)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_a_run_no_longer_than_its_warm_up_ends_within_it(name, steps):
    assert _factors(warm_up(SCHEDULES[name], 10), steps) == [(step + 1) / 10 for step in range(steps)]


def test_a_negative_warm_up_is_refused():
    with pytest.raises(UserError, match=r"^warmup_steps=-1: expected an integer from 0 on$"):
        warm_up(constant, -1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_s_defaults_are_those_of_its_config(name):
    node = OmegaConf.to_container(OmegaConf.load(catalog.CONFIGS / "schedule" / f"{name}.yaml"))
    assert node == {"name": name, **_options(name)}
    assert catalog.describe("schedule", name)
    check_schedule(bind(SCHEDULES, node, "schedule"))


def test_every_option_of_every_schedule_has_a_range():
    assert {option for name in SCHEDULES for option in _options(name)} == RANGES.keys()


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("step", "every", 0, "schedule.every=0: expected an integer from 1 on"),
        ("step", "every", 2.5, "schedule.every=2.5: expected an integer from 1 on"),
        ("step", "factor", 0.0, "schedule.factor=0.0: expected a number above 0, at most 1"),
        ("exponential", "factor", math.inf, "schedule.factor=inf: expected a number above 0, at most 1"),
        ("cosine", "final", -0.1, "schedule.final=-0.1: expected a number from 0 to 1"),
        ("one_cycle", "start", 2.0, "schedule.start=2.0: expected a number from 0 to 1"),
        ("one_cycle", "peak_at", math.nan, "schedule.peak_at=nan: expected a number from 0 to 1"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(name, option, value, expected):
    with pytest.raises(UserError) as caught:
        check_schedule(functools.partial(SCHEDULES[name], **{option: value}))
    assert str(caught.value) == expected
