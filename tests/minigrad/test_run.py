import json
import random
from datetime import datetime

import numpy
import pytest
import torch
import yaml

import minigrad.run
from minigrad.config import RunConfig
from minigrad.errors import RunFailed, UserError
from minigrad.run import Run, resolve_device


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def config(**changes) -> RunConfig:
    return RunConfig(
        **{"experiment": "exactness", "seed": 3, "device": "cpu", "threads": 1, "run_dir": None, **changes}
    )


def summary(run: Run) -> dict:
    return json.loads((run.directory / "summary.json").read_text())


def test_a_finished_run_leaves_its_config_and_its_summary():
    with Run(config()) as run:
        run.scalars(0, {"train/loss": 2.0})
        run.scalars(1, {"train/loss": 1.0, "test/accuracy": 0.5})
        run.steps = 2
    assert run.directory.parts[:2] == ("runs", "exactness")
    assert yaml.safe_load((run.directory / "config.yaml").read_text()) == {
        "experiment": "exactness",
        "seed": 3,
        "device": "cpu",
        "threads": 1,
        "run_dir": None,
    }
    found = summary(run)
    assert found.pop("seconds") > 0
    assert found.pop("versions")["torch"] == torch.__version__
    assert found == {
        "status": "finished",
        "experiment": "exactness",
        "steps": 2,
        "device": "cpu",
        "path": "plain",
        "seed": 3,
        "train/loss": 1.0,
        "test/accuracy": 0.5,
    }
    assert not list(run.directory.glob("*.tmp"))


@pytest.mark.parametrize(
    ("error", "status"),
    [(RunFailed("off by 2"), "failed"), (ZeroDivisionError("bug"), "failed"), (KeyboardInterrupt(), "interrupted")],
)
def test_a_run_that_raises_says_so_in_its_summary(error, status):
    run = Run(config())
    run.steps = 5
    with pytest.raises(type(error)), run:
        raise error
    assert summary(run)["status"] == status
    assert summary(run)["steps"] == 5
    assert summary(run)["error"] == f"{type(error).__name__}: {error}"


def test_a_mistake_of_the_user_leaves_no_directory():
    run = Run(config())
    with pytest.raises(UserError), run:
        raise UserError("seed=x")
    assert not run.directory.exists()


def test_a_metric_that_is_not_finite_is_null_in_the_summary():
    with Run(config()) as run:
        run.scalars(0, {"train/loss": float("nan")})
    assert summary(run)["train/loss"] is None


def test_two_runs_of_the_same_second_have_two_directories(monkeypatch):
    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(minigrad.run, "datetime", Stopped)
    names = []
    for _ in range(3):
        with Run(config()) as run:
            names.append(run.directory.name)
    assert names == ["2026-01-02_03-04-05", "2026-01-02_03-04-05_2", "2026-01-02_03-04-05_3"]


def test_a_chosen_directory_is_made_with_its_parents(tmp_path):
    with Run(config(run_dir=str(tmp_path / "a" / "b"))) as run:
        assert run.directory == tmp_path / "a" / "b"
    assert summary(run)["status"] == "finished"


def test_a_directory_that_exists_is_never_taken(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    with pytest.raises(UserError, match=r"^run_dir=mine exists; name a new directory"), Run(config(run_dir="mine")):
        pass
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^run_dir=file/run cannot be made: Not a directory$"):
        Run(config(run_dir="file/run")).__enter__()
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=r"cannot be made"):
        Run(config()).__enter__()


def test_every_generator_is_seeded():
    drawn = []
    for _ in range(2):
        with Run(config()):
            drawn.append((random.random(), numpy.random.random(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_the_number_of_threads_holds_for_the_run_alone():
    before = torch.get_num_threads()
    with Run(config(threads=3)):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
    with Run(config(threads=None)):
        assert torch.get_num_threads() == before


def test_auto_is_a_device_that_is_there():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "device=gpu: expected auto, cpu, cuda, cuda:1 or another device of PyTorch"),
        ("meta", "device=meta: PyTorch finds no such device here; use device=cpu or device=auto"),
        ("cuda:99", "device=cuda:99: PyTorch finds no such device here; use device=cpu or device=auto"),
    ],
)
def test_a_device_that_is_not_there_is_a_clear_error(name, message):
    with pytest.raises(UserError) as caught:
        resolve_device(name)
    assert str(caught.value) == message
