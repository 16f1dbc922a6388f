"""Data parallelism: every rank computes its part of a batch's loss, and all get the gradient of the whole."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minigrad.objectives.objective import Divisible
from minigrad.ranks import Ranks


class _Part(NamedTuple):
    """A rank's part of a batch, how much of the whole it is, and whether the step's gradient is complete with it."""

    batch: Any
    weight: float
    is_last: bool


class DataParallel:
    """An objective to the trainer of each rank, which trains as a single process would on the whole of every batch.

    Every rank holds all parameters and takes its part of each batch. PyTorch's `DistributedDataParallel` adds up the
    gradients of the parts while the backward pass goes on; the loss that a rank reports is that of the whole batch. As
    the parts' losses carry the weight of the part, the sum is the gradient of the whole, also where the parts are not
    equally large, and the gradients within the network are those that a single process would see.

    Args:
        objective: whose batches are divided; its parameters become those of the first rank.
        ranks: among whom.
        accumulate: batches per step of the trainer; only with the last of them the gradient travels.

    Raises:
        UserError: a batch is too small for so many ranks.
    """

    def __init__(self, objective: Divisible, ranks: Ranks, accumulate: int) -> None:
        self._objective = objective
        self._ranks = ranks
        self._accumulate = accumulate
        self._is_whole = False
        objective.part(objective.batch(0), ranks.rank, ranks.size)  # a batch that is too small is to be told of at once
        self._model = DistributedDataParallel(_Loss(objective), gradient_as_bucket_view=True)
        self._model.register_comm_hook(None, lambda _, bucket: _add_up(bucket.buffer()))  # its own would divide, too

    def parameters(self) -> dict[str, Tensor]:
        """Return the objective's parameters."""
        return self._objective.parameters()

    def batch(self, index: int) -> Any:
        """Return this rank's part of the batch of that index."""
        batch = self._objective.batch(index)
        if self._is_whole:
            return batch
        part, weight = self._objective.part(batch, self._ranks.rank, self._ranks.size)
        return _Part(part, weight, is_last=(index + 1) % self._accumulate == 0)

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of the whole batch, (), with the graph of this rank's part of it."""
        if self._is_whole:
            return self._objective.loss(batch)
        with nullcontext() if batch.is_last else self._model.no_sync():
            part: Tensor = self._model(batch.batch)
        total: Tensor = _Total.apply(part * batch.weight)
        return total

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Let every rank compute whole batches for a while, each for itself."""
        before, self._is_whole = self._is_whole, True
        try:
            yield
        finally:
            self._is_whole = before


class _Loss(nn.Module):
    """An objective's loss as a module, so that DistributedDataParallel sees the whole of forward and backward pass."""

    def __init__(self, objective: Divisible) -> None:
        super().__init__()
        self.trained = nn.ParameterList(objective.parameters().values())  # buffers never change: none has to travel
        self._loss = objective.loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(batch)


class _Total(torch.autograd.Function):
    """The sum over all ranks; backwards every rank goes on with its own summand."""

    @staticmethod
    def forward(ctx: Any, summand: Tensor) -> Tensor:
        total = summand.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _add_up(gradients: Tensor) -> torch.futures.Future[Tensor]:
    """Add up gradients over all ranks, while the backward pass goes on."""
    work = dist.all_reduce(gradients, async_op=True)
    sums: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return sums
