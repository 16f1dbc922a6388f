import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import minigrad
from minigrad import catalog
from minigrad.errors import RunFailed
from minigrad.objectives import data
from minigrad.train import main
from minigrad_kernels import plain
from runs import curves, run, summary

experiment = catalog.load_experiment("gradient_flow_depth")

COMMON = {"seed": 0, "device": "cpu", "threads": 1, "deterministic": False, "run_dir": None}
SMALL = experiment.Config("gradient_flow_depth", **COMMON, depth=8, width=16, steps=1, learning_rate=0.1)


@pytest.fixture(scope="module")
def flow():
    """What is verified: one of the networks, small."""
    return experiment.train("tanh", "proper", SMALL, data.digits, torch.device("cpu"))


def test_it_shows_and_verifies_vanishing_exploding_and_healthy_flow(capsys):
    values = run("here", "experiment=gradient_flow_depth", "device=cpu")
    over_depth = {
        name: values[f"gradient_flow_depth/{name}/over_depth"]
        for name in (f"{a}_{s}" for a in ("sigmoid", "tanh", "relu") for s in ("small", "proper", "large"))
    }
    # sqrt(128) * 0.01 * E[f'^2]^(1/2), where sigmoid has 1/4, tanh 1 and ReLU 1/2^(1/2), to the eleventh power.
    assert over_depth["sigmoid_small"] == pytest.approx((math.sqrt(128) / 400) ** 11, rel=0.1)
    assert over_depth["tanh_small"] == pytest.approx((math.sqrt(128) / 100) ** 11, rel=0.1)
    assert over_depth["relu_small"] == pytest.approx(0.08**11, rel=0.3)
    assert over_depth["relu_large"] == pytest.approx(8**11, rel=0.3)
    assert 1e4 < over_depth["tanh_large"] < 1e5
    for name in ("sigmoid_proper", "tanh_proper", "relu_proper", "sigmoid_large"):
        assert 0.2 < over_depth[name] < 5
    out = capsys.readouterr().out
    start, end = ({line[:15].strip(): line for line in part.splitlines()} for part in out.split("after 24 steps"))
    for name in ("sigmoid     pro", "tanh        pro", "relu        pro"):
        assert start[name].endswith("  none")
        assert end[name].endswith("  none")
    assert end["relu        lar"].endswith("  non-finite, exploding")
    assert [values[f"gradient_flow_depth/{a}_small/accuracy"] < 0.12 for a in ("sigmoid", "tanh", "relu")] == [True] * 3
    assert values["gradient_flow_depth/tanh_proper/accuracy"] > 0.8
    assert values["gradient_flow_depth/relu_large/loss"] is None  # which is not finite
    assert len(curves("here")["gradient_flow_depth/tanh_proper/loss"]) == values["steps"] == 24
    for figure in ("gradient_flow_depth", "gradient_flow_depth_over_time"):
        assert Path("here", "figures", f"{figure}.png").stat().st_size > 20_000
    assert "verified: all nine against float64" in out


def test_other_networks_and_rates_are_verified_too(capsys):
    others = ["depth=16", "width=32", "seed=5", "steps=2", "learning_rate=1e9"]
    assert run("here", "experiment=gradient_flow_depth", *others, "device=cpu")["steps"] == 2
    assert "verified: all nine against float64" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("depth=1", "depth=1: expected an integer from 2 to 16"),
        ("depth=17", "depth=17: expected an integer from 2 to 16"),
        ("width=23", "width=23: expected an integer from 24 to 512; at least twice the depth"),
        ("width=513", "width=513: expected an integer from 24 to 512"),
        ("steps=0", "steps=0: expected an integer from 1 on"),
        ("learning_rate=nan", "learning_rate=NaN: expected a number above 0"),
        ("activation=relu", "unknown key 'activation'; keys of experiment=gradient_flow_depth: "),
    ],
)
def test_a_wrong_value_is_one_line(override, message, capsys):
    assert main(["experiment=gradient_flow_depth", override]) == 2
    assert capsys.readouterr().err.startswith(f"minigrad-train: {message}")


def test_a_proper_sigmoid_network_computes_what_the_tanh_network_does():
    inputs = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    networks = {name: minigrad.nn.MLP([64, 32, 32, 32, 10], activation=name) for name in ("sigmoid", "tanh")}
    for name, network in networks.items():
        experiment.initialise(network, name, "proper", seed=0)
    torch.testing.assert_close(networks["sigmoid"](inputs), networks["tanh"](inputs), rtol=0, atol=1e-5)


def test_the_formula_has_its_known_values_for_relu():
    inputs = torch.randn(9, 64)
    for scale, factor in (("small", 0.01 * math.sqrt(16 / 2)), ("proper", 1), ("large", math.sqrt(16 / 2))):
        predicted, deviation = experiment.predict("relu", scale, SMALL, inputs)
        expected = [factor**power for power in range(7, -1, -1)]
        torch.testing.assert_close(predicted, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
        assert deviation == pytest.approx(math.sqrt(7 * math.log(1 + 5 / 16)) / 2)  # Hanin's 5 / width


def test_the_formula_averages_over_normal_pre_activations_layer_by_layer():
    inputs = 3 * torch.ones(2, 64)
    predicted, _ = experiment.predict("tanh", "proper", replace(SMALL, depth=3), inputs)
    normal = torch.randn(10**6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first = math.sqrt(2 / (64 + 16) * 64 * 9) * normal
    second = first.tanh().square().mean().sqrt() * normal  # times width * 2 / (width + width), which is 1
    factors = [float((1 / z.cosh()).pow(4).mean().sqrt()) for z in (first, second)]
    expected = [factors[0] * factors[1], factors[1], 1]
    assert predicted.tolist() == pytest.approx(expected, rel=0.005)  # of a million samples every seventh counts


def test_a_gradient_that_is_off_fails_with_the_numbers_and_exit_code_1(monkeypatch, capsys):
    whole = plain.biased_backward

    def backward(*arguments, **options):
        dx, db = whole(*arguments, **options)
        return 1.001 * dx, db

    monkeypatch.setattr(plain, "biased_backward", backward)
    small = ["depth=2", "width=16", "steps=1", "device=cpu", "run_dir=here"]
    assert main(["experiment=gradient_flow_depth", *small]) == 1
    assert capsys.readouterr().err.startswith("minigrad-train: rms of sigmoid_small over float64's[")
    assert summary("here")["status"] == "failed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flow: {"predicted": flow.predicted * math.exp(6 * flow.deviation)}, "logarithm of tanh_proper's"),
        (lambda flow: {"predicted": flow.predicted / math.exp(6 * flow.deviation)}, "logarithm of tanh_proper's"),
        (lambda flow: {"reference": flow.reference | {"gain": flow.reference["gain"] * 1.0001}}, "gain of tanh_proper"),
        (lambda flow: {"reference": flow.reference | {"saturated": 0.01}}, "saturated units of tanh_proper"),
        (lambda flow: {"at_start": [experiment.Verdict("vanishing", "", "The network.")]}, "neither is said"),
        (
            lambda flow: {"at_start": [experiment.Verdict("dead", "3", "Layer 3.")]},
            "nothing is said of tanh_proper: La",
        ),
    ],
)
def test_what_is_off_fails(flow, change, message):
    experiment.verify_flow(flow)
    experiment.verify_flow(replace(flow, at_start=[experiment.Verdict("learning rate too large", "", "The rate.")]))
    with pytest.raises(RunFailed, match=message):
        experiment.verify_flow(replace(flow, **change(flow)))


def test_a_vanishing_gradient_of_which_nothing_is_said_fails():
    flow = experiment.train("relu", "small", SMALL, data.digits, torch.device("cpu"))
    experiment.verify_flow(flow)
    with pytest.raises(RunFailed, match="vanishing is said"):
        experiment.verify_flow(replace(flow, at_start=[]))
