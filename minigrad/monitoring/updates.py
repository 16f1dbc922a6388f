"""How parameters and their gradients change from step to step, measured where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minigrad.tensors import gathered, overwrite
from minigrad_kernels import norm

MEASURED = ("gradient_norm", "parameter_norm", "update_norm", "gradient_cosine")


class Updates:
    """Compares parameters and gradients with those of the step before, of which it keeps copies.

    Norms are accumulated in float64 (on MPS, which has none, in float32): the square of a small gradient is no float32.

    Args:
        parameters: to be watched, real floating point.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._before: list[Tensor] = []  # the parameters; not in a half type, which would round their differences
        self._directions = [  # the gradients, each of length 1; NaN where there was none
            torch.full((parameter.numel(),), torch.nan, dtype=_at_least_float32(parameter), device=parameter.device)
            for parameter in self._parameters
        ]

    @torch.no_grad()
    def begin(self) -> None:
        """Take the parameters as they are now, in their dtype and on their device, for those before the next step."""
        self._before = [p.detach().to(_at_least_float32(p), copy=True) for p in self._parameters]
        self._directions = [
            direction.to(before) for direction, before in zip(self._directions, self._before, strict=True)
        ]

    def directions_of(self, parameters: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the directions of the last gradients, for an update that measures these parameters in its own pass."""
        if [id(parameter) for parameter in parameters] != [id(parameter) for parameter in self._parameters]:
            return None
        self._directions = [d.to(p.device) for d, p in zip(self._directions, self._parameters, strict=True)]
        return self._directions

    def addresses(self) -> list[int]:
        """Return the addresses of what is kept of parameters and gradients."""
        return [tensor.data_ptr() for tensor in (*self._before, *self._directions)]

    @torch.no_grad()
    def measure(self, measured: Tensor | None = None) -> tuple[list[int], Tensor | None]:
        """Return what the last update did, without waiting for the device.

        To be called once after each update, while the gradients are there. The parameter's norm is that before the
        update; the cosine is that of the angle between this gradient and the one of the last step that was measured.

        Args:
            measured: (len(MEASURED), parameters) if the update has measured it itself.

        Returns: the places of the parameters that have a gradient, and (len(MEASURED) * so many,) numbers, one
            statistic of all of them after the other; None if none has.
        """
        if measured is not None:
            self._before = []  # it needs no copies
            return list(range(len(self._parameters))), measured.view(-1)
        if self._parameters and not self._before:  # the last update measured itself, and of this one it is not known
            self.begin()
            torch._foreach_mul_(self._before, torch.nan)
        gradients = {i: p.grad for i, p in enumerate(self._parameters) if p.grad is not None}
        for i, direction in enumerate(self._directions):
            if i not in gradients:
                direction.fill_(torch.nan)
        if not gradients:
            return [], None
        here = list(gradients)
        parameters, before, directions = (
            [tensors[i].detach() for i in here] for tensors in (self._parameters, self._before, self._directions)
        )
        flat = [
            (gradient.to_dense() if gradient.is_sparse else gradient).reshape(-1).to(direction.dtype)
            for gradient, direction in zip(gradients.values(), directions, strict=True)
        ]
        if before[0].device.type == "cpu":
            rows = [_measure(*each) for each in zip(parameters, flat, before, directions, strict=True)]
            return here, torch.tensor(rows, dtype=torch.float64).T.reshape(-1)
        gradient_norms, parameter_norms = _norms(flat), _norms(before)
        cosines = [torch.dot(*pair) / norm for *pair, norm in zip(flat, directions, gradient_norms, strict=True)]
        for gradient, length, direction in zip(flat, gradient_norms, directions, strict=True):
            torch.div(gradient, length, out=direction)
        torch._foreach_sub_(before, parameters)
        update_norms = _norms(before)
        torch._foreach_copy_(before, parameters)
        return here, gathered([*gradient_norms, *parameter_norms, *update_norms, *cosines])

    def state_dict(self) -> dict[str, Any]:
        """Return the last gradients' directions, as tensors in use."""
        return {"directions": self._directions}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, the parameters being those of then."""
        overwrite({"directions": self._directions}, saved, "directions of the gradients")
        self.begin()


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _measure(parameter: Tensor, gradient: Tensor, before: Tensor, direction: Tensor) -> tuple[float, ...]:
    """Return MEASURED of one parameter on the CPU, where to read a number is not to wait; update what is kept of it.

    One parameter after the other, and in place: memory costs more than arithmetic.
    """
    gradient_norm, parameter_norm = float(norm(gradient)), float(norm(before))
    cosine = torch.dot(gradient, direction).item() / gradient_norm if gradient_norm else torch.nan
    torch.div(gradient, gradient_norm, out=direction)
    update_norm = float(norm(before.sub_(parameter)))
    before.copy_(parameter)
    return gradient_norm, parameter_norm, update_norm, cosine


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """Return the norms of tensors on a device other than the CPU, () each."""
    wide = torch.float32 if tensors[0].device.type == "mps" else torch.float64
    return list(torch._foreach_norm(tensors, 2, dtype=wide))
