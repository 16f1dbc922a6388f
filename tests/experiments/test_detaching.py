from pathlib import Path

import pytest
import torch

from minigrad.train import main
from runs import run, summary


def gradients(values):
    """Return the gradients of what was attached, detached, changed in a clone, and gone back through twice."""
    return [
        values[f"detaching/gradient/{name}"] for name in ("attached", "detached", "changed_clone", "backward_twice")
    ]


def test_it_shows_and_verifies_where_graphs_end(capsys):
    values = run("here", "experiment=detaching", "device=cpu")
    assert gradients(values) == [12, 4, 12, 24]
    assert Path("here", "figures", "detaching.png").stat().st_size > 20_000
    out = capsys.readouterr().out
    assert "y.detach().backward()                      element 0 of tensors does not require grad" in out
    assert "one of the variables needed for gradient computation has been modified by an inplace operation  " in out
    assert "Trying to backward through the graph a second time  " in out
    assert "verified: attached 12, detached 4, and three mistakes are errors" in out


def test_it_takes_another_point():
    assert gradients(run("here", "experiment=detaching", "x=-0.5", "device=cpu")) == [0.75, 0.25, 0.75, 1.5]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("x=nan", "x=NaN: expected a number from -1000 to 1000"),
        ("x=1001", "x=1001.0: expected a number from -1000 to 1000"),
        ("x=two", "x=two: expected a number"),
        ("steps=3", "unknown key 'steps'; keys of experiment=detaching: "),
    ],
)
def test_a_wrong_value_is_one_line(override, message, capsys):
    assert main(["experiment=detaching", override]) == 2
    assert capsys.readouterr().err.startswith(f"minigrad-train: {message}")


def test_a_detach_that_does_not_end_the_graph_fails_with_the_numbers_and_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(torch.Tensor, "detach", lambda x: x)
    assert main(["experiment=detaching", "run_dir=here", "device=cpu"]) == 1
    assert capsys.readouterr().err == "minigrad-train: the gradient of detached is 12, expected 4 within 5e-06\n"
    assert summary("here")["status"] == "failed"


def test_a_change_in_place_that_is_not_noticed_fails(monkeypatch, capsys):
    monkeypatch.setattr(torch.Tensor, "detach", lambda x: x.data)  # the same memory with a version counter of its own
    assert main(["experiment=detaching", "run_dir=here", "device=cpu"]) == 1
    message = 'minigrad-train: autograd says "modified by an inplace operation" (it said: ""): this does not hold\n'
    assert capsys.readouterr().err == message
