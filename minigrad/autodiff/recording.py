"""A gradient as it was at one moment: its values where they are few, and statistics of many."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PRINTABLE = 6  # elements, at most, of a gradient whose values are kept and printed
_CHUNK = 2**20  # elements of which statistics are computed at a time, which takes some copies of them in float64


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
        if gradient.numel() <= PRINTABLE:
            return Gradient(shape, dtype, gradient.detach().to_dense().clone(), None)
        return Gradient(shape, dtype, None, _statistics(gradient.detach()))


def shown(values: Tensor) -> str:
    """Return the values of a small tensor as text, nested as its dimensions are."""
    return _nested(values.tolist())


def or_nothing(gradient: Gradient | None) -> str:
    """Return a gradient as text; "nothing" for one that is not there."""
    return "nothing" if gradient is None else str(gradient)


def _nested(values: Any) -> str:
    return f"[{', '.join(map(_nested, values))}]" if isinstance(values, list) else f"{values:.6g}"


def _statistics(gradient: Tensor) -> Statistics:
    count = gradient.numel()
    if count == 0:
        return Statistics(0, math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0)
    values = gradient if gradient.layout is torch.strided else gradient.to_sparse_coo().coalesce().values()
    parts = torch.stack([_sums(chunk) for chunk in _chunks(values)]).tolist() if values.numel() > 0 else []
    left_out = count - values.numel()  # zeros, of a sparse gradient
    parts += [[left_out, 0, 0, 0, 0, 0, left_out, left_out]] if left_out > 0 else []
    sums = torch.tensor(parts, dtype=torch.float64, device="cpu")
    n, means, about_mean, smallest, largest, squares, zeros, finite = sums.unbind(1)
    mean = (n * means).sum() / count
    return Statistics(
        count,
        mean.item(),
        math.sqrt((about_mean + n * (means - mean).square()).sum() / count),
        smallest.amin().item(),
        largest.amax().item(),
        math.sqrt(squares.sum() / count),
        int(zeros.sum()),
        count - int(finite.sum()),
    )


def _chunks(values: Tensor) -> Iterable[Tensor]:
    """Return a tensor in parts of about `_CHUNK` elements, none of them copied."""
    if values.numel() <= _CHUNK:
        return (values,)
    dim = max(range(values.dim()), key=values.size)
    return torch.split(values, max(1, _CHUNK * values.size(dim) // values.numel()), dim)


def _sums(values: Tensor) -> Tensor:
    """Return count, mean, squares about it, smallest, largest, sum of squares, and how many are 0 and finite."""
    on_mps = values.device.type == "mps"  # which has no float64
    if values.is_complex():
        values = values.to(torch.complex64 if on_mps else torch.complex128).abs()
    values = values.to(torch.float32 if on_mps else torch.float64)
    mean = values.mean()
    sums = (
        torch.full_like(mean, values.numel()),
        mean,
        (values - mean).square().sum(),
        values.amin(),
        values.amax(),
        values.square().sum(),
        (values == 0).sum(),
        values.isfinite().sum(),
    )
    return torch.stack([number.to(mean.dtype) for number in sums])
