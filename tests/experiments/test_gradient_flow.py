from pathlib import Path

import pytest
import torch

from minigrad import catalog
from minigrad.errors import RunFailed
from minigrad.train import main
from runs import run, summary

gradient_flow = catalog.load_experiment("gradient_flow")


def test_it_shows_and_verifies_the_chapter_s_interval(capsys):
    values = run("here", "experiment=gradient_flow", "device=cpu")
    zeros = {name: values[f"gradient_flow/{name}/zeros"] for name in ("relu", "sigmoid", "tanh", "square", "sine")}
    assert zeros == {"relu": 601, "sigmoid": 0, "tanh": 0, "square": 1, "sine": 0}
    assert values["gradient_flow/relu/mean"] == 600 / 1201
    assert values["gradient_flow/sigmoid/largest"] == 0.25
    assert values["gradient_flow/tanh/mean"] == pytest.approx(0.3314, abs=1e-4)  # tanh(3) / 3, nearly
    assert values["gradient_flow/square/standard_deviation"] == pytest.approx(6 / 3**0.5, rel=1e-3)  # a uniform one's
    assert values["gradient_flow/sine/smallest"] == pytest.approx(-0.98999, abs=1e-5)
    for figure in ("gradient_flow", "gradient_flow_bfloat16"):
        assert Path("here", "figures", f"{figure}.png").stat().st_size > 20_000
    out = capsys.readouterr().out
    assert "sigmoid          89  x = 6.25     0.0019                       0\n" in out
    assert "tanh            390  |x| = 3.469  0.0039                       0\n" in out
    assert "verified: the statistics of all five" in out


def test_it_takes_other_intervals_and_finds_no_false_zero_where_there_is_none(capsys):
    values = run("here", "experiment=gradient_flow", "points=50", "reach=40", "bfloat16_reach=3", "device=cpu")
    assert values["gradient_flow/relu/zeros"] == 25
    assert values["gradient_flow/tanh/torch_false_zeros"] == 0
    assert "tanh              0  nowhere                               0\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("points=1", "points=1: expected an integer from 2 on"),
        ("reach=0", "reach=0.0: expected a number above 0, 40 at most"),
        ("bfloat16_reach=nan", "bfloat16_reach=NaN: expected a number above 0, 40 at most"),
        ("order=3", "unknown key 'order'; keys of experiment=gradient_flow: "),
    ],
)
def test_a_wrong_value_is_one_line(override, message, capsys):
    assert main(["experiment=gradient_flow", override]) == 2
    assert capsys.readouterr().err.startswith(f"minigrad-train: {message}")


def test_every_number_of_bfloat16_between_the_ends_is_taken():
    x = gradient_flow.every_bfloat16(1.0)
    assert (x[0].item(), x[-1].item()) == (-1, 1)
    assert len(x) == 2 * (127 * 2**7 + 1)  # the bits of 1 are 127 * 2^7, and those of 0 are 0
    assert bool((x.diff() >= 0).all())


def test_a_gradient_that_is_off_fails_with_the_numbers_and_exit_code_1(monkeypatch, capsys):
    _, cosine = gradient_flow.FUNCTIONS["sine"]
    monkeypatch.setitem(gradient_flow.FUNCTIONS, "sine", (lambda x: torch.sin(x) + 1e-5 * x, cosine))
    assert main(["experiment=gradient_flow", "run_dir=here", "device=cpu"]) == 1
    assert capsys.readouterr().err.startswith("minigrad-train: gradient of sine[")
    assert summary("here")["status"] == "failed"


@pytest.mark.parametrize("key", gradient_flow.STATISTICS)
def test_a_statistic_that_is_off_fails(key):
    flow = gradient_flow.flow(*gradient_flow.FUNCTIONS["relu"], torch.linspace(-1, 1, 10))
    found = {name: float(statistic(flow.gradient)) for name, statistic in gradient_flow.STATISTICS.items()}
    gradient_flow.verify_gradient("relu", flow, found)
    with pytest.raises(RunFailed, match=f"{key} of the gradient of relu is"):
        gradient_flow.verify_gradient("relu", flow, {**found, key: found[key] + 2e-6})


@pytest.mark.parametrize(
    ("name", "x", "message"), [("tanh", 4.0, "number of false zeros"), ("sigmoid", 5.5, "gradient")]
)
def test_pytorch_s_gradients_in_bfloat16_would_fail(name, x, message):
    ours, derivative = gradient_flow.FUNCTIONS[name]
    x = torch.tensor([0, x], dtype=torch.bfloat16)
    gradient_flow.verify_bfloat16(name, gradient_flow.flow(ours, derivative, x))
    with pytest.raises(RunFailed, match=f"{message} of {name} in bfloat16"):
        gradient_flow.verify_bfloat16(name, gradient_flow.flow(getattr(torch, name), derivative, x))
