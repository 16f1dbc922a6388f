"""A stochastic quadratic bowl of 100 dimensions, with eigenvalues like those of deep networks."""

import numpy
import torch
from torch import Tensor, nn

from minigrad.errors import UserError
from minigrad.models import Point
from minigrad.objectives.division import divided
from minigrad.objectives.order import Order

_DIMENSIONS = 100
_SAMPLES = 1000  # as many to train as to test
_TEST_SAMPLES = 896  # of which the benchmark counts whole batches of 128 only


class QuadraticDeep:
    """The mean over a batch of 1/2 (x - sample)^T Q (x - sample), a published benchmark problem.

    Of the eigenvalues of Q, 90 lie between 0 and 1 and 10 between 30 and 60. Q and the samples are the benchmark's own,
    the same for every seed. The point starts at all ones.

    Args:
        batch_size: training samples per step; an epoch's incomplete last batch is dropped.
        seed: of the order of the batches.
        device: where everything lies.
        dtype: of the point, of Q and of the samples.

    Attributes:
        x: the point, (100,).

    Raises:
        UserError: a batch size below 1.

    Source: F. Schneider, L. Balles and P. Hennig, "DeepOBS: A Deep Learning Optimizer Benchmark Suite", ICLR 2019.
    """

    def __init__(
        self, batch_size: int, seed: int, device: torch.device | str, dtype: torch.dtype = torch.float32
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: expected an integer from 1 on")
        self.notes: list[str] = []
        if batch_size > _SAMPLES:
            self.notes.append(
                f"batch_size={batch_size}: there are {_SAMPLES} training samples; every batch is all of them"
            )
        self._order = Order(_SAMPLES, min(batch_size, _SAMPLES), seed, device)
        self.batches_per_epoch: int | None = self._order.batches_per_epoch
        self._hessian, self._train_samples, self._test_samples = (
            torch.tensor(array, dtype=dtype, device=device)
            for array in (_hessian(), _samples(seed=42), _samples(seed=43)[:_TEST_SAMPLES])
        )
        model = Point([_DIMENSIONS]).to(device, dtype)
        nn.init.ones_(model.x)
        self.model: nn.Module = model
        self.x = model.x

    def parameters(self) -> dict[str, Tensor]:
        """Return the point as the only parameter, `x`."""
        return {"x": self.x}

    def batch(self, index: int) -> Tensor:
        """Return the samples (batch_size, 100) of a step; every epoch has an order of its own."""
        return self.batch_at(self.places(index, 1)[0])

    def places(self, first: int, count: int) -> Tensor:
        """Return where the samples of `count` batches lie among the data, (count, batch_size)."""
        return self._order.places(first, count)

    def batch_at(self, places: Tensor) -> Tensor:
        """Return the batch of a row of `places`."""
        return self._train_samples[places]

    def part(self, batch: Tensor, rank: int, size: int) -> tuple[Tensor, float]:
        """Return a rank's part of a batch and how much of the whole it is."""
        (samples,), share = divided((batch,), rank, size)
        return samples, share

    def loss(self, batch: Tensor) -> Tensor:
        """Return the mean of the quadratic over the samples (N, 100) of a batch, ()."""
        away = self.x - batch
        return 0.5 * (away @ self._hessian * away).sum(1).mean()

    @torch.no_grad()
    def judge(self) -> dict[str, Tensor]:
        """Return the loss on the test samples, ()."""
        return {"test/loss": self.loss(self._test_samples)}


def _hessian() -> numpy.ndarray:
    """Return Q, (100, 100) float64: chosen eigenvalues in a random basis."""
    random = numpy.random.RandomState(42)
    eigenvalues = numpy.concatenate([random.uniform(0, 1, 90), random.uniform(30, 60, 10)])
    rotation = _random_rotation(_DIMENSIONS, random)
    hessian: numpy.ndarray = rotation.T @ (eigenvalues[:, None] * rotation)
    return hessian


def _random_rotation(dimensions: int, random: numpy.random.RandomState) -> numpy.ndarray:
    """Draw a rotation, (dimensions, dimensions) float64, one dimension and one reflection after the other.

    Source: P. Diaconis and M. Shahshahani, "The Subgroup Algorithm for Generating Uniform Random Variables", 1987.
    """
    angle = 2 * numpy.pi * random.uniform()
    cosine, sine = numpy.cos(angle), numpy.sin(angle)
    rotation = numpy.array([[cosine, sine], [-sine, cosine]])
    for size in range(3, dimensions + 1):
        direction = random.normal(size=size)
        mirror = numpy.eye(size)[0] - direction / numpy.linalg.norm(direction)
        mirror /= numpy.linalg.norm(mirror)
        embedded = numpy.eye(size)
        embedded[1:, 1:] = rotation
        rotation = embedded - 2 * numpy.outer(mirror, mirror @ embedded)
    return -rotation


def _samples(seed: int) -> numpy.ndarray:
    """Draw the samples, (1000, 100) float64."""
    return numpy.random.RandomState(seed).normal(0, 0.6, (_SAMPLES, _DIMENSIONS))
