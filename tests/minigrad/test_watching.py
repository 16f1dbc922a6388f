"""A watched run: its curves, its verdicts in words, its table and its figure; and that nothing else changes by it."""

import math
from functools import partial
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minigrad.errors import UserError
from minigrad.monitoring.monitor import GradientMonitor
from minigrad.monitoring.readings import FLOW, UPDATES
from minigrad.monitoring.thresholds import Thresholds
from minigrad.nn import MLP
from minigrad.options import options_of
from minigrad.train import main
from minigrad.watching import MONITORS, Watching, check_monitor
from runs import bits, checkpoints, curves, last_checkpoint, resume, run, steps, summary

DIGITS = ["objective=digits", "device=cpu"]
TINY = [*DIGITS, "objective.hidden=[8,8]"]
VANISHING = [*DIGITS, "objective.hidden=[16,16,16,16,16,16,16,16]", "activation=sigmoid", "steps=20"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def texts(name: str) -> dict[str, list[str]]:
    events = EventAccumulator(name, {"tensors": 0}).Reload()
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("flow/")]
    return {tag: [e.tensor_proto.string_val[0].decode() for e in events.Tensors(tag)] for tag in tags}


def test_every_statistic_of_every_layer_and_parameter_is_a_curve_with_every_step():
    run("here", *TINY, "steps=12", "judge_every=5")
    shown = curves("here")
    layers = [f"flow/network.{i}/{statistic}" for i in range(2) for statistic in FLOW]
    parameters = [f"{name}/network.{i}.{kind}" for name in UPDATES for i in range(3) for kind in ("weight", "bias")]
    assert {tag for tag in shown if "network" in tag} == {*layers, *parameters}
    for tag in (*layers, *parameters):
        assert steps(shown[tag]) == list(range(1 if tag.startswith("gradient_cosine") else 0, 12))


def test_the_norms_of_the_parameters_gradients_make_up_that_of_the_gradient():
    run("here", *TINY, "steps=6")
    shown = curves("here")
    for step in range(6):
        parts = [curve[step][1] for tag, curve in shown.items() if tag.startswith("gradient_norm/")]
        assert math.hypot(*parts) == pytest.approx(shown["gradient_norm"][step][1], rel=1e-5)


def test_the_update_of_plain_gradient_descent_is_the_learning_rate_times_the_gradient():
    run("here", *TINY, "steps=4", "precision=float64", "learning_rate=0.25")
    shown = curves("here")
    for name in ("network.0.weight", "network.2.bias"):
        for (_, gradient), (_, update) in zip(
            shown[f"gradient_norm/{name}"], shown[f"update_norm/{name}"], strict=True
        ):
            assert update == pytest.approx(0.25 * gradient, rel=1e-6)


def test_a_healthy_run_ends_with_a_table_and_no_word(capsys):
    run("here", *DIGITS, "epochs=5")
    out = capsys.readouterr().out
    header, _, *rows = out[out.index("layer  ") :].splitlines()[:4]
    assert header.split()[:3] == ["layer", "activation", "gain"]
    assert [row.split()[:2] for row in rows] == [["network.0", "tanh"], ["network.1", "tanh"]]
    assert "Try" not in out
    assert set(texts("here")) == {"flow/layers", "flow/parameters"}
    assert Path("here/figures/flow.png").stat().st_size > 10_000


def test_what_is_wrong_is_said_once_and_marked_in_the_table(capsys):
    run("here", *VANISHING, "judge_every=5")
    out = capsys.readouterr().out
    assert out.count("step 5: the network: vanishing: from layer network.7 back to layer network.0") == 1
    assert "step 10: the network: vanishing" not in out
    assert texts("here")["flow/verdicts"][0].startswith("- the network: vanishing: ")


def test_a_bad_layer_is_marked(capsys):
    run("here", *TINY, "activation=relu", "learning_rate=30", "steps=120", "on_nonfinite=skip", "judge_every=40")
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("network.")]
    assert any("dead" in row or "vanishing" in row for row in rows), out


def test_layers_that_suffer_from_the_network_are_marked(capsys):
    run("here", *VANISHING)
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("network.")}
    assert "vanishing" in rows["network.0"]
    assert "vanishing" not in rows["network.7"]


def test_on_verdict_stop_saves_shows_and_ends_the_run_with_the_reason(capsys):
    assert main(["run_dir=here", *VANISHING, "judge_every=5", "on_verdict=stop"]) == 1
    shown = capsys.readouterr()
    assert "minigrad-train: step 5: the network: vanishing: " in shown.err
    assert "the layers, medians over the last 5 steps:" in shown.out
    assert Path("here/figures/flow.png").exists()
    assert (summary("here")["status"], summary("here")["steps"]) == ("failed", 5)
    assert summary("here")["verdicts"] == ["vanishing"]
    assert checkpoints("here") == [0, 5]
    run("here", "resume=here", "on_verdict=warn")
    assert (summary("here")["status"], summary("here")["steps"]) == ("finished", 20)


def test_to_stop_on_a_verdict_without_a_monitor_is_refused(capsys):
    assert main(["run_dir=here", *TINY, "monitor=none", "on_verdict=stop"]) == 2
    assert "on_verdict=stop, but monitor=none gives no verdicts" in capsys.readouterr().err


def test_a_step_that_is_not_finite_names_the_layer(capsys):
    assert main(["run_dir=here", *TINY, "activation=relu", "learning_rate=1e30", "steps=20"]) == 1
    shown = capsys.readouterr()
    assert "the loss is" in shown.err
    assert ": non-finite: " in shown.out
    assert Path("here/figures/flow.png").exists()
    assert "network." in shown.out


def test_a_run_is_the_same_to_the_bit_whether_it_is_watched_or_not():
    for name in ("gradients", "none"):
        run(name, *TINY, "steps=30", f"monitor={name}", "rule=adam", "learning_rate=0.01", "activation=relu")
    watched, unwatched = (last_checkpoint(name) for name in ("gradients", "none"))
    assert bits(watched["trainer"]) == bits(unwatched["trainer"])
    assert "watching" in watched
    assert "watching" not in unwatched
    assert set(curves("none")) == {"train/loss", "test/loss", "test/accuracy", "learning_rate", "gradient_norm"}


def test_a_function_is_not_watched():
    run("here", "objective=rosenbrock", "steps=5", "device=cpu")
    assert not [tag for tag in curves("here") if tag.startswith(("flow/", "update_ratio/"))]


def test_a_linear_model_has_parameters_to_watch_and_no_layers(capsys):
    run("here", *DIGITS, "objective.hidden=[]", "steps=3")
    assert "update_ratio/network.0.weight" in curves("here")
    assert "the layers" not in capsys.readouterr().out
    assert not Path("here/figures/flow.png").exists()


def test_accumulated_batches_have_the_figures_of_the_whole_batch():
    run("whole", *TINY, "batch_size=32", "steps=1", "precision=float64")
    run("parts", *TINY, "batch_size=8", "accumulate=4", "steps=1", "precision=float64")
    whole, parts = (curves(name) for name in ("whole", "parts"))
    for tag in whole:
        if "network" in tag:
            assert parts[tag][0][1] == pytest.approx(whole[tag][0][1], rel=1e-5, abs=1e-12), tag


def test_a_resumed_run_that_becomes_longer_keeps_its_columns():
    run("here", *TINY, "steps=40", "judge_every=100")
    resume("here", "steps=1200")
    columns = last_checkpoint("here")["watching"]["steps"]
    assert columns == list(range(0, 1200, 4))


@pytest.mark.parametrize(("total", "stride"), [(1, 1), (500, 1), (501, 2), (10_000, 32)])
def test_a_long_run_has_few_columns(total, stride):
    model = MLP([2, 2, 2])
    assert Watching(GradientMonitor(model), None, total, Thresholds())._stride == stride


def test_the_options_of_the_monitor_are_those_of_the_thresholds():
    options = {"window": 100, **vars(Thresholds())}
    assert set(options_of(MONITORS["gradients"])) == set(options)


def test_a_wrong_threshold_is_refused():
    options = {"window": 100, **vars(Thresholds()), "dead": 2.0}
    with pytest.raises(UserError, match=r"monitor.dead=2: expected a number from 0 to 1"):
        check_monitor(partial(MONITORS["gradients"], **options))
    check_monitor(MONITORS["none"])
