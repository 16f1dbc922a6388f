"""Two ways to the same derivatives, compared: the element that differs most, and where it is."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from minigrad import tables
from minigrad.errors import RunFailed


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


# Whose derivative, None where those of all outputs are summed; with respect to what, None for the outputs themselves.
Where = tuple[Place | None, Place | None]


def places(names: Sequence[str], tensors: Sequence[Tensor]) -> list[Place]:
    """Return where each element is, one tensor after the other."""
    return [
        Place(name, index)
        for name, tensor in zip(names, tensors, strict=True)
        for index in itertools.product(*map(range, tensor.shape))
    ]


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
        columns = ("order", "comparison", "found", "expected", "worst error", "tolerance", "where")
        rows = [
            (c.order, c.name, c.found, c.expected, f"{c.error:.1e}", f"{c.tolerance:.1e}", c.where)
            for c in self.comparisons
        ]
        return tables.plain(columns, rows)


class GradientError(RunFailed):
    """A gradient that is off, or that is not there; the message has the worst element and its numbers.

    Attributes:
        report: what was compared until then; where a comparison is off, it is the last.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class Comparisons:
    """Compares, keeps what passes, and raises at what does not."""

    def __init__(self) -> None:
        self._comparisons: list[Comparison] = []

    @property
    def report(self) -> Report:
        """What was compared until now."""
        return Report(tuple(self._comparisons))

    def compare(
        self,
        order: int,
        name: str,
        found: Tensor,
        expected: Tensor,
        tolerance: Tensor,
        where: Sequence[Where],
        remark: Callable[[int], str] = lambda worst: "",
    ) -> None:
        """Keep the worst element of a comparison; raise if it is off."""
        if found.numel() == 0:
            self._comparisons.append(Comparison(order, name, None, None, 0.0, 0.0, 0.0))
            return
        error = (found - expected).abs()
        in_tolerances = (error / tolerance).masked_fill(error == 0, 0.0).nan_to_num(torch.inf, torch.inf)
        worst = int(in_tolerances.argmax())
        ours, theirs, allowed = (float(each.flatten()[worst]) for each in (found, expected, tolerance))
        comparison = Comparison(order, name, *where[worst], ours, theirs, allowed)
        self._comparisons.append(comparison)
        if not comparison.passes:
            why = remark(worst) or ("; is it detached, or forgotten?" if ours == 0 else "")
            raise GradientError(f"{comparison}{why}", self.report)

    @contextmanager
    def refusal(self, order: int, name: str, meaning: str) -> Iterator[None]:
        """Say of what is refused what that means; a Function may raise what it likes."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise GradientError(f"{name}, order {order}: {meaning}: {reason}", self.report) from error
