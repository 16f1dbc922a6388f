"""From sums on the device to statistics on the host, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minigrad.monitoring.readings import FLOW, UPDATES
from minigrad.monitoring.updates import MEASURED
from minigrad_kernels import BACKWARD, COLUMNS, FORWARD

_COUNTED = ("zeros", "saturated", "nonfinite", "false_zeros")  # the last columns of a backward pass's sums


class Step(NamedTuple):
    """What was measured in a step, still where it was.

    Attributes:
        taken: for each device, the layer and the direction of each row of statistics, and the rows (rows, COLUMNS).
        here: the places of the parameters that had a gradient.
        measured: (len(MEASURED) * len(here),), what `Updates.measure` returns.
    """

    taken: list[tuple[list[tuple[int, int]], Tensor]]
    here: list[int]
    measured: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in the order in which they are named here."""
        return [rows for _, rows in self.taken] + ([] if self.measured is None else [self.measured])

    def numbers(self, device: torch.device) -> Tensor:
        """Return all numbers one after the other, (n,) float64, where all are on that device."""
        none = torch.empty(0, dtype=torch.float64, device=device)
        return torch.cat([none, *(tensor.reshape(-1).double() for tensor in self.tensors)])

    def with_numbers(self, numbers: Tensor) -> Step:
        """Return a step that saw other numbers, in the order of `numbers`."""
        parts = iter(numbers.split([tensor.numel() for tensor in self.tensors]))
        taken = [(keys, next(parts).view(rows.shape)) for keys, rows in self.taken]
        return Step(taken, self.here, None if self.measured is None else next(parts))

    def with_rows_of(self, others: Sequence[Step]) -> Step:
        """Return this step with the passes of other ranks through the same layers, of other parts of the batch."""
        return self._replace(taken=[part for step in (self, *others) for part in step.taken])


def on_host(tensors: list[Tensor]) -> list[Tensor]:
    """Return tensors in float64 on the host, by one copy if they are all on one device."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.double() for tensor in tensors]
    device = tensors[0].device
    together = torch.cat([tensor.reshape(-1).to(device, non_blocking=True) for tensor in tensors]).cpu().double()
    parts = together.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def order_of(step: Step, n_layers: int) -> list[int]:
    """Return the numbers of all layers, from input to output as a step went through them, then those without gradient.

    The order is that of the backward pass reversed: with checkpointing, layers compute in other orders too.
    """
    passes = [layer for keys, _ in step.taken for layer, direction in keys if direction == BACKWARD]
    return list(dict.fromkeys([*reversed(passes), *range(n_layers)]))


def flow_of(steps: list[Step], n_layers: int) -> Tensor:
    """Return the statistics of layers, (steps, layers, len(FLOW)), from the rows of their passes."""
    keys = [(i, *key) for i, step in enumerate(steps) for part, _ in step.taken for key in part]
    step, layer, direction = torch.tensor(keys, dtype=torch.int64).view(-1, 3).unbind(1)
    rows = torch.cat([torch.empty(0, COLUMNS, dtype=torch.float64), *(rows for s in steps for _, rows in s.taken)])
    place, n = step * n_layers + layer, len(steps) * n_layers
    forward, backward = ((place[direction == which], rows[direction == which], n) for which in (FORWARD, BACKWARD))
    number, mean, deviations = _moments(*forward)
    total, upstream, squares, largest, *counts = _sums(*backward)
    statistics = {
        "upstream_rms": (upstream / total).sqrt(),
        "rms": (squares / total).sqrt(),
        "norm": squares.where(total > 0, torch.nan).sqrt(),
        "gain": (squares / upstream).sqrt(),
        "largest": largest.where(total > 0, torch.nan) + 0.0,  # 0.0, not -0.0
        **{name: count / total for name, count in zip(_COUNTED, counts, strict=True)},
        "mean": mean,
        "deviation": (deviations / number).sqrt(),
    }
    return torch.stack([statistics[name] for name in FLOW], -1).view(len(steps), n_layers, len(FLOW))


def _moments(place: Tensor, rows: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return number of elements, mean, and squares of the deviations from it, (n,) each, from rows of forward passes.

    Those of several passes at one place are put together as one pass over all of them would have found them.

    Source: T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        variances", Technical report STAN-CS-79-773, Stanford University, 1979.
    """
    number, means, squares, *_ = rows.unbind(1)
    zeros = torch.zeros(n, dtype=torch.float64)
    total = zeros.index_add(0, place, number)
    mean = zeros.index_add(0, place, number * means) / total
    offset = means - mean[place]
    return total, mean, zeros.index_add(0, place, squares + number * offset.square())


def _sums(place: Tensor, rows: Tensor, n: int) -> list[Tensor]:
    """Return the columns of rows of backward passes, (n,) each, added up at each place; of magnitudes the largest."""
    columns = list(torch.zeros((n, COLUMNS), dtype=torch.float64).index_add(0, place, rows).unbind(1))
    columns[3] = torch.zeros(n, dtype=torch.float64).scatter_reduce(0, place, rows[:, 3], "amax")
    return columns


def updates_of(steps: list[Step], n_parameters: int) -> Tensor:
    """Return the statistics of parameters, (steps, parameters, len(UPDATES))."""
    measured = torch.full((len(steps), n_parameters, len(MEASURED)), torch.nan, dtype=torch.float64)
    for i, step in enumerate(steps):
        if step.measured is not None:
            measured[i, step.here] = step.measured.view(len(MEASURED), -1).T
    statistics = dict(zip(MEASURED, measured.unbind(-1), strict=True))
    statistics["update_ratio"] = statistics["update_norm"] / statistics["parameter_norm"]
    return torch.stack([statistics[name] for name in UPDATES], -1)
