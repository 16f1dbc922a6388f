"""Batches in parts, one for each rank."""

from torch import Tensor

from minigrad.errors import UserError


def divided(batch: tuple[Tensor, ...], rank: int, size: int) -> tuple[tuple[Tensor, ...], float]:
    """Return part `rank` of `size` parts of a batch, and how much of the whole it is.

    Args:
        batch: tensors (N, ...), of the same samples.
        rank: from 0 to size - 1.
        size: number of parts; they differ by one sample at most.

    Raises:
        UserError: there are more parts than samples.
    """
    samples = len(batch[0])
    if samples < size:
        raise UserError(f"a batch has {samples} samples, fewer than the {size} ranks; use a larger batch_size")
    part = tuple(tensor.tensor_split(size)[rank] for tensor in batch)
    return part, len(part[0]) / samples
