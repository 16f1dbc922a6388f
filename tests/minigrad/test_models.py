import io

import pytest
import torch
from torch import Tensor, nn

from minigrad.models import MODELS, Point, Predictor, describe, rebuild


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


def stored(model: nn.Module) -> tuple[dict, dict]:
    """A model's description and parameters, through a file."""
    buffer = io.BytesIO()
    torch.save([describe(model), parameters_of(model)], buffer)
    buffer.seek(0)
    description, parameters = torch.load(buffer, weights_only=True)
    return description, parameters


def predictor(classes: list[str] | None, dtype: torch.dtype = torch.float32, activation: str = "tanh") -> Predictor:
    """A predictor from 3 columns, with moments of its own."""
    torch.manual_seed(0)
    model = Predictor([3, 5, 1 if classes is None else len(classes)], activation, classes).to(dtype)
    model.input_mean.copy_(torch.tensor([100.0, -5.0, 0.25]))
    model.input_deviation.copy_(torch.tensor([10.0, 0.5, 2.0]))
    if classes is None:
        model.target_mean.fill_(50)
        model.target_deviation.fill_(7)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [[], [1], [2], [100]])
def test_a_point_comes_back(shape, dtype):
    model = Point(shape).to(dtype)
    with torch.no_grad():
        model.x.normal_()
    again = rebuild(*stored(model))
    assert isinstance(again, Point)
    assert (again.x.shape, again.x.dtype) == (torch.Size(shape), dtype)
    assert torch.equal(again(), model())
    assert again.x.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("classes", [None, ["no", "yes"], ["a", "b", "c"]])
def test_a_predictor_comes_back(classes, activation, dtype):
    model = predictor(classes, dtype, activation)
    again = rebuild(*stored(model))
    inputs = 100 + 10 * torch.randn(4, 3, dtype=torch.float64)
    assert isinstance(again, Predictor)
    assert again.classes == classes
    assert torch.equal(again(inputs), model(inputs))
    assert again(inputs).dtype == dtype
    assert describe(again).keys() == describe(model).keys()
    assert all(torch.equal(tensor, dict(model.named_buffers())[name]) for name, tensor in again.named_buffers())


def test_a_linear_predictor_comes_back():
    model = Predictor([3, 2], "tanh", ["no", "yes"])
    assert torch.equal(rebuild(*stored(model))(torch.ones(3)), model(torch.ones(3)))


def test_the_moments_are_no_parameters():
    model = predictor(None)
    assert list(parameters_of(model)) == ["network.0.weight", "network.0.bias", "network.1.weight", "network.1.bias"]
    assert all(not tensor.requires_grad for tensor in model.buffers())


def test_what_comes_in_and_goes_out_is_in_the_data_s_units():
    model = predictor(None, torch.float64)
    scaled = torch.randn(6, 3, dtype=torch.float64)
    inputs = scaled * model.input_deviation + model.input_mean
    expected = 50 + 7 * model.network(scaled).squeeze(-1)
    torch.testing.assert_close(model(inputs), expected, rtol=1e-12, atol=0)


def test_classes_have_logits():
    model = predictor(["a", "b", "c"], torch.float64)
    scaled = torch.randn(6, 3, dtype=torch.float64)
    inputs = scaled * model.input_deviation + model.input_mean
    torch.testing.assert_close(model(inputs), model.network(scaled), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("classes", "last"), [(None, ()), (["a", "b", "c"], (3,))])
@pytest.mark.parametrize("leading", [(), (1,), (7,), (2, 5), (0,)])
def test_any_leading_shape_is_kept(classes, last, leading):
    assert predictor(classes)(torch.zeros(*leading, 3)).shape == (*leading, *last)


def test_float64_keeps_what_float32_would_round_away_before_the_mean_is_subtracted():
    model = Predictor([1, 1], "tanh", None)
    model.input_mean.fill_(2.0**30)
    inputs = torch.tensor([[2.0**30], [2.0**30 + 1]], dtype=torch.float64)
    assert model(inputs)[0] != model(inputs)[1]
    assert model(inputs.float())[0] == model(inputs.float())[1]
    assert model(torch.tensor([[2**30], [2**30]])).dtype == torch.float32  # integers, too


def test_models_are_found_by_their_own_names():
    assert all(kind.__name__ == name for name, kind in MODELS.items())


@pytest.mark.parametrize(
    "change",
    [{"input_mean": torch.zeros(4)}, {"more": torch.zeros(1)}],
)
def test_buffers_that_do_not_fit_are_an_error(change):
    model = predictor(None)
    description = describe(model)
    description["buffers"].update(change)
    with pytest.raises(RuntimeError):
        rebuild(description, parameters_of(model))


def test_a_parameter_that_is_missing_is_an_error():
    model = predictor(None)
    parameters = parameters_of(model)
    parameters.popitem()
    with pytest.raises(RuntimeError, match="Missing key"):
        rebuild(describe(model), parameters)
