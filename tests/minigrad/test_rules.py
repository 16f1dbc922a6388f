import pytest
import torch

from minigrad.rules import RULES, gradient_descent


def test_gradient_descent_subtracts_the_scaled_gradient_in_place():
    parameters = [torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)]
    gradients = [torch.tensor([10.0, -10.0], dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)]
    places = [parameter.data_ptr() for parameter in parameters]
    gradient_descent(parameters, gradients, 0.1)
    assert parameters[0].tolist() == pytest.approx([0.0, 3.0], abs=1e-15)
    assert parameters[1].item() == pytest.approx(2.95, rel=1e-15)
    assert [parameter.data_ptr() for parameter in parameters] == places
    assert gradients[0].tolist() == [10.0, -10.0]


def test_gradient_descent_follows_the_closed_form_on_a_parabola():
    # f(x) = (x - 3)^2 from 0 at rate 0.1: the distance to 3 shrinks by 1 - 2 * 0.1 at every step.
    x = torch.zeros(1, dtype=torch.float64)
    for _ in range(20):
        gradient_descent([x], [2 * (x - 3)], 0.1)
    assert abs(x.item() - (3 - 3 * 0.8**20)) < 1e-14


def test_rules_are_found_by_their_own_names():
    assert all(rule.__name__ == name for name, rule in RULES.items())
