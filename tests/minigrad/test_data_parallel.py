"""Two ranks make the run that one process makes, to the last bits of float64."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from minigrad.train import main
from ranked import TORCHRUN, ended, free_port, on_ranks, wait_for
from runs import checkpoints, curves, last_checkpoint, resume, steps, summary

pytestmark = pytest.mark.usefixtures("pictures_unseen")
RELATIVE = 1e-12
UNWATCHED = ["precision=float64", "judge_every=10", "checkpoint_every=10", "objective.hidden=[16,16]", "monitor=none"]
SMALL = [*UNWATCHED[:-1], "monitor.window=10"]
ALIKE = ["objective=wine", "activation=relu", "batch_size=7", "steps=30", "rule=adam", "learning_rate=0.01"]
RECIPES = {
    "parts_of_unequal_size_accumulated_and_clipped": [
        *(*SMALL, "objective=diabetes", "batch_size=5", "steps=30", "accumulate=3", "clip_norm=0.3", "rule=momentum"),
    ],
    "units_that_die_and_surveys": [
        *(*SMALL, "objective=digits", "activation=relu", "batch_size=7", "steps=30", "learning_rate=0.5"),
        *("histogram_every=10", "noise_every=15", "hessian_every=15"),
    ],
    "all_of_an_odd_number_until_the_loss_is_low": [
        *(*UNWATCHED, "objective=wine", "batch_size=117", "steps=200", "rule=nesterov", "target_loss=0.2"),
    ],
    "stopped_by_a_verdict": [
        *(*SMALL, "objective=wine", "activation=sigmoid", "batch_size=9", "steps=60", "on_verdict=stop"),
        "objective.hidden=[8,8,8,8,8,8,8,8,8,8]",
    ],
    "stopped_by_what_is_not_finite": [
        *(*UNWATCHED, "objective=diabetes", "batch_size=9", "steps=60", "learning_rate=1e5"),
    ],
    "a_function_of_samples": ["objective=quadratic_deep", "batch_size=33", "steps=40", "precision=float64"],
    "resumed_on_two": [*SMALL, *ALIKE],
    "resumed_on_one": [*SMALL, *ALIKE],
}
FAIL = {"stopped_by_a_verdict", "stopped_by_what_is_not_finite"}


def test_two_ranks_make_the_runs_of_one_process(tmp_path, monkeypatch, subtests):
    monkeypatch.chdir(tmp_path)
    for name, recipe in RECIPES.items():
        assert main([*recipe, f"run_dir=one/{name}"]) == (1 if name in FAIL else 0)
    assert main([*RECIPES["resumed_on_two"], "steps=15", "run_dir=two/resumed_on_two"]) == 0
    commands = {name: [*recipe, f"run_dir=two/{name}"] for name, recipe in RECIPES.items()}
    commands["resumed_on_two"] = ["resume=two/resumed_on_two", "steps=30"]
    commands["resumed_on_one"].append("steps=15")
    assert on_ranks(2, *commands.values()) == [[1, 1] if name in FAIL else [0, 0] for name in commands]
    resume("two/resumed_on_one", "steps=30")
    for name in RECIPES:
        with subtests.test(name):
            assert_close(*(last_checkpoint(f"{ranks}/{name}")["trainer"] for ranks in ("two", "one")))
            assert_same_summary(*(summary(f"{ranks}/{name}") for ranks in ("two", "one")))
            if not name.startswith("resumed"):
                assert_same_curves(*(curves(f"{ranks}/{name}") for ranks in ("two", "one")))
                files = [file.name for file in Path("two", name).glob("events.*")]
                assert len(files) == 1  # the first rank alone writes
    assert sorted(path.name for path in Path("two").iterdir()) == sorted(RECIPES)
    assert 0 < curves("two/units_that_die_and_surveys")["flow/network.0/dead"][-1][1] < 1


def assert_close(value, expected):
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for key in expected:
            assert_close(value[key], expected[key])
    elif isinstance(expected, list):
        for inner, inner_expected in zip(value, expected, strict=True):
            assert_close(inner, inner_expected)
    elif isinstance(expected, torch.Tensor):
        assert torch.linalg.vector_norm(value - expected) <= RELATIVE * torch.linalg.vector_norm(expected)
    else:
        assert value == expected


def assert_same_summary(found, expected):
    assert found.pop("ranks") in (1, 2)
    assert expected.pop("ranks") == 1
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if key in ("seconds", "steps_per_second"):
            continue
        if isinstance(value, float) and "cosine" in key:  # a sum of products that nearly cancel
            assert found[key] == pytest.approx(value, abs=RELATIVE), key
        elif isinstance(value, float):
            assert found[key] == pytest.approx(value, rel=RELATIVE), key
        else:
            assert found[key] == value, key


def assert_same_curves(found, expected):
    assert found.keys() == expected.keys()
    for tag, points in expected.items():
        assert steps(found[tag]) == steps(points), tag
        values = [value for _, value in points]
        assert [value for _, value in found[tag]] == pytest.approx(values, rel=1e-6, abs=1e-12, nan_ok=True), tag


def test_ranks_go_on_from_the_last_checkpoint_when_torchrun_restarts_them_after_one_was_killed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*UNWATCHED, "objective=wine", "batch_size=9", "run_dir=it"]
    with started("--max-restarts=1", *command, "steps=100000") as torchrun:
        wait_for(lambda: Path("it", "checkpoints").exists() and max(checkpoints("it"), default=0) > 0)
        os.kill(workers_of(torchrun)[1], signal.SIGKILL)
        wait_for(lambda: "goes on at step" in Path("out").read_text())
        went_on = int(Path("out").read_text().partition("goes on at step ")[2].split()[0])
        assert went_on > 0
        torchrun.send_signal(signal.SIGTERM)  # which ends this long run, cleanly
        torchrun.wait(60)
    result = summary("it")
    assert result["status"] == "interrupted"
    assert result["steps"] == checkpoints("it")[-1] > went_on
    assert main([*command[:-1], f"steps={result['steps']}", "run_dir=one"]) == 0
    assert_close(last_checkpoint("it")["trainer"], last_checkpoint("one")["trainer"])


@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_killed_or_hangs_ends_the_other_within_the_timeout(fate, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*UNWATCHED, "objective=wine", "batch_size=9", "steps=100000", "run_dir=it", "rank_timeout=10"]
    rendezvous = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    first, second = (
        subprocess.Popen(
            [sys.executable, "-m", "minigrad.train", *command],
            env={**os.environ, **rendezvous, "RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    )
    with ended(first), ended(second):
        wait_for(lambda: Path("it", "checkpoints").exists())
        second.send_signal(fate)
        start = time.monotonic()
        _, words = first.communicate(timeout=60)
    assert time.monotonic() - start < 40
    assert first.returncode == 1
    assert "another rank has ended, has not answered for 10 seconds, or does something else" in words
    assert summary("it")["status"] == "failed"


@pytest.mark.gpu
def test_ranks_on_gpus_make_the_run_of_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = [*SMALL, "objective=wine", "activation=relu", "batch_size=7", "steps=30", "accumulate=2", "device=cuda"]
    assert main([*recipe, "run_dir=one"]) == 0
    size = min(2, torch.cuda.device_count())  # NCCL gives each a GPU of its own
    assert on_ranks(size, [*recipe, "run_dir=many"]) == [[0] * size]
    assert_close(last_checkpoint("many")["trainer"], last_checkpoint("one")["trainer"])
    assert summary("many")["device"] == "cuda:0"


@contextmanager
def started(option, *arguments):
    """Start torchrun with the command line's program; its output goes to files."""
    with open("out", "w") as out, open("err", "w") as err:
        process = subprocess.Popen(
            [*TORCHRUN, "--nproc-per-node=2", option, "-m", "minigrad.train", *arguments], stdout=out, stderr=err
        )
        with ended(process):
            yield process


def workers_of(torchrun):
    """Return the processes of the ranks, in their order."""
    children = subprocess.run(
        ["pgrep", "-P", str(torchrun.pid), "-f", "minigrad.train"], capture_output=True, text=True
    )
    return sorted(map(int, children.stdout.split()))
