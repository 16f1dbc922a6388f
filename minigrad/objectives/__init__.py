"""Objectives: each owns parameters, gives a loss for a batch, and says how to judge the result."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from minigrad.objectives.digits import Digits
from minigrad.trainer import Trainable


class Objective(Trainable, Protocol):
    """What a training run asks of an objective, beyond what the trainer does."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the training data."""

    def judge(self) -> dict[str, Tensor]:
        """Return what the result is worth, () tensors on the device under the tags of TensorBoard."""


# Called as objective(activation, batch_size, seed, device); keyword-only parameters come from configs/objective/.
OBJECTIVES: dict[str, Callable[..., Objective]] = {"digits": Digits}

__all__ = ["OBJECTIVES", "Digits", "Objective"]
