"""`backward` adds to `.grad`: what that does when one forgets to zero it, and how it makes a large batch of small ones.

At x = 1, `backward` of x^2 leaves 2 in `x.grad`. That of x^3 does not replace it by 3: it adds 3. So gradients are
zeroed between two that have nothing to do with each other, in one of two ways. `x.grad.zero_()` overwrites the tensor
with zeros and keeps its memory. `x.grad = None`, what `torch.optim` does, lets it go: the next `backward` stores its
gradient and has nothing to add to, and a variable that it does not reach is seen to have none.

The same addition accumulates: a batch of n samples too large for the memory is cut into k micro-batches of n_i samples,
and one `backward` after the other adds up to the whole batch's gradient. The loss of a batch is a mean, so each mean
counts by its share of the samples:

    grad (1/n) sum_j l_j = sum_i (n_i / n) grad (1/n_i) sum_(j in i) l_j

Without the weight the sum of k means is, for equal parts, k times the gradient, as if the learning rate were k times as
large. The weight 1/k is right only where all n_i are equal, as the batches of a training run are (`accumulate=4`); else
the samples of a smaller part count for more. None of it holds where a sample's output depends on the rest of its batch,
as under batch normalisation.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import minigrad
from minigrad.config import RunConfig, check, check_at_least, check_one_of
from minigrad.figures import BLUE, GREY, ORANGE, RED, legend_below, panels
from minigrad.objectives import data
from minigrad.run import Run
from minigrad.tables import Cell
from minigrad.verification import verify, verify_that
from minigrad_kernels import ACTIVATIONS

Batch = tuple[Tensor, Tensor]  # images (N, 64), digits (N,)

IMAGES = 1797  # that scikit-learn has
EXACT = 1e-12  # relative, in float64: the same sum in another order loses the last few of its 16 digits
ROUNDED = 1e-3  # relative, in float32: rounding, and a ReLU whose input it moves across 0
# The factors of the micro-batches' mean losses, by their tags: the right ones, and two mistakes.
WEIGHTS = {"share": "n_i / n", "equal": "1 / k", "none": "1", "share_float32": "n_i / n, in float32"}
LEAST = 1e-17  # error that is drawn: a logarithm has no zero


@dataclass
class Config(RunConfig):
    """The keys of this experiment."""

    x: float
    activation: str
    hidden: list[int]
    batch_size: int
    micro_batches: list[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        check(abs(self.x) <= 1e100, "x", self.x, "a number from -1e100 to 1e100, whose cube float64 can hold")
        check_one_of("activation", self.activation, ACTIVATIONS)
        for width in self.hidden:
            check_at_least("hidden", width, 1)
        check(1 <= self.batch_size <= IMAGES, "batch_size", self.batch_size, f"an integer from 1 to {IMAGES}")
        check(len(self.micro_batches) > 0, "micro_batches", self.micro_batches, "at least one")
        for k in self.micro_batches:
            possible = f"integers from 1 to batch_size={self.batch_size}"
            check(1 <= k <= self.batch_size, "micro_batches", self.micro_batches, possible)


def run(config: Config, run: Run) -> str:
    """Add gradients at a point, then over a batch; show and verify both."""
    left = add_at_a_point(config.x, run)
    network, batch = task(config, run.device)
    right = {k: accumulate_in(k, network, batch) for k in sorted(set(config.micro_batches))}
    rows: list[list[Cell]] = []
    for k, errors in right.items():
        size, rest = divmod(config.batch_size, k)
        rows.append([k, f"{size + 1} or {size}" if rest else str(size), *errors.values()])
        run.scalars(k, {f"gradient_accumulation/relative_error/{tag}": error for tag, error in errors.items()})
    print("relative error of the accumulated gradient, by the weight of each micro-batch's mean loss:")
    run.table("gradient_accumulation/batch", ("k", "n_i", *WEIGHTS.values()), rows)
    draw(run, left, right)
    return (
        f"verified: x.grad is what was added since it was zeroed; {config.batch_size} samples in "
        f"{', '.join(map(str, right))} micro-batches, weighted by their share, give the whole batch's gradient"
    )


def add_at_a_point(at: float, run: Run) -> list[tuple[str, float | None]]:
    """Call `backward` again and again; show and verify what is in `x.grad` after each call, and return it."""
    x = torch.tensor(at, dtype=torch.float64, device=run.device, requires_grad=True)
    found: list[tuple[str, float | None]] = []

    def look(call: str) -> None:
        found.append((call, None if x.grad is None else x.grad.item()))

    (x**2).backward()
    look("(x**2).backward()")
    (x**3).backward()
    look("(x**3).backward()")
    assert x.grad is not None
    x.grad.zero_()
    look("x.grad.zero_()")
    (2 * x + 5).backward()
    look("(2*x + 5).backward()")
    x.grad = None
    look("x.grad = None")
    (2 * x + 5).backward()
    look("(2*x + 5).backward()")

    added: list[list[float] | None] = [[2 * at], [2 * at, 3 * at**2], [], [2], None, [2]]  # since it was zeroed
    run.table(
        "gradient_accumulation/x",
        ("call", "derivative", "x.grad"),
        [
            (call, f"{terms[-1]:g}" if terms else "", "none" if gradient is None else f"{gradient:g}")
            for (call, gradient), terms in zip(found, added, strict=True)
        ],
    )
    for step, ((call, gradient), terms) in enumerate(zip(found, added, strict=True)):
        if terms is None or gradient is None:
            verify_that(f"x.grad is none after {call}", terms is None and gradient is None)
            continue
        run.scalars(step, {"gradient_accumulation/x_grad": gradient})
        # Rounded: x^2, 3 x^2 and the sum, on either side.
        within = 4 * torch.finfo(x.dtype).eps * sum(map(abs, terms))
        verify(f"x.grad after {call}", gradient, sum(terms), within)
    return found


def task(config: Config, device: torch.device) -> tuple[nn.Module, Batch]:
    """Return a network and a batch of scikit-learn's images of digits, in float64."""
    digits = data.digits()
    chosen = torch.randperm(IMAGES)[: config.batch_size]
    images = torch.from_numpy(digits.inputs)[chosen] / 16  # pixels from 0 to 1
    network = minigrad.nn.MLP([64, *config.hidden, 10], config.activation, dtype=torch.float64)
    return network.to(device), (images.to(device), torch.from_numpy(digits.targets)[chosen].to(device))


def accumulate(network: nn.Module, micro_batches: list[Batch], weights: list[float]) -> Tensor:
    """Return the gradient that `backward` adds up over micro-batches, all parameters flat in one tensor."""
    network.zero_grad()
    for (images, digits), weight in zip(micro_batches, weights, strict=True):
        loss = cross_entropy(network(images), digits)  # the mean over its samples
        (weight * loss).backward()
    return gradient_of(network)


def accumulate_in(k: int, network: nn.Module, batch: Batch) -> dict[str, float]:
    """Cut a batch into `k` parts whose sizes differ by one at most, and accumulate, verified.

    Returns: the error relative to the whole batch's gradient by the weight, and with the right one in float32.

    Raises:
        RunFailed: the right weight does not give the whole batch's gradient, or another not the one that follows from
            what each sample counts for.
    """
    images, digits = batch
    n = len(digits)
    whole = accumulate(network, [batch], [1.0])
    parts = list(zip(images.tensor_split(k), digits.tensor_split(k), strict=True))
    sizes = [len(part) for _, part in parts]
    weights = {"share": [n_i / n for n_i in sizes], "equal": [1 / k] * k, "none": [1.0] * k}
    errors = {}
    for tag, factors in weights.items():
        found = accumulate(network, parts, factors)
        errors[tag] = distance(found, whole)
        # The same from one backward: a sample counts for its part's factor over its part's size.
        each = torch.tensor([w / n_i for w, n_i in zip(factors, sizes, strict=True)], dtype=torch.float64)
        predicted = gradient_of_weighted_samples(network, batch, each.repeat_interleave(torch.tensor(sizes)))
        verify(f"{k} micro-batches of weight {WEIGHTS[tag]}: relative error", distance(found, predicted), 0, EXACT)
    verify(f"{k} micro-batches of weight n_i / n: relative error", errors["share"], 0, EXACT)
    if n % k == 0:
        verify(f"{k} equal micro-batches of weight 1 / k: relative error", errors["equal"], 0, EXACT)
        verify(f"{k} equal micro-batches of weight 1: relative error", errors["none"], k - 1, k * EXACT)

    narrow = copy.deepcopy(network).float()
    parts = [(part.float(), target) for part, target in parts]
    whole = accumulate(narrow, [(images.float(), digits)], [1.0])
    errors["share_float32"] = distance(accumulate(narrow, parts, weights["share"]), whole)
    verify(f"{k} micro-batches in float32: relative error", errors["share_float32"], 0, ROUNDED)
    return errors


def gradient_of_weighted_samples(network: nn.Module, batch: Batch, weights: Tensor) -> Tensor:
    """Return the gradient of the samples' losses, (N,) of them, summed with weights (N,), from one backward pass."""
    images, digits = batch
    network.zero_grad()
    (weights.to(images.device) * cross_entropy(network(images), digits, reduction="none")).sum().backward()
    return gradient_of(network)


def gradient_of(network: nn.Module) -> Tensor:
    """Return what is in `.grad` of all parameters, flat in one tensor."""
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the Euclidean length of the difference, relative to that of what was expected."""
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


def draw(run: Run, found: list[tuple[str, float | None]], errors: dict[int, dict[str, float]]) -> None:
    """Draw `x.grad` call by call, and the errors over the number of micro-batches."""
    figure, ((left, right),) = panels(1, 2)
    values = [torch.nan if gradient is None else gradient for _, gradient in found]
    left.stairs(values, torch.arange(len(found) + 1) - 0.5, baseline=None, color=BLUE, lw=2)
    for i, (_, gradient) in enumerate(found):
        if gradient is None:
            left.text(i, 0.05, "none", transform=left.get_xaxis_transform(), ha="center")
        else:
            left.annotate(f"{gradient:.4g}", (i, gradient), (0, 4), textcoords="offset points", ha="center")
    left.set_xticks(range(len(found)), [call for call, _ in found], rotation=30, ha="right", fontsize=8)
    left.margins(y=0.12)
    left.set(ylabel="x.grad", title="One variable, call by call")

    looks = {
        "none": (RED, "D", 7),
        "equal": (ORANGE, "^", 12),  # large, to be seen behind the one that it equals
        "share_float32": (GREY, "s", 7),
        "share": (BLUE, "o", 7),
    }
    for tag, (color, marker, size) in looks.items():
        drawn = [max(each[tag], LEAST) for each in errors.values()]
        right.plot(drawn, marker, color=color, ms=size, label=f"weight {WEIGHTS[tag]}")
    right.set_xticks(range(len(errors)), [str(k) for k in errors])
    right.set(yscale="log", xlabel="k, the number of micro-batches", ylabel="relative error of the gradient")
    right.set_title("A batch in micro-batches")
    legend_below(figure)
    run.figure("gradient_accumulation", figure)
