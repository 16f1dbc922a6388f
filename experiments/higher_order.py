"""Derivatives of derivatives: autograd nested in itself, what that costs from order to order, and what replaces it.

With `create_graph=True` a gradient is recorded like any other computation and can be differentiated again: here the
polynomial x^3 - 2x^2 + x + 1, four times. Each record holds the one before and the steps back through it, so for
PyTorch's own sigmoid and tanh time and memory grow exponentially with the order.

They need not. The derivatives of sigmoid and tanh are known before anything runs: `minigrad.derivative` evaluates any
in one kernel, and the backward of minigrad's Functions, nested in the same way, is that kernel again.

Time is the median of repetitions in which all ways and orders take turns; it depends on the machine and is not
verified. Memory is the most that the tensors made on the way hold at a time, in tensors of x's size.
"""

import decimal
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import minigrad
from minigrad.autodiff.allocation import LiveStorages
from minigrad.config import RunConfig, check, check_at_least, check_one_of
from minigrad.figures import BLUE, ORANGE, RED, legend_below, panels
from minigrad.run import Run
from minigrad.verification import verify

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACTIVATIONS = ("sigmoid", "tanh")
REACH = 6.0  # they are looked at between -REACH and REACH
CHECKED = 500  # points, or up to twice as many, where the derivatives are compared with their closed forms
REPETITIONS = 5


@dataclass
class Config(RunConfig):
    """The keys of this experiment."""

    x: float
    activation: str
    order: int
    points: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check(abs(self.x) <= 1e100, "x", self.x, "a number from -1e100 to 1e100, so that its cube is finite")
        check_one_of("activation", self.activation, [*ACTIVATIONS, "both"])
        check(1 <= self.order <= 10, "order", self.order, "an integer from 1 to 10")
        check_at_least("points", self.points, CHECKED)


def nested(function: Callable[[Tensor], Tensor], x: Tensor, order: int) -> Tensor:
    """Return a function's derivative from autograd nested `order` times; the last time nothing is recorded any more."""
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    ones = torch.ones_like(x)
    for n in range(1, order + 1):
        (y,) = torch.autograd.grad(y, leaf, ones, create_graph=n < order)
    return y


# The ways to an activation's derivative: functions of its name, of x and of the order.
WAYS: dict[str, Callable[[str, Tensor, int], Tensor]] = {
    "kernel": minigrad.derivative,
    "nested": lambda activation, x, order: nested(getattr(minigrad, activation), x, order),
    "torch": lambda activation, x, order: nested(getattr(torch, activation), x, order),
}
WITHIN = {"kernel": 1e-13, "nested": 1e-13, "torch": 1e-10}  # in float64, relative to the largest magnitude


def run(config: Config, run: Run) -> str:
    """Differentiate the polynomial, then the activations in three ways; verify the values and show what they cost."""
    differentiate_polynomial(config.x, run)

    x = torch.linspace(-REACH, REACH, config.points, dtype=torch.float64, device=run.device)
    activations = ACTIVATIONS if config.activation == "both" else (config.activation,)
    costs: dict[str, tuple[Tensor, Tensor]] = {}
    for activation in activations:
        errors = verified_errors(activation, x, config.order)
        costs[activation] = seconds, tensors = measure(activation, x, config.order)
        for quantity, values in {"error": errors, "seconds": seconds, "tensors": tensors}.items():
            for name, by_order in zip(WAYS, values.tolist(), strict=True):
                for n, value in enumerate(by_order, start=1):
                    run.scalars(n, {f"higher_order/{activation}/{quantity}/{name}": value})
        print(f"{activation} by minigrad.derivative, by minigrad's Functions nested, and by PyTorch's own nested")
        columns = ("order", *(f"{unit}, {name}" for unit in ("ms", "tensors") for name in WAYS))
        in_turn = torch.cat((1e3 * seconds, tensors)).T.tolist()
        rows = [(n, *(float(f"{value:.3g}") for value in row)) for n, row in enumerate(in_turn, start=1)]
        run.table(f"higher_order/{activation}", columns, rows)
    run.figure("higher_order_cost", draw_costs(costs, config.points))
    run.figure("higher_order_derivatives", draw_derivatives(activations, config.order))

    by_way = [dict(zip(WAYS, values[:, -1].tolist(), strict=True)) for values in costs[activations[-1]]]
    slower, larger = (values["torch"] / values["kernel"] for values in by_way)
    return (
        f"verified: the polynomial's derivatives, and those of {' and '.join(activations)} to order {config.order}; "
        f"measured, not verified: there PyTorch's {activations[-1]}, nested, took {slower:.3g} times the time of "
        f"minigrad.derivative and {larger:.3g} times its memory"
    )


def differentiate_polynomial(at: float, run: Run) -> None:
    """Differentiate x^3 - 2x^2 + x + 1 four times, each derivative from the one before; show and verify them."""
    x = torch.tensor(at, dtype=torch.float64, device=run.device, requires_grad=True)
    derivatives = [x**3 - 2 * x**2 + x + 1]
    for _ in range(4):
        (slope,) = torch.autograd.grad(derivatives[-1], x, create_graph=True)
        derivatives.append(slope)

    def closed_form(n: int, coefficients: tuple[int, ...], x: float) -> float:
        return sum(math.perm(k, n) * c * x ** (k - n) for k, c in enumerate(coefficients) if k >= n)

    found = [derivative.item() for derivative in derivatives]
    expected = [closed_form(n, (1, 1, -2, 1), at) for n in range(5)]
    print(f"x^3 - 2x^2 + x + 1 and its derivatives at x = {at:g}")
    rows = list(zip(range(5), found, expected, strict=True))
    run.table("higher_order/polynomial", ("order", "by autograd", "closed form"), rows)
    run.scalars(0, {f"higher_order/polynomial/{n}": value for n, value in enumerate(found)})
    for n, value in enumerate(found):
        terms = closed_form(n, (1, 1, 2, 1), abs(at))  # the sum of their magnitudes, to which rounding is relative
        verify(f"derivative {n} of the polynomial", value, expected[n], within=2**-50 * terms)


def verified_errors(activation: str, x: Tensor, order: int) -> Tensor:
    """Verify the derivatives up to `order` in every way, at some of the points; return their largest relative errors.

    Returns: (ways, order).
    """
    x = x[:: len(x) // CHECKED]
    errors = torch.zeros(len(WAYS), order)
    for n, expected in enumerate(closed_forms(activation, x.tolist(), order)[1:], start=1):
        largest = expected.abs().max()
        for i, (name, way) in enumerate(WAYS.items()):
            found = way(activation, x, n).cpu()
            verify(f"derivative {n} of {activation}, {name}", found, expected, WITHIN[name] * float(largest))
            errors[i, n - 1] = (found - expected).abs().max() / largest
    return errors


def closed_forms(activation: str, x: list[float], order: int) -> Tensor:
    """Return the activation and its derivatives up to `order` at N points: (order + 1, N), float64 on the host.

    With y = f(x), the first derivative is a polynomial in y: y - y^2 for sigmoid, 1 - y^2 for tanh. By the chain rule
    so is every other: P_{n+1}(y) = P_n'(y) P_1(y). The coefficients are integers; since the terms nearly cancel, they
    are added up with 50 digits.
    """
    first = {"sigmoid": (0, 1, -1), "tanh": (1, 0, -1)}[activation]
    polynomials = [[0, 1]]
    for _ in range(order):
        slope = [k * c for k, c in enumerate(polynomials[-1])][1:]
        product = [0] * (len(slope) + 2)
        for (i, a), (k, b) in itertools.product(enumerate(slope), enumerate(first)):
            product[i + k] += a * b
        polynomials.append(product)
    with decimal.localcontext(prec=50):
        powers = [decimal.Decimal(-point if activation == "sigmoid" else -2 * point).exp() for point in x]
        values = [1 / (1 + p) if activation == "sigmoid" else (1 - p) / (1 + p) for p in powers]
        rows = [[_sum(y, polynomial) for y in values] for polynomial in polynomials]
    return torch.tensor(rows, dtype=torch.float64)


def _sum(y: decimal.Decimal, coefficients: list[int]) -> float:
    total = decimal.Decimal()
    for c in reversed(coefficients):
        total = total * y + c
    return float(total)


def measure(activation: str, x: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Return the median seconds, and the peak of memory in tensors of x's size, of every derivative up to `order`.

    Returns: two of (ways, order).
    """
    memory = torch.zeros(len(WAYS), order)
    seconds = torch.zeros(REPETITIONS, len(WAYS), order)
    for repetition, n, (i, way) in itertools.product(range(-1, REPETITIONS), range(order), enumerate(WAYS.values())):
        if repetition < 0:  # which warms up as well
            with LiveStorages() as storages:
                way(activation, x, n + 1)
            memory[i, n] = storages.peak / x.nbytes
            continue
        start = time.perf_counter()
        way(activation, x, n + 1)
        if x.device.type != "cpu":
            torch.accelerator.synchronize(x.device)
        seconds[repetition, i, n] = time.perf_counter() - start
    return seconds.median(dim=0).values, memory


def draw_costs(costs: dict[str, tuple[Tensor, Tensor]], points: int) -> "Figure":
    """Draw time and memory over the order on logarithmic scales, one row an activation."""
    figure, grid = panels(len(costs), 2, sharex=True)
    lines: dict[str, dict[str, str]] = {
        "minigrad.derivative": {"color": BLUE, "ls": "-", "marker": "o"},
        "minigrad's Functions, nested": {"color": ORANGE, "ls": ":", "marker": "s"},
        "PyTorch's own, nested": {"color": RED, "ls": "--", "marker": "^"},
    }
    for (over_time, over_memory), (activation, (seconds, tensors)) in zip(grid, costs.items(), strict=True):
        orders = range(1, seconds.shape[1] + 1)
        for (label, line), in_seconds, in_tensors in zip(lines.items(), seconds, tensors, strict=True):
            over_time.plot(orders, 1e3 * in_seconds, lw=1.8, label=label, **line)
            over_memory.plot(orders, in_tensors, lw=1.8, **line)
        over_time.set(yscale="log", ylabel="time (ms)", title=f"{activation}: time")
        over_memory.set(yscale="log", ylabel="peak memory (tensors like x)", title=f"{activation}: memory")
    for axes in grid[-1]:
        axes.set(xlabel="order of the derivative", xticks=orders)
    figure.suptitle(f"What the n-th derivative costs at {points:,} points in float64")
    legend_below(figure)
    return figure


def draw_derivatives(activations: tuple[str, ...], order: int) -> "Figure":
    """Draw the activations and their derivatives over x, each divided by its largest magnitude, one panel an order."""
    figure, grid = panels(math.ceil((order + 1) / 3), 3, sharex=True, sharey=True)
    x = torch.linspace(-REACH, REACH, 1001, dtype=torch.float64)
    lines: dict[str, dict[str, Any]] = {
        "sigmoid": {"color": ORANGE, "ls": "-", "lw": 3.0},
        "tanh": {"color": BLUE, "ls": "--", "lw": 1.6},
    }
    for n, axes in enumerate(grid.flat):
        if n > order:
            axes.remove()
            continue
        scales = []
        for activation in activations:
            y = minigrad.derivative(activation, x, n)
            scales.append(f"{activation} {float(y.abs().max()):.4g}")
            axes.plot(x, y / y.abs().max(), label=activation, **lines[activation])
        axes.set_title(f"order {n} (largest: {', '.join(scales)})")
        if n > order - 3:  # the lowest of its column
            axes.set_xlabel("x")
            axes.tick_params(labelbottom=True)
        if n % 3 == 0:
            axes.set_ylabel("over its largest magnitude")
    legend_below(figure)
    return figure
