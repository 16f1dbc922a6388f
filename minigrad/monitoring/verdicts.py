"""What is wrong with a network's training, said in words, from what a monitor measured; a healthy run gets no word."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minigrad.monitoring.readings import FLOW, UPDATES, Readings
from minigrad.monitoring.thresholds import Thresholds


@dataclass(frozen=True)
class Verdict:
    """One thing that is wrong.

    Attributes:
        kind: "non-finite", "vanishing", "exploding", "dead", "saturated", "false zeros", "learning rate too large" or
            "learning rate too small".
        where: the layer or the parameter; of several layers the worst. Empty: the network as a whole.
        message: all of it in a sentence or two, with the numbers and what to try.
        also: other layers of which the same is true, from input to output; of the network those that suffer from it.
    """

    kind: str
    where: str
    message: str
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.message


def judge(
    readings: Readings,
    thresholds: Thresholds,
    highest_ratio: float = math.nan,
    *,
    is_early: bool = False,
    began_ill: bool = False,
) -> list[Verdict]:
    """Say what is wrong: at most one verdict of each kind for the layers, and one for the network.

    It goes by medians over the steps; what has no number is no evidence, neither for nor against. An output layer is
    not judged by its gain or its saturation: of a classifier that is sure of itself, and right, it has to be saturated.

    Args:
        readings: of consecutive steps, some dozens.
        thresholds: from where on something is wrong.
        highest_ratio: the highest of the run's `update_ratios` so far, as a run that has converged makes small updates
            too, and one whose weights a single update has blown up as well; NaN if those of these readings are all.
        is_early: whether the run has only begun; then small weights may yet grow and a learning rate yet warm up, so
            its size alone is no fault.
        began_ill: whether something was wrong in the run's first step already; then no learning rate is the cause.

    Returns: verdicts in the order in which to read them: what explains the others comes first.
    """
    evidence = _Evidence(readings, thresholds, flow_medians(readings))
    faults = [*_non_finite(evidence), *_symptoms(evidence)]
    may_be_an_effect = not began_ill and any(fault.kind != "false zeros" for fault in faults)  # which are the dtype's
    ratio = median_update_ratio(readings)
    highest = highest_ratio if highest_ratio >= ratio else ratio
    if ratio > thresholds.ratio_high and not is_early:
        rate = _learning_rate("large", f"an update has {ratio:.2g} times the norm of the weights", "smaller")
    elif highest > thresholds.ratio_high and may_be_an_effect:
        rate = _learning_rate("large", f"an update has had {highest:.2g} times the norm of the weights", "smaller")
    elif highest < thresholds.ratio_low and not is_early and not faults:  # each of which could make updates small
        return [
            _learning_rate("small", f"no update had more than {highest:.2g} times the norm of the weights", "larger")
        ]
    else:
        return faults
    if not began_ill:
        evidence = replace(evidence, remedy="a smaller learning rate")
    return [*_non_finite(evidence), rate, *_symptoms(evidence)]


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
    remedy: str = ""  # of all that is wrong with layers, where it is known

    def many(self, statistic: str, limit: float) -> dict[str, float]:
        """Return the median of a statistic of the hidden layers where it is above a limit."""
        return {name: self.layers[name][statistic] for name in self.hidden if self.layers[name][statistic] > limit}

    @property
    def hidden(self) -> list[str]:
        """Names of the layers that are not the model's output."""
        return [name for name in self.layers if name not in self.readings.outputs]

    def dead(self) -> dict[str, float]:
        """Return the fraction of dead units of the layers that have too many."""
        fractions = {name: float(units.double().mean()) for name, units in self.readings.dead.items()}
        return {name: fraction for name, fraction in fractions.items() if fraction > self.thresholds.dead}

    def vanishing(self) -> dict[str, float]:
        """Return the flow gain of the layers where it is too small, but for those whose dead units say why."""
        dead = self.dead()
        gains = {name: self.layers[name]["gain"] for name in self.hidden if name not in dead}
        return {name: gain for name, gain in gains.items() if gain < self.thresholds.vanishing}

    def saturated(self) -> dict[str, float]:
        """Return the fraction of saturated units of the layers that have too many; half of ReLU's are in the best."""
        found = self.many("saturated", self.thresholds.saturated)
        return {name: found[name] for name in found if self.readings.layers[name] != "relu"}

    def over_depth(self) -> dict[str, float]:
        """Return the norm of the gradient that leaves each layer over that of the last, where there are numbers."""
        names = [name for name, layer in self.layers.items() if not math.isnan(layer["norm"])]
        ratios = {}
        for name in names:
            norm, last = (self.readings.layer(each)["norm"] for each in (name, names[-1]))
            ratio = norm / last
            ratios[name] = float(ratio.where(ratio.isfinite() & last.isfinite(), math.nan).nanmedian())
        return ratios

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
        remedy = advice or self.remedy or _REMEDY[activation]
        sentence = f"layer {worst} ({activation}): {kind}: {text(worst)}.{same} Try {remedy}."
        return [Verdict(kind, worst, sentence, also)]


def _symptoms(evidence: _Evidence) -> list[Verdict]:
    """Say what is wrong with the layers, and with the network that they make."""
    rules = (_over_depth, _vanishing, _dead, _saturated, _false_zeros)
    return [verdict for rule in rules for verdict in rule(evidence)]


def _non_finite(evidence: _Evidence) -> list[Verdict]:
    """The first step, and in it the first place on the way back from the loss.

    But for steps that changed nothing and were followed by better ones, as those in which a loss scale is found.
    """
    readings = evidence.readings
    fraction = readings.flow[..., FLOW.index("nonfinite")]
    norm, parameter_norm, update_norm = (
        readings.updates[..., UPDATES.index(name)] for name in ("gradient_norm", "parameter_norm", "update_norm")
    )
    layers = fraction > 0
    parameters = norm.isinf() | (norm.isnan() & ~parameter_norm.isnan())  # both are NaN where nothing was measured
    is_bad = torch.cat([layers, parameters], 1).any(1)
    is_skipped = (update_norm == 0).any(1) & ~(update_norm > 0).any(1)
    is_followed = (~is_bad).flip(0).cummax(0).values.flip(0)  # by a step in which all is finite
    steps = (is_bad & ~(is_skipped & is_followed)).nonzero()
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
    if readings.first_step + i == 0:  # before the first update
        advice = "finite inputs, smaller initial values or a dtype of wider range"
    text = f"{what} at step {readings.first_step + i}, first on the way back from the loss"
    return [Verdict("non-finite", where, f"{who}: non-finite: {text}. Try {advice}.")]


def _over_depth(evidence: _Evidence) -> list[Verdict]:
    """Exploding or vanishing of the network as a whole."""
    ratios, thresholds = evidence.over_depth(), evidence.thresholds
    if not ratios:
        return []
    names = list(ratios)
    first, last = names[0], names[-1]
    ratio = ratios[first]
    vanishes = ratio < thresholds.depth_vanishing
    if not vanishes and not ratio > thresholds.exploding:
        return []
    kind, verb = ("vanishing", "shrinks") if vanishes else ("exploding", "grows")
    factor = "to 0" if ratio == 0 else f"{_fold(ratio)}, {_fold(ratio ** (1 / (len(names) - 1)))} per layer on average"
    advice = "an initial scale that fits the activation (Glorot's for tanh, He's for ReLU)"
    if vanishes and "sigmoid" in evidence.readings.layers.values():
        advice += ", and tanh or ReLU instead of sigmoid, whose derivative is 1/4 at most"
    text = f"from layer {last} back to layer {first} the gradient {verb} {factor}"
    message = f"the network: {kind}: {text}. Try {evidence.remedy or advice}."
    suffer = [
        n for n, r in ratios.items() if (r < thresholds.depth_vanishing if vanishes else r > thresholds.exploding)
    ]
    return [Verdict(kind, "", message, tuple(suffer))]


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
    """Where no verdict on vanishing has said it."""
    found, vanishing = evidence.saturated(), evidence.vanishing()
    found = {name: found[name] for name in found if name not in vanishing}
    text = "{} of its units are saturated and hardly learn"
    return evidence.of_layers("saturated", found, lambda name: text.format(_percent(found[name])))


def _false_zeros(evidence: _Evidence) -> list[Verdict]:
    """Where saturation does not explain them."""
    found, saturated = evidence.many("false_zeros", evidence.thresholds.false_zeros), evidence.saturated()
    found = {name: found[name] for name in found if name not in saturated}
    text = "{} of the gradient is 0 by rounding alone: the dtype is too small for it"
    # PyTorch's own activations have false zeros in every dtype: they compute from the rounded output.
    advice = "float32 or a loss scaled up; instead of PyTorch's activations minigrad's, with save=\"input\""
    return evidence.of_layers("false zeros", found, lambda name: text.format(_percent(found[name])), advice)


def _learning_rate(fault: str, text: str, remedy: str) -> Verdict:
    kind = f"learning rate too {fault}"
    advice = f"around 1e-3 is usual. Try a {remedy} learning rate, by a factor of 10 at a time"
    return Verdict(kind, "", f"the network: {kind}: {text}; {advice}.")


_REMEDY = {
    "sigmoid": "tanh, a smaller initial scale or a smaller learning rate",
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
