"""Objectives: each owns parameters, gives a loss for a batch, and says how to judge the result."""

from collections.abc import Callable

from minigrad.objectives.digits import Digits
from minigrad.objectives.objective import Objective, Trainable

# Called as objective(activation, batch_size, seed, device); keyword-only parameters come from configs/objective/.
OBJECTIVES: dict[str, Callable[..., Objective]] = {"digits": Digits}

__all__ = ["OBJECTIVES", "Digits", "Objective", "Trainable"]
