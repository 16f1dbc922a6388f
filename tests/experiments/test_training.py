import hashlib
import json
import math
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.graph_pb2 import GraphDef

import minigrad
from minigrad import catalog
from minigrad.train import main
from runs import (
    bits,
    checkpoints,
    curves,
    last_checkpoint,
    module,
    outcome,
    resume,
    run,
    signalled_after,
    steps,
    summary,
)

pytestmark = pytest.mark.usefixtures("pictures_unseen")
TINY = ["objective=quadratic", "objective.dimensions=3"]  # three variables: no path is drawn
DIGITS = ["objective=digits", "objective.hidden=[8]"]


def test_the_defaults_classify_the_digits():
    summary = run("default")
    assert summary["status"] == "finished"
    assert summary["test/accuracy"] >= 0.95


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_every_activation_learns(activation):
    summary = run(activation, f"activation={activation}", "epochs=10", "objective.hidden=[32]")
    assert summary["test/accuracy"] > (0.5 if activation == "sigmoid" else 0.9)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    first, second, other = (
        run(name, *DIGITS, f"seed={seed}", "steps=60") for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    )
    assert outcome("a") == outcome("b")
    assert first["train/loss"] == second["train/loss"] != other["train/loss"]


# What is logged, judged, saved and shown.


def test_every_step_and_every_judgement_is_in_tensorboard():
    summary = run("here", *DIGITS, "steps=25", "judge_every=10", "learning_rate=0.25", "monitor=none")
    shown = curves("here")
    assert set(shown) == {"train/loss", "test/loss", "test/accuracy", "learning_rate", "gradient_norm"}
    for tag in ("train/loss", "gradient_norm", "learning_rate"):
        assert steps(shown[tag]) == list(range(25))
    for tag in ("test/loss", "test/accuracy"):
        assert steps(shown[tag]) == [0, 10, 20, 25]
    for tag, curve in shown.items():
        assert curve[-1][1] == pytest.approx(summary[tag])
    assert {rate for _, rate in shown["learning_rate"]} == {0.25}


def test_a_schedule_and_a_warm_up_are_in_the_curve_of_the_learning_rate():
    run("here", *TINY, "steps=10", "warmup_steps=2", "schedule=exponential", "schedule.factor=0.5", "learning_rate=0.1")
    expected = [0.05, 0.1, *(0.1 * 0.5**n for n in range(8))]
    assert [rate for _, rate in curves("here")["learning_rate"]] == pytest.approx(expected)


def test_log_every_thins_the_curves_and_changes_nothing_else():
    run("every1", *TINY, "steps=30", "judge_every=7")
    run("every8", *TINY, "steps=30", "judge_every=7", "log_every=8")
    whole, thinned = outcome("every1"), outcome("every8")
    assert thinned["checkpoint"] == whole["checkpoint"]
    assert thinned["summary"] == whole["summary"]
    assert steps(curves("every8")["train/loss"]) == [0, 8, 16, 24]
    assert steps(curves("every8")["test/loss"]) == [0, 7, 14, 21, 28, 30]
    assert set(curves("every8")["train/loss"]) < set(curves("every1")["train/loss"])


def test_how_often_it_is_judged_and_saved_changes_nothing():
    run("often", *DIGITS, "steps=30", "judge_every=1", "checkpoint_every=2")
    run("seldom", *DIGITS, "steps=30", "judge_every=30", "checkpoint_every=100")
    assert bits(last_checkpoint("often")["trainer"]) == bits(last_checkpoint("seldom")["trainer"])


def test_the_last_checkpoints_and_the_best_of_all_are_kept():
    # Rates above the stable ones: the loss rises at every step, so the first checkpoint is the best.
    run("here", *TINY, "steps=60", "checkpoint_every=10", "keep=2", "learning_rate=0.21")
    assert checkpoints("here") == [0, 50, 60]
    assert json.loads(Path("here/checkpoints/best.json").read_text())["steps"] == 0


def test_the_best_checkpoint_is_the_one_of_the_lowest_loss_among_those_that_were_saved():
    name = module("def f(x):\n    return (x[0] - 25) ** 2\n")
    # With a gradient of length 1 and that momentum the point passes by it.
    run(
        "here",
        "objective=python",
        f"function={name}:f",
        "objective.start=[0]",
        "rule=momentum",
        "rule.momentum=0.999",
        "learning_rate=0.1",
        "clip_norm=1",
        "steps=60",
        "judge_every=1",
        "checkpoint_every=10",
    )
    judged = dict(curves("here")["test/loss"])
    lowest = min(range(0, 61, 10), key=judged.__getitem__)
    assert min(judged, key=judged.__getitem__) % 10
    best = json.loads(Path("here/checkpoints/best.json").read_text())
    assert best == {"steps": lowest, "test/loss": pytest.approx(judged[lowest])}


@pytest.mark.parametrize(
    ("objective", "drawn"),
    [("parabola", True), ("booth", True), ("quadratic", True), (" ".join(TINY), False), ("wine", False)],
)
def test_the_path_is_drawn_over_functions_of_one_and_two_variables(objective, drawn):
    overrides = objective.removeprefix("objective=").split()
    run("here", f"objective={overrides[0]}", *overrides[1:], "steps=5")
    assert Path("here/figures/path.png").is_file() == drawn


def graphs(name):
    """Return all graphs that a run has recorded."""
    events = [event for file in Path(name).glob("events.*") for event in EventFileLoader(str(file)).Load()]
    return [GraphDef.FromString(event.graph_def) for event in events if event.graph_def]


def test_the_graph_of_the_loss_is_recorded_once():
    with signalled_after(7):
        main(["run_dir=here", *DIGITS, "steps=20"])
    resume("here")
    (graph,) = graphs("here")
    nodes = {node.name: node.op for node in graph.node}
    assert {"network.0.weight", "network.0.bias", "nll_loss"} <= nodes.keys()
    assert "minigrad.bias_activation(tanh)" in nodes.values()
    assert "network.0.weight" in Path("here", "figures", "graph.svg").read_text()


def test_the_graph_is_not_recorded_again_where_a_run_begins_again():
    run("here", *DIGITS, "steps=5")
    shutil.rmtree("here/checkpoints")
    resume("here")
    assert len(graphs("here")) == 1


RANDOM = "import torch\ndef f(x):\n    return ((x + torch.randn(2)) ** 2).sum()\n"


def test_to_draw_the_graph_changes_no_random_number(monkeypatch):
    recipe = ["objective=python", f"function={module(RANDOM)}:f", "objective.start=[1,2]", "steps=5"]
    drawn = run("drawn", *recipe)
    monkeypatch.setattr(catalog.load_experiment("training").Training, "_draw_graph", lambda self: None)
    assert run("plain", *recipe)["train/loss"] == drawn["train/loss"]
    assert (len(graphs("drawn")), len(graphs("plain"))) == (1, 0)


def test_a_very_large_graph_is_not_drawn_and_the_run_says_so(monkeypatch, capsys):
    monkeypatch.setattr(catalog.load_experiment("training"), "MOST_DRAWN", 10)
    run("here", *DIGITS, "steps=1")
    assert "the graph of the loss has 13 nodes, too many to be drawn" in capsys.readouterr().out
    assert graphs("here") == []


def test_the_graph_is_that_of_the_precision_that_is_trained_in():
    run("here", *DIGITS, "precision=bfloat16", "steps=1")
    (graph,) = graphs("here")
    assert {node.attr["dtype"].s for node in graph.node if node.op == "mm"} == {b"torch.bfloat16"}


def test_what_the_objective_notes_is_printed(capsys):
    Path("data.csv").write_text("a,b,y\n" + "".join(f"{i},7,{3 * i + 0.5}\n" for i in range(30)))
    run("here", "objective=table", "objective.file=data.csv", "objective.hidden=[4]", "batch_size=50", "steps=2")
    assert capsys.readouterr().out.splitlines()[1:4] == [
        "data.csv: 30 rows, 2 columns; target 'y', 0.5 to 87.5: regression",
        "data.csv: the same in every row, so nothing is learned from it: 'b'",
        "batch_size=50: there are 20 training samples; every batch is all of them",
    ]


def test_a_batch_larger_than_the_data_is_all_of_them():
    large = run("large", "objective=wine", "objective.hidden=[4]", "batch_size=9999", "epochs=3")
    exact = run("exact", "objective=wine", "objective.hidden=[4]", "batch_size=118", "epochs=3")
    assert large["steps"] == exact["steps"] == 3
    assert bits(last_checkpoint("large")["trainer"]) == bits(last_checkpoint("exact")["trainer"])


def test_the_summary_tells_the_end_of_every_curve():
    found = run("here", *DIGITS, "steps=12", "monitor=none")
    versions = found.pop("versions")
    assert versions["torch"] == torch.__version__
    assert found.pop("seconds") > 0
    assert found.pop("steps_per_second") > 0
    assert list(found) == [
        *("status", "experiment", "steps", "device", "path", "ranks", "seed"),
        *("test/loss", "test/accuracy", "train/loss", "gradient_norm", "learning_rate"),
    ]
    assert (found["status"], found["experiment"], found["steps"]) == ("finished", "training", 12)


# Reasons to stop before the last step.


def test_a_target_loss_ends_the_run_and_says_so(capsys):
    found = run("here", "objective=parabola", "target_loss=1.2", "judge_every=5")
    assert (found["status"], found["steps"]) == ("finished", 10)
    assert found["test/loss"] <= 1.2
    assert " at step 10: target_loss=1.2 is reached; the run lies in here" in capsys.readouterr().out
    assert checkpoints("here") == [0, 10]


def test_a_target_loss_that_is_reached_at_once_leaves_a_model():
    assert run("here", *DIGITS, "target_loss=100")["steps"] == 0
    assert minigrad.load("here")(torch.zeros(2, 64)).shape == (2, 10)


def test_patience_ends_the_run_and_says_so(capsys):
    # The loss rises at every step.
    found = run("here", *TINY, "learning_rate=0.21", "patience=3", "judge_every=4")
    assert (found["status"], found["steps"]) == ("finished", 12)
    assert " at step 12: no lower test/loss than 7.081 in 3 judgements; the run" in capsys.readouterr().out


# Interrupted and resumed, a run is the one that was not.

RECIPES = {
    "gradient descent of a function": ["objective=parabola", "schedule=exponential"],
    "Adam on a cosine": [*TINY, "rule=adam", "schedule=cosine", "warmup_steps=25"],
    "Nesterov in steps, clipped": [*TINY, "rule=nesterov", "schedule=step", "schedule.every=15", "clip_norm=0.5"],
    "momentum on one cycle, accumulated": [*DIGITS, "rule=momentum", "schedule=one_cycle", "accumulate=3"],
    "RMSprop in half precision": ["objective=wine", "rule=rmsprop", "precision=bfloat16", "learning_rate=0.01"],
    "AdamW in double precision": ["objective=diabetes", "rule=adamw", "precision=float64", "warmup_steps=10"],
}
SPACED = ["steps=60", "judge_every=7", "checkpoint_every=20"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_is_interrupted_anywhere_and_resumed_is_the_one_never_interrupted(recipe):
    run("whole", *RECIPES[recipe], *SPACED)
    start = ["run_dir=cut", *RECIPES[recipe], *SPACED]
    for step, number in ((1, signal.SIGINT), (20, signal.SIGTERM), (34, signal.SIGINT), (35, signal.SIGTERM)):
        with signalled_after(step, number):
            assert main(start) == 128 + number
        assert (summary("cut")["status"], summary("cut")["steps"]) == ("interrupted", step)
        assert max(checkpoints("cut")) == step
        start = ["resume=cut"]
    resume("cut")
    assert outcome("cut") == outcome("whole")


@pytest.mark.parametrize("recipe", ["Nesterov in steps, clipped", "momentum on one cycle, accumulated"])
@pytest.mark.parametrize("kept", [0, 20, 40])
def test_a_run_that_lost_its_last_checkpoints_goes_on_from_the_ones_before(recipe, kept):
    run("whole", *RECIPES[recipe], *SPACED)
    with signalled_after(55):
        main(["run_dir=cut", *RECIPES[recipe], *SPACED, "keep=9"])
    for file in Path("cut/checkpoints").glob("*.pt"):
        if int(file.stem) > kept:
            file.unlink()
    resume("cut")
    assert outcome("cut") == outcome("whole")


def test_a_run_without_a_checkpoint_begins_again():
    run("whole", *DIGITS, *SPACED)
    with signalled_after(30):
        main(["run_dir=cut", *DIGITS, *SPACED])
    for file in Path("cut/checkpoints").iterdir():
        file.unlink()
    resume("cut")
    assert outcome("cut") == outcome("whole")


@pytest.mark.parametrize("recipe", [["objective=booth"], [*DIGITS, "rule=momentum"]])
@pytest.mark.parametrize("short", [21, 40])
def test_a_finished_run_with_more_steps_is_a_long_run(recipe, short):
    run("long", *recipe, *SPACED)
    run("short", *recipe, *SPACED, f"steps={short}")
    resume("short", "steps=60")
    assert outcome("short") == outcome("long")


def test_a_finished_run_resumed_as_it_is_stays_as_it_is():
    run("here", *DIGITS, *SPACED)
    before = outcome("here")
    resume("here")
    assert outcome("here") == before


def test_what_stops_a_run_early_is_resumed_too():
    # The loss rises at every step, from the first judgement on.
    recipe = [*TINY, "learning_rate=0.21", "patience=6", "judge_every=4", "checkpoint_every=1000"]
    run("whole", *recipe)
    with signalled_after(14):
        main(["run_dir=cut", *recipe])
    resume("cut")
    assert summary("cut")["steps"] == 24
    assert outcome("cut") == outcome("whole")
    resume("cut", "steps=500")  # what stopped it holds
    assert outcome("cut") == outcome("whole")


def test_random_numbers_in_the_loss_go_on_where_they_were():
    code = """
import random
import numpy, torch

def f(x):
    noise = torch.rand(3) + random.random() + numpy.random.standard_normal()
    return ((x - 3 - 0.1 * noise) ** 2).sum()
"""
    recipe = ["objective=python", f"function={module(code)}:f", "objective.start=[0,0,0]", "learning_rate=0.1"]
    run("whole", *recipe, *SPACED)
    with signalled_after(33):
        main(["run_dir=cut", *recipe, *SPACED])
    resume("cut", *recipe[:2])
    assert outcome("cut") == outcome("whole")
    losses = [loss for _, loss in curves("whole")["train/loss"]]
    assert len(set(losses)) == 60


def test_a_run_that_is_killed_at_any_moment_and_resumed_is_the_one_never_killed():
    # A checkpoint every other step: it is killed while it writes one, or close to it.
    recipe = [*TINY, "rule=adam", "steps=900", "judge_every=50", "checkpoint_every=3", "log_every=10"]
    run("whole", *recipe)
    command = ["run_dir=cut", *recipe]
    for delay in (0.0, 0.1):
        with subprocess.Popen([sys.executable, "-m", "minigrad.train", *command], stdout=subprocess.PIPE) as process:
            while b"step " not in process.stdout.readline():
                assert process.poll() is None
            time.sleep(delay)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        command = ["resume=cut"]
    resume("cut")
    assert outcome("cut") == outcome("whole")


def test_a_second_signal_ends_the_process_at_once():
    code = """
import time

def f(x):
    if f.calls == 3:  # the check at the start, the first judgement, the first step, and now
        print("hangs", flush=True)
        time.sleep(1000)
    f.calls += 1
    return (x**2).sum()

f.calls = 0
"""
    command = [sys.executable, "-m", "minigrad.train", "objective=python", f"function={module(code)}:f"]
    with subprocess.Popen(
        [*command, "objective.start=[1,2,3]", "run_dir=here"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A suite that was itself started in the background ignores the signal, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        while process.stdout.readline() != b"hangs\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1.2)  # the first lets the step end, and comes again as the same for a second
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == -signal.SIGINT
        assert process.stderr.read() == b""


# To start from another run, and to use what came of one.


def test_a_run_starts_from_the_parameters_of_another():
    first = run("first", *DIGITS, "steps=40")
    run("second", *DIGITS, "initial=first", "steps=5", "rule=momentum")
    assert curves("second")["test/loss"][0] == (0, pytest.approx(first["test/loss"]))
    run("whole", *DIGITS, "initial=first", *SPACED)
    with signalled_after(3):
        main(["run_dir=cut", *DIGITS, "initial=first", *SPACED])
    Path("cut/checkpoints/000000000.pt").unlink()
    Path("cut/checkpoints/000000003.pt").unlink()
    resume("cut")  # without a checkpoint of its own it starts from the same again
    assert outcome("cut") == outcome("whole")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            ["objective=digits", "objective.hidden=[9]"],
            "the saved parameters do not fit: network.0.weight is (8, 64), and here (9, 64)",
        ),
        (
            ["objective=parabola"],
            "the saved parameters are network.0.weight, network.0.bias, network.1.weight, network.1.bias, "
            "and here they are x: they do not fit",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_one_line(recipe, message, capsys):
    run("first", *DIGITS, "steps=2")
    capsys.readouterr()
    assert main(["run_dir=second", *recipe, "initial=first"]) == 2
    assert capsys.readouterr().err == f"minigrad-train: {message}\n"
    assert not Path("second").exists()


@pytest.mark.parametrize(
    ("initial", "message"),
    [("nowhere", "nowhere holds no checkpoint: no run has saved one there")],
)
def test_an_initial_run_that_is_not_there_is_one_line(initial, message, capsys):
    assert main([*TINY, f"initial={initial}"]) == 2
    assert capsys.readouterr().err == f"minigrad-train: {message}\n"


def test_the_loaded_model_of_a_classification_predicts_as_it_was_judged():
    found = run("here", *DIGITS, "epochs=3")
    data = load_digits()
    _, inputs, _, targets = train_test_split(
        data.data, data.target, test_size=1 / 3, stratify=data.target, random_state=0
    )
    model = minigrad.load("here")
    logits = model(torch.from_numpy(inputs))
    assert not model.training
    assert model.classes == [str(digit) for digit in range(10)]
    accuracy = (logits.argmax(dim=1) == torch.from_numpy(targets)).float().mean()
    assert accuracy == pytest.approx(found["test/accuracy"])
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets))
    assert loss.item() == pytest.approx(found["test/loss"])


def test_the_loaded_model_of_a_regression_predicts_in_the_units_of_the_data():
    found = run("here", "objective=diabetes", "epochs=5", "precision=float64")
    data = load_diabetes(scaled=False)
    _, inputs, _, targets = train_test_split(data.data, data.target, test_size=1 / 3, random_state=0)
    predicted = minigrad.load("here")(torch.from_numpy(inputs)).detach().numpy()
    r2 = 1 - ((predicted - targets) ** 2).sum() / ((targets - targets.mean()) ** 2).sum()
    assert r2 == pytest.approx(found["test/r2"])


def test_the_loaded_model_of_a_function_is_its_point():
    found = run("here", "objective=booth", "steps=100")
    x = minigrad.load("here").x.detach()
    assert torch.linalg.vector_norm(x - torch.tensor([1.0, 3.0])).item() == pytest.approx(found["distance_to_minimum"])
    best = minigrad.load("here", checkpoint="best").x
    assert torch.equal(best, x)


# To the bit, and not beyond what a number can hold.


def test_a_deterministic_run_gives_the_same_bits_in_another_process():
    recipe = [*DIGITS, "rule=adam", "learning_rate=0.01", "deterministic=true", "steps=200"]
    command = [sys.executable, "-m", "minigrad.train", *recipe, "run_dir=there"]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)
    run("here", *recipe)
    here, there = (
        hashlib.sha256(b"".join(p.numpy().tobytes() for p in last_checkpoint(name)["trainer"]["parameters"].values()))
        for name in ("here", "there")
    )
    assert here.hexdigest() == there.hexdigest()


SPOILT = """
import torch

def f(x):
    f.calls += 1
    return (x**2).sum() * (float("nan") if f.calls in {calls} else 1)

f.calls = 0
"""
# Besides the steps, it is called at the start, to check it and to draw its graph, and to judge at the steps 0, 10, ...
PYTHON = ["objective=python", "objective.start=[1,2,3]", "steps=40", "judge_every=10", "checkpoint_every=10"]


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(capsys):
    code = SPOILT.format(calls=[3 + 2 + 15])  # the step 15
    assert main(["run_dir=here", *PYTHON, f"function={module(code)}:f"]) == 1
    shown = capsys.readouterr()
    assert shown.err == (
        "minigrad-train: step 15: the loss is nan, the norm of the gradient of x nan; "
        "a smaller learning_rate than 0.01 may help\n"
    )
    assert "stopped; the run lies in here" in shown.out
    found = summary("here")
    assert (found["status"], found["steps"]) == ("failed", 15)
    assert math.isfinite(found["train/loss"])
    assert found["error"].startswith("NonFiniteError: step 15: ")
    assert steps(curves("here")["train/loss"]) == list(range(15))
    assert checkpoints("here") == [0, 10]
    assert minigrad.load("here").x.isfinite().all()


def test_a_loss_that_is_not_finite_can_be_skipped(capsys):
    code = SPOILT.format(calls=[3 + 2 + 15, 3 + 2 + 17, 3 + 3 + 23])
    found = run("here", *PYTHON, f"function={module(code)}:f", "on_nonfinite=skip")
    complaint = "the loss is nan, the norm of the gradient of x nan: skipped"
    assert [line for line in capsys.readouterr().out.splitlines() if "skipped" in line] == [
        f"step 15: {complaint}, and 1 more up to step 17",
        f"step 23: {complaint}",
    ]
    assert (found["status"], found["steps"], found["skipped_steps"]) == ("finished", 40, 3)
    assert steps(curves("here")["train/loss"]) == [step for step in range(40) if step not in (15, 17, 23)]
    torch.testing.assert_close(minigrad.load("here").x.detach(), torch.tensor([1.0, 2.0, 3.0]) * 0.98**37)


def test_a_diverging_run_is_not_judged_by_what_it_cannot_hold(capsys):
    assert main(["run_dir=here", *TINY, "learning_rate=1e30", "steps=9"]) == 1
    assert capsys.readouterr().err.startswith("minigrad-train: step 1: the loss is inf, the norm of the gradient of x ")
    assert minigrad.load("here").x.isfinite().all()


# A disk that takes no more.


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: the system refuses to write more, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_the_disk_leaves_the_one_before(capsys):
    run("here", *DIGITS, "steps=10", "monitor=none")  # whose curves are shorter than the checkpoint
    before = bits(last_checkpoint("here"))
    capsys.readouterr()
    with files_up_to(5000):
        assert main(["resume=here", "steps=20"]) == 1
    shown = capsys.readouterr()
    assert shown.err == "minigrad-train: here/checkpoints/000000020.pt cannot be written: File too large\n"
    assert "stopped; the run lies in here" in shown.out
    assert checkpoints("here") == [0, 10]
    assert bits(last_checkpoint("here")) == before
    assert minigrad.load("here")(torch.zeros(64)).shape == (10,)
    assert summary("here")["status"] == "failed"
    assert not list(Path("here").rglob("*.tmp"))
    run("whole", *DIGITS, "steps=20")
    resume("here", "steps=20")  # when there is room again
    assert bits(last_checkpoint("here")["trainer"]) == bits(last_checkpoint("whole")["trainer"])
    assert curves("here")["train/loss"] == curves("whole")["train/loss"]


def test_curves_that_do_not_fit_the_disk_end_the_run_in_one_line(capsys):
    with files_up_to(30_000):
        assert main(["run_dir=here", *TINY, "steps=2000", "checkpoint_every=100"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("minigrad-train: here/events.out.tfevents.")
    assert error.endswith(" cannot be written: File too large\n")
    assert error.count("\n") == 1
    assert summary("here")["error"].endswith("cannot be written: File too large")
    kept = max(checkpoints("here"))
    assert kept >= 100
    run("whole", *TINY, "steps=2000")
    resume("here")
    assert curves("here")["train/loss"] == curves("whole")["train/loss"]


@pytest.mark.parametrize("size", [0, 100, 600, 1500])
def test_a_disk_that_is_full_from_the_start_is_one_line(size, capsys):
    with files_up_to(size):
        assert main(["run_dir=here", *DIGITS]) == 1
    error = capsys.readouterr().err
    assert error.startswith("minigrad-train: here/")
    assert error.endswith(" cannot be written: File too large\n")
    assert error.count("\n") == 1


# A run that ends badly keeps what it has.


def test_a_mistake_that_shows_late_keeps_the_checkpoints(capsys):
    name = module("import torch\ndef vanish(x):\n    return (x**2).sum() if x.norm() > 0.5 else torch.tensor(0.0)\n")
    overrides = [f"function={name}:vanish", "objective.start=[1]", "learning_rate=0.01", "steps=500"]
    assert main(["objective=python", *overrides, "checkpoint_every=10", "run_dir=here"]) == 2
    assert capsys.readouterr().err.startswith("minigrad-train: the loss does not depend on x: ")
    assert checkpoints("here")
    assert summary("here")["status"] == "failed"


def test_a_damaged_note_of_the_best_ends_nothing():
    run("here", *TINY, "steps=20", "checkpoint_every=5", "keep=1")
    Path("here", "checkpoints", "best.json").write_text("{")
    assert resume("here", "steps=40")["steps"] == 40


def test_parameters_that_have_become_infinite_are_not_saved(capsys):
    # The gradient at the start is finite, and one step of this length leaves what float32 can hold.
    assert main(["objective=parabola", "learning_rate=1e38", "steps=1", "run_dir=here"]) == 1
    assert capsys.readouterr().err.startswith("minigrad-train: test/loss is inf after step 1; a smaller learning_rate")
    assert checkpoints("here") == [0]


def test_a_signal_while_the_last_step_is_judged_is_honoured_when_all_is_saved_and_drawn(monkeypatch):
    judge = minigrad.objectives.Function.judge
    calls = []

    def judge_and_signal(self):
        calls.append(self)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return judge(self)

    monkeypatch.setattr("minigrad.objectives.Function.judge", judge_and_signal)
    assert main(["objective=parabola", "-m", "steps=5", "seed=0,1,2"]) == 130
    (figure,) = Path("runs").rglob("path.png")
    assert checkpoints(str(figure.parents[1])) == [0, 5]


def test_other_data_than_those_of_the_run_are_refused_on_resumption(capsys):
    rows = [(i, i * i % 7, 2 * i + 1) for i in range(40)]
    Path("d.csv").write_text("a,b,y\n" + "".join(f"{a},{b},{y}\n" for a, b, y in rows))
    table = ["objective=table", "objective.file=d.csv", "objective.task=regression", "objective.hidden=[4]"]
    run("here", *table, "steps=4")
    Path("d.csv").write_text("a,b,y\n" + "".join(f"{100 * a},{b},{y}\n" for a, b, y in rows))
    assert main(["resume=here", "steps=8"]) == 2
    assert capsys.readouterr().err == (
        "minigrad-train: the data are not those that the run in here was trained on; restore them\n"
    )
    assert len(list(Path("here").glob("events.*"))) == 1
    assert summary("here")["steps"] == 4


def test_a_function_of_one_s_own_is_drawn_in_its_own_dtype():
    name = module("import torch\nA = torch.tensor([[2.0, 1.0], [1.0, 3.0]])\ndef form(x):\n    return x @ A @ x\n")
    run("here", "objective=python", f"function={name}:form", "objective.start=[1,1]", "steps=5")
    assert Path("here", "figures", "path.png").is_file()


def test_the_path_of_a_point_is_kept_without_reading_it_at_every_step(monkeypatch):
    read = []
    advance = minigrad.Trainer.advance
    monkeypatch.setattr(
        minigrad.Trainer, "advance", lambda self, *rest: read.append(self.steps) or advance(self, *rest)
    )
    run("here", "objective=rosenbrock", "steps=100", "judge_every=50")
    assert read == [0, 50]
    assert len(last_checkpoint("here")["path"]["points"]) == 101


@pytest.mark.parametrize("override", ["target_loss=nan", "learning_rate=1e300", "schedule=step schedule.factor=2"])
def test_a_number_that_could_not_work_is_refused(override, capsys):
    assert main([*TINY, *override.split()]) == 2
    assert capsys.readouterr().err.count("\n") == 1
