from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minigrad import catalog
from minigrad.train import main
from runs import run


def test_it_shows_and_verifies_the_chapter_s_example(capsys):
    values = run("here", "experiment=computational_graph", "device=cpu")
    assert values["computational_graph/d"] == 9
    assert [values[f"computational_graph/dd_d{name}"] for name in "abce"] == [3, 3, 3, 3]
    out = capsys.readouterr().out
    assert "MulBackward0        AddBackward0, AccumulateGrad\n" in out
    assert "AccumulateGrad  c   none: here the gradient accumulates\n" in out
    assert Path("here", "figures", "computational_graph.png").stat().st_size > 20_000
    assert "<svg" in Path("here", "figures", "graph.svg").read_text()


def test_tensorboard_has_the_graph():
    run("here", "experiment=computational_graph", "device=cpu")
    nodes = {node.name: list(node.input) for node in EventAccumulator("here").Reload().Graph().node}
    assert nodes == {"mul": ["add", "c"], "add": ["a", "b"], "a": [], "b": [], "c": []}


def test_it_takes_other_values():
    values = run("here", "experiment=computational_graph", "a=0.5", "b=-4", "c=2", "device=cpu")
    assert [values[f"computational_graph/dd_d{name}"] for name in "abce"] == [2, 2, -3.5, 2]


def test_a_value_that_is_not_finite_is_one_line(capsys):
    assert main(["experiment=computational_graph", "c=nan"]) == 2
    assert capsys.readouterr().err.startswith("minigrad-train: c=NaN: expected a number from -1e18 to 1e18, so that")


def test_a_walk_that_goes_astray_fails(monkeypatch, capsys):
    experiment = catalog.load_experiment("computational_graph")
    walk = experiment.walk
    monkeypatch.setattr(experiment, "walk", lambda node, leaves: walk(node.next_functions[0][0], leaves))
    assert main(["experiment=computational_graph", "run_dir=here", "device=cpu"]) == 1
    assert "the walk passes the product, the sum and the three leaves: this does not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("operator", "planted", "message"),
    [
        ("__mul__", lambda x, y: torch.mul(x, y) + x, "the gradient of a is 4, expected 3"),
        ("__mul__", lambda x, y: torch.mul(x, y) + 0, "the graph is a product of a sum and a leaf: this does not hold"),
        ("__add__", lambda x, y: torch.add(x.double(), y).float(), "the graph is a product of a sum and a leaf"),
    ],
)
def test_another_computation_fails_with_exit_code_1(operator, planted, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.Tensor, operator, planted)
    assert main(["experiment=computational_graph", "run_dir=here", "device=cpu"]) == 1
    assert capsys.readouterr().err.startswith(f"minigrad-train: {message}")
