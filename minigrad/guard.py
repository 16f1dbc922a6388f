"""Guards: an update whose loss or gradient is not finite leaves everything as it was.

`HostGuard` reads both numbers, which waits for nothing where tensors lie on the CPU. `DeviceGuard` never reads: it
updates, and restores on the device what a flag there says must not have changed, so that the host runs ahead.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


class HostGuard:
    """Guards tensors on the CPU.

    Args:
        tensors: all that an update changes.
        stops: whether everything stays as it is after the first update that was held back, until `release`.
    """

    def __init__(self, tensors: list[Tensor], stops: bool) -> None:
        self._stops = stops
        self._sound = True
        self._yes, self._no = torch.tensor(True), torch.tensor(False)

    def apply(self, update: Callable[[], None], loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Call `update` if both numbers, () each, are finite; return whether it was applied, () bool."""
        finite = math.isfinite(loss.item()) and math.isfinite(gradient_norm.item())
        if finite and self._sound:
            update()
            return self._yes
        self._sound = not self._stops
        return self._no

    def release(self) -> None:
        """Let updates through again."""
        self._sound = True


class DeviceGuard:
    """Guards tensors on a device that computes while the host goes on; the arguments are those of `HostGuard`."""

    def __init__(self, tensors: list[Tensor], stops: bool) -> None:
        self._tensors = tensors
        self._stops = stops
        self._infinity = torch.tensor(math.inf, device=tensors[0].device)
        self._sound = torch.tensor(True, device=tensors[0].device)

    def apply(self, update: Callable[[], None], loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Call `update`, undo it unless both numbers, () each, are finite; return whether it was applied, () bool."""
        applied = torch.maximum(loss.abs(), gradient_norm) < self._infinity  # false where either is NaN, too
        if self._stops:
            applied = self._sound = self._sound & applied
        before = [tensor.clone() for tensor in self._tensors]
        update()
        for tensor, old in zip(self._tensors, before, strict=True):
            tensor.copy_(torch.where(applied, tensor, old))
        return applied

    def release(self) -> None:
        """Let updates through again."""
        self._sound = torch.ones_like(self._sound)


def guard_of(tensors: list[Tensor], stops: bool) -> HostGuard | DeviceGuard:
    """Return the guard that suits the tensors' device."""
    kind = HostGuard if tensors[0].device.type == "cpu" else DeviceGuard
    return kind([tensor.detach() for tensor in tensors], stops)
