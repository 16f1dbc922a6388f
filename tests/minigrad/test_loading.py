import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import minigrad
from minigrad.checkpoints import Checkpoints
from minigrad.errors import UserError
from minigrad.loading import load, saved_parameters
from minigrad.models import Point, Predictor, describe


def content(trained: nn.Module, **changes: Any) -> dict[str, Any]:
    parameters = {name: tensor.detach() for name, tensor in trained.named_parameters()}
    return {
        "seconds": 1.0,
        "metrics": {},
        "model": describe(trained),
        "generators": {},
        "trainer": {"steps": 0, "parameters": parameters, "rule": {}},
        "stopping": {},
        "path": {},
        **changes,
    }


def point(x: float) -> Point:
    model = Point([2]).double()
    with torch.no_grad():
        model.x.fill_(x)
    return model


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """A run of 20 steps; the best was after 10."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(10, content(point(10.0)))
    checkpoints.mark_best(10, 0.5)
    checkpoints.save(20, content(point(20.0)))
    return tmp_path


def test_load_is_a_public_name():
    assert minigrad.load is load


def test_the_last_and_the_best_are_loaded(run_dir):
    assert load(run_dir).x.tolist() == [20, 20]
    assert load(str(run_dir), checkpoint="last").x.tolist() == [20, 20]
    assert load(run_dir, checkpoint="best").x.tolist() == [10, 10]
    assert load(run_dir).x.dtype == torch.float64


def test_a_network_comes_ready_to_predict(tmp_path):
    model = Predictor([3, 4, 2], "relu", ["no", "yes"])
    Checkpoints(tmp_path / "checkpoints", keep=1).save(1, content(model))
    loaded = load(tmp_path)
    assert not loaded.training
    assert loaded.classes == ["no", "yes"]
    assert torch.equal(loaded(torch.ones(5, 3)), model(torch.ones(5, 3)))


def test_the_home_directory_may_be_abbreviated(run_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(run_dir.parent))
    monkeypatch.setenv("USERPROFILE", str(run_dir.parent))
    assert load(os.path.join("~", run_dir.name)).x.tolist() == [20, 20]


def test_loading_writes_nothing(run_dir):
    before = {file: file.read_bytes() for file in run_dir.rglob("*") if file.is_file()}
    load(run_dir)
    load(run_dir, checkpoint="best")
    saved_parameters(run_dir)
    assert {file: file.read_bytes() for file in run_dir.rglob("*") if file.is_file()} == before


def test_a_damaged_last_one_gives_way_to_the_one_before_with_a_line(run_dir, capsys):
    (run_dir / "checkpoints" / "000000020.pt").write_bytes(b"damaged")
    assert load(run_dir).x.tolist() == [10, 10]
    assert capsys.readouterr().out.endswith("; the one before it is used\n")
    assert saved_parameters(run_dir)["x"].tolist() == [10, 10]


def test_saved_parameters_are_those_of_the_last(run_dir):
    saved = saved_parameters(run_dir)
    assert list(saved) == ["x"]
    assert saved["x"].tolist() == [20, 20]


@pytest.mark.parametrize("of", [load, saved_parameters])
def test_a_directory_without_checkpoints_is_an_error(of, tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError) as caught:
            of(directory)
        assert str(caught.value) == f"{directory} holds no checkpoint: no run has saved one there"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_never_judged_has_no_best(tmp_path):
    Checkpoints(tmp_path / "checkpoints", keep=1).save(1, content(point(1.0)))
    with pytest.raises(UserError, match="no checkpoint has been judged yet"):
        load(tmp_path, checkpoint="best")


def test_another_checkpoint_is_refused(run_dir):
    with pytest.raises(ValueError, match=r"^`checkpoint` is 'first': pass .last. or .best.$"):
        load(run_dir, checkpoint="first")


PARAMETERS = {"x": torch.zeros(2)}
BAD = {
    "an unknown model": {"name": "Linear", "arguments": {"shape": [2]}, "buffers": {}},
    "a model of another module": {"name": "os.system", "arguments": {"command": "touch trap"}, "buffers": {}},
    "a builtin": {"name": "__import__", "arguments": {"name": "trap"}, "buffers": {}},
    "a name that is a list": {"name": ["Point"], "arguments": {"shape": [2]}, "buffers": {}},
    "no name": {"arguments": {"shape": [2]}, "buffers": {}},
    "no arguments": {"name": "Point", "buffers": {}},
    "no buffers": {"name": "Point", "arguments": {"shape": [2]}},
    "unknown arguments": {"name": "Point", "arguments": {"shape": [2], "hook": "touch trap"}, "buffers": {}},
    "arguments that are a text": {"name": "Point", "arguments": "touch trap", "buffers": {}},
    "a shape that is a text": {"name": "Point", "arguments": {"shape": "touch trap"}, "buffers": {}},
    "a negative shape": {"name": "Point", "arguments": {"shape": [-1]}, "buffers": {}},
    "a shape beyond all memory": {"name": "Point", "arguments": {"shape": [1 << 40, 1 << 20]}, "buffers": {}},
    "a shape beyond all integers": {"name": "Point", "arguments": {"shape": [10**30]}, "buffers": {}},
    "another shape": {"name": "Point", "arguments": {"shape": [3]}, "buffers": {}},
    "an unknown activation": {
        "name": "Predictor",
        "arguments": {"sizes": [1, 1], "activation": "__import__", "classes": None},
        "buffers": {},
    },
    "no sizes": {
        "name": "Predictor",
        "arguments": {"sizes": [], "activation": "tanh", "classes": None},
        "buffers": {},
    },
    "buffers that are a list": {"name": "Point", "arguments": {"shape": [2]}, "buffers": [1]},
    "buffers that are none": {"name": "Point", "arguments": {"shape": [2]}, "buffers": {"more": "text"}},
}


@pytest.mark.parametrize("name", BAD)
def test_a_description_of_no_model_is_an_error_and_runs_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Checkpoints(tmp_path / "checkpoints", keep=1).save(1, content(point(1.0), model=BAD[name]))
    with pytest.raises(UserError, match=r"^no model comes of the checkpoint in "):
        load(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize(
    "trainer",
    [
        {},
        {"parameters": None},
        {"parameters": {}},
        {"parameters": [torch.zeros(2)]},
        {"parameters": {"x": 5}},
        {"parameters": {"x": [torch.zeros(2)]}},
        {"parameters": {"x": torch.zeros(3)}},
        {"parameters": {"x": torch.zeros(2, dtype=torch.int64)}},
        {"parameters": {"y": torch.zeros(2)}},
    ],
)
def test_parameters_of_no_model_are_an_error(trainer, tmp_path):
    Checkpoints(tmp_path / "checkpoints", keep=1).save(1, content(point(1.0), trainer=trainer))
    with pytest.raises(UserError, match=r"^no model comes of the checkpoint in "):
        load(tmp_path)
