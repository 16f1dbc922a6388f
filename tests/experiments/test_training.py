import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minigrad.train import main


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(name: str, *overrides: str) -> dict:
    assert main([f"run_dir={name}", *overrides]) == 0
    return json.loads(Path(name, "summary.json").read_text())


def test_the_defaults_classify_the_digits():
    summary = run("default")
    assert summary["status"] == "finished"
    assert summary["test/accuracy"] >= 0.95


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    keys = ("train/loss", "test/loss", "test/accuracy", "gradient_norm")
    first, second, other = (
        run(name, f"seed={seed}", "steps=60", "device=cpu") for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    )
    assert [first[key] for key in keys] == [second[key] for key in keys]
    assert first["train/loss"] != other["train/loss"]


def test_how_often_it_is_looked_at_changes_nothing():
    often, seldom = (run(f"every{n}", "steps=30", f"log_every={n}", "device=cpu") for n in (1, 30))
    assert often["train/loss"] == seldom["train/loss"]
    assert often["test/loss"] == seldom["test/loss"]


def test_every_step_is_in_tensorboard_and_every_look_at_the_test_data():
    summary = run("here", "steps=25", "log_every=10", "learning_rate=0.25")
    events = EventAccumulator("here", {"scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss",
        "test/loss",
        "test/accuracy",
        "learning_rate",
        "gradient_norm",
    }
    for tag in ("train/loss", "gradient_norm", "learning_rate"):
        assert [event.step for event in events.Scalars(tag)] == list(range(25))
    for tag in ("test/loss", "test/accuracy"):
        assert [event.step for event in events.Scalars(tag)] == [0, 10, 20, 25]
        assert events.Scalars(tag)[-1].value == pytest.approx(summary[tag])
    assert {event.value for event in events.Scalars("learning_rate")} == {0.25}


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_every_activation_learns(activation):
    summary = run(activation, f"activation={activation}", "epochs=10")
    assert summary["test/accuracy"] > (0.5 if activation == "sigmoid" else 0.9)
