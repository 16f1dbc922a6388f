"""Gradient descent with gradients that are exact, visible and fast.

The activations are drop-in replacements for torch's, differentiable to the tenth order; `minigrad.nn` holds them as
modules. `python -m minigrad.train` trains.
"""

from typing import TYPE_CHECKING, Any

from minigrad import nn
from minigrad.functional import bias_activation, derivative, relu, sigmoid, tanh

if TYPE_CHECKING:
    from minigrad.trainer import Trainer

__all__ = ["Trainer", "bias_activation", "derivative", "nn", "relu", "sigmoid", "tanh"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Trainer":  # only when it is asked for: the activations need nothing of the trainer
        from minigrad.trainer import Trainer

        return Trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
