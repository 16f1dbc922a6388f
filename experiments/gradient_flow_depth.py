"""How gradients vanish and explode over depth: the same deep network with three activations and three initial scales.

On its way back through a layer a gradient is multiplied by the weights and by the derivative of the activation f. In a
wide network with weights of standard deviation s that changes its root mean square by the factor

    sqrt(width * s^2 * E[f'(z)^2]),    z normal, of variance q;    in the next layer q is width * s^2 * E[f(z)^2]

and a gradient goes through one layer after the other: only where the factor is about 1 do the first layers learn.

- small, weights from normal(0, 0.01): the gradient vanishes with every activation.
- proper, where the factor is about 1: for tanh Glorot's scale, s^2 = 2 / (n_in + n_out), for ReLU He's, s^2 = 2 / n_in.
  Sigmoid is (1 + tanh(x/2)) / 2. Weights twice as large before it and twice behind, four times between two, and biases
  that take away its mean of 1/2 make of it the network of tanh, with the same flow. (At the same learning rate it
  learns more slowly: its weights are four times as large, and their gradients a quarter.)
- large, weights from normal(0, 1): the gradient explodes with ReLU, and with tanh, although most units are saturated.
  With sigmoid what the weights add is what saturated units take away.

All networks start from the same random numbers, times their scale, and make some steps on handwritten digits, watched
by the gradient monitor. Its figures of the first step are held to float64, and to the formula. With a finite width the
logarithm of the squared gradient strays from that; were the weights independent of all else, its variance would be the
sum over layers of log(1 + (3 E[f'^4] / E[f'^2]^2 - 1) / width) for one sample, and less for the mean of a batch.

Source: X. Glorot and Y. Bengio, AISTATS 2010; K. He et al., ICCV 2015; S. Schoenholz et al., "Deep information
    propagation", ICLR 2017, for the formula; B. Hanin, "Which neural net architectures give rise to exploding and
    vanishing gradients?", NeurIPS 2018, for finite widths. The naive scales are those of Stanford's CS231n.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from minigrad.config import RunConfig, check, check_at_least, check_learning_rate
from minigrad.figures import BLUE, GREY, ORANGE, RED, legend_below, panels
from minigrad.monitoring.monitor import GradientMonitor
from minigrad.monitoring.readings import Readings
from minigrad.monitoring.thresholds import Thresholds
from minigrad.monitoring.verdicts import Verdict
from minigrad.nn import MLP
from minigrad.objectives import Network, data
from minigrad.rules import gradient_descent
from minigrad.run import Run
from minigrad.tables import Cell
from minigrad.trainer import Trainer
from minigrad.verification import verify, verify_that

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Each activation, its derivative, both to be evaluated in float64, and the derivative's maximum.
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float]] = {
    "sigmoid": (torch.sigmoid, lambda z: torch.sigmoid(z) * torch.sigmoid(-z), 0.25),
    "tanh": (torch.tanh, lambda z: 1 / z.cosh().square(), 1.0),
    "relu": (torch.relu, lambda z: (z > 0).double(), 1.0),
}
NAIVE = {"small": 0.01, "large": 1.0}  # standard deviations
LOOKS = {
    "small": {"color": ORANGE, "ls": ":", "marker": "v", "label": "small: normal(0, 0.01)"},
    "proper": {"color": BLUE, "ls": "-", "marker": "o", "label": "proper: Glorot's or He's"},
    "large": {"color": RED, "ls": "--", "marker": "^", "label": "large: normal(0, 1)"},
}
BATCH = 64  # samples per step
THRESHOLDS = Thresholds()


@dataclass
class Config(RunConfig):
    """The keys of this experiment."""

    depth: int
    width: int
    steps: int
    learning_rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(2 <= self.depth <= 16, "depth", self.depth, "an integer from 2 to 16: float32 is to hold the gradients")
        least = max(16, 2 * self.depth)  # narrower, chance decides: the variance above grows as depth / width
        expected = f"an integer from {least} to 512; at least twice the depth"
        check(least <= self.width <= 512, "width", self.width, expected)
        check_at_least("steps", self.steps, 1)
        check_learning_rate("learning_rate", self.learning_rate)


@dataclass(frozen=True)
class Flow:
    """What happened to one of the networks.

    Attributes:
        activation: of its hidden layers.
        scale: "small", "proper" or "large".
        readings: the monitor's, of all steps.
        reference: the monitor's statistics of the first step in float64, (layers,) each, by their names.
        predicted: (layers,) float64, the gradient's rms at the start over the last layer's, by the formula.
        deviation: standard deviation of the logarithm of what is predicted for the first layer.
        at_start: verdicts after the first step.
        at_end: verdicts after the last.
        loss: (steps,), that of each step's batch.
        accuracy: on the held-out third, at the end.
    """

    activation: str
    scale: str
    readings: Readings
    reference: dict[str, Tensor]
    predicted: Tensor
    deviation: float
    at_start: list[Verdict]
    at_end: list[Verdict]
    loss: Tensor
    accuracy: float

    @property
    def name(self) -> str:
        """What it is called in tags and messages."""
        return f"{self.activation}_{self.scale}"

    def start(self, statistic: str) -> Tensor:
        """Return a statistic that the monitor measured in the first step, (layers,)."""
        return torch.stack([self.readings.layer(name)[statistic][0] for name in self.readings.layers])

    @property
    def over_depth(self) -> float:
        """What leaves the first layer over what leaves the last, at the start."""
        rms = self.start("rms")
        return float(rms[0] / rms[-1])


def initial_deviation(activation: str, scale: str, n_in: int, n_out: int) -> float:
    """Return the standard deviation of initial weights; of a sigmoid's proper ones before they are doubled."""
    if scale != "proper":
        return NAIVE[scale]
    return math.sqrt(2 / n_in) if activation == "relu" else math.sqrt(2 / (n_in + n_out))


@torch.no_grad()
def initialise(network: MLP, activation: str, scale: str, seed: int) -> None:
    """Set weights and biases to their initial values."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[Any] = list(network)
    for layer in layers:
        n_out, n_in = layer.weight.shape
        layer.weight.copy_(torch.randn(n_out, n_in, generator=generator))
        layer.weight.mul_(initial_deviation(activation, scale, n_in, n_out))
        layer.bias.zero_()
    if (activation, scale) == ("sigmoid", "proper"):
        for before, behind in pairwise(layers):  # tanh(z) = 2 sigmoid(2 z) - 1
            before.weight.mul_(2)
            before.bias.mul_(2)
            behind.weight.mul_(2)
            behind.bias.copy_(-behind.weight.sum(1) / 2)


def predict(activation: str, scale: str, config: Config, inputs: Tensor) -> tuple[Tensor, float]:
    """Return what `Flow` holds as predicted and as its deviation, for inputs (N, D)."""
    f, derivative, _ = FUNCTIONS["tanh" if (activation, scale) == ("sigmoid", "proper") else activation]
    normal = torch.linspace(-8, 8, 4000, dtype=torch.float64)
    weight = (-normal.square() / 2).exp()

    def mean(values: Tensor) -> float:
        return float((weight * values).sum() / weight.sum())

    n_in = inputs.shape[1]
    q = initial_deviation(activation, scale, n_in, config.width) ** 2 * float(inputs.double().square().sum(1).mean())
    gain = config.width * initial_deviation(activation, scale, config.width, config.width) ** 2
    factors, variance = [], 0.0
    for _ in range(config.depth - 1):
        z = math.sqrt(q) * normal
        second, fourth = (mean(derivative(z) ** power) for power in (2, 4))
        factors.append(math.sqrt(gain * second))
        variance += math.log(1 + (3 * fourth / second**2 - 1) / config.width)
        q = gain * mean(f(z).square())
    backwards = torch.tensor([1.0, *reversed(factors)], dtype=torch.float64).cumprod(0)
    return backwards.flip(0), math.sqrt(variance) / 2  # the root halves a logarithm


def reference(objective: Network, activation: str) -> dict[str, Tensor]:
    """Return the first step's statistics in float64, (layers,) each, from a pass that nobody watches.

    Every layer's derivative and what follows from it are computed anew, from what the layer was given and from the
    gradient that arrived at its output. (A whole pass in float64 would be another: some of these networks are chaotic.)
    """
    _, derivative, highest = FUNCTIONS[activation]
    inputs, targets = objective.batch(0)
    layers: list[Any] = list(objective.network)
    seen, x = [], inputs
    for layer in layers[:-1]:
        z = linear(x.detach(), layer.weight.detach()).cpu().double() + layer.bias.detach().cpu().double()
        x = layer(x)
        x.retain_grad()
        seen.append((z, x))
    cross_entropy(layers[-1](x), targets).backward()
    rows = []
    for z, y in seen:
        assert y.grad is not None
        upstream, slope = y.grad.cpu().double(), derivative(z)
        arrives, leaves = (gradient.square().mean().sqrt() for gradient in (upstream, upstream * slope))
        saturated = (slope < THRESHOLDS.share * highest).double().mean()
        rows.append([arrives, leaves, leaves / arrives, saturated])
    columns = torch.tensor(rows, dtype=torch.float64).T
    return dict(zip(("upstream_rms", "rms", "gain", "saturated"), columns, strict=True))


def train(activation: str, scale: str, config: Config, load: Callable[[], data.Data], device: torch.device) -> Flow:
    """Train one of the networks, watched."""
    objective = Network(load, activation, BATCH, config.seed, device, hidden=[config.width] * config.depth)
    initialise(objective.network, activation, scale, config.seed)
    expected = reference(objective, activation)
    inputs, _ = objective.batch(0)
    predicted, deviation = predict(activation, scale, config, inputs.cpu())
    trainer = Trainer(objective, gradient_descent, config.learning_rate, on_nonfinite="skip")
    losses = []
    with GradientMonitor(objective.network, THRESHOLDS) as monitor:
        for step in range(config.steps):
            losses.append(trainer.step().loss)
            monitor.step()
            if step == 0:
                start, at_start = monitor.read(), monitor.verdicts()
    return Flow(
        activation=activation,
        scale=scale,
        readings=start.followed_by(monitor.read()),
        reference=expected,
        predicted=predicted,
        deviation=deviation,
        at_start=at_start,
        at_end=monitor.verdicts(),
        loss=torch.stack(losses).cpu(),
        accuracy=float(objective.judge()["test/accuracy"]),
    )


def run(config: Config, run: Run) -> str:
    """Train the nine networks, show what their gradients do, and verify it."""
    print(f"{config.depth} layers of {config.width} units, nine times {config.steps} steps", flush=True)
    load = functools.cache(data.digits)
    flows = [train(activation, scale, config, load, run.device) for activation in FUNCTIONS for scale in LOOKS]
    run.steps = config.steps
    report(run, flows)
    run.figure("gradient_flow_depth", draw(flows))
    run.figure("gradient_flow_depth_over_time", draw_over_time(flows))

    for flow in flows:
        verify_flow(flow)
    by_name = {flow.name: flow for flow in flows}
    ratio = by_name["sigmoid_proper"].start("rms") / by_name["tanh_proper"].start("rms")
    verify("the proper sigmoid's gradient over tanh's, whose argument is half as large", ratio, 0.5, within=1e-4)
    return "verified: all nine against float64, the formula for wide networks and their verdicts at the start"


def verify_flow(flow: Flow) -> None:
    """Hold the monitor's figures of the first step to float64 and to the formula, and its verdicts to the figures.

    Raises:
        RunFailed: a statistic is off by more than a float32 computation explains, the gradient over depth is more than
            four standard deviations off the formula, or a verdict is missing or too much.
    """
    for statistic in ("upstream_rms", "rms", "gain"):
        ratio = flow.start(statistic) / flow.reference[statistic]
        verify(f"{statistic} of {flow.name} over float64's", ratio, 1, within=1e-5)  # a derivative has 8 ULP, 1e-6
    saturated = flow.reference["saturated"]
    verify(f"saturated units of {flow.name}", flow.start("saturated"), saturated, within=1e-3)  # one on the edge
    off = torch.tensor(flow.over_depth / float(flow.predicted[0])).log()
    verify(f"logarithm of {flow.name}'s gradient over the formula's", off, 0, within=4 * flow.deviation)

    change = float(flow.reference["rms"][0] / flow.reference["rms"][-1])
    vanishes, explodes = change < THRESHOLDS.depth_vanishing, change > THRESHOLDS.exploding
    expected = ["vanishing"] if vanishes else ["exploding"] if explodes else []
    said = [v for v in flow.at_start if not v.kind.startswith("learning rate")]  # which is not the initial scale's
    verify_that(
        f"{flow.name}, whose gradient changes by {change:.3g} over depth: {' '.join(expected) or 'neither'} is said",
        [verdict.kind for verdict in said if verdict.where == ""] == expected,
    )
    if flow.scale == "proper":
        verify_that(f"nothing is said of {flow.name}: {' '.join(map(str, said))}", not said)


def report(run: Run, flows: list[Flow]) -> None:
    """Write curves and verdicts, and print what each network's gradient does at the start, and where that leads."""
    starts: list[tuple[Cell, ...]] = []
    ends: list[tuple[Cell, ...]] = []
    for flow in flows:
        power = 1 / (len(flow.predicted) - 1)
        numbers = {
            "flow_gain": float(flow.start("gain").median()),
            "saturated": float(flow.start("saturated").median()),
            "per_layer": flow.over_depth**power,
            "predicted": float(flow.predicted[0]) ** power,
            "over_depth": flow.over_depth,
        }
        tag = f"gradient_flow_depth/{flow.name}"
        run.scalars(0, {f"{tag}/{key}": value for key, value in numbers.items()})
        for step, loss in enumerate(flow.loss.tolist()):
            run.scalars(step, {f"{tag}/loss": loss})
        run.scalars(run.steps, {f"{tag}/accuracy": flow.accuracy})
        for when, verdicts in (("at_the_start", flow.at_start), ("in_the_end", flow.at_end)):
            run.text(f"{tag}/{when}", "  \n".join(map(str, verdicts)) or "nothing is wrong")
        shown = [float(f"{number:.3g}") for number in numbers.values()]
        starts.append((flow.activation, flow.scale, *shown, _kinds(flow.at_start)))
        shown = [float(f"{number:.3g}") for number in (flow.loss[-1], flow.accuracy)]
        ends.append((flow.activation, flow.scale, *shown, _kinds(flow.at_end)))
    print("at the start: per layer is the gradient's change over depth, shared out; predicted is the formula's")
    columns = ["activation", "scale", "flow gain", "saturated", "per layer", "predicted", "over depth", "verdicts"]
    run.table("gradient_flow_depth/at_the_start", columns, starts)
    print(f"after {run.steps} steps")
    run.table("gradient_flow_depth/in_the_end", ["activation", "scale", "last loss", "accuracy", "verdicts"], ends)


def _kinds(verdicts: list[Verdict]) -> str:
    kinds = (f"{v.kind} in {len(v.also) + 1} layers" if v.where and v.also else v.kind for v in verdicts)
    return ", ".join(kinds) or "none"


def draw(flows: list[Flow]) -> "Figure":
    """Draw the gradient's size over depth at the start, a panel for each activation."""
    figure, ((*row,),) = panels(1, len(FUNCTIONS), sharey=True)
    figure.set_size_inches(11.8, 5)
    for axes, activation in zip(row, FUNCTIONS, strict=True):
        for flow in (flow for flow in flows if flow.activation == activation):
            rms = flow.start("rms")
            axes.plot(rms / rms[-1], lw=2, **LOOKS[flow.scale])
        for flow in (flow for flow in flows if flow.activation == activation):
            axes.plot(flow.predicted, color="black", lw=0.8, label="predicted for infinite width")
        axes.set(yscale="log", title=activation, xlabel="layer (the gradient goes from right to left)")
        axes.locator_params(axis="x", integer=True)
    row[0].set_ylabel("rms of the gradient, relative to the last layer")
    low, high = row[0].get_ylim()
    low, high = min(low, 1e-6), max(high, 1e6)
    for axes in row:
        axes.axhspan(low, THRESHOLDS.depth_vanishing, color="0.93", zorder=0)
        axes.axhspan(THRESHOLDS.exploding, high, color="0.93", zorder=0)
        axes.set_ylim(low, high)
        axes.text(0.97, 0.95, "explodes", transform=axes.transAxes, ha="right", va="top", style="italic")
        axes.text(0.97, 0.05, "vanishes", transform=axes.transAxes, ha="right", va="bottom", style="italic")
    legend_below(figure)
    return figure


def draw_over_time(flows: list[Flow]) -> "Figure":
    """Draw by what factor the gradient changes from layer to layer, over time, a panel for each network.

    Weights are part of that factor, and not of the flow gain, which is a derivative's alone: a ReLU's is the same
    however large they are.
    """
    from matplotlib.colors import LogNorm

    figure, grid = panels(len(FUNCTIONS), len(LOOKS), sharex=True, sharey=True)
    figure.set_size_inches(11, 8)
    for axes, flow in zip(grid.flat, flows, strict=True):
        rms = torch.stack([flow.readings.layer(name)["rms"] for name in flow.readings.layers])
        factor = rms[:-1] / rms[1:]
        factor = factor.where(factor.isfinite(), torch.nan).clamp(min=1e-3)  # a logarithm takes no 0
        axes.patch.set(facecolor=GREY, hatch="///", edgecolor="white")
        axes.grid(False)
        corners = (torch.arange(rms.shape[1] + 1) - 0.5, torch.arange(len(rms)) - 0.5)
        cells = (part.numpy() for part in (*corners, factor))
        mesh = axes.pcolormesh(*cells, cmap="magma", norm=LogNorm(0.02, 50), rasterized=True)
        axes.set_title(f"{flow.activation}, {flow.scale}")
        axes.locator_params(integer=True)
    figure.supxlabel("step")
    figure.supylabel("layer, from input to output")
    bar = figure.colorbar(mesh, ax=grid, extend="both", format="{x:g}", aspect=40)
    bar.set_ticks([0.02, 0.1, 1, 10, 50])
    bar.set_label("rms of the gradient, over that of the layer behind; hatched: no number")
    return figure
