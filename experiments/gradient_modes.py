"""What no_grad, enable_grad, inference_mode and detach do to a network's forward pass, and to the memory that it keeps.

A forward pass that is to be differentiated does two things: it computes, and it saves for each operation what its
backward pass will need. Of that the parameters are there anyway; the activations are what training costs in memory,
and they grow with the batch.

    no_grad         records nothing and so saves nothing; for evaluation, and for the update of parameters in place
    enable_grad     turns recording back on, within no_grad too, but not within inference_mode
    inference_mode  as no_grad, and its results can neither require a gradient nor be saved for a backward pass later:
                    that spares them all bookkeeping
    detach          cuts a result off its graph: the forward pass had saved everything, which is freed with the graph
"""

import gc
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import minigrad
from minigrad.autodiff import graph
from minigrad.autodiff.saving import SavedForBackward
from minigrad.config import RunConfig, check, check_at_least, check_one_of
from minigrad.figures import BLUE, ORANGE, RED, legend_below, panels
from minigrad.run import Run
from minigrad.verification import verify, verify_that

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class Config(RunConfig):
    """The keys of this experiment."""

    sizes: list[int]
    batch: int
    activation: str
    save: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.sizes) >= 2 and min(self.sizes) >= 1, "sizes", self.sizes, "at least two widths, each 1 or more")
        check_at_least("batch", self.batch, 1)
        check_one_of("activation", self.activation, ("sigmoid", "tanh", "relu"))
        check_one_of("save", self.save, ("input", "output"))


Network = Callable[[Tensor], Tensor]


def default(network: Network, x: Tensor) -> Tensor:
    """Record, as is the default wherever a parameter requires a gradient."""
    return network(x)


def no_grad(network: Network, x: Tensor) -> Tensor:
    """Record nothing."""
    with torch.no_grad():
        return network(x)


def enable_grad_in_no_grad(network: Network, x: Tensor) -> Tensor:
    """Record, although the code around does not."""
    with torch.no_grad(), torch.enable_grad():
        return network(x)


def inference_mode(network: Network, x: Tensor) -> Tensor:
    """Record nothing, now or later."""
    with torch.inference_mode():
        return network(x)


def detach(network: Network, x: Tensor) -> Tensor:
    """Record, and keep the values alone."""
    return network(x).detach()


KIBIBYTES = ("parameters, KiB", "activations, KiB", "held, KiB")
MODES = (default, no_grad, enable_grad_in_no_grad, inference_mode, detach)


@dataclass(frozen=True)
class Forward:
    """What became of one forward pass: its output, what it saved, and how much of that is held afterwards."""

    output: Tensor
    saved: SavedForBackward
    bytes_held: int

    @property
    def operations(self) -> int:
        """How many operations the output's graph has."""
        return sum(node.kind == "operation" for node in graph.read(self.output).nodes)

    @property
    def bytes(self) -> tuple[int, int]:
        """What was saved of parameters, and of activations: the batch itself and all that was computed from it."""
        return self.saved.leaf_bytes, self.saved.constant_bytes + self.saved.result_bytes


def measure(mode: Callable[[Network, Tensor], Tensor], network: Network, x: Tensor) -> Forward:
    """Compute a forward pass and measure what it saves."""
    with minigrad.saved_for_backward() as saved:
        output = mode(network, x)
    gc.collect()  # Triton's interpreter leaves cycles, which would be held until the next collection
    return Forward(output, saved, saved.bytes - saved.freed_bytes)


def expected_bytes(config: Config, batch: int) -> tuple[int, int]:
    """Return how many bytes of parameters and of activations the backward pass needs, from the sizes alone.

    A layer takes h and computes z = h W^T + b and, unless it is the last, f(z). Its backward pass computes

        dL/dz = dL/df f'(z)     and needs z, that is h W^T and b; or f(z), if f' is computed from the output
        dL/dW = (dL/dz)^T h     and needs h, which is f(z) of the layer before: kept for both, it costs once
        dL/dh = dL/dz W         and needs W; not in the first layer, whose h is the data
        dL/db = sum of dL/dz    and needs nothing
    """
    *inputs, _ = config.sizes
    hidden = inputs[1:]
    parameters = sum(n_in * n_out for n_in, n_out in itertools.pairwise(config.sizes[1:]))  # W
    activations = batch * sum(inputs)  # h
    if config.save == "input" and config.activation != "relu":  # f' of ReLU is in its output, and loses nothing
        parameters += sum(hidden)  # b
        activations += batch * sum(hidden)  # h W^T
    size = torch.float32.itemsize
    return size * parameters, size * activations


def run(config: Config, run: Run) -> str:
    """Compute the same in every mode, show what became of it, and verify the bytes."""
    network = minigrad.nn.MLP(config.sizes, config.activation, config.save, device=run.device)
    x = torch.rand(config.batch, config.sizes[0], device=run.device)
    forwards = {mode.__name__: measure(mode, network, x) for mode in MODES}
    columns = ("mode", "requires_grad", "grad_fn", "is_inference", "operations", "saved", *KIBIBYTES)
    run.table("gradient_modes/modes", columns, [_row(name, forward) for name, forward in forwards.items()])
    for name, forward in forwards.items():
        parameters, activations = forward.bytes
        run.scalars(
            0, {f"gradient_modes/{name}/parameters": parameters, f"gradient_modes/{name}/activations": activations}
        )
        run.scalars(0, {f"gradient_modes/{name}/held": forward.bytes_held})
    _verify_modes(forwards, expected_bytes(config, config.batch), x)

    batches = [config.batch * k for k in range(1, 9)]
    over_batches = {
        mode: [sum(measure(mode, network, x.repeat(k, 1)).bytes) for k in range(1, 9)] for mode in (default, no_grad)
    }
    expected = [sum(expected_bytes(config, batch)) for batch in (0, *batches)]
    verify("bytes saved by batch", torch.tensor(over_batches[default]), torch.tensor(expected[1:]))
    verify("bytes saved by batch under no_grad", torch.tensor(over_batches[no_grad]), 0)
    figure, ((by_mode, over_batch),) = panels(1, 2)
    _draw_by_mode(by_mode, forwards)
    over_batch.plot([0, *batches], kibibytes(expected), color=BLUE, label="what the sizes tell")
    over_batch.plot(batches, kibibytes(over_batches[default]), "o", color="white", mec="black", label="default")
    over_batch.plot(batches, kibibytes(over_batches[no_grad]), "s--", color=RED, label="no_grad")
    over_batch.set(xlabel="batch", ylabel="saved for the backward pass, KiB", title="Over the batch")
    legend_below(figure)
    run.figure("gradient_modes", figure)

    run.table("gradient_modes/rules", ("what is tried", "what comes of it", "why"), show_rules(run.device))
    total = sum(expected_bytes(config, config.batch))
    return f"verified: a forward pass saves the {total:,} bytes that the sizes tell, and none without recording"


def _row(name: str, forward: Forward) -> tuple[str | bool | float, ...]:
    output = forward.output
    made_by = "none" if output.grad_fn is None else output.grad_fn.name()
    how = (output.requires_grad, made_by, output.is_inference(), forward.operations)
    return name, *how, len(forward.saved.tensors), *kibibytes((*forward.bytes, forward.bytes_held))


def _verify_modes(forwards: dict[str, Forward], expected: tuple[int, int], x: Tensor) -> None:
    for name, forward in forwards.items():
        recorded = name in ("default", "enable_grad_in_no_grad")
        saves = recorded or name == "detach"
        for what, found, bytes_expected in zip(("parameters", "activations"), forward.bytes, expected, strict=True):
            verify(f"bytes of {what} saved, {name}", found, bytes_expected if saves else 0)
        verify_that(f"{name}: there is a graph only if it is recorded", (forward.operations > 0) == recorded)
        verify_that(f"{name}: the output knows its graph", (forward.output.grad_fn is not None) == recorded)
        verify_that(
            f"{name}: inference tensors are inference_mode's",
            forward.output.is_inference() == (name == "inference_mode"),
        )
        verify_that(f"{name}: the values are the same", torch.equal(forward.output, forwards["default"].output))
    verify("bytes held after default", forwards["default"].bytes_held, sum(expected))
    # Of what was saved, the parameters and the batch are there anyway; the rest is freed with the graph.
    verify("bytes held after detach", forwards["detach"].bytes_held, expected[0] + x.nbytes)


def show_rules(device: torch.device) -> list[tuple[str, str, str]]:
    """Try what the modes forbid and allow; return what was tried, what came of it, and why."""
    with torch.inference_mode():
        inference = torch.ones(3, device=device)
    w = torch.ones(3, device=device, requires_grad=True)

    refused = _refusal(lambda: w * inference)
    verify_that("an inference tensor cannot be saved for backward", refused.startswith("Inference tensors cannot be"))
    verify("w times a clone of it, differentiated by w", torch.autograd.grad((w * inference.clone()).sum(), w)[0], 1)

    in_place = _refusal(lambda: w.sub_(0.5))
    verify_that(
        "a leaf cannot be changed in place while recording", in_place.startswith("a leaf Variable that requires")
    )
    with torch.no_grad():
        w.sub_(0.5)
    verify("the leaf after the update under no_grad", w, 0.5)
    verify_that("it is a leaf still", w.is_leaf and w.requires_grad)

    return [
        ("w * inference", refused, "d(w c)/dw = c: c has to be saved, and has no version counter to show a change"),
        ("w * inference.clone()", "computed", "outside inference_mode a clone is an ordinary tensor"),
        ("w.sub_(0.5)", in_place, "w would become a result of its own old value, and no leaf any more"),
        (
            "the same under no_grad",
            "w is changed",
            "nothing is recorded: w stays a leaf; this is an optimizer's update",
        ),
    ]


def _refusal(attempt: Callable[[], object]) -> str:
    """Return the first sentence of the RuntimeError that an attempt ends in; "computed" if it ends in none."""
    try:
        attempt()
    except RuntimeError as error:
        return str(error).split(". ")[0].rstrip(".")
    return "computed"


def kibibytes(sizes: Iterable[int]) -> list[float]:
    """Return sizes in bytes as KiB."""
    return [size / 1024 for size in sizes]


def _draw_by_mode(axes: "Axes", forwards: dict[str, Forward]) -> None:
    """Draw what each mode saves as bars, by what it is, and what is held of it afterwards."""
    names = list(forwards)
    parameters, activations = (kibibytes(forward.bytes[i] for forward in forwards.values()) for i in (0, 1))
    held = kibibytes(forward.bytes_held for forward in forwards.values())
    axes.barh(names, parameters, color=BLUE, edgecolor="white", hatch="//", label="parameters: there anyway")
    axes.barh(names, activations, left=parameters, color=ORANGE, edgecolor="black", label="activations")
    axes.plot(held, names, "D", color="white", mec="black", label="held afterwards", clip_on=False, zorder=3)
    axes.invert_yaxis()
    axes.set(xlabel="saved for the backward pass, KiB", title="By mode")
