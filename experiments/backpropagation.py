"""Backpropagation through one neuron, y = sigmoid(w x + b), by hand and by autograd: the chain rule from y to w, b, x.

The forward pass computes a product, a sum, an activation. The backward pass goes the same way in reverse: each
operation receives how fast y changes with its result, the upstream gradient, multiplies it by how fast its result
changes with each of its inputs, the local derivative, and sends the products on. So dy/dw = f'(w x + b) x, dy/db = f'(w
x + b) and dy/dx = f'(w x + b) w, where f' = y (1 - y) for sigmoid, 1 - y^2 for tanh, and 0 or 1 for ReLU (at 0, where
it has none, PyTorch takes 0).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import minigrad
from minigrad.autodiff.recording import Gradient
from minigrad.autodiff.trace import Trace
from minigrad.config import RunConfig, check, check_one_of
from minigrad.figures import BLUE, RED
from minigrad.run import Run
from minigrad.verification import verify

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

ACTIVATIONS = {"sigmoid": minigrad.sigmoid, "tanh": minigrad.tanh, "relu": minigrad.relu}


@dataclass
class Config(RunConfig):
    """The keys of this experiment."""

    x: float
    w: float
    b: float
    activation: str

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("x", "w", "b"):
            value = getattr(self, key)
            check(-1000 <= value <= 1000, key, value, "a number from -1000 to 1000")
        check_one_of("activation", self.activation, ACTIVATIONS)


def run(config: Config, run: Run) -> str:
    """Compute forwards, trace the way back, and verify every gradient on it."""
    x, w, b = (torch.tensor(value, device=run.device, requires_grad=True) for value in (config.x, config.w, config.b))
    product = w * x
    z = product + b
    y = ACTIVATIONS[config.activation](z)
    trace = minigrad.trace_backward(y, names={"x": x, "w": w, "b": b, "y": y})
    assert w.grad is not None
    assert b.grad is not None
    assert x.grad is not None

    forward = [
        ("1", "product = w * x", f"{w.item():g} * {x.item():g}", product.item()),
        ("2", "z = product + b", f"{product.item():g} + {b.item():g}", z.item()),
        ("3", f"y = {config.activation}(z)", f"{config.activation}({z.item():g})", y.item()),
    ]
    print("Forwards:")
    run.table("backpropagation/forward", ("step", "computation", "with numbers", "value"), forward)
    print("Backwards:")
    run.table("backpropagation/backward", trace.columns, trace.rows)
    print(f"The chain rule:\n{trace.chain_rule()}\n")
    run.text("backpropagation/chain_rule", f"```\n{trace.chain_rule()}\n```")
    gradients = {
        "backpropagation/dy_dw": w.grad.item(),
        "backpropagation/dy_db": b.grad.item(),
        "backpropagation/dy_dx": x.grad.item(),
    }
    run.scalars(0, {"backpropagation/z": z.item(), "backpropagation/y": y.item(), **gradients})
    _draw(run, config.activation, {"w": w, "x": x, "product": product, "b": b, "z": z, "y": y}, trace)

    # Each result is rounded once in float32, so z is within half an ULP of each of product and z. y is good to 4 ULP
    # at the z that was computed and f' to 8, and a product adds one; what is below the smallest normal number may be 0.
    limits = torch.finfo(torch.float32)
    exact_x, exact_w, exact_b, at = (value.detach().cpu().double() for value in (x, w, b, z))
    exact_product = exact_w * exact_x
    exact = exact_product + exact_b
    verify("z", z, exact, within=limits.eps * float(exact_product.abs() + exact.abs()) + limits.smallest_normal)
    tiny = limits.smallest_normal * (1 + float(exact_x.abs() + exact_w.abs()))
    expected = getattr(torch, config.activation)(at)
    verify("y", y, expected, within=4 * limits.eps * float(expected.abs()) + tiny)
    derivative = closed_form(config.activation, at)
    for name, found, expected in (
        ("dy/dw", w.grad, derivative * exact_x),
        ("dy/db", b.grad, derivative),
        ("dy/dx", x.grad, derivative * exact_w),
    ):
        verify(name, found, expected, within=10 * limits.eps * float(expected.abs()) + tiny)
    for name, leaf in (("w", w), ("b", b), ("x", x)):
        assert leaf.grad is not None
        verify(f"what the trace saw arrive at {name}", leaf.grad, _number(trace.leaves[name].arrived))
    return f"verified: dy/dw = {w.grad.item():g}, dy/db = {b.grad.item():g}, dy/dx = {x.grad.item():g}"


def closed_form(activation: str, z: Tensor) -> Tensor:
    """Return f'(z) in float64, written so that nothing cancels: with e = exp(-|z|), y (1 - y) is e / (1 + e)^2."""
    if activation == "relu":
        return (z > 0).double()
    if activation == "sigmoid":
        e = torch.exp(-z.abs())
        return e / (1 + e) ** 2
    e = torch.exp(-2 * z.abs())
    return 4 * e / (1 + e) ** 2


def _number(gradient: Gradient | None) -> float:
    assert gradient is not None
    assert gradient.value is not None
    return gradient.value.item()


def _draw(run: Run, activation: str, values: dict[str, Tensor], trace: Trace) -> None:
    """Draw the computation from left to right, on each arrow the value going forwards and the gradient coming back."""
    from matplotlib.figure import Figure

    activated, added, multiplied = (step for step in trace.steps if step.leaf is None)
    sent = {flow.to: _number(flow.gradient) for step in (activated, added, multiplied) for flow in step.flows}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-0.6, 12.2), ylim=(-1.2, 3.2), aspect="equal")
    axes.axis("off")
    boxes = {}
    for label, left, low in (
        ("w", 0.0, 2.6),
        ("x", 0.0, 0.0),
        ("b", 3.3, -0.6),
        ("\N{MULTIPLICATION SIGN}", 3.3, 1.3),
        ("+", 6.4, 1.3),
        (activation, 9.2, 1.3),
        ("y", 11.8, 1.3),
    ):
        is_tensor = label in values
        box = {"boxstyle": f"{'circle' if is_tensor else 'round'},pad=0.45", "fc": "white" if is_tensor else "0.88"}
        boxes[label] = axes.text(left, low, label, ha="center", va="center", fontsize=15, bbox={**box, "lw": 1.4})
    for source, target, name, gradient in (
        ("w", "\N{MULTIPLICATION SIGN}", "w", sent["w"]),
        ("x", "\N{MULTIPLICATION SIGN}", "x", sent["x"]),
        ("b", "+", "b", sent["b"]),
        ("\N{MULTIPLICATION SIGN}", "+", "product", sent[multiplied.label]),
        ("+", activation, "z", sent[added.label]),
        (activation, "y", "y", _number(activated.upstream[0])),
    ):
        above = f"{name} = {values[name].item():.4g}"
        _arrow(axes, boxes[source], boxes[target], above, f"dy/d{name} = {gradient:.3g}")
    axes.set_title(f"y = {activation}(w x + b): values go to the right, gradients come back to the left", fontsize=13)
    run.figure("backpropagation", figure)


def _arrow(axes: "Axes", source: "Text", target: "Text", above: str, below: str) -> None:
    """Draw an arrow from box to box, with a text on either side of it."""
    start, end = source.get_position(), target.get_position()
    boxes = {"patchA": source.get_bbox_patch(), "patchB": target.get_bbox_patch(), "shrinkA": 3, "shrinkB": 3}
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "0.45", "lw": 1.6, **boxes})
    slope = math.degrees(math.atan2(end[1] - start[1], end[0] - start[0]))
    # An empty line on the other side keeps each text off the arrow.
    for text, color, weight in ((f"{above}\n", BLUE, "bold"), (f"\n{below}", RED, "normal")):
        axes.text(
            (start[0] + end[0]) / 2,
            (start[1] + end[1]) / 2,
            text,
            color=color,
            weight=weight,
            fontsize=11,
            linespacing=1.7,
            ha="center",
            va="center",
            rotation=slope,
            rotation_mode="anchor",
        )
