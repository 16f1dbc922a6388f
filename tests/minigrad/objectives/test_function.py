import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from minigrad.errors import UserError
from minigrad.objectives.function import Function, quadratic
from minigrad.objectives.landscapes import LANDSCAPES

CONFIGS = Path(__file__).parents[3] / "configs" / "objective"


def build(name: str, dtype: torch.dtype = torch.float32, **options) -> Function:
    if name == "quadratic":
        return quadratic("cpu", dtype, **{"dimensions": 2, "condition": 10.0, **options})
    return Function(LANDSCAPES[name], "cpu", dtype, **options)


def descend(objective: Function, learning_rate: float, steps: int) -> None:
    for step in range(steps):
        (gradient,) = torch.autograd.grad(objective.loss(objective.batch(step)), objective.x)
        with torch.no_grad():
            objective.x -= learning_rate * gradient


@pytest.mark.parametrize("name", LANDSCAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_point_is_the_model_s_only_parameter_and_lies_at_the_start(name, dtype):
    objective = build(name, dtype)
    parameters = objective.parameters()
    assert list(parameters) == [key for key, _ in objective.model.named_parameters()] == ["x"]
    assert parameters["x"] is objective.x is objective.model.x
    assert (objective.x.shape, objective.x.dtype) == (LANDSCAPES[name].shape, dtype)
    expected = torch.tensor(LANDSCAPES[name].start, dtype=dtype).reshape(LANDSCAPES[name].shape)
    assert torch.equal(objective.x, expected)
    assert objective.x.requires_grad


def test_a_given_start_takes_the_place_of_the_landscape_s_own():
    assert build("rosenbrock", torch.float64, start=[0.1, -0.3]).x.tolist() == [0.1, -0.3]
    assert build("parabola", start=[7.0]).x.shape == ()
    assert build("parabola", start=[7.0]).x.item() == 7


def test_there_are_no_data_and_nothing_to_note():
    objective = build("booth")
    assert objective.batches_per_epoch is None
    assert objective.batch(3) is None
    assert objective.notes == []


def test_the_loss_is_the_function_s_value_and_can_be_differentiated():
    objective = build("booth", start=[0.0, 0.0])
    loss = objective.loss(None)
    assert (loss.shape, loss.item()) == ((), 74)
    (gradient,) = torch.autograd.grad(loss, objective.x)
    assert gradient.tolist() == [-34, -38]


@pytest.mark.parametrize(
    ("name", "start", "distance"),
    [
        ("parabola", [-1.0], 4.0),
        ("booth", [4.0, 7.0], 5.0),
        ("saddle", [0.0, -1.5], 0.5),
        ("himmelblau", [3.0, 2.0], 0.0),
        ("quadratic", [3.0, -4.0], 5.0),
    ],
)
def test_judging_gives_the_value_and_the_distance_to_the_nearest_minimum(name, start, distance):
    objective = build(name, start=start)
    judged = objective.judge()
    assert list(judged) == ["test/loss", "distance_to_minimum"]
    assert all(value.shape == () and not value.requires_grad for value in judged.values())
    assert judged["test/loss"] == objective.loss(None)
    assert judged["distance_to_minimum"].item() == pytest.approx(distance, abs=1e-6)


# What is left of the distance in float32; descent on rastrigin and ackley ends in a local minimum.
REACHED = {
    "parabola": 1e-4,
    "rosenbrock": 1e-3,
    "beale": 1e-4,
    "booth": 1e-5,
    "branin": 1e-4,
    "himmelblau": 1e-5,
    "saddle": 1e-6,
    "quadratic": 1e-6,
}


@pytest.mark.parametrize("name", REACHED)
def test_descent_as_configured_reaches_a_minimum(name):
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    objective = build(name)
    descend(objective, config.learning_rate, config.steps)
    assert objective.judge()["distance_to_minimum"] < REACHED[name]


@pytest.mark.parametrize("name", ["rastrigin", "ackley"])
def test_descent_as_configured_ends_in_a_local_minimum(name):
    config = OmegaConf.load(CONFIGS / f"{name}.yaml")
    objective = build(name)
    before = objective.loss(None).item()
    descend(objective, config.learning_rate, config.steps)
    loss = objective.loss(None)
    (gradient,) = torch.autograd.grad(loss, objective.x)
    assert gradient.abs().max() < 1e-3
    assert (torch.autograd.functional.hessian(objective.landscape.value, objective.x.detach()).diagonal() > 0).all()
    assert 1 < loss.item() < before
    assert objective.judge()["distance_to_minimum"] > 1


def test_descent_lingers_at_the_saddle():
    objective = build("saddle")
    config = OmegaConf.load(CONFIGS / "saddle.yaml")
    descend(objective, config.learning_rate, 40)
    assert torch.linalg.vector_norm(objective.x) < 0.1
    assert objective.loss(None).abs() < 0.01


@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_config_s_comment_names_the_landscape_s_own_start(name):
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    (written,) = re.findall(r"^  start: null # .*; null: \[(.*)\]$", text, re.MULTILINE)
    assert tuple(float(number) for number in written.split(",")) == LANDSCAPES[name].start


@pytest.mark.parametrize("name", [*LANDSCAPES, "quadratic", "quadratic_deep", "python"])
def test_a_config_names_its_objective_and_begins_with_a_line_on_it(name):
    header, described = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[:2]
    assert header == "# @package _global_"
    assert re.fullmatch(r"# [A-Z].*\.", described)
    assert OmegaConf.load(CONFIGS / f"{name}.yaml").objective.name == name


@pytest.mark.parametrize(
    ("dimensions", "condition", "eigenvalues"),
    [(1, 10.0, [10.0]), (2, 10.0, [1.0, 10.0]), (3, 100.0, [1.0, 10.0, 100.0]), (4, 1.0, [1.0] * 4)],
)
def test_the_quadratic_s_eigenvalues_are_spaced_geometrically_up_to_the_condition(dimensions, condition, eigenvalues):
    objective = quadratic("cpu", torch.float64, dimensions=dimensions, condition=condition)
    hessian = torch.autograd.functional.hessian(objective.landscape.value, objective.x.detach())
    expected = torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)).reshape(hessian.shape)
    torch.testing.assert_close(hessian, expected, rtol=1e-15, atol=0)
    assert objective.loss(None).item() == pytest.approx(sum(eigenvalues) / 2, rel=1e-15)  # from all ones
    assert objective.x.shape == (() if dimensions == 1 else (dimensions,))


def test_the_quadratic_is_evaluated_on_a_grid_of_another_dtype_than_the_point_s():
    points = torch.tensor([[[1.0, 1.0], [2.0, 0.0]]], dtype=torch.float64)
    assert build("quadratic").landscape.value(points).tolist() == [[5.5, 2.0]]
    assert build("quadratic", dimensions=1).landscape.value(points[0, 0]).tolist() == [5.0, 5.0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("parabola", {"start": [1.0, 2.0]}, "objective.start=[1.0, 2.0]: expected a list of one finite number"),
        ("booth", {"start": []}, "objective.start=[]: expected a list of 2 finite numbers"),
        ("booth", {"start": [1.0]}, "objective.start=[1.0]: expected a list of 2 finite numbers"),
        ("booth", {"start": [1.0, float("nan")]}, "objective.start=[1.0, nan]: expected a list of 2 finite numbers"),
        ("booth", {"start": [1e300, 0.0]}, "objective.start=[1e+300, 0.0]: expected a list of 2 finite numbers"),
        ("quadratic", {"start": [1.0]}, "objective.start=[1.0]: expected a list of 2 finite numbers"),
        ("quadratic", {"dimensions": 0}, "objective.dimensions=0: expected an integer from 1 on"),
        ("quadratic", {"condition": 0.5}, "objective.condition=0.5: expected a finite number from 1 on"),
        ("quadratic", {"condition": float("nan")}, "objective.condition=nan: expected a finite number from 1 on"),
        ("quadratic", {"condition": float("inf")}, "objective.condition=inf: expected a finite number from 1 on"),
    ],
)
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        build(name, **options)


def test_a_start_that_float64_holds_is_taken_in_float64():
    assert build("booth", torch.float64, start=[1e300, 0.0]).x.tolist() == [1e300, 0]
