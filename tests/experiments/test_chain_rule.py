import math
from pathlib import Path

import pytest
import torch

from minigrad.functions import Derivative
from minigrad.train import main
from runs import run, summary


def test_hand_autograd_and_differences_agree(capsys):
    values = run("here", "experiment=chain_rule", "device=cpu")
    assert values["chain_rule/y"] == math.sin(1)
    assert values["chain_rule/dy_dx"] == 2 * math.cos(1)
    assert values["chain_rule/best_error"] <= 1e-8
    assert 1e-8 < values["chain_rule/best_step"] < 1e-4
    assert Path("here", "figures", "chain_rule.png").stat().st_size > 20_000
    out = capsys.readouterr().out
    assert "dy/dx = dy/du * du/dx  1.08060461173628   1.08060461173628   0.0e+00" in out
    assert "    2  reverse mode against closed form   " in out
    assert "verified: dy/dx = 1.08060461174, by hand and by autograd; by differences within " in out


@pytest.mark.parametrize(
    ("outer", "x", "expected"),
    [
        ("sin", 0, 0),
        ("sin", -100, -200 * math.cos(1e4)),
        ("sigmoid", -1.5, -3 / (2 * math.cosh(1.125)) ** 2),
        ("tanh", 0.5, 1 / math.cosh(0.25) ** 2),
        ("tanh", 40, 0),
    ],
)
def test_other_functions_and_points_are_verified_too(outer, x, expected):
    values = run("here", "experiment=chain_rule", f"outer={outer}", f"x={x}", "device=cpu", "steps=30")
    assert values["chain_rule/dy_dx"] == pytest.approx(expected, rel=1e-13, abs=1e-300)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("x=101", "x=101.0: expected a number from -100 to 100"),
        ("x=nan", "x=NaN: expected a number from -100 to 100"),
        ("outer=relu", "outer=relu: expected one of sin, sigmoid, tanh"),
        ("steps=9", "steps=9: expected an integer from 10 on"),
    ],
)
def test_a_wrong_value_is_one_line(override, message, capsys):
    assert main(["experiment=chain_rule", override]) == 2
    assert capsys.readouterr().err == f"minigrad-train: {message}\n"


def test_a_gradient_that_is_off_fails_with_the_numbers_and_exit_code_1(monkeypatch, capsys):
    backward = Derivative.backward
    monkeypatch.setattr(Derivative, "backward", staticmethod(lambda ctx, v: backward(ctx, 1.001 * v)))
    assert main(["experiment=chain_rule", "outer=tanh", "run_dir=here", "device=cpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "minigrad-train: reverse mode against differences, order 1: d output / d input is 0.8407886319, "
        "expected 0.83994868"
    )
    assert summary("here")["status"] == "failed"


def test_a_wrong_square_fails_against_the_values_by_hand(monkeypatch, capsys):
    power = torch.Tensor.__pow__
    monkeypatch.setattr(torch.Tensor, "__pow__", lambda x, n: power(x, n) if x.dim() else 1.1 * power(x, n))
    assert main(["experiment=chain_rule", "run_dir=here", "device=cpu"]) == 1
    assert "reverse mode against closed form, order 1: gradient for input is" in capsys.readouterr().err
