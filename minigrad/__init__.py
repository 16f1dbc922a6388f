"""Gradient descent with gradients that are exact, visible and fast.

The activations are drop-in replacements for torch's, differentiable to the tenth order; `minigrad.nn` holds them as
modules. `python -m minigrad.train` trains; `Trainer` does in a script; `load` gives what a run has trained.
"""

import importlib
from typing import TYPE_CHECKING, Any

from minigrad import nn
from minigrad.functional import bias_activation, derivative, relu, sigmoid, tanh

if TYPE_CHECKING:
    from minigrad.loading import load
    from minigrad.trainer import Trainer

__all__ = ["Trainer", "bias_activation", "derivative", "load", "nn", "relu", "sigmoid", "tanh"]
__version__ = "0.1.0"

_HOMES = {"Trainer": "minigrad.trainer", "load": "minigrad.loading"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # only when it is asked for: the activations need nothing of the trainer
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
