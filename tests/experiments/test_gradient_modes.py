from pathlib import Path

import pytest
import torch

from minigrad import functional, functions
from minigrad.train import main
from runs import run, summary


def saved(values, mode):
    """Return the bytes of parameters and of activations that a mode saved, and what was held of them afterwards."""
    return (
        values[f"gradient_modes/{mode}/parameters"],
        values[f"gradient_modes/{mode}/activations"],
        values[f"gradient_modes/{mode}/held"],
    )


def test_it_shows_and_verifies_what_each_mode_saves(capsys):
    values = run("here", "experiment=gradient_modes", "device=cpu")
    # Of the layers 64-128-128-10: W of the last two and the biases of the first two;
    # and, of 256 rows, what goes into each layer and h W^T of the first two.
    parameters = 4 * (128 * 128 + 128 * 10 + 128 + 128)
    activations = 4 * 256 * (64 + 128 + 128 + 128 + 128)
    assert saved(values, "default") == (parameters, activations, parameters + activations)
    assert saved(values, "enable_grad_in_no_grad") == saved(values, "default")
    assert saved(values, "detach") == (parameters, activations, parameters + 4 * 256 * 64)
    assert saved(values, "no_grad") == saved(values, "inference_mode") == (0, 0, 0)
    assert Path("here", "figures", "gradient_modes.png").stat().st_size > 20_000
    out = capsys.readouterr().out
    assert "Inference tensors cannot be saved for backward  " in out
    assert "a leaf Variable that requires grad is being used in an in-place operation  " in out
    assert "verified: a forward pass saves the 661,504 bytes that the sizes tell" in out


@pytest.mark.parametrize(
    ("overrides", "bytes_saved"),
    [
        (["sizes=[3,2]"], (0, 4 * 5 * 3)),  # one layer needs its input alone
        (["sizes=[3,7,2]", "activation=sigmoid"], (4 * (7 * 2 + 7), 4 * 5 * (3 + 7 + 7))),
        (["sizes=[3,7,2]", "save=output"], (4 * 7 * 2, 4 * 5 * (3 + 7))),
        (["sizes=[1,1,1]", "activation=relu"], (4 * 1, 4 * 5 * 2)),
    ],
)
def test_it_knows_the_bytes_of_other_networks(overrides, bytes_saved):
    values = run("here", "experiment=gradient_modes", "batch=5", "device=cpu", *overrides)
    assert saved(values, "default")[:2] == bytes_saved


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sizes=[3]", "sizes=[3]: expected at least two widths, each 1 or more"),
        ("sizes=[3,0,1]", "sizes=[3, 0, 1]: expected at least two widths, each 1 or more"),
        ("batch=0", "batch=0: expected an integer from 1 on"),
        ("activation=elu", "activation=elu: expected one of sigmoid, tanh, relu"),
        ("save=all", "save=all: expected one of input, output"),
        ("steps=3", "unknown key 'steps'; keys of experiment=gradient_modes: "),
    ],
)
def test_a_wrong_value_is_one_line(override, message, capsys):
    assert main(["experiment=gradient_modes", override]) == 2
    assert capsys.readouterr().err.startswith(f"minigrad-train: {message}")


def test_an_operation_that_saves_something_else_fails_with_the_numbers_and_exit_code_1(monkeypatch, capsys):
    fused = functions.bias_activation
    monkeypatch.setattr(functional.functions, "bias_activation", lambda x, b, f, save: fused(x, b, f, "output"))
    assert main(["experiment=gradient_modes", "run_dir=here", "device=cpu"]) == 1
    message = "minigrad-train: bytes of parameters saved, default is 70656, expected 71680\n"
    assert capsys.readouterr().err == message
    assert summary("here")["status"] == "failed"


def test_a_mode_that_records_although_it_should_not_fails(monkeypatch, capsys):
    monkeypatch.setattr(torch, "inference_mode", torch.enable_grad)
    assert main(["experiment=gradient_modes", "run_dir=here", "device=cpu"]) == 1
    assert capsys.readouterr().err == "minigrad-train: bytes of parameters saved, inference_mode is 71680, expected 0\n"
