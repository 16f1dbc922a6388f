"""What an objective is: to the trainer, and to a training run."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


class Trainable(Protocol):
    """What the trainer asks of an objective: parameters, batches, and the loss of a batch."""

    def parameters(self) -> dict[str, Tensor]:
        """Return the tensors to train by their names, leaves that require a gradient."""

    def batch(self, index: int) -> Any:
        """Return a batch; a function of its index alone, so that a run can go on anywhere."""

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch, () floating point."""


class Objective(Trainable, Protocol):
    """What a training run asks beyond that.

    Attributes:
        model: what is trained; `parameters()` are the model's. Its class is one of `minigrad.models.MODELS`.
        batches_per_epoch: batches in one pass over the training data; None where there are no data to pass over.
        notes: what its user should know of how it was set up, a line each.
    """

    model: nn.Module
    batches_per_epoch: int | None
    notes: list[str]

    def judge(self) -> dict[str, Tensor]:
        """Return what the result is worth, () tensors on the device under TensorBoard's tags; `test/loss` is one."""


@runtime_checkable
class Resident(Trainable, Protocol):
    """An objective whose data lie on the device, where numbers can choose a batch without the host."""

    def places(self, first: int, count: int) -> Tensor:
        """Return where `count` batches from the index `first` on lie among the data, (count, ...) on the device."""

    def batch_at(self, places: Tensor) -> Any:
        """Return the batch of a row of `places`, by operations on the device alone; `batch` goes the same way."""


@runtime_checkable
class Divisible(Objective, Protocol):
    """An objective whose batches can be divided among ranks."""

    def part(self, batch: Any, rank: int, size: int) -> tuple[Any, float]:
        """Return part `rank` of `size` parts of a batch, itself a batch, and how much of the whole it is.

        The loss of a batch is the sum of the losses of its parts, each multiplied with how much of the whole it is.

        Raises:
            UserError: the batch is too small for so many parts.
        """
