"""What a monitor measured in consecutive steps, on the host."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

FLOW = (
    "upstream_rms",
    "rms",
    "norm",
    "gain",
    "largest",
    "zeros",
    "saturated",
    "nonfinite",
    "false_zeros",
    "mean",
    "deviation",
)
UPDATES = ("gradient_norm", "parameter_norm", "update_norm", "update_ratio", "gradient_cosine")


@dataclass(frozen=True, eq=False)
class Readings:
    """What a monitor measured in consecutive steps, on the host; all numbers are float64, NaN where there are none.

    Of an activation layer y = f(x), over all elements that its passes of a step had, of values as they are stored:

    - `upstream_rms`: root mean square of the gradient that arrives at y.
    - `rms`, `norm`: root mean square and Euclidean norm of the gradient that leaves to x.
    - `gain`: rms / upstream_rms, the flow gain. As |f'| is at most 1, so is the gain.
    - `largest`: the largest magnitude of the gradient that leaves.
    - `zeros`: fraction of it that is 0.
    - `saturated`: fraction of units where f'(x) is below a share of its maximum (`Thresholds.share`); of ReLU, where it
      is 0.
    - `nonfinite`: fraction of the gradient that leaves that is infinite or NaN.
    - `false_zeros`: fraction of it that is 0 although neither the gradient that arrives nor the derivative is
      (sigmoid and tanh): the dtype is too small for it.
    - `mean`, `deviation`: of y; the deviation is divided by the count.

    Of a parameter, per step:

    - `gradient_norm`, `parameter_norm`, `update_norm`: Euclidean, the gradient's as the update got it, the parameter's
      before the update.
    - `update_ratio`: update_norm / parameter_norm.
    - `gradient_cosine`: of the angle between this step's gradient and that of the step before; NaN in the first, and
      where one of them is missing or 0.

    Attributes:
        first_step: number of steps made before the first of these.
        layers: what each watched layer computes, "sigmoid", "tanh" or "relu", by its name, from input to output as the
            first step went through them; before it, and layers without a gradient in it, as the model registers them.
        flow: (steps, layers, len(FLOW)).
        parameters: the shape of each watched parameter, by its name.
        updates: (steps, parameters, len(UPDATES)).
        dead: by ReLU layer, (units,) bool: which have not fired in any of the last steps, a monitor's `window` or more
            of them; without layers for which so many have not been made.
        outputs: names of layers whose output is taken for the model's, as it registers no parameters after them.
    """

    first_step: int
    layers: dict[str, str]
    flow: Tensor
    parameters: dict[str, tuple[int, ...]]
    updates: Tensor
    dead: dict[str, Tensor]
    outputs: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.flow)

    def layer(self, name: str) -> dict[str, Tensor]:
        """Return the statistics of a layer by their names, (steps,) each.

        Raises:
            KeyError: there is no such layer; the message names those there are.
        """
        return dict(zip(FLOW, self.flow[:, _place(name, self.layers, "layer")].unbind(-1), strict=True))

    def parameter(self, name: str) -> dict[str, Tensor]:
        """Return the statistics of a parameter by their names, (steps,) each.

        Raises:
            KeyError: there is no such parameter; the message names those there are.
        """
        return dict(zip(UPDATES, self.updates[:, _place(name, self.parameters, "parameter")].unbind(-1), strict=True))

    def points(self) -> list[dict[str, float]]:
        """Return the numbers of each step by their tags in TensorBoard, without what is NaN; dead units of the last.

        Tags are `flow/<layer>/<statistic>` and, of parameters, `<statistic>/<parameter>`.
        """
        tags = [f"flow/{layer}/{statistic}" for layer in self.layers for statistic in FLOW]
        tags += [f"{statistic}/{parameter}" for parameter in self.parameters for statistic in UPDATES]
        table = torch.cat([self.flow.flatten(1), self.updates.flatten(1)], 1).tolist()
        points = [{tag: value for tag, value in zip(tags, row, strict=True) if value == value} for row in table]
        if points:
            points[-1] |= {f"flow/{layer}/dead": float(units.double().mean()) for layer, units in self.dead.items()}
        return points

    def median(self) -> Readings:
        """Return the medians over the steps as readings of one step, NaN where there is no number in any."""
        flow, updates = (
            torch.cat([values, values.new_full((1, *values.shape[1:]), torch.nan)]).nanmedian(0, keepdim=True).values
            for values in (self.flow, self.updates)
        )
        return replace(self, flow=flow, updates=updates)

    def until(self, steps: int) -> Readings:
        """Return the readings of the first `steps` of these steps."""
        return replace(self, flow=self.flow[:steps], updates=self.updates[:steps])

    def last(self, steps: int) -> Readings:
        """Return the readings of the last `steps` of these steps, or of all if there are fewer."""
        left_out = max(0, len(self) - steps)
        return replace(
            self,
            first_step=self.first_step + left_out,
            flow=self.flow[left_out:].clone(),  # a view would keep all of them in memory, and in a checkpoint
            updates=self.updates[left_out:].clone(),
        )

    def followed_by(self, later: Readings) -> Readings:
        """Return these readings and those of the steps after them."""
        return replace(
            later,
            first_step=self.first_step,
            flow=torch.cat([self.flow, later.flow]),
            updates=torch.cat([self.updates, later.updates]),
        )


def _place(name: str, names: dict[str, object] | dict[str, str] | dict[str, tuple[int, ...]], kind: str) -> int:
    if name not in names:
        raise KeyError(f"no {kind} is called {name!r}; there are: {', '.join(names) or 'none'}")
    return list(names).index(name)
