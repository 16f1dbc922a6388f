"""Where a graph ends, and the mistakes that come of it: y = x^2, detached and not, by default at x = 2.

`y.detach()` is y without its history: a new tensor with the same memory, and for autograd a constant. So of z = y x the
gradient is 3 x^2, as that of x^3; of z = y.detach() x it is y = x^2, and the part that goes through y is missing. Both
are right, for different functions; but a detach in the wrong place says nothing: the gradient is only another one.

The other mistakes are not silent. What autograd refuses here, and what it says, is shown in a table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import minigrad
from minigrad.config import RunConfig, check
from minigrad.figures import BLUE, ORANGE, legend_below, mark, panels
from minigrad.run import Run
from minigrad.verification import verify, verify_that


@dataclass
class Config(RunConfig):
    """The keys of this experiment."""

    x: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check(abs(self.x) <= 1000, "x", self.x, "a number from -1000 to 1000")


def attached(x: Tensor) -> Tensor:
    """Return x^2 x."""
    y = x**2
    return y * x


def detached(x: Tensor) -> Tensor:
    """Return x^2 x, where x^2 counts as a constant."""
    y = x**2
    return y.detach() * x


def from_the_detached_alone(x: Tensor) -> Tensor:
    """Go backward from a result that has no history."""
    y = x**2
    y.detach().backward()
    return gradient_of(x)


def after_a_change_in_place(x: Tensor) -> Tensor:
    """Change, through the detached tensor, what the graph needs."""
    y = x**2
    z = y * x
    y.detach().add_(1)
    z.backward()
    return gradient_of(x)


def after_a_change_of_a_clone(x: Tensor) -> Tensor:
    """Change a copy."""
    y = x**2
    z = y * x
    y.clone().detach().add_(1)
    z.backward()
    return gradient_of(x)


def backward_twice(x: Tensor, retain_graph: bool) -> Tensor:
    """Go backward a second time."""
    z = attached(x)
    z.backward(retain_graph=retain_graph)
    z.backward()
    return gradient_of(x)


def gradient_of(x: Tensor) -> Tensor:
    """Return the gradient that backward passes have left in a leaf."""
    assert x.grad is not None
    return x.grad


def run(config: Config, run: Run) -> str:
    """Try each case, verify its gradient or its error, and draw the two graphs."""

    def leaf() -> Tensor:
        return torch.tensor(config.x, device=run.device, requires_grad=True)

    def differentiated(function: Callable[[Tensor], Tensor]) -> Tensor:
        x = leaf()
        function(x).backward()
        return gradient_of(x)

    square = config.x**2
    rounding = 1e-6 * (1 + square)  # of some operations in float32
    gradients = {
        "attached": (differentiated(attached), 3 * square),
        "detached": (differentiated(detached), square),
        "changed_clone": (after_a_change_of_a_clone(leaf()), 3 * square),
        "backward_twice": (backward_twice(leaf(), retain_graph=True), 6 * square),
    }
    for name, (found, expected) in gradients.items():
        run.scalars(0, {f"detaching/gradient/{name}": found.item()})
        verify(f"the gradient of {name}", found, expected, within=rounding)
    shown = {name: f"{found.item():g}" for name, (found, _) in gradients.items()}
    errors = (
        _error(lambda: from_the_detached_alone(leaf()), "does not require grad"),
        _error(lambda: after_a_change_in_place(leaf()), "modified by an inplace operation"),
        _error(lambda: backward_twice(leaf(), retain_graph=False), "backward through the graph a second time"),
    )
    rows = [
        ("z = y x", shown["attached"], "3 x^2: x counts in y too"),
        ("z = y.detach() x", shown["detached"], "x^2: y counts as a constant"),
        ("y.detach().backward()", errors[0], "no history: there is nothing to go back along"),
        ("z = y x, y.detach().add_(1), z.backward()", errors[1], "one memory: dz/dx needs the y that it was"),
        ("... with y.clone().detach().add_(1)", shown["changed_clone"], "a copy: y stays as it was"),
        ("z.backward() twice", errors[2], "the first has freed what the operations had saved"),
        ("... first z.backward(retain_graph=True)", shown["backward_twice"], "6 x^2: nothing freed; x.grad adds up"),
    ]
    run.table("detaching/cases", ("with y = x^2", "gradient of x, or the error", "why"), rows)
    _draw(run, config.x)
    return f"verified: attached {shown['attached']}, detached {shown['detached']}, and three mistakes are errors"


def _error(attempt: Callable[[], object], expected: str) -> str:
    """Return the first line of an error, after verifying that it is raised; without numbers of tensors and advice."""
    message = ""
    try:
        attempt()
    except RuntimeError as error:
        message = str(error)
    verify_that(f'autograd says "{expected}" (it said: "{message}")', expected in message)
    return message.splitlines()[0].split(". ")[0].split(": [")[0].split(" (")[0]


def _draw(run: Run, at: float) -> None:
    """Draw both graphs, and both gradients as functions of x."""
    figure, ((with_history, without, curves),) = panels(1, 3)
    x = torch.tensor(at, device=run.device, requires_grad=True)
    y = x**2
    constant = y.detach()
    minigrad.draw_graph(y * x, names={"x": x}).paint(with_history)
    minigrad.draw_graph(constant * x, names={"x": x, "y.detach()": constant}).paint(without)
    with_history.set(title="z = y x", anchor="N")
    without.set(title="z = y.detach() x", anchor="N")

    around = torch.linspace(at - 3, at + 3, 101, device=run.device, requires_grad=True)
    for function, of, factor, color, line in (
        (attached, "z = y x", 3, BLUE, "-"),
        (detached, "z = y.detach() x", 1, ORANGE, "--"),
    ):
        (slopes,) = torch.autograd.grad(function(around).sum(), around)
        rounding = 1e-6 * (1 + 3 * (abs(at) + 3) ** 2)
        verify(f"the gradient of {of} over x", slopes, factor * around**2, within=rounding)
        curves.plot(around.detach().cpu(), slopes.cpu(), color=color, ls=line, lw=2, label=f"gradient of {of}")
        mark(curves, at, factor * at**2)
    curves.set(xlabel="x", ylabel="dz/dx", title="Gradient over x, where y = x^2")
    legend_below(figure)
    run.figure("detaching", figure)
