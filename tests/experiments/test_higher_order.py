from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from minigrad import catalog
from minigrad.train import main
from runs import curves, run, steps, summary

higher_order = catalog.load_experiment("higher_order")


def test_it_shows_and_verifies_with_its_defaults(capsys):
    values = run("here", "experiment=higher_order", "device=cpu")
    assert [values[f"higher_order/polynomial/{order}"] for order in range(5)] == [3, 5, 8, 6, 0]
    for activation in ("sigmoid", "tanh"):
        found = curves("here")
        assert steps(found[f"higher_order/{activation}/seconds/torch"]) == list(range(1, 9))
        for way in ("kernel", "nested"):
            assert all(value <= 1e-13 for _, value in found[f"higher_order/{activation}/error/{way}"])
        by_order = [value for _, value in found[f"higher_order/{activation}/tensors/torch"]]
        assert by_order[7] > 1.8 * by_order[6] > 1.8**2 * by_order[5]  # exponential
        assert found[f"higher_order/{activation}/tensors/nested"][7][1] < 10
    for figure in ("higher_order_cost", "higher_order_derivatives"):
        assert Path("here", "figures", f"{figure}.png").stat().st_size > 50_000
    out = capsys.readouterr().out
    assert "    2            8            8\n" in out
    assert "verified: the polynomial's derivatives, and those of sigmoid and tanh to order 8" in out


def test_it_takes_one_activation_another_order_and_another_point(capsys):
    values = run(
        "here", "experiment=higher_order", "activation=sigmoid", "order=6", "points=600", "x=0.3", "device=cpu"
    )
    assert values["higher_order/polynomial/1"] == pytest.approx(3 * 0.09 - 4 * 0.3 + 1, rel=1e-15)
    assert steps(curves("here")["higher_order/sigmoid/tensors/kernel"]) == list(range(1, 7))
    assert not any(tag.startswith("higher_order/tanh") for tag in values)
    assert "those of sigmoid to order 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("order=0", "order=0: expected an integer from 1 to 10"),
        ("order=11", "order=11: expected an integer from 1 to 10"),
        ("activation=relu", "activation=relu: expected one of sigmoid, tanh, both"),
        ("points=100", "points=100: expected an integer from 500 on"),
        ("x=nan", "x=NaN: expected a number from -1e100 to 1e100"),
        ("orders=3", "unknown key 'orders'; did you mean 'order'? keys of experiment=higher_order: "),
    ],
)
def test_a_wrong_value_is_one_line(override, message, capsys):
    assert main(["experiment=higher_order", override]) == 2
    assert capsys.readouterr().err.startswith(f"minigrad-train: {message}")


@pytest.mark.parametrize("x", [-1e100, 1e-200, 0.0, 0.7])
def test_the_polynomial_is_verified_anywhere(x):
    shown = Mock(device=torch.device("cpu"))
    higher_order.differentiate_polynomial(x, shown)
    assert shown.table.call_args.args[2][3] == (3, 6, 6)


def test_the_closed_forms_are_those_of_the_books():
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)
    y = 1 / (1 + (-x).exp())
    expected = torch.stack((y, y * (1 - y), y * (1 - y) * (1 - 2 * y)))
    torch.testing.assert_close(higher_order.closed_forms("sigmoid", x.tolist(), 2), expected, rtol=1e-14, atol=1e-15)
    s = 1 / x.cosh().square()
    expected = torch.stack((x.tanh(), s, -2 * x.tanh() * s, 4 * s - 6 * s**2))
    torch.testing.assert_close(higher_order.closed_forms("tanh", x.tolist(), 3), expected, rtol=1e-13, atol=1e-15)
    at_0 = [0, 1, 0, -2, 0, 16, 0, -272, 0, 7936, 0]  # the tangent numbers, their signs alternating
    assert higher_order.closed_forms("tanh", [0.0], 10).flatten().tolist() == at_0


def _fails_with(capsys, message):
    assert main(["experiment=higher_order", "order=3", "points=500", "run_dir=here", "device=cpu"]) == 1
    assert capsys.readouterr().err.startswith(f"minigrad-train: {message}")
    assert summary("here")["status"] == "failed"


@pytest.mark.parametrize(("way", "off"), [("kernel", 2e-13), ("nested", 2e-13), ("torch", 2e-10)])
def test_a_derivative_that_is_off_fails_with_the_numbers_and_exit_code_1(way, off, monkeypatch, capsys):
    right = higher_order.WAYS[way]
    wrong = lambda activation, x, order: right(activation, x, order) * (1 + off * (order == 2))  # noqa: E731
    monkeypatch.setitem(higher_order.WAYS, way, wrong)
    _fails_with(capsys, f"derivative 2 of sigmoid, {way}[")


def test_a_polynomial_that_is_off_fails(monkeypatch, capsys):
    power = torch.Tensor.__pow__
    monkeypatch.setattr(torch.Tensor, "__pow__", lambda x, n: (1 + 1e-13) * power(x, n))
    _fails_with(capsys, "derivative 1 of the polynomial is 5.00000000000")
