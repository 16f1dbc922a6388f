"""What is wrong with a network's training, said in words, from what a monitor measured; a healthy run gets no word."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minigrad.errors import UserError
from minigrad.monitoring.readings import FLOW, UPDATES, Readings


@dataclass(frozen=True)
class Thresholds:
    """From where on something is wrong. "Chosen here": no source gives a number.

    What is called measured comes from healthy networks on scikit-learn's digits: two layers of 128 tanh units, and
    twelve of 64 ReLU units from He's initial scale.

    Attributes:
        share: a unit of sigmoid or tanh is saturated where f'(x) is below this share of its maximum. Chosen here: it
            learns at a twentieth of its best speed, from |x| = 2.2 on for tanh and 4.4 for sigmoid.
        vanishing: the flow gain of a layer, below. Chosen here: sigmoid, whose derivative is 1/4 at most, has 0.2.
        depth_vanishing: the gradient that leaves the first layer over that which leaves the last, below; Glorot and
            Bengio (2010) compare layers so. Chosen here: the learning rate that is right for the last layer is then
            1,000 times too small for the first.
        exploding: the same ratio, above. Chosen here: the mirror image.
        saturated: fraction of a layer's units, above. Chosen here: most of them; 19 % were measured, with Adam.
        dead: fraction of a ReLU layer's units that never fire, above. Stanford's CS231n, "Neural networks 1", names
            40 % as what too high a learning rate can do. Chosen here: between that and the 11 % that were measured.
        false_zeros: fraction of the gradient, above. Chosen here: minigrad's activations have none while the gradient
            is within the dtype's range.
        ratio_high: update over weight, above: the learning rate is too large. CS231n, "Neural networks 3": "somewhere
            around 1e-3". Chosen here: a hundred times that, as the first steps of Adam were measured at 1e-2.
        ratio_low: the same ratio, never as high: the learning rate is too small. Chosen here: a hundredth of that 1e-3.

    Raises:
        UserError: a number is out of its range. But for `share`, one end of each range turns its verdict off.
    """

    share: float = 0.05
    vanishing: float = 0.1
    depth_vanishing: float = 1e-3
    exploding: float = 1e3
    saturated: float = 0.5
    dead: float = 0.25
    false_zeros: float = 0.01
    ratio_high: float = 0.1
    ratio_low: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"share={self.share:g}: expected a number between 0 and 1")
        for name in ("vanishing", "depth_vanishing", "saturated", "dead", "false_zeros"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name):g}: expected a number from 0 to 1")
        if not self.exploding >= 1:
            raise UserError(f"exploding={self.exploding:g}: expected a number from 1 on")
        if not 0 <= self.ratio_low < self.ratio_high:
            expected = f"a number from 0 on, below ratio_high={self.ratio_high:g}"
            raise UserError(f"ratio_low={self.ratio_low:g}: expected {expected}")


@dataclass(frozen=True)
class Verdict:
    """One thing that is wrong.

    Attributes:
        kind: "non-finite", "vanishing", "exploding", "dead", "saturated", "false zeros", "learning rate too large" or
            "learning rate too small".
        where: the layer or the parameter; of several layers the worst. Empty: the network as a whole.
        message: all of it in a sentence or two, with the numbers and what to try.
        also: other layers of which the same is true, from input to output.
    """

    kind: str
    where: str
    message: str
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.message


def judge(readings: Readings, thresholds: Thresholds, highest_ratio: float) -> list[Verdict]:
    """Say what is wrong: at most one verdict of each kind for the layers, and one for the network.

    It goes by medians over the steps; what has no number is no evidence, neither for nor against.

    Args:
        readings: of consecutive steps, some dozens.
        thresholds: from where on something is wrong.
        highest_ratio: the highest of the run's `update_ratios` so far, as a run that has converged makes small updates
            too; NaN if there are none but those of these readings.

    Returns: verdicts in the order in which to read them: what explains the others comes first.
    """
    evidence = _Evidence(readings, thresholds, flow_medians(readings), highest_ratio)
    rules = (_non_finite, _over_depth, _vanishing, _dead, _saturated, _false_zeros, _learning_rate_too_large)
    verdicts = [verdict for rule in rules for verdict in rule(evidence)]
    # Whatever else is wrong can make updates small, so a learning rate is blamed for it only if nothing else is.
    return verdicts or _learning_rate_too_small(evidence)


def flow_medians(readings: Readings) -> dict[str, dict[str, float]]:
    """Return the median over the steps of each layer's statistics, by layer and by name, NaN where there is none."""
    return _named(readings.layers, FLOW, readings.flow)


def update_medians(readings: Readings) -> dict[str, dict[str, float]]:
    """Return the median over the steps of each parameter's statistics, by parameter and by name, likewise."""
    return _named(readings.parameters, UPDATES, readings.updates)


def update_ratios(readings: Readings) -> Tensor:
    """Return the ratio of update to parameter in each step, median over the weights, (steps,); NaN without weights."""
    weights = torch.tensor([len(shape) >= 2 for shape in readings.parameters.values()], dtype=torch.bool)
    ratios = readings.updates[:, weights, UPDATES.index("update_ratio")]
    return torch.cat([ratios, ratios.new_full((len(ratios), 1), math.nan)], 1).nanmedian(1).values


def median_update_ratio(readings: Readings) -> float:
    """Return the ratio of update to parameter, median over the steps and then over the weights; NaN if there is none.

    Weights are parameters of two dimensions or more: biases may start at 0, where the ratio says nothing.
    """
    medians = update_medians(readings)
    weights = [medians[name]["update_ratio"] for name, shape in readings.parameters.items() if len(shape) >= 2]
    return float(torch.tensor([math.nan, *weights], dtype=torch.float64).nanmedian())


def _named(
    names: dict[str, str] | dict[str, tuple[int, ...]], statistics: tuple[str, ...], values: Tensor
) -> dict[str, dict[str, float]]:
    nothing = values.new_full((1, *values.shape[1:]), math.nan)  # a median needs one step
    medians = torch.cat([values, nothing]).nanmedian(0).values.tolist()
    return {name: dict(zip(statistics, row, strict=True)) for name, row in zip(names, medians, strict=True)}


@dataclass(frozen=True, eq=False)
class _Evidence:
    readings: Readings
    thresholds: Thresholds
    layers: dict[str, dict[str, float]]
    highest_ratio: float

    def many(self, statistic: str, limit: float) -> dict[str, float]:
        """Return the median of a statistic of the layers where it is above a limit."""
        return {name: layer[statistic] for name, layer in self.layers.items() if layer[statistic] > limit}

    def dead(self) -> dict[str, float]:
        """Return the fraction of dead units of the layers that have too many."""
        fractions = {name: float(units.double().mean()) for name, units in self.readings.dead.items()}
        return {name: fraction for name, fraction in fractions.items() if fraction > self.thresholds.dead}

    def vanishing(self) -> dict[str, float]:
        """Return the flow gain of the layers where it is too small, but for those whose dead units say why."""
        gains = {name: self.layers[name]["gain"] for name in self.layers.keys() - self.dead().keys()}
        return {name: gains[name] for name in self.layers if gains.get(name, math.nan) < self.thresholds.vanishing}

    def over_depth(self) -> tuple[float, str, str, int]:
        """Return the ratio of the first layer's gradient to the last's, or NaN, and who and how far apart they are."""
        names = [name for name, layer in self.layers.items() if not math.isnan(layer["rms"])]
        if not names:
            return math.nan, "", "", 0
        first, last = (self.readings.layer(name)["rms"] for name in (names[0], names[-1]))
        ratio = first / last
        ratio = ratio.where(ratio.isfinite() & last.isfinite(), math.nan)
        return float(ratio.nanmedian()), names[0], names[-1], len(names) - 1

    def of_layers(
        self, kind: str, found: dict[str, float], text: Callable[[str], str], advice: str = "", least: bool = False
    ) -> list[Verdict]:
        """Return the verdict on the layers that were found: what is to be said of the worst, and the others' names."""
        if not found:
            return []
        worst = (min if least else max)(found, key=found.__getitem__)
        also = tuple(name for name in found if name != worst)
        more = f" and {len(also) - 3} more" if len(also) > 3 else ""
        same = f" Likewise in {'layer' if len(also) == 1 else 'layers'} {', '.join(also[:3])}{more}." if also else ""
        activation = self.readings.layers[worst]
        sentence = f"layer {worst} ({activation}): {kind}: {text(worst)}.{same} Try {advice or _REMEDY[activation]}."
        return [Verdict(kind, worst, sentence, also)]


def _non_finite(evidence: _Evidence) -> list[Verdict]:
    """The first step, and in it the first place on the way back from the loss."""
    readings = evidence.readings
    fraction = readings.flow[..., FLOW.index("nonfinite")]
    norm, parameter_norm = (readings.updates[..., UPDATES.index(name)] for name in ("gradient_norm", "parameter_norm"))
    layers = fraction > 0
    parameters = norm.isinf() | (norm.isnan() & ~parameter_norm.isnan())  # both are NaN where nothing was measured
    steps = torch.cat([layers, parameters], 1).any(1).nonzero()
    if not len(steps):
        return []
    i = int(steps[0])
    if layers[i].any():
        place = int(layers[i].nonzero()[-1])
        where = list(readings.layers)[place]
        who = f"layer {where} ({readings.layers[where]})"
        what = f"{_percent(float(fraction[i, place]))} of the gradient that leaves it is infinite or NaN"
    else:
        place = int(parameters[i].nonzero()[-1])
        where = list(readings.parameters)[place]
        who, what = f"parameter {where}", f"the norm of its gradient is {norm[i, place]:g}"
    advice = "a smaller learning rate or a dtype of wider range"
    text = f"{what} at step {readings.first_step + i}, first on the way back from the loss"
    return [Verdict("non-finite", where, f"{who}: non-finite: {text}. Try {advice}.")]


def _over_depth(evidence: _Evidence) -> list[Verdict]:
    """Exploding or vanishing of the network as a whole."""
    ratio, first, last, distance = evidence.over_depth()
    vanishes = ratio < evidence.thresholds.depth_vanishing
    if not vanishes and not ratio > evidence.thresholds.exploding:
        return []
    kind, verb = ("vanishing", "shrinks") if vanishes else ("exploding", "grows")
    factor = "to 0" if ratio == 0 else f"{_fold(ratio)}, {_fold(ratio ** (1 / distance))} per layer on average"
    advice = "an initial scale that fits the activation (Glorot's for tanh, He's for ReLU)"
    if vanishes and "sigmoid" in evidence.readings.layers.values():
        advice += ", and tanh or ReLU instead of sigmoid, whose derivative is 1/4 at most"
    text = f"from layer {last} back to layer {first} the gradient {verb} {factor}"
    return [Verdict(kind, "", f"the network: {kind}: {text}. Try {advice}.")]


def _vanishing(evidence: _Evidence) -> list[Verdict]:
    gains = evidence.vanishing()

    def text(name: str) -> str:
        shrinks = f"the gradient shrinks {_fold(gains[name]) if gains[name] > 0 else 'to 0'} here"
        saturated = evidence.layers[name]["saturated"]
        if not saturated > evidence.thresholds.saturated:
            return shrinks
        units = "inactive" if evidence.readings.layers[name] == "relu" else "saturated"
        return f"{shrinks}; {_percent(saturated)} of its units are {units}"

    return evidence.of_layers("vanishing", gains, text, least=True)


def _dead(evidence: _Evidence) -> list[Verdict]:
    found = evidence.dead()
    text = "{} of its {} units fire on no input and learn nothing"
    units = evidence.readings.dead
    return evidence.of_layers("dead", found, lambda name: text.format(_percent(found[name]), len(units[name])))


def _saturated(evidence: _Evidence) -> list[Verdict]:
    """Where no verdict on vanishing has said it; half of ReLU's units are inactive in the best of networks."""
    found, vanishing = evidence.many("saturated", evidence.thresholds.saturated), evidence.vanishing()
    found = {name: found[name] for name in found if name not in vanishing and evidence.readings.layers[name] != "relu"}
    text = "{} of its units are saturated and hardly learn"
    return evidence.of_layers("saturated", found, lambda name: text.format(_percent(found[name])))


def _false_zeros(evidence: _Evidence) -> list[Verdict]:
    found = evidence.many("false_zeros", evidence.thresholds.false_zeros)
    text = "{} of the gradient is 0 by rounding alone: the dtype is too small for it"
    # PyTorch's own activations have false zeros in every dtype: they compute from the rounded output.
    advice = 'minigrad\'s activations with save="input" if others are in use; else float32, or a loss scaled up'
    return evidence.of_layers("false zeros", found, lambda name: text.format(_percent(found[name])), advice)


def _learning_rate_too_large(evidence: _Evidence) -> list[Verdict]:
    ratio = median_update_ratio(evidence.readings)
    if not ratio > evidence.thresholds.ratio_high:
        return []
    return [_learning_rate("large", f"an update has {ratio:.2g} times the norm of the weights", "smaller")]


def _learning_rate_too_small(evidence: _Evidence) -> list[Verdict]:
    ratio = max(median_update_ratio(evidence.readings), evidence.highest_ratio)  # the former, if the latter is NaN
    if not ratio < evidence.thresholds.ratio_low:
        return []
    return [_learning_rate("small", f"updates never had more than {ratio:.2g} times the norm of the weights", "larger")]


def _learning_rate(fault: str, text: str, remedy: str) -> Verdict:
    kind = f"learning rate too {fault}"
    advice = f"around 1e-3 is usual. Try a {remedy} learning rate, by a factor of 10 at a time"
    return Verdict(kind, "", f"the network: {kind}: {text}; {advice}.")


_REMEDY = {
    "sigmoid": "tanh or a smaller initial scale",
    "tanh": "a smaller initial scale or a smaller learning rate",
    "relu": "a smaller learning rate or He's initial scale",
}


def _fold(ratio: float) -> str:
    """Return by what factor a ratio is off 1, in two digits: 1.4-fold, 14-fold, 1,400-fold, 10^14-fold."""
    power = abs(math.log10(ratio))
    factor = float(f"{10 ** min(power, 6):.2g}")
    if factor >= 1e6:
        return f"10^{power:.0f}-fold"
    return f"{factor:,.0f}-fold" if factor >= 10 else f"{factor:g}-fold"


def _percent(fraction: float) -> str:
    """Return a fraction in two digits, or three where two would make all of nearly all: 0.12 %, 71 %, 99.6 %."""
    return f"{100 * fraction:.{2 if fraction < 0.99 else 3}g} %"
