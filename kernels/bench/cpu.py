"""Measure what needs no GPU: minigrad's plain path against torch's own operations, in one run.

    python kernels/bench/cpu.py                        all sections, a table each
    python kernels/bench/cpu.py --sections host        one of host, bandwidth, derivative, launching, step
    python kernels/bench/cpu.py --write                also writes kernels/bench/results/cpu.{json,md}

Every section first checks that minigrad's results are right, and stops if they are not. The two sides take turns, and
the ratio is that of their medians; beside it stands the spread, the middle half of the ratios pair by pair. Absolute
times depend on the machine and on who else uses it; the ratios much less.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import minigrad
from bench.launching import forward
from bench.measure import Row, conditions, row, show, write
from bench.training import Data, Task, by_hand, by_trainer
from minigrad_kernels import plain

ACTIVATIONS = ("tanh", "sigmoid", "relu")
STEPS = 20  # at a time


def compare(ours: Callable[[], object], theirs: Callable[[], object], repeats: int, calls: int) -> list[list[float]]:
    """Return `repeats` times of both, in microseconds per call, taken in turn after a warm-up."""
    times: list[list[float]] = [[], []]
    for repeat in range(repeats + 2):
        for side, function in enumerate((ours, theirs)):
            start = time.perf_counter()
            for _ in range(calls):
                function()
            if repeat >= 2:
                times[side].append((time.perf_counter() - start) / calls * 1e6)
    return times


def check(activation: str, x: torch.Tensor) -> None:
    """Stop unless minigrad's value and gradient agree with torch's in float64 to float32's accuracy."""
    function, reference = getattr(minigrad, activation), getattr(torch, activation)
    single, double = x.clone().requires_grad_(), x.double().requires_grad_()  # x itself stays as it is
    y, expected = function(single), reference(double)
    torch.testing.assert_close(y, expected.float(), rtol=1e-6, atol=0)
    (dx,) = torch.autograd.grad(y.sum(), single)
    (expected_dx,) = torch.autograd.grad(expected.sum(), double)
    torch.testing.assert_close(dx, expected_dx.float(), rtol=1e-6, atol=1e-12)


def there_and_back(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, g: torch.Tensor
) -> Callable[[], None]:
    """Return forward and backward of `function` at x, with g arriving at its output."""

    def run() -> None:
        function(x).backward(g)
        x.grad = None

    return run


def bare_function(forward_of_torch: Callable[[torch.Tensor], torch.Tensor], activation: str) -> Callable[..., Any]:
    """Return the cheapest Function with the arithmetic of minigrad's backward pass: no check, no choice, one order."""

    class Bare(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return forward_of_torch(x)

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            (x,) = ctx.saved_tensors
            return plain.derivative(x, g, activation, 1)

    return Bare.apply


def host() -> Iterator[Row]:
    """Host cost on 16 elements, where the arithmetic is nothing."""
    x, g = torch.randn(16), torch.ones(16)
    leaf = x.clone().requires_grad_()
    for activation in ACTIVATIONS:
        check(activation, x)
        ours, theirs = getattr(minigrad, activation), getattr(torch, activation)
        times = compare(partial(ours, x), partial(theirs, x), repeats=41, calls=500)
        yield row("host", f"{activation}, forward, nothing recorded", times, "<= 3")
        times = compare(partial(ours, leaf), partial(theirs, leaf), repeats=41, calls=500)
        yield row("host", f"{activation}, forward, recorded", times, "")
        times = compare(there_and_back(ours, leaf, g), there_and_back(theirs, leaf, g), repeats=41, calls=200)
        yield row("host", f"{activation}, forward and backward", times, "<= 2")
        bare = bare_function(theirs, activation)
        times = compare(there_and_back(bare, leaf, g), there_and_back(theirs, leaf, g), repeats=41, calls=200)
        yield row("host", f"{activation}, the same in a bare Function", times, "")


def bandwidth() -> Iterator[Row]:
    """Forward and backward on 2^22 float32 elements."""
    x, g = 3 * torch.randn(2**22), torch.randn(2**22)
    leaf = x.clone().requires_grad_()
    for activation, bound in (("tanh", "<= 1.5"), ("sigmoid", "<= 1.8"), ("relu", "<= 1.1")):
        check(activation, x[:10_000])
        ours, theirs = getattr(minigrad, activation), getattr(torch, activation)
        times = compare(there_and_back(ours, leaf, g), there_and_back(theirs, leaf, g), repeats=31, calls=1)
        yield row("bandwidth", f"{activation}, forward and backward", times, bound)


def derivative() -> Iterator[Row]:
    """The n-th derivative of tanh on 100,000 float64 elements, against autograd nested n times."""
    x = torch.linspace(-4, 4, 100_000, dtype=torch.float64)

    def nested(order: int) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        y = torch.tanh(leaf)
        for _ in range(order):
            (y,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
        return y.detach()

    for order, bound in ((1, ""), (3, ""), (6, ">= 100")):
        torch.testing.assert_close(minigrad.derivative("tanh", x, order), nested(order), rtol=1e-6, atol=1e-7)
        repeats, calls = (9, 3) if order == 6 else (15, 20)  # several calls in a row, so that both sides are warm
        ours, theirs = partial(minigrad.derivative, "tanh", x, order), partial(nested, order)
        times = compare(ours, theirs, repeats, calls)
        yield row("derivative", f"tanh, order {order}: speed-up", times, bound, inverse=True)


def launching() -> Iterator[Row]:
    """What the host does to launch a kernel on a GPU, up to Triton's launcher, against Triton's own launch."""
    if importlib.util.find_spec("triton") is None:
        print("launching   needs Triton, which is not installed")
        return
    from bench.stand_in import Start, without_a_gpu
    from minigrad_kernels.launch import launch

    x, started = torch.zeros(1024), list[Start]()
    kernel, n_programs, arguments = forward(x, x)
    ours = partial(launch, kernel, n_programs, x, **arguments)
    theirs = partial(kernel[(n_programs,)], **arguments)
    with without_a_gpu(started.append):
        for call in (ours, ours, theirs):  # the first compiles
            call()
    assert started[0] == started[1] == started[2], "the launches start different things"
    with without_a_gpu():
        times = compare(ours, theirs, repeats=41, calls=500)
    yield row("launching", "tanh, up to Triton's launcher", times, "<= 0.5")


def step() -> Iterator[Row]:
    """A training step of a small network, against PyTorch's loop by hand, and compiled against step by step."""
    task = Task((64, 128, 128, 10), 256)
    data = Data.of(task, torch.device("cpu"))
    eager, compiled, loop = by_trainer(task, data, "eager"), by_trainer(task, data, "compile"), by_hand(task, data)
    expected = torch.tensor(loop.losses(STEPS))
    for ours in (eager, compiled):
        torch.testing.assert_close(torch.tensor(ours.losses(STEPS)), expected, rtol=1e-4, atol=0)
    sides = {"by minigrad, against PyTorch by hand": (eager, loop), "compiled, against as it is": (compiled, eager)}
    for case, (ours, theirs) in sides.items():
        portions = compare(partial(ours.advance, STEPS), partial(theirs.advance, STEPS), repeats=31, calls=1)
        times = [[portion / STEPS for portion in side] for side in portions]
        yield row("step", case, times, "")


SECTIONS = {"host": host, "bandwidth": bandwidth, "derivative": derivative, "launching": launching, "step": step}


def main() -> None:
    """Run the sections and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of torch; default as torch has it"
    )
    parser.add_argument("--write", action="store_true", help="write kernels/bench/results/cpu.{json,md}")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = show(r for section in arguments.sections for r in SECTIONS[section]())
    if arguments.write:
        write("cpu", "CPU benchmark", rows, conditions(arguments.threads))


if __name__ == "__main__":
    main()
