"""Gradient descent with gradients that are exact, visible and fast.

The activations are drop-in replacements for torch's, differentiable to the tenth order; `minigrad.nn` holds them as
modules. `draw_graph`, `trace_backward` and `check_gradients` show and test what autograd does with any tensors.
`python -m minigrad.train` trains; `Trainer` does in a script; `GradientMonitor` watches a model train, in any loop;
`load` gives what a run has trained.
"""

import importlib
from typing import TYPE_CHECKING, Any

from minigrad import nn
from minigrad.functional import bias_activation, derivative, relu, sigmoid, tanh

if TYPE_CHECKING:
    from minigrad.autodiff.checking import check_gradients
    from minigrad.autodiff.derivatives import gradient, hessian, hessian_vector_product, jacobian
    from minigrad.autodiff.drawing import draw_graph
    from minigrad.autodiff.saving import saved_for_backward
    from minigrad.autodiff.tracing import trace_backward
    from minigrad.loading import load
    from minigrad.monitoring.monitor import GradientMonitor
    from minigrad.monitoring.thresholds import Thresholds
    from minigrad.trainer import Trainer

__all__ = [
    "GradientMonitor",
    "Thresholds",
    "Trainer",
    "bias_activation",
    "check_gradients",
    "derivative",
    "draw_graph",
    "gradient",
    "hessian",
    "hessian_vector_product",
    "jacobian",
    "load",
    "nn",
    "relu",
    "saved_for_backward",
    "sigmoid",
    "tanh",
    "trace_backward",
]
__version__ = "0.1.0"

_HOMES = {
    "GradientMonitor": "minigrad.monitoring.monitor",
    "Thresholds": "minigrad.monitoring.thresholds",
    "Trainer": "minigrad.trainer",
    "check_gradients": "minigrad.autodiff.checking",
    "draw_graph": "minigrad.autodiff.drawing",
    "gradient": "minigrad.autodiff.derivatives",
    "hessian": "minigrad.autodiff.derivatives",
    "hessian_vector_product": "minigrad.autodiff.derivatives",
    "jacobian": "minigrad.autodiff.derivatives",
    "load": "minigrad.loading",
    "saved_for_backward": "minigrad.autodiff.saving",
    "trace_backward": "minigrad.autodiff.tracing",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:  # only when it is asked for: the activations need nothing of the trainer
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
