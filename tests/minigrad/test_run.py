import errno
import json
import os
import random
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import numpy
import pytest
import torch
import yaml

import minigrad.files
from minigrad.config import RunConfig
from minigrad.errors import RunFailed, UserError
from minigrad.run import Run, resolve_device
from minigrad_kernels import operators


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def config(**changes) -> RunConfig:
    return RunConfig(
        **{
            "experiment": "exactness",
            "seed": 3,
            "device": "cpu",
            "threads": 1,
            "deterministic": False,
            "run_dir": None,
            **changes,
        }
    )


def fail(run: Run, error: BaseException) -> None:
    run.steps = 5
    raise error


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
        "deterministic": False,
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
        "ranks": 1,
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
    with pytest.raises(type(error)), run:
        fail(run, error)
    assert summary(run)["status"] == status
    assert summary(run)["steps"] == 5
    assert summary(run)["error"] == f"{type(error).__name__}: {error}"


def test_a_mistake_of_the_user_leaves_no_directory():
    with pytest.raises(UserError), Run(config()) as run:
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

    monkeypatch.setattr(minigrad.files, "datetime", Stopped)
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


def test_a_gpu_that_is_too_old_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    monkeypatch.setattr(operators, "path_for", lambda device: "triton")
    monkeypatch.setattr(operators, "_index", lambda device: 98)
    with pytest.raises(UserError, match=r"^device=cpu: Tesla T4 has compute capability 7\.5, and Triton needs 8\.0"):
        resolve_device("cpu")


@pytest.mark.parametrize("before", [(False, False), (True, True), (True, False)])
def test_determinism_holds_for_the_run_alone(before, monkeypatch):
    enabled, warns = before
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        for error in (None, RunFailed("bad")):
            with pytest.raises(RunFailed) if error else nullcontext(), Run(config(deterministic=True)):
                assert torch.are_deterministic_algorithms_enabled()
                assert not torch.is_deterministic_algorithms_warn_only_enabled()
                assert not torch.utils.deterministic.fill_uninitialized_memory
                assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
                if error:
                    raise error
            assert torch.are_deterministic_algorithms_enabled() == enabled
            assert torch.is_deterministic_algorithms_warn_only_enabled() == warns
            assert torch.utils.deterministic.fill_uninitialized_memory
            assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_workspace_that_is_set_already_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with Run(config(deterministic=True)):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_run_holds_its_directory_for_itself():
    with Run(config(run_dir="mine")):
        with pytest.raises(
            UserError, match=r"^the run in mine is going on in another process; wait for it or stop it$"
        ):
            Run(config(run_dir="mine"), resumed=True).__enter__()
        assert Path("mine").is_dir()
    with Run(config(run_dir="mine"), resumed=True) as run:
        run.goes_on(0, 0)


def test_a_run_that_goes_on_keeps_its_time_and_its_record():
    with Run(config(run_dir="mine")) as first:
        first.steps = 4
    with Run(config(run_dir="mine"), resumed=True) as second:
        second.goes_on(4, 100)
        second.steps = 6
    assert summary(second)["seconds"] >= 100
    assert summary(second)["steps"] == 6
    assert len(list(Path("mine").glob("events.*"))) == 2


def test_a_mistake_leaves_the_directory_of_a_run_that_went_on():
    with Run(config(run_dir="mine")) as first:
        first.steps = 4
    with pytest.raises(UserError), Run(config(run_dir="mine"), resumed=True):
        raise UserError("steps=3")
    assert summary(first)["status"] == "finished"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_disk_that_takes_no_more_fails_the_run_wherever_it_is_found(number):
    error = OSError(number, os.strerror(number), "some/file")
    with pytest.raises(RunFailed) as caught, Run(config()) as run:
        raise error
    assert str(caught.value) == f"some/file cannot be written: {os.strerror(number)}"
    assert summary(run)["status"] == "failed"


def test_another_error_of_the_system_is_no_full_disk():
    with pytest.raises(FileNotFoundError), Run(config()):
        Path("nothing").read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_one_error():
    with Run(config(run_dir="mine")):
        pass
    before = Path("mine/summary.json").read_bytes()
    Path("mine").chmod(0o555)
    try:
        with pytest.raises(RunFailed, match=r"cannot be written: Permission denied$"):
            Run(config(run_dir="mine"), resumed=True).__enter__()
    finally:
        Path("mine").chmod(0o755)
    assert Path("mine/summary.json").read_bytes() == before
