"""The same values in other places of memory: what a function must not mind."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minigrad.autodiff.jacobians import same


def _transposed(x: Tensor) -> Tensor:
    """Return a copy whose first dimension is the one that lies closest in memory."""
    reverse = tuple(reversed(range(x.dim())))
    return x.permute(reverse).clone(memory_format=torch.contiguous_format).permute(reverse)


def _sliced(x: Tensor) -> Tensor:
    """Return a copy in every second element of a larger memory that is NaN elsewhere."""
    buffer = x.new_full((*x.shape[:-1], 2 * (x.shape[-1] if x.dim() else 1) + 3), math.nan)
    view = buffer[..., 2:-1:2] if x.dim() else buffer[2]
    return view.copy_(x)


def constant(x: Tensor) -> Tensor:
    """Return 3/4 in x's shape, one element in memory."""
    return x.new_full((), 0.75).expand(x.shape)


def expanded(x: Tensor) -> Tensor:
    """Return a copy with stride 0 along the dimensions in which all values are the same."""
    short = x
    for dim in range(x.dim()):
        if x.shape[dim] > 1 and same(short, short.narrow(dim, 0, 1).expand_as(short)):
            short = short.narrow(dim, 0, 1)
    return short.clone().expand(x.shape)


# Those that any values can take.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"transposed": _transposed, "sliced": _sliced}


def all_contiguous(tensors: Sequence[Tensor]) -> bool:
    """Return whether all lie in memory as fresh tensors do."""
    return all(tensor.is_contiguous() and tensor.storage_offset() == 0 for tensor in tensors)
