"""A function to minimise: the point is the parameter, and there are no data."""

import math

import torch
from torch import Tensor, nn

from minigrad.errors import UserError
from minigrad.models import Point
from minigrad.objectives.landscapes import Landscape


class Function:
    """The value of a landscape at a point that moves.

    Args:
        landscape: the function to minimise.
        device: where the point lies.
        dtype: of the point.
        start: where it lies at first, a number per variable; None for the landscape's own start.

    Attributes:
        x: the point, of shape `landscape.shape`: () for one variable.

    Raises:
        UserError: `start` has the wrong length, or is not finite in `dtype`.
    """

    batches_per_epoch: int | None = None

    def __init__(
        self,
        landscape: Landscape,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        *,
        start: list[float] | None = None,
    ) -> None:
        numbers = list(landscape.start) if start is None else start
        point = torch.tensor(numbers, dtype=dtype)
        if len(numbers) != len(landscape.start) or not point.isfinite().all():
            expected = "one finite number" if landscape.shape == () else f"{len(landscape.start)} finite numbers"
            raise UserError(f"objective.start={start}: expected a list of {expected}")
        model = Point(list(landscape.shape)).to(device, dtype)
        with torch.no_grad():
            model.x.copy_(point.reshape(landscape.shape))
        self.landscape = landscape
        self.model: nn.Module = model
        self.x = model.x
        self.notes: list[str] = []
        self._minima = torch.tensor(landscape.minima, dtype=dtype, device=device)

    def parameters(self) -> dict[str, Tensor]:
        """Return the point as the only parameter, `x`."""
        return {"x": self.x}

    def batch(self, index: int) -> None:
        """Return None: there are no data."""

    def places(self, first: int, count: int) -> Tensor:
        """Return (count, 0): there are no data to choose from."""
        return self.x.new_empty((count, 0))

    def batch_at(self, places: Tensor) -> None:
        """Return None, as `batch` does."""

    def loss(self, batch: None) -> Tensor:
        """Return the function's value at the point, ()."""
        return self.landscape.value(self.x)

    @torch.no_grad()
    def judge(self) -> dict[str, Tensor]:
        """Return the function's value, and the Euclidean distance to the nearest minimum where minima are known."""
        judged = {"test/loss": self.loss(None)}
        if self.landscape.minima:
            judged["distance_to_minimum"] = torch.linalg.vector_norm(self._minima - self.x, dim=-1).min()
        return judged


def quadratic(
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    *,
    dimensions: int,
    condition: float,
    start: list[float] | None = None,
) -> Function:
    """Return the objective 1/2 sum_i lambda_i x_i^2, whose eigenvalues lambda are spaced geometrically.

    The minimum is 0 at the origin. Gradient descent converges below a learning rate of 2 / condition, by a factor of
    max(|1 - learning_rate|, |1 - learning_rate * condition|) a step.

    Args:
        device: where the point lies.
        dtype: of the point and of the eigenvalues.
        dimensions: how many variables there are; a single one has `condition` for its eigenvalue.
        condition: the largest eigenvalue; the smallest is 1.
        start: a number per variable; None for all ones.

    Raises:
        UserError: no dimension, a condition below 1 or not finite, or a wrong `start`.
    """
    if dimensions < 1:
        raise UserError(f"objective.dimensions={dimensions}: expected an integer from 1 on")
    if not 1 <= condition < math.inf:
        raise UserError(f"objective.condition={condition}: expected a finite number from 1 on")
    exponents = [i / (dimensions - 1) for i in range(dimensions)] if dimensions > 1 else [1.0]
    eigenvalues = torch.tensor([condition**exponent for exponent in exponents], dtype=dtype, device=device)

    def value(x: Tensor) -> Tensor:
        if dimensions == 1:
            return 0.5 * condition * x**2
        return 0.5 * (eigenvalues.to(x) * x**2).sum(-1)  # `.to`: a grid to draw may lie elsewhere than the point

    landscape = Landscape(
        "quadratic",
        value,
        start=(1.0,) * dimensions,
        bounds=((-1.5, 1.5),) * dimensions,
        minima=((0.0,) * dimensions,),
    )
    return Function(landscape, device, dtype, start=start)
