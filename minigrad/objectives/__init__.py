"""Objectives: each owns parameters, gives a loss for a batch, and says how to judge the result."""

from collections.abc import Callable
from functools import partial

from minigrad.objectives import data
from minigrad.objectives.function import Function, quadratic
from minigrad.objectives.landscapes import LANDSCAPES
from minigrad.objectives.network import Network, spirals
from minigrad.objectives.objective import Objective, Trainable
from minigrad.objectives.python import python
from minigrad.objectives.quadratic_deep import QuadraticDeep
from minigrad.objectives.table import table

# Called with what each names of the run's activation, batch_size, function, seed, device and dtype; keyword-only
# parameters are its options, set from `configs/objective/<name>.yaml`.
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    **{name: partial(Function, landscape) for name, landscape in LANDSCAPES.items()},
    "quadratic": quadratic,
    "quadratic_deep": QuadraticDeep,
    "python": python,
    "digits": partial(Network, data.digits),
    "breast_cancer": partial(Network, data.breast_cancer),
    "wine": partial(Network, data.wine),
    "diabetes": partial(Network, data.diabetes),
    "mnist5k": partial(Network, data.mnist5k),
    "spirals": spirals,
    "table": table,
}

__all__ = ["LANDSCAPES", "OBJECTIVES", "Function", "Network", "Objective", "QuadraticDeep", "Trainable"]
