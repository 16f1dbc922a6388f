"""Many tensors at once: to walk over named ones, to overwrite them from saved ones, to measure them together."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from minigrad.errors import UserError

Named = Mapping[str, Tensor | list[Tensor]]


def flatten(named: Named) -> list[Tensor]:
    """Return all tensors, lists opened."""
    return [tensor for value in named.values() for tensor in (value if isinstance(value, list) else [value])]


def on_host(numbers: list[Tensor]) -> Tensor:
    """Return () tensors, at least one, as one on the host, by one copy: (numbers,) of the dtype that holds them all."""
    return gathered(numbers).cpu()


def gathered(numbers: list[Tensor]) -> Tensor:
    """Return () tensors, at least one, as one on the device of the first: (numbers,) of the dtype that holds them all.

    It waits for nothing. On the CPU the numbers are read one by one, which is faster than to stack them.
    """
    device = numbers[0].device
    if device.type != "cpu":
        return torch.stack([number.to(device, non_blocking=True) for number in numbers])
    dtype = functools.reduce(torch.promote_types, {number.dtype for number in numbers})
    return torch.tensor([number.item() for number in numbers], dtype=dtype)


def total_norm(norms: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all tensors together, from that of each, () each."""
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


@torch.no_grad()
def overwrite(named: Named, saved: Any, kind: str) -> None:
    """Copy saved tensors into those of the same names.

    Args:
        named: what is overwritten, in place, each in its own dtype and on its own device.
        saved: of the same names and shapes.
        kind: what they are, for the messages.

    Raises:
        UserError: the names, the lengths of a list or the shapes differ; nothing has been overwritten then.
    """
    if not isinstance(saved, Mapping) or set(saved) != set(named):
        found = ", ".join(map(str, saved)) or "nothing" if isinstance(saved, Mapping) else f"a {type(saved).__name__}"
        expected = ", ".join(named) or "nothing"
        raise UserError(f"the saved {kind} are {found}, and here they are {expected}: they do not fit")
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, value in named.items():
        here, there = ([item] if isinstance(item, Tensor) else item for item in (value, saved[name]))
        if _shapes(there) != _shapes(here):
            found, expected = (", ".join(_shapes(each)) or "nothing" for each in (there, here))
            raise UserError(f"the saved {kind} do not fit: {name} is {found}, and here {expected}")
        pairs += zip(here, there, strict=True)
    for tensor, other in pairs:
        tensor.copy_(other)


def _shapes(items: Any) -> list[str]:
    """Return what the items of a list are: their shapes if they are tensors."""
    if not isinstance(items, list):
        return [f"of type {type(items).__name__}"]
    return [str(tuple(item.shape)) if isinstance(item, Tensor) else f"a {type(item).__name__}" for item in items]
