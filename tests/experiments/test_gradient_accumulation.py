from pathlib import Path

import pytest
import torch

import minigrad
from minigrad.train import main
from runs import curves, run, summary


def test_it_shows_and_verifies_the_chapter_s_example(capsys):
    run("here", "experiment=gradient_accumulation", "device=cpu")
    shown = curves("here")
    assert shown["gradient_accumulation/x_grad"] == [
        (0, 2),
        (1, 5),
        (2, 0),
        (3, 2),
        (5, 2),
    ]  # after the call with number 4 there is none
    assert [k for k, _ in shown["gradient_accumulation/relative_error/share"]] == [2, 3, 5, 8, 64, 96]
    assert max(error for _, error in shown["gradient_accumulation/relative_error/share"]) < 1e-14
    assert max(error for _, error in shown["gradient_accumulation/relative_error/share_float32"]) < 1e-6
    assert [error for k, error in shown["gradient_accumulation/relative_error/none"] if 96 % k == 0] == pytest.approx(
        [1, 2, 7, 95]
    )
    assert [error > 0.005 for _, error in shown["gradient_accumulation/relative_error/equal"]] == [
        False,
        False,
        True,
        False,
        True,
        False,
    ]
    assert Path("here", "figures", "gradient_accumulation.png").stat().st_size > 20_000
    out = capsys.readouterr().out
    assert "(x**3).backward()     3           5\n" in out
    assert "x.grad = None                     none\n" in out
    assert "verified: x.grad is what was added since it was zeroed; 96 samples in 2, 3, 5, 8, 64, 96 micro-" in out


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_it_takes_another_point_and_another_network(activation):
    network = [f"activation={activation}", "hidden=[9,7]", "batch_size=50", "micro_batches=[50,1,7]", "seed=3"]
    run("here", "experiment=gradient_accumulation", "x=-0.7", *network, "device=cpu")
    shown = curves("here")
    assert [value for _, value in shown["gradient_accumulation/x_grad"]] == pytest.approx([-1.4, -1.4 + 1.47, 0, 2, 2])
    assert [k for k, _ in shown["gradient_accumulation/relative_error/none"]] == [1, 7, 50]
    assert shown["gradient_accumulation/relative_error/none"][0][1] == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("x=nan", "x=NaN: expected a number from -1e100 to 1e100, whose cube float64 can hold"),
        ("activation=elu", "activation=elu: expected one of sigmoid, tanh, relu"),
        ("hidden=[0]", "hidden=0: expected an integer from 1 on"),
        ("batch_size=1798", "batch_size=1798: expected an integer from 1 to 1797"),
        ("micro_batches=[]", "micro_batches=[]: expected at least one"),
        ("micro_batches=[2,97]", "micro_batches=[2, 97]: expected integers from 1 to batch_size=96"),
        ("micro_batches=[0]", "micro_batches=[0]: expected integers from 1 to batch_size=96"),
        ("steps=3", "unknown key 'steps'; keys of experiment=gradient_accumulation: "),
    ],
)
def test_a_wrong_value_is_one_line(override, message, capsys):
    assert main(["experiment=gradient_accumulation", override]) == 2
    assert capsys.readouterr().err.startswith(f"minigrad-train: {message}")


def test_a_gradient_that_is_off_fails_with_the_numbers_and_exit_code_1(monkeypatch, capsys):
    power = torch.Tensor.__pow__
    monkeypatch.setattr(torch.Tensor, "__pow__", lambda x, n: 2 * power(x, n))
    assert main(["experiment=gradient_accumulation", "run_dir=here", "device=cpu"]) == 1
    assert capsys.readouterr().err.startswith("minigrad-train: x.grad after (x**2).backward() is 4, expected 2 within")
    assert summary("here")["status"] == "failed"


def test_a_layer_that_looks_at_the_rest_of_its_batch_fails_with_the_numbers(monkeypatch, capsys):
    perceptron = minigrad.nn.MLP

    def normalised(sizes, activation, dtype):
        return torch.nn.Sequential(
            torch.nn.BatchNorm1d(sizes[0], dtype=dtype), perceptron(sizes, activation, dtype=dtype)
        )

    monkeypatch.setattr(minigrad.nn, "MLP", normalised)
    assert main(["experiment=gradient_accumulation", "micro_batches=[2]", "run_dir=here", "device=cpu"]) == 1
    assert "2 micro-batches of weight n_i / n: relative error is 0." in capsys.readouterr().err
