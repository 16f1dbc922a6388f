import math

import pytest
import torch
from torch import Tensor

from minigrad.objectives.landscapes import LANDSCAPES, Landscape

MINIMA = [(name, minimum) for name, landscape in LANDSCAPES.items() for minimum in landscape.minima]

# Published values, or such as can be computed in one's head.
KNOWN = [
    ("parabola", (0.0,), 10.0),
    ("rosenbrock", (-1.2, 1.0), 24.2),
    ("beale", (1.0, 1.0), 14.203125),
    ("booth", (0.0, 0.0), 74.0),
    ("branin", (0.0, 0.0), 55.602112642270262),
    ("branin", (math.pi, 2.275), 0.39788735772973816),
    ("himmelblau", (-0.270845, -0.923039), 181.616521512),  # the local maximum, to six digits of its place
    ("rastrigin", (4.52299366, 4.52299366), 80.7065803877),  # the maximum within the bounds
    ("ackley", (1.0, 1.0), 3.6253849384403627),
    ("saddle", (0.0, 0.0), 0.0),
    ("saddle", (1.0, 0.0), 1.0),
]


def at(landscape: Landscape, place: tuple[float, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(place, dtype=dtype).reshape(landscape.shape)


def grid(landscape: Landscape, points: int) -> Tensor:
    axes = [torch.linspace(low, high, points, dtype=torch.float64) for low, high in landscape.bounds]
    return axes[0] if landscape.shape == () else torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def to_nearest_minimum(landscape: Landscape, points: Tensor) -> Tensor:
    minima = torch.tensor(landscape.minima, dtype=torch.float64)
    return (points.reshape(*points.shape[: points.dim() - len(landscape.shape)], 1, -1) - minima).norm(dim=-1).amin(-1)


@pytest.mark.parametrize(("name", "place", "value"), KNOWN)
def test_a_landscape_has_its_published_values(name, place, value):
    landscape = LANDSCAPES[name]
    assert landscape.value(at(landscape, place)).item() == pytest.approx(value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("name", "minimum"), MINIMA)
def test_the_gradient_is_zero_at_every_minimum(name, minimum):
    landscape = LANDSCAPES[name]
    x = at(landscape, minimum).requires_grad_()
    (gradient,) = torch.autograd.grad(landscape.value(x), x)
    assert gradient.isfinite().all()
    # An error of 1e-15 in the place, times the largest curvature of all, rosenbrock's 1002.
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("name", LANDSCAPES)
def test_all_minima_are_equally_low(name):
    landscape = LANDSCAPES[name]
    values = [landscape.value(at(landscape, minimum)).item() for minimum in landscape.minima]
    assert values == pytest.approx([values[0]] * len(values), rel=1e-14, abs=1e-28)


@pytest.mark.parametrize("name", LANDSCAPES)
def test_no_point_within_the_bounds_is_below_the_minima_and_only_those_near_one_are_about_as_low(name):
    landscape = LANDSCAPES[name]
    lowest = landscape.value(at(landscape, landscape.minima[0])).item()
    points = grid(landscape, 1001)
    values = landscape.value(points)
    assert values.min() >= lowest - 1e-14
    assert values.min() < lowest + 0.02
    assert to_nearest_minimum(landscape, points[values < lowest + 0.02]).max() < 0.5


@pytest.mark.parametrize("name", LANDSCAPES)
def test_a_grid_in_one_call_has_the_values_of_its_points(name):
    landscape = LANDSCAPES[name]
    points = grid(landscape, 7)
    values = landscape.value(points)
    single = [landscape.value(point) for point in points.reshape(-1, *landscape.shape)]
    assert all(value.shape == () for value in single)
    torch.testing.assert_close(values.flatten(), torch.stack(single), rtol=1e-14, atol=1e-14)
    assert values.shape == (7,) * len(landscape.start)


@pytest.mark.parametrize("name", LANDSCAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_value_and_its_gradient_at_the_start_have_the_point_s_dtype(name, dtype):
    landscape = LANDSCAPES[name]
    x = at(landscape, landscape.start, dtype).requires_grad_()
    value = landscape.value(x)
    (gradient,) = torch.autograd.grad(value, x)
    assert (value.shape, value.dtype, gradient.dtype) == ((), dtype, dtype)
    assert gradient.isfinite().all()
    assert gradient.any(), "descent would not move"


@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_start_and_the_minima_lie_within_the_bounds(name):
    landscape = LANDSCAPES[name]
    for place in (landscape.start, *landscape.minima):
        assert all(low <= number <= high for number, (low, high) in zip(place, landscape.bounds, strict=True))


def test_the_table_goes_by_the_landscapes_own_names():
    assert [landscape.name for landscape in LANDSCAPES.values()] == list(LANDSCAPES)


def test_rastrigin_and_ackley_are_the_textbook_s_formulas_to_the_rounding_of_those():
    points = grid(LANDSCAPES["ackley"], 101)
    squares, cosines = points**2, (2 * math.pi * points).cos()
    rastrigin = 20 + (squares - 10 * cosines).sum(-1)
    ackley = -20 * (-0.2 * squares.mean(-1).sqrt()).exp() - cosines.mean(-1).exp() + math.e + 20
    torch.testing.assert_close(LANDSCAPES["rastrigin"].value(points), rastrigin, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(LANDSCAPES["ackley"].value(points), ackley, rtol=1e-12, atol=1e-12)


def test_ackley_s_gradient_at_its_tip_is_zero_and_beside_it_the_cone_s():
    x = torch.tensor([[0.0, 0.0], [1e-9, 0.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(LANDSCAPES["ackley"].value(x).sum(), x)
    assert gradient[0].tolist() == [0, 0]
    assert gradient[1].tolist() == pytest.approx([20 * 0.2 / math.sqrt(2), 0], abs=1e-6)


def test_the_saddle_s_gradient_vanishes_between_its_minima():
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    value = LANDSCAPES["saddle"].value(x)
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.tolist() == [0, 0]
    curvature = torch.autograd.functional.hessian(LANDSCAPES["saddle"].value, x.detach())
    assert curvature.tolist() == [[2, 0], [0, -2]]
