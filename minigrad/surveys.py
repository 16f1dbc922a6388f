"""What a run measures now and then, at the cost of passes of its own: magnitudes, noise and curvature."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from torch import Tensor

from minigrad import generators
from minigrad.monitoring.curvature import largest_hessian_eigenvalue
from minigrad.monitoring.histogram import EDGES, count_magnitudes
from minigrad.monitoring.noise import gradient_noise_scale
from minigrad.run import Run
from minigrad.trainer import Trainer


class Surveys:
    """Measurements at intervals of steps, None being never; random numbers are put back after each.

    Args:
        trainer: of the run; batches ahead of those that it has trained with are used.
        run: where to report.
        aside: gives a context for passes that are no part of the training.
        histogram_every: steps between two histograms of the magnitudes of each parameter's gradient.
        noise_every: steps between two estimates of the gradient noise scale.
        noise_batches: batches of each of these, at least 2.
        batch_size: samples in a batch, in which the noise scale is given.
        hessian_every: steps between two searches for the Hessian's largest eigenvalue.
    """

    def __init__(
        self,
        trainer: Trainer,
        run: Run,
        aside: Callable[[], AbstractContextManager[None]],
        *,
        histogram_every: int | None,
        noise_every: int | None,
        noise_batches: int,
        batch_size: int,
        hessian_every: int | None,
    ) -> None:
        self._trainer, self._run, self._aside = trainer, run, aside
        self._histogram_every, self._noise_every, self._hessian_every = histogram_every, noise_every, hessian_every
        self._noise_batches, self._batch_size = noise_batches, batch_size
        self._counts: dict[int, dict[str, Tensor]] = {}  # by step and parameter, on the device

    @property
    def intervals(self) -> list[int]:
        """Every how many steps `look` has something to measure."""
        return [every for every in (self._noise_every, self._hessian_every) if every is not None]

    def after_step(self) -> None:
        """Count the gradient's magnitudes if it is time, without waiting for the device."""
        step = self._trainer.steps - 1
        if self._histogram_every is not None and step % self._histogram_every == 0:
            gradients = {name: parameter.grad for name, parameter in self._trainer.parameters.items()}
            self._counts[step] = {name: count_magnitudes(g) for name, g in gradients.items() if g is not None}

    def look(self) -> None:
        """Write what was counted, and measure what is due."""
        for step, counts in self._counts.items():
            for name, counted in counts.items():
                self._run.histogram(f"log2_gradient/{name}", step, counted[1:-1].tolist(), EDGES)
        self._counts.clear()
        due = [
            measure
            for every, measure in ((self._noise_every, self._noise), (self._hessian_every, self._curvature))
            if every is not None and self._trainer.steps % every == 0
        ]
        for measure in due:
            before = generators.state_dict()
            with self._aside():
                measure()
            generators.load_state_dict(before)

    def _noise(self) -> None:
        first, tensors = self._trainer.next_batch, list(self._trainer.parameters.values())
        losses = [partial(self._trainer.loss, first + i) for i in range(self._noise_batches)]
        noise = gradient_noise_scale(losses, tensors, self._batch_size)
        found = {f"gradient_noise/{name}": value for name, value in noise._asdict().items() if math.isfinite(value)}
        self._run.scalars(self._trainer.steps, found)

    def _curvature(self) -> None:
        tensors = list(self._trainer.parameters.values())
        curvature = largest_hessian_eigenvalue(partial(self._trainer.loss, self._trainer.next_batch), tensors)
        if curvature.converged:
            self._run.scalars(self._trainer.steps, {"hessian/largest_eigenvalue": curvature.eigenvalue})
        else:
            print(f"step {self._trainer.steps}: the Hessian's largest eigenvalue was not found", flush=True)
