"""Two ways to the same derivatives, compared: the element that differs most, and where it is."""

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from minigrad import tables
from minigrad.autodiff.jacobians import Point, flat


@dataclass(frozen=True)
class Place:
    """An element of a tensor.

    Attributes:
        tensor: what the tensor is called: "input", or "input 0" where there are several.
        index: of the element.
    """

    tensor: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.tensor}{list(self.index)}" if self.index else self.tensor


@dataclass(frozen=True)
class Comparison:
    """What two ways to the same values gave where they differ most, by the tolerance there.

    Attributes:
        order: of the derivative, from 1 on.
        name: which two ways, or in which layout reverse mode was compared with itself.
        output: whose derivative; None where those of all outputs are summed.
        input: with respect to what; None where the outputs themselves are compared.
        found: by the first way.
        expected: by the second.
        tolerance: the largest difference allowed there.
    """

    order: int
    name: str
    output: Place | None
    input: Place | None
    found: float
    expected: float
    tolerance: float

    @property
    def error(self) -> float:
        """The difference; NaN or infinite where a value is."""
        return abs(self.found - self.expected)

    @property
    def passes(self) -> bool:
        """Whether both values are finite and within the tolerance."""
        return math.isfinite(self.error) and self.error <= self.tolerance

    @property
    def where(self) -> str:
        """The derivative in words."""
        if self.output and self.input:
            return f"d {self.output} / d {self.input}"
        if self.input:
            return f"gradient for {self.input}"
        return str(self.output or "no elements")

    def __str__(self) -> str:
        return (
            f"{self.name}, order {self.order}: {self.where} is {self.found:.10g}, expected {self.expected:.10g}; "
            f"off by {self.error:.3g}, tolerance {self.tolerance:.3g}"
        )


@dataclass(frozen=True)
class Report:
    """All that was compared, in that order; as text a table with a row for each."""

    comparisons: tuple[Comparison, ...]

    def __str__(self) -> str:
        columns = ("order", "comparison", "worst error", "tolerance", "where")
        return tables.plain(
            columns, [(c.order, c.name, f"{c.error:.1e}", f"{c.tolerance:.1e}", c.where) for c in self.comparisons]
        )


Locate = Callable[[int], tuple[Place | None, Place | None]]


def in_jacobian(point: Point) -> Locate:
    """Return what places the elements of a Jacobian, flattened, as (output, input)."""
    columns = len(flat(point.inputs))
    return lambda i: (_place(point.output_names, point.outputs, i // columns), _input(point, i % columns))


def in_gradient(point: Point) -> Locate:
    """Return what places the elements of a gradient for all inputs as (None, input)."""
    return lambda i: (None, _input(point, i))


def in_outputs_and_gradient(point: Point) -> Locate:
    """Return what places the elements of the outputs followed by the gradient as (output, None) or (None, input)."""
    n = len(flat(point.outputs))
    return lambda i: (_place(point.output_names, point.outputs, i), None) if i < n else (None, _input(point, i - n))


def _input(point: Point, number: int) -> Place:
    return _place(point.input_names, point.inputs, number)


def _place(names: Sequence[str], tensors: Sequence[Tensor], number: int) -> Place:
    """Return where the element of that number, counted through all tensors, is."""
    starts = list(itertools.accumulate((tensor.numel() for tensor in tensors), initial=0))
    which = bisect_right(starts, number) - 1
    return Place(names[which], _index(number - starts[which], tensors[which].shape))


def _index(number: int, shape: Sequence[int]) -> tuple[int, ...]:
    index = []
    for size in reversed(shape):
        number, i = divmod(number, size)
        index.append(i)
    return tuple(reversed(index))
