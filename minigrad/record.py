"""What consecutive steps reported, on the host, and the error that they end with when one was not finite."""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from minigrad.errors import RunFailed


@dataclass(frozen=True)
class Record:
    """What consecutive steps reported, on the host.

    Attributes:
        first_step: number of steps made before the first of these.
        names: of the parameters.
        loss: (steps,), the mean loss of a step's batches, before its update.
        gradient_norm: (steps,), Euclidean norm of the gradient of all parameters, before it was clipped.
        gradient_norms: (steps, parameters), that of each parameter.
        learning_rate: (steps,), what the rule was given.
        applied: (steps,) bool; where false, parameters and the rule's state stayed as they were.
    """

    first_step: int
    names: tuple[str, ...]
    loss: Tensor
    gradient_norm: Tensor
    gradient_norms: Tensor
    learning_rate: Tensor
    applied: Tensor

    def __len__(self) -> int:
        return len(self.loss)

    def until(self, steps: int) -> "Record":
        """Return the record of the first `steps` of these steps."""
        columns: dict[str, Any] = {key: value[:steps] for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **columns)

    def complaint(self, i: int) -> str:
        """Say what was not finite in step `first_step + i`: the loss, or which parameter's gradient first."""
        found = f"step {self.first_step + i}: the loss is {self.loss[i]:g}"
        for name, norm in zip(self.names, self.gradient_norms[i].tolist(), strict=True):
            if not math.isfinite(norm):
                return f"{found}, the norm of the gradient of {name} {norm:g}"
        return f"{found}, the norm of the gradient {self.gradient_norm[i]:g}"


class NonFiniteError(RunFailed):
    """A loss or a gradient is infinite or not a number; neither parameters nor state have changed by it.

    Attributes:
        record: the steps before it, all of them finite.
    """

    def __init__(self, message: str, record: Record) -> None:
        super().__init__(message)
        self.record = record
