"""Where the tensors of a fused update lie: a table that its kernels read, kept true without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minigrad_kernels.elementwise import is_in_memory
from minigrad_kernels.rows import is_captured
from minigrad_kernels.update import ENTRY


class Located(NamedTuple):
    """Where a step found everything.

    Attributes:
        key: by which a later step finds it unchanged.
        memory: the parameters as the kernels see them.
        gapped: numbers of those that have gaps in memory and so are copied there and back.
        copies: of gradients that do not lie as their parameters do, by number.
        table: (n, ENTRY) int64 on the host.
    """

    key: list[Any]
    memory: list[Tensor]
    gapped: list[int]
    copies: dict[int, Tensor]
    table: Tensor


class Locations:
    """The table of a model's parameters, gradients and what is kept of them.

    Args:
        parameters: of the model, on one device.
        places: how the entry of each begins (`update`).
        owned: of each parameter the tensors that are kept of it, in the order of an entry; None where there is none.

    Attributes:
        table: (n, ENTRY) int64 on the device.
        located: where the last step found everything.
    """

    def __init__(
        self, parameters: Sequence[Tensor], places: Sequence[Sequence[int]], owned: Sequence[Sequence[Tensor | None]]
    ) -> None:
        self._parameters, self._places, self._owned = parameters, places, owned
        self.table = torch.zeros((len(parameters), ENTRY), dtype=torch.int64, device=parameters[0].device)
        self.located = self._on_device = Located([], [], [], {}, torch.empty(0))

    def locate(self, gradients: Sequence[Tensor | None]) -> None:
        """Bring the table up to date if anything has moved, and what is copied.

        Args:
            gradients: of each parameter, or None.

        Raises:
            ValueError: there are too many or too few, or one does not fit its parameter.
        """
        n = len(self._parameters)
        if len(gradients) != n:
            raise ValueError(f"{len(gradients)} gradients came for {n} parameters: pass one for each, or None")
        given = zip(self._parameters, gradients, strict=True)
        key = [(p.data_ptr(), None if g is None else (g.data_ptr(), g.shape, g.stride(), g.dtype)) for p, g in given]
        self.return_to(self.located if key == self.located.key else self._search(key, gradients))
        for i in self.located.gapped:
            self.located.memory[i].copy_(self._parameters[i].detach())
        for i, copy in self.located.copies.items():
            copy.copy_(gradients[i])  # type: ignore[arg-type]  # there is one

    def copy_back(self) -> None:
        """Copy those parameters back that are copied."""
        for i in self.located.gapped:
            self._parameters[i].detach().copy_(self.located.memory[i])

    def return_to(self, located: Located) -> None:
        """Go by where an earlier step found everything; while a graph is captured, the table is left for its replay."""
        self.located = located
        if located is self._on_device or is_captured(self.table):
            return
        table = located.table.pin_memory() if self.table.is_cuda else located.table  # else it would be waited for
        self.table.copy_(table, non_blocking=True)
        self._on_device = located

    def _search(self, key: list[Any], gradients: Sequence[Tensor | None]) -> Located:
        memory = [p.detach() if _is_dense(p) else torch.empty_like(p) for p in self._parameters]
        gapped = [i for i, p in enumerate(self._parameters) if not _is_dense(p)]
        copies = {
            i: torch.empty_like(memory[i])
            for i, gradient in enumerate(gradients)
            if gradient is not None and not _fits(gradient, memory[i])
        }
        entries = []
        for i, place in enumerate(self._places):
            operands = [memory[i], copies.get(i, gradients[i]), *self._owned[i]]
            # Of an empty tensor the address is 0, which is to mean that there is none.
            entry = [*place, *(0 if operand is None else operand.data_ptr() or 1 for operand in operands)]
            entries.append(entry + [0] * (ENTRY - len(entry)))
        return Located(key, memory, gapped, copies, torch.tensor(entries))


def _is_dense(tensor: Tensor) -> bool:
    """Return whether the elements lie without gaps, each in its own place."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _fits(gradient: Tensor, memory: Tensor) -> bool:
    """Return whether a gradient can be read where it lies.

    Raises:
        ValueError: it is not one of this parameter.
    """
    if (gradient.shape, gradient.dtype, gradient.device) != (memory.shape, memory.dtype, memory.device):
        raise ValueError(
            f"a gradient is {tuple(gradient.shape)} of {gradient.dtype} on {gradient.device} and its parameter "
            f"{tuple(memory.shape)} of {memory.dtype} on {memory.device}: pass one alike"
        )
    return is_in_memory(gradient) and gradient.stride() == memory.stride()
