from pathlib import Path

import pytest
import torch

from minigrad import catalog
from minigrad.train import main
from runs import run, summary

backpropagation = catalog.load_experiment("backpropagation")


def test_it_shows_and_verifies_the_chapter_s_example(capsys):
    values = run("here", "experiment=backpropagation", "device=cpu")
    assert (values["backpropagation/z"], values["backpropagation/y"]) == (0, 0.5)
    assert (values["backpropagation/dy_dw"], values["backpropagation/dy_db"], values["backpropagation/dy_dx"]) == (
        0.125,
        0.25,
        0.5,
    )
    assert Path("here", "figures", "backpropagation.png").stat().st_size > 20_000
    out = capsys.readouterr().out
    assert "2     z = product + b  1 + -1            0\n" in out
    assert "1     minigrad.sigmoid  1                  0.25              0.25                add\n" in out
    assert "d y / d w = 1 * 0.25 [minigrad.sigmoid] * 1 [add] * 0.5 [mul] = 0.125\n" in out
    assert "verified: dy/dw = 0.125, dy/db = 0.25, dy/dx = 0.5" in out


@pytest.mark.parametrize(("activation", "slope"), [("tanh", 0.786447733), ("relu", 1)])  # 1 - tanh(0.5)^2
def test_it_takes_another_neuron(activation, slope):
    values = run(
        "here", "experiment=backpropagation", "x=-3", "w=-0.5", "b=-1", f"activation={activation}", "device=cpu"
    )
    found = [values[f"backpropagation/dy_d{name}"] for name in ("w", "b", "x")]
    assert found == pytest.approx([-3 * slope, slope, -0.5 * slope], rel=1e-6)


@pytest.mark.parametrize("z", [-800.0, -95.0, -3.0, 0.0, 1.5, 14.0, 95.0])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_the_closed_form_is_the_derivative_wherever_it_is(activation, z):
    import mpmath

    with mpmath.workdps(800):
        at = mpmath.mpf(z)
        true = {
            "sigmoid": mpmath.exp(-at) / (1 + mpmath.exp(-at)) ** 2,
            "tanh": mpmath.sech(at) ** 2,
            "relu": mpmath.mpf(z > 0),
        }[activation]
        found = backpropagation.closed_form(activation, torch.tensor(z, dtype=torch.float64)).item()
        assert found == pytest.approx(float(true), rel=1e-14)


@pytest.mark.parametrize(
    "neuron",
    [
        ("x=1000", "w=1000", "b=-1000", "activation=sigmoid"),
        ("x=0.1", "w=-999", "b=0.3", "activation=tanh"),
        ("x=0", "w=0", "b=0", "activation=relu"),
    ],
)
def test_it_holds_far_out_and_at_the_kink(neuron):
    run("here", "experiment=backpropagation", *neuron, "device=cpu")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("x=inf", "x=Infinity: expected a number from -1000 to 1000"),
        ("b=two", "b=two: expected a number"),
        ("activation=gelu", "activation=gelu: expected one of sigmoid, tanh, relu"),
        ("steps=3", "unknown key 'steps'; keys of experiment=backpropagation: "),
    ],
)
def test_a_wrong_value_is_one_line(override, message, capsys):
    assert main(["experiment=backpropagation", override]) == 2
    assert capsys.readouterr().err.startswith(f"minigrad-train: {message}")


def test_a_gradient_that_is_off_fails_with_the_numbers_and_exit_code_1(monkeypatch, capsys):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.sigmoid(x)

        @staticmethod
        def backward(ctx, upstream):
            y = torch.sigmoid(ctx.saved_tensors[0])
            return upstream * y * (1 - y) * 1.00001

    monkeypatch.setitem(backpropagation.ACTIVATIONS, "sigmoid", Wrong.apply)
    assert main(["experiment=backpropagation", "run_dir=here", "device=cpu"]) == 1
    assert capsys.readouterr().err.startswith("minigrad-train: dy/dw is 0.1250012516")
    assert summary("here")["status"] == "failed"
