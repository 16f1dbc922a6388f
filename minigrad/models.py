"""What a run trains, as modules that can be rebuilt without the run's data and code: from plain values and tensors."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minigrad.nn import MLP


class Point(nn.Module):
    """A point that was moved to where a function is small.

    Args:
        shape: of the point.

    Attributes:
        x: the point, a parameter of that shape.
    """

    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.arguments = {"shape": shape}
        self.x = nn.Parameter(torch.zeros(shape))

    def forward(self) -> Tensor:
        """Return the point."""
        return self.x


class Predictor(nn.Module):
    """A multilayer perceptron between the data's own units: it shifts and scales what comes in and what goes out.

    Args:
        sizes: the width of the input, of each hidden layer and of the output.
        activation: "sigmoid", "tanh" or "relu", of the hidden layers.
        classes: their names, in the order of the outputs; None for a regression.

    Attributes:
        network: the perceptron, whose parameters alone are trained.
        input_mean, input_deviation: (D,), by which a column is shifted and scaled.
        target_mean, target_deviation: (), likewise for the target of a regression; 0 and 1 for classes.
    """

    input_mean: Tensor
    input_deviation: Tensor
    target_mean: Tensor
    target_deviation: Tensor

    def __init__(self, sizes: list[int], activation: str, classes: list[str] | None) -> None:
        super().__init__()
        self.arguments = {"sizes": sizes, "activation": activation, "classes": classes}
        self.classes = classes
        self.network = MLP(sizes, activation=activation)
        self.register_buffer("input_mean", torch.zeros(sizes[0]))
        self.register_buffer("input_deviation", torch.ones(sizes[0]))
        self.register_buffer("target_mean", torch.zeros(()))
        self.register_buffer("target_deviation", torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs (..., D) as they stand in the data to (..., classes) logits, or to (...) values of the target.

        Inputs of any real dtype; float64 keeps what float32 would round away before a large mean is subtracted.
        """
        scaled = (inputs - self.input_mean) / self.input_deviation
        outputs: Tensor = self.network(scaled.to(self.input_mean.dtype))
        if self.classes is not None:
            return outputs
        return outputs.squeeze(-1) * self.target_deviation + self.target_mean


MODELS: dict[str, Callable[..., nn.Module]] = {"Point": Point, "Predictor": Predictor}


def describe(model: nn.Module) -> dict[str, Any]:
    """Return what a model is, besides its parameters, as tensors and plain values."""
    return {"name": type(model).__name__, "arguments": model.arguments, "buffers": dict(model.named_buffers())}


def is_same(description: Mapping[str, Any], model: nn.Module) -> bool:
    """Return whether a description is that of this model: its kind, arguments and buffers; parameters may differ."""
    own = describe(model)
    buffers, others = own.pop("buffers"), dict(description).pop("buffers")
    return (
        all(description[key] == value for key, value in own.items())
        and buffers.keys() == others.keys()
        and all(torch.equal(buffer.cpu(), others[name]) for name, buffer in buffers.items())
    )


def rebuild(description: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> nn.Module:
    """Return the model that `describe` described, with these parameters, in their dtype and on the CPU."""
    model = MODELS[description["name"]](**description["arguments"])
    model.to(next(iter(parameters.values())).dtype)
    model.load_state_dict({**description["buffers"], **parameters})
    return model
