import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minigrad import catalog
from minigrad.errors import RunFailed
from minigrad.train import main
from runs import signalled_after

learning_rate_range = catalog.load_experiment("learning_rate_range")


def run(*overrides: str) -> dict:
    assert main(["experiment=learning_rate_range", "device=cpu", "run_dir=here", *overrides]) == 0
    return json.loads(Path("here", "summary.json").read_text())


def test_a_network_learns_at_the_learning_rate_that_is_suggested(capsys):
    summary = run("objective.hidden=[32]")
    assert f"learning_rate={summary['suggestion']:.2g} is suggested" in capsys.readouterr().out
    assert Path("here", "figures", "learning_rate_range.png").stat().st_size > 20_000
    assert (
        main([f"learning_rate={summary['suggestion']}", "objective.hidden=[32]", "epochs=10", "run_dir=trained"]) == 0
    )
    assert json.loads(Path("trained", "summary.json").read_text())["test/accuracy"] > 0.9


def test_the_learning_rate_rises_exponentially_from_lowest_to_highest():
    run("objective=parabola", "lowest=1e-4", "highest=0.1", "steps=31")
    events = EventAccumulator("here", {"scalars": 0}).Reload()
    rates = [event.value for event in events.Scalars("learning_rate")]
    assert rates == pytest.approx([1e-4 * 10 ** (step / 10) for step in range(31)], rel=1e-5)
    assert [event.step for event in events.Scalars("train/loss")] == list(range(31))


def test_it_ends_where_the_loss_diverges_and_leaves_the_rest_out():
    summary = run("objective=rosenbrock", "steps=400")
    assert summary["steps"] < 400
    assert summary["suggestion"] < 2 / 1002  # beyond, descent is unstable at the minimum


def test_a_loss_that_does_not_diverge_is_said_to(capsys):
    run("objective=parabola", "highest=0.5")
    assert "the loss has not diverged up to highest=0.5: try a higher one" in capsys.readouterr().out


def test_a_loss_that_never_falls_fails_with_exit_code_1(capsys):
    assert (
        main(["experiment=learning_rate_range", "objective=rosenbrock", "lowest=1", "highest=10", "run_dir=here"]) == 1
    )
    assert capsys.readouterr().err == (
        "minigrad-train: the loss falls at none of these learning rates; try a smaller lowest\n"
    )
    assert json.loads(Path("here", "summary.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=0.1", "learning_rate=0.1: expected null: this experiment finds it, from lowest to highest"),
        ("lowest=0", "lowest=0.0: expected a finite number above 0"),
        ("highest=1e-7", "highest=1e-07: expected more than lowest=1e-06"),
        ("steps=5", "steps=5: expected an integer from 20 on"),
    ],
)
def test_a_wrong_value_is_one_line(override, message, capsys):
    assert main(["experiment=learning_rate_range", override]) == 2
    assert capsys.readouterr().err == f"minigrad-train: {message}\n"


def test_the_moving_average_of_a_constant_is_that_constant():
    assert learning_rate_range.smooth(torch.full((30,), 2.5)).tolist() == pytest.approx([2.5] * 30)


def test_the_suggestion_is_where_the_loss_has_fallen_half_of_its_way():
    rates = torch.logspace(-4, 0, 401, dtype=torch.float64)
    loss = 2 - torch.sigmoid(8 * (rates.log10() + 2))  # falls from 2 to 1, half of it at 0.01
    found = learning_rate_range.find(rates, loss, diverged=False)
    assert found.suggestion == pytest.approx(0.01, rel=0.7)  # the average lags by up to 20 steps of 0.01 decades
    with pytest.raises(RunFailed):
        learning_rate_range.find(rates, 3 - loss, diverged=False)


def test_too_few_steps_are_refused_however_they_are_given(capsys):
    overrides = ["experiment=learning_rate_range", "objective=wine", "steps=null", "epochs=1"]
    assert main(overrides) == 2
    assert capsys.readouterr().err == "minigrad-train: steps=7: expected an integer from 20 on\n"


def test_an_interrupted_test_keeps_its_curves():
    with signalled_after(30):
        assert main(["experiment=learning_rate_range", "objective=parabola", "run_dir=here"]) == 130
    events = EventAccumulator("here", {"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(30))
