"""A gradient as it was at one moment: its values where they are few, and statistics of many."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PRINTABLE = 16  # elements, at most, of a gradient whose values are kept and printed


@dataclass(frozen=True)
class Statistics:
    """The values of a gradient in numbers; computed in float64, of magnitudes where the gradient is complex.

    Attributes:
        count: of the elements; of an empty gradient all else but the counts is NaN.
        mean: NaN or infinite where one of the elements is, as are the next four.
        standard_deviation: divided by the count, so that root_mean_square^2 = mean^2 + standard_deviation^2.
        smallest: of the elements.
        largest: of the elements.
        root_mean_square: of the elements.
        zeros: how many elements are 0.
        nonfinite: how many elements are infinite or NaN.
    """

    count: int
    mean: float
    standard_deviation: float
    smallest: float
    largest: float
    root_mean_square: float
    zeros: int
    nonfinite: int


@dataclass(frozen=True, eq=False)
class Gradient:
    """A gradient as it was at one moment of the pass.

    Attributes:
        shape: its sizes.
        dtype: of its elements.
        value: a copy, on its device; None if it has more elements than are printed, `PRINTABLE`.
        summary: the statistics of what has no `value`.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    value: Tensor | None
    summary: Statistics | None

    @property
    def statistics(self) -> Statistics:
        """Return the statistics of any gradient, large or small."""
        if self.summary is not None:
            return self.summary
        assert self.value is not None
        return _statistics(self.value)

    def __str__(self) -> str:
        if self.value is not None:
            return shown(self.value)
        numbers = self.statistics
        text = f"{self.shape}: {numbers.smallest:.3g} to {numbers.largest:.3g}, "
        text += f"mean {numbers.mean:.3g}, deviation {numbers.standard_deviation:.3g}"
        text += f", {numbers.zeros} zeros" if numbers.zeros else ""
        return text + (f", {numbers.nonfinite} not finite" if numbers.nonfinite else "")


def record(gradient: Tensor | None) -> Gradient | None:
    """Return a gradient as it is now: a copy of a small one, the statistics of a large one; None for none."""
    if gradient is None:
        return None
    shape, dtype = tuple(gradient.shape), gradient.dtype
    with torch.no_grad():
        dense = gradient.detach().to_dense()
        if dense.numel() <= PRINTABLE:
            return Gradient(shape, dtype, dense.clone(), None)
        return Gradient(shape, dtype, None, _statistics(dense))


def shown(values: Tensor) -> str:
    """Return the values of a small tensor as text, nested as its dimensions are."""
    return _nested(values.tolist())


def or_nothing(gradient: Gradient | None) -> str:
    """Return a gradient as text; "nothing" for one that is not there."""
    return "nothing" if gradient is None else str(gradient)


def _nested(values: Any) -> str:
    return f"[{', '.join(map(_nested, values))}]" if isinstance(values, list) else f"{values:.6g}"


def _statistics(gradient: Tensor) -> Statistics:
    values = gradient.abs() if gradient.is_complex() else gradient
    values = values.to(torch.float32 if values.device.type == "mps" else torch.float64)  # which has nothing wider
    count = values.numel()
    if count == 0:
        return Statistics(0, math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0)
    mean = values.mean()
    numbers = (
        mean,
        (values - mean).square().mean().sqrt(),
        values.amin(),
        values.amax(),
        values.square().mean().sqrt(),
        (values == 0).sum(),
        count - values.isfinite().sum(),
    )
    found = torch.stack([number.to(mean.dtype) for number in numbers]).tolist()  # one copy to the host
    average, deviation, smallest, largest, root_mean_square, zeros, nonfinite = found
    return Statistics(count, average, deviation, smallest, largest, root_mean_square, int(zeros), int(nonfinite))
