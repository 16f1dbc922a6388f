from pathlib import Path

import pytest
import torch

from minigrad.train import main
from runs import run, summary


def test_it_shows_and_verifies_the_chapter_s_example(capsys):
    values = run("here", "experiment=gradient_basics", "device=cpu")
    assert (values["gradient_basics/z"], values["gradient_basics/dx"], values["gradient_basics/dy"]) == (11, 4, 2)
    assert Path("here", "figures", "gradient_basics.png").stat().st_size > 20_000
    out = capsys.readouterr().out
    assert "z       11     True           AddBackward0  False    none" in out
    assert "verified: dz/dx = 4, dz/dy = 2" in out


def test_it_takes_another_point():
    values = run("here", "experiment=gradient_basics", "x=-0.5", "y=1", "device=cpu")
    assert (values["gradient_basics/dx"], values["gradient_basics/dy"]) == (-1, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("x=inf", "x=Infinity: expected a number from -1e18 to 1e18"),
        ("x=two", "x=two: expected a number"),
        ("steps=3", "unknown key 'steps'; keys of experiment=gradient_basics: "),
    ],
)
def test_a_wrong_value_is_one_line(override, message, capsys):
    assert main(["experiment=gradient_basics", override]) == 2
    assert capsys.readouterr().err.startswith(f"minigrad-train: {message}")


def test_a_gradient_that_is_off_fails_with_the_numbers_and_exit_code_1(monkeypatch, capsys):
    power = torch.Tensor.__pow__
    monkeypatch.setattr(torch.Tensor, "__pow__", lambda x, n: 2 * power(x, n) - power(x, n).detach())
    assert main(["experiment=gradient_basics", "run_dir=here", "device=cpu"]) == 1
    assert capsys.readouterr().err == "minigrad-train: dz/dx is 8, expected 4\n"
    assert summary("here")["status"] == "failed"
