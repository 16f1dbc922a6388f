from pathlib import Path

import pytest
import torch

from minigrad import catalog
from minigrad.train import main
from runs import curves, module, run, steps, summary

manual_descent = catalog.load_experiment("manual_descent")


def test_it_shows_and_verifies_the_chapter_s_twenty_steps(capsys):
    values = run("here", "experiment=manual_descent", "device=cpu")
    assert values["steps"] == 20
    shown = curves("here")
    assert [x for _, x in shown["x"]] == pytest.approx([3 - 3 * 0.8**k for k in range(21)], abs=1e-6)
    assert [loss for _, loss in shown["train/loss"]] == pytest.approx([1 + 9 * 0.64**k for k in range(21)], rel=1e-6)
    assert [norm for _, norm in shown["gradient_norm"]] == pytest.approx([6 * 0.8**k for k in range(21)], rel=1e-5)
    for name in ("manual_descent", "path"):
        assert Path("here", "figures", f"{name}.png").stat().st_size > 20_000
    out = capsys.readouterr().out
    assert "   1      0.6     6.76        -4.8\n" in out
    assert "verified: the trainer's 20 steps end at the same bits, and every x is 3 + (x_0 - 3) (1 - 2 learning_" in out


@pytest.mark.parametrize(
    ("overrides", "last"),
    [
        (["learning_rate=0.5"], 3),  # there at once, and not a bit beyond: a logarithmic axis with zeros
        (["objective.start=[-7.3]", "learning_rate=1.3", "steps=60"], 3 - 10.3 * 1.6**60),
    ],
)
def test_every_x_is_the_closed_form_s_at_other_rates_and_starts(overrides, last):
    run("here", "experiment=manual_descent", *overrides, "device=cpu")
    assert summary("here")["x"] == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective=rosenbrock", "learning_rate=0.001", "steps=100"],
        ["objective=wine", "objective.hidden=[]", "activation=relu", "batch_size=7", "steps=null", "epochs=1"],
        ["objective=quadratic_deep", "steps=9"],
    ],
)
def test_any_objective_ends_at_the_trainer_s_bits(overrides, capsys):
    made = run("here", "experiment=manual_descent", *overrides, "device=cpu")["steps"]
    assert f"verified: the trainer's {made} steps end at the same bits; test/loss" in capsys.readouterr().out
    assert steps(curves("here")["train/loss"]) == list(range(made + 1))
    assert ("x" in curves("here"), Path("here", "figures", "path.png").exists()) == (
        False,
        "rosenbrock" in overrides[0],
    )


def test_a_function_of_one_s_own_is_descended_and_a_long_table_is_shortened(capsys):
    name = module("def f(x):\n    return -x.sum()\n")  # whose lowest value is unknown, and negative
    own = ["objective=python", f"function={name}:f", "objective.start=[0]", "learning_rate=0.5", "steps=100"]
    assert run("here", "experiment=manual_descent", *own, "device=cpu")["x"] == 50
    out = capsys.readouterr().out
    assert "the first 12 and the last 12 of 101 rows, all of them in TensorBoard's curves:\n" in out
    rows = [line.split() for line in out.splitlines() if line.endswith(" -1")]
    assert [row[0] for row in rows] == [str(step) for step in (*range(12), *range(89, 101))]
    assert rows[12] == ["89", "44.5", "-44.5", "-1"]


def test_a_descent_that_diverges_fails_with_the_numbers_and_keeps_its_finite_curves(capsys):
    assert main(["experiment=manual_descent", "learning_rate=1000", "run_dir=here", "device=cpu"]) == 1
    assert capsys.readouterr().err == (
        "minigrad-train: step 6: the loss is inf, the norm of the gradient 3.82849e+20; "
        "a smaller learning_rate than 1000 may help\n"
    )
    assert (summary("here")["status"], steps(curves("here")["x"])) == ("failed", list(range(6)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=0", "learning_rate=0.0: expected a number above 0"),
        ("learning_rate=null", "learning_rate=null: expected a number"),
        ("steps=0", "steps=0: expected an integer from 1 on"),
        ("epochs=3", "epochs=3: expected null beside steps=20; give steps=null"),
        ("batch_size=3", "unknown key 'batch_size'; keys of experiment=manual_descent: "),
        ("rule=adam", "unknown key 'rule'; keys of experiment=manual_descent: "),
        ("precision=float64", "unknown key 'precision'; keys of experiment=manual_descent: "),
    ],
)
def test_a_wrong_value_is_one_line(override, message, capsys):
    assert main(["experiment=manual_descent", override]) == 2
    assert capsys.readouterr().err.startswith(f"minigrad-train: {message}")


def test_a_gradient_that_is_off_fails_with_the_numbers_and_exit_code_1(monkeypatch, capsys):
    power = torch.Tensor.__pow__
    monkeypatch.setattr(torch.Tensor, "__pow__", lambda x, n: 2 * power(x, n))
    assert main(["experiment=manual_descent", "run_dir=here", "device=cpu"]) == 1
    assert capsys.readouterr().err.startswith(
        "minigrad-train: the gradient of every step[0] is -12, expected -6 within"
    )
    assert summary("here")["status"] == "failed"


def test_a_last_step_that_is_one_bit_off_fails_with_the_numbers_and_exit_code_1(monkeypatch, capsys):
    def off_at_last(parameters, gradients, learning_rate):
        torch._foreach_add_(parameters, gradients, alpha=-learning_rate)
        if parameters[0] > 2.96:
            parameters[0].copy_(parameters[0].nextafter(torch.tensor(9.0)))

    monkeypatch.setattr(manual_descent, "gradient_descent", off_at_last)
    assert main(["experiment=manual_descent", "run_dir=here", "device=cpu"]) == 1
    assert capsys.readouterr().err.startswith("minigrad-train: x after the last step is 2.96541")


def test_a_closed_form_that_is_off_by_a_millionth_is_noticed():
    x = [3 - 3 * 0.8**k for k in range(21)]
    points = torch.tensor(x, dtype=torch.float32).double()
    descent = manual_descent.Descent(
        (points - 3) ** 2 + 1, 2 * (points - 3).abs(), points[:, None], 2 * (points[:, None] - 3)
    )
    manual_descent.verify_parabola(descent, 0.1)
    with pytest.raises(RuntimeError, match=r"x after 1 steps is 0.6"):
        manual_descent.verify_parabola(descent, 0.100001)
