"""What the kernels are given where their passes are watched: where to write, and what counts as saturated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True, eq=False)
class Fired:
    """Which units of a ReLU layer have fired, that is, had an output above 0 (or NaN, which is no dead unit's).

    Attributes:
        flags: (units,) uint8, 1 where one has.
        dimension: of the layer's output along which the units lie.
    """

    flags: torch.Tensor
    dimension: int

    @classmethod
    def none(cls, y: torch.Tensor, has_channels: bool = False) -> Fired:
        """Return that no unit of a layer with such an output has fired.

        Units are the channels, dimension 1, of images and volumes (four or five dimensions), and the last dimension of
        anything else; a single number is one unit.

        Args:
            y: any shape.
            has_channels: whether dimension 1 of three is that of the channels too, as after a 1-d convolution.
        """
        dimension, n_units = _units(y, has_channels)
        return cls(torch.zeros(n_units, dtype=torch.uint8, device=y.device), dimension)

    def copy(self) -> Fired:
        """Return the same flags in memory of their own."""
        return Fired(self.flags.clone(), self.dimension)

    def fits(self, y: torch.Tensor, has_channels: bool = False) -> bool:
        """Return whether an output has just these units; arguments as of `none`."""
        return _units(y, has_channels) == (self.dimension, len(self.flags))

    def mark(self, y: torch.Tensor) -> None:
        """Add what fires in y, in plain PyTorch."""
        others = [dimension for dimension in range(y.dim()) if dimension != self.dimension]
        largest = y.amax(others) if others and y.numel() else y
        if y.numel():
            self.flags.bitwise_or_(~(largest <= 0))


def _units(y: torch.Tensor, has_channels: bool) -> tuple[int, int]:
    """Return the dimension along which the units of an output lie, and how many there are."""
    dimension = 1 if y.dim() in (4, 5) or (has_channels and y.dim() == 3) else max(0, y.dim() - 1)
    return dimension, y.shape[dimension] if y.dim() else 1


FORWARD, BACKWARD = 0, 1


@dataclass(frozen=True)
class Layer:
    """An activation layer whose passes are watched.

    Attributes:
        number: its own, by which its rows are told from others'.
        activation: "sigmoid", "tanh" or "relu".
        biased: whether it adds a bias first.
        from_output: whether its backward goes by the saved output rather than by the input (and the bias).
        share: the part of the derivative's maximum below which a unit is saturated.
    """

    number: int
    activation: str
    biased: bool
    from_output: bool
    share: float

    @cached_property
    def limits(self) -> tuple[float, float]:
        """Between which the saved output, or the input with its bias, is not saturated."""
        return saturation_limits(self.activation, self.share, self.from_output)


@dataclass(frozen=True, eq=False)
class Watch:
    """Where a kernel is to write what it sees.

    Attributes:
        rows: (tiles, COLUMNS) of `statistics`, filled by the kernel.
        limits: between which a layer's input, or the output where that is what is saved, is not saturated; for a
            backward pass.
        fired: to which the units that fire are added; for a forward pass of ReLU.
    """

    rows: torch.Tensor
    limits: tuple[float, float] | None = None
    fired: Fired | None = None


def saturation_limits(activation: str, share: float, from_output: bool) -> tuple[float, float]:
    """Return between which inputs, or outputs, the derivative is at least `share` of its maximum.

    tanh' = 1 - y^2 reaches the share at |y| = sqrt(1 - share); sigmoid is tanh in another coordinate. Both limits are
    float32 numbers, so that a comparison has one outcome in every dtype that they are compared in. Of ReLU, whose
    derivative is 0 or its maximum, the positive numbers are inside.

    Args:
        activation: "sigmoid", "tanh" or "relu".
        share: above 0, below 1.
        from_output: whether of the output rather than of the input.
    """
    if activation == "relu":
        return 0.0, math.inf
    y = math.sqrt(1.0 - share)
    high = y if from_output else math.atanh(y)
    if activation == "tanh":
        return -_rounded(high), _rounded(high)
    return (_rounded((1 - y) / 2), _rounded((1 + y) / 2)) if from_output else (-_rounded(2 * high), _rounded(2 * high))


def _rounded(number: float) -> float:
    return torch.tensor(number, dtype=torch.float32).item()


def seen_by(watch: Watch | None) -> tuple[torch.Tensor | None, float | None, float | None]:
    """Return rows and limits as a kernel takes them: None is a compile-time constant that leaves no trace."""
    return (None, None, None) if watch is None else (watch.rows, *(watch.limits or (None, None)))
