import json
from pathlib import Path

import pytest
import torch

from minigrad import catalog
from minigrad.errors import RunFailed
from minigrad.train import main

exactness = catalog.load_experiment("exactness")


def test_it_runs_and_verifies_with_its_defaults(capsys):
    assert main(["experiment=exactness", "run_dir=here"]) == 0
    summary = json.loads(Path("here", "summary.json").read_text())
    for activation in ("sigmoid", "tanh"):
        for dtype in ("float16", "bfloat16", "float32"):
            assert summary[f"exactness/{activation}/{dtype}/minigrad_ulp"] <= exactness.LIMITS[dtype] + 0.5
            assert summary[f"exactness/{activation}/{dtype}/minigrad_false_zeros"] == 0
            assert summary[f"exactness/{activation}/{dtype}/torch_false_zeros"] > 0
    assert Path("here", "figures", "exactness.png").stat().st_size > 50_000
    out = capsys.readouterr().out
    assert "tanh        bfloat16  256           0.5            |x| = 3.469          0.0039\n" in out
    assert "verified" in out


def test_it_takes_overrides_of_its_own():
    assert main(["experiment=exactness", "run_dir=here", "activations=[tanh]", "dtypes=[bfloat16]", "device=cpu"]) == 0
    summary = json.loads(Path("here", "summary.json").read_text())
    assert [key for key in summary if key.endswith("torch_ulp")] == ["exactness/tanh/bfloat16/torch_ulp"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("activations=[relu]", "activations=relu: expected one of sigmoid, tanh"),
        ("activations=[]", "activations=[]: expected at least one"),
        ("dtypes=[float8]", "dtypes=float8: expected one of float16, bfloat16, float32"),
        ("points=5", "points=5: expected an integer from 1000 on"),
    ],
)
def test_a_wrong_value_is_one_line(override, message, capsys):
    assert main(["experiment=exactness", override]) == 2
    assert capsys.readouterr().err == f"minigrad-train: {message}\n"


def test_torch_s_bfloat16_tanh_gradient_is_zero_from_3_47_on():
    comparison = exactness.compare("tanh", "bfloat16", 1000, torch.device("cpu"))
    first = comparison.x[comparison.false_zeros(comparison.torch_gradient)].abs().min().item()
    assert first == 3.46875
    assert comparison.true[comparison.x == first].item() == pytest.approx(0.0039, rel=0.01)


def test_the_error_of_the_correctly_rounded_derivative_is_half_an_ulp():
    comparison = exactness.compare("sigmoid", "float32", 100_000, torch.device("cpu"))
    assert comparison.worst(comparison.true.float().double()) == pytest.approx(0.5, abs=0.01)
    assert not comparison.false_zeros(comparison.true.float().double()).any()


def test_every_finite_half_value_is_taken():
    assert len(exactness.sample(torch.float16, 0)) == 2 * (31 * 2**10)
    assert len(exactness.sample(torch.bfloat16, 0)) == 2 * (255 * 2**7)


@pytest.mark.parametrize("planted", [1 + 2**-6, float("nan")])
def test_a_gradient_that_is_off_fails_with_the_numbers_and_exit_code_1(planted, monkeypatch, capsys):
    functions = (torch.tanh, lambda x: torch.tanh(x) * planted)
    monkeypatch.setitem(exactness.ACTIVATIONS, "tanh", functions)
    assert main(["experiment=exactness", "activations=[tanh]", "dtypes=[float16]", "run_dir=here"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("minigrad-train: minigrad's gradient is off: tanh in float16: ")
    assert captured.err.endswith(" ULP, allowed 1.5\n")
    assert json.loads(Path("here", "summary.json").read_text())["status"] == "failed"


def test_verify_raises_for_a_planted_error_alone():
    good = exactness.compare("tanh", "bfloat16", 1000, torch.device("cpu"))
    exactness.verify([good])
    bad = exactness.Comparison(**{**vars(good), "minigrad_gradient": good.torch_gradient})
    with pytest.raises(RunFailed, match=r"tanh in bfloat16: 256 ULP, allowed 1.5$"):
        exactness.verify([good, bad])
