"""What an objective is: to the trainer, and to a training run."""

from typing import Any, Protocol

from torch import Tensor


class Trainable(Protocol):
    """What the trainer asks of an objective: parameters, a batch for every step, and the loss of a batch."""

    def parameters(self) -> list[Tensor]:
        """Return the tensors to train, leaves that require a gradient."""

    def batch(self, step: int) -> Any:
        """Return the batch of a step; a function of the step alone, so that a run can go on anywhere."""

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch, () floating point."""


class Objective(Trainable, Protocol):
    """What a training run asks beyond that: the length of an epoch, and how to judge the result."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the training data."""

    def judge(self) -> dict[str, Tensor]:
        """Return what the result is worth, () tensors on the device under the tags of TensorBoard."""
