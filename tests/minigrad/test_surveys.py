"""What a run measures now and then: right, at its steps, and without a trace in the training."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minigrad.monitoring.histogram import EDGES
from runs import bits, curves, last_checkpoint, resume, run, steps, summary

pytestmark = pytest.mark.usefixtures("pictures_unseen")
TINY = ["objective=digits", "objective.hidden=[8]", "device=cpu"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_curvature_of_the_parabola_is_2():
    run("here", "objective=parabola", "steps=10", "hessian_every=4", "device=cpu")
    assert curves("here")["hessian/largest_eigenvalue"] == [(step, pytest.approx(2)) for step in (0, 4, 8)]


def test_a_saddle_of_equal_curvatures_has_no_largest_one(capsys):
    run("here", "objective=saddle", "steps=2", "hessian_every=5", "device=cpu")
    shown = curves("here").get("hessian/largest_eigenvalue", [])
    assert bool(shown) != ("step 0: the Hessian's largest eigenvalue was not found" in capsys.readouterr().out)


def test_noise_is_estimated_at_its_steps():
    found = run("here", *TINY, "steps=12", "noise_every=5", "noise_batches=16")
    shown = curves("here")
    for name in ("trace", "squared_gradient"):
        assert steps(shown[f"gradient_noise/{name}"]) == [0, 5, 10]
    trace, squared = (found[f"gradient_noise/{name}"] for name in ("trace", "squared_gradient"))
    assert trace > 0
    if squared > 0:
        assert found["gradient_noise/scale"] == pytest.approx(trace / squared)


def test_batches_that_are_all_the_data_have_no_noise():
    found = run("here", "objective=wine", "objective.hidden=[4]", "batch_size=9999", "steps=2", "noise_every=5")
    assert found["gradient_noise/scale"] == 0


def test_histograms_count_every_element_of_every_gradient():
    run("here", *TINY, "steps=7", "histogram_every=3", "judge_every=2")
    events = EventAccumulator("here", {"histograms": 0}).Reload()
    sizes = {"network.0.weight": 512, "network.0.bias": 8, "network.1.weight": 80, "network.1.bias": 10}
    assert set(events.Tags()["histograms"]) == {f"log2_gradient/{name}" for name in sizes}
    for name, size in sizes.items():
        found = events.Histograms(f"log2_gradient/{name}")
        assert [event.step for event in found] == [0, 3, 6]
        for event in found:
            assert event.histogram_value.num <= size  # pixels that are always 0 have gradients of 0, which are left out
            assert event.histogram_value.bucket_limit == list(EDGES[1:])
    assert events.Histograms("log2_gradient/network.1.bias")[0].histogram_value.num == 10


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_a_run_is_the_same_to_the_bit_with_all_measurements(activation):
    recipe = [*TINY, f"activation={activation}", "steps=20", "judge_every=7"]
    run("plain", *recipe)
    run("measured", *recipe, "histogram_every=2", "noise_every=3", "noise_batches=2", "hessian_every=4")
    plain, measured = (last_checkpoint(name) for name in ("plain", "measured"))
    for part in ("trainer", "generators", "watching"):
        assert bits(plain[part]) == bits(measured[part]), part


def test_a_measured_run_that_is_resumed_is_the_one_never_interrupted():
    recipe = [*TINY, "judge_every=7", "noise_every=5", "hessian_every=6", "histogram_every=4"]
    run("whole", *recipe, "steps=20")
    run("cut", *recipe, "steps=9")

    resume("cut", "steps=20")
    whole, cut = (curves(name) for name in ("whole", "cut"))
    for tag in ("hessian/largest_eigenvalue", "gradient_noise/trace"):
        assert cut[tag] == whole[tag]
    assert summary("cut")["steps"] == 20
    assert torch.equal(*(last_checkpoint(n)["trainer"]["parameters"]["network.0.weight"] for n in ("whole", "cut")))
