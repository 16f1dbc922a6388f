"""From sums on the device to statistics on the host, step by step."""

from __future__ import annotations

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


def on_host(tensors: list[Tensor]) -> list[Tensor]:
    """Return tensors in float64 on the host, by one copy if they are all on one device."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.double() for tensor in tensors]
    device = tensors[0].device
    together = torch.cat([tensor.reshape(-1).to(device, non_blocking=True) for tensor in tensors]).cpu().double()
    parts = together.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def flow_of(steps: list[Step], n_layers: int) -> Tensor:
    """Return the statistics of layers, (steps, layers, len(FLOW)), from their sums."""
    sums = torch.zeros((len(steps), n_layers, 2, COLUMNS), dtype=torch.float64)
    places = [
        (i * n_layers + layer) * 2 + which for i, s in enumerate(steps) for keys, _ in s.taken for layer, which in keys
    ]
    if places:
        rows = torch.cat([rows for step in steps for _, rows in step.taken])
        index = torch.tensor(places)
        flat = sums.view(-1, COLUMNS)
        flat.index_add_(0, index, rows)
        flat[:, 3] = 0
        flat[:, 3].scatter_reduce_(0, index, rows[:, 3], "amax")
    total, upstream, squares, largest, *counts = sums[:, :, BACKWARD].unbind(-1)
    number, summed, squared, *_ = sums[:, :, FORWARD].unbind(-1)
    mean = summed / number
    statistics = {
        "upstream_rms": (upstream / total).sqrt(),
        "rms": (squares / total).sqrt(),
        "gain": (squares / upstream).sqrt(),
        "largest": largest.where(total > 0, torch.nan) + 0.0,  # 0.0, not -0.0
        **{name: count / total for name, count in zip(_COUNTED, counts, strict=True)},
        "mean": mean,
        "deviation": (squared / number - mean.square()).clamp(min=0).sqrt(),
    }
    return torch.stack([statistics[name] for name in FLOW], -1)


def updates_of(steps: list[Step], n_parameters: int) -> Tensor:
    """Return the statistics of parameters, (steps, parameters, len(UPDATES))."""
    measured = torch.full((len(steps), n_parameters, len(MEASURED)), torch.nan, dtype=torch.float64)
    for i, step in enumerate(steps):
        if step.measured is not None:
            measured[i, step.here] = step.measured.view(len(MEASURED), -1).T
    statistics = dict(zip(MEASURED, measured.unbind(-1), strict=True))
    statistics["update_ratio"] = statistics["update_norm"] / statistics["parameter_norm"]
    return torch.stack([statistics[name] for name in UPDATES], -1)
