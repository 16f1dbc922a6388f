"""Measure what it costs to watch a network train: minigrad's monitor, hooks with torch's reductions, and histograms.

    python kernels/bench/monitor.py                      all sections on the CPU, a table each
    python kernels/bench/monitor.py --device cuda        on a GPU, with a network of its size
    python kernels/bench/monitor.py --sections step      one of step, others, launches
    python kernels/bench/monitor.py --write              also writes kernels/bench/results/monitor_<device>.{json,md}

`step` compares steps of `minigrad.Trainer` with every statistic of every step on, read once in 50 steps, with the same
steps unwatched. `others` does so for what people use elsewhere: hooks that reduce each gradient of a layer with torch's
own operations and read nothing until the end, and histograms of every parameter's gradient as `wandb.watch` makes them
by default, here at every step. `launches` counts the kernels of a backward pass, on a GPU alone; its ratio is how many
more there are. First of all the monitor's figures are compared with float64, and the benchmark stops if they are off.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

import minigrad
from bench.measure import Row, conditions, gpu_conditions, row, show, write
from minigrad import GradientMonitor, Trainer
from minigrad.monitoring.layers import Layers
from minigrad.rules import gradient_descent

LAYERS = 4


@dataclass
class Problem:
    """A deep network of tanh layers on one batch of noise: what the trainer asks of an objective.

    Attributes:
        width: of every layer.
        batch_size: samples.
        device: where it computes.
        dtype: of data and parameters.
    """

    width: int
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    network: torch.nn.Module = field(init=False)
    inputs: Tensor = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        layers = (minigrad.nn.Linear(self.width, self.width, activation="tanh") for _ in range(LAYERS))
        self.network = torch.nn.Sequential(*layers).to(self.device, self.dtype)
        self.inputs = torch.randn(self.batch_size, self.width).to(self.device, self.dtype)

    def __str__(self) -> str:
        return f"{LAYERS} x {self.width}, {self.batch_size} samples"

    def parameters(self) -> dict[str, Tensor]:
        """Return the network's parameters by name."""
        return dict(self.network.named_parameters())

    def batch(self, index: int) -> Tensor:
        """Return the one batch there is."""
        return self.inputs

    def loss(self, batch: Tensor) -> Tensor:
        """Return the mean square of the network's output."""
        return self.network(batch).float().square().mean()  # type: ignore[no-any-return]


def problem_for(device: torch.device) -> Problem:
    """Return the problem that suits a device: 512 wide in float32 on a CPU, 4,096 wide in bfloat16 on a GPU."""
    if device.type == "cpu":
        return Problem(512, 1024, device, torch.float32)
    return Problem(4096, 8192, device, torch.bfloat16)


def synchronize(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


Advance = Callable[[int], object]
Watching = Callable[[Problem], AbstractContextManager[Advance]]


def in_turns(problem: Problem, ours: Watching, theirs: Watching, repeats: int, steps: int) -> list[list[float]]:
    """Return `repeats` times of a step of both, in microseconds, taken in turn after a warm-up."""
    times: list[list[float]] = [[], []]
    for repeat in range(repeats + 1):
        for side, watching in enumerate((ours, theirs)):
            with watching(problem) as advance:
                advance(2)
                synchronize(problem.device)
                start = time.perf_counter()
                advance(steps)
                synchronize(problem.device)
                if repeat:
                    times[side].append((time.perf_counter() - start) / steps * 1e6)
    return times


def new_trainer(problem: Problem, monitor: GradientMonitor | None = None) -> Trainer:
    """Return a trainer of the problem, by plain gradient descent."""
    return Trainer(problem, gradient_descent, learning_rate=1e-3, monitor=monitor)


@contextmanager
def unwatched(problem: Problem) -> Iterator[Advance]:
    """Train as if there were no monitor."""
    yield new_trainer(problem).advance


@contextmanager
def monitored(problem: Problem) -> Iterator[Advance]:
    """Train under minigrad's monitor, and read it at the end."""
    with GradientMonitor(problem.network) as monitor:
        trainer = new_trainer(problem, monitor)

        def advance(steps: int) -> None:
            trainer.advance(steps)
            monitor.read()

        yield advance


@contextmanager
def hooked(problem: Problem) -> Iterator[Advance]:
    """Train with hooks on every layer that reduce its gradients by torch's operations, to tensors on the device."""
    seen: list[Tensor] = []

    def reduce(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend((output.mean(), output.std()))

        def after_backward(outgoing: tuple[Tensor, ...], upstream: tuple[Tensor, ...]) -> None:
            dx, g = outgoing[0], upstream[0]
            saturated = (output.detach().abs() > 0.97).sum()
            seen.extend((g.norm(), dx.norm(), dx.abs().amax(), (dx == 0).sum(), (~dx.isfinite()).sum(), saturated))

        assert output.grad_fn is not None
        output.grad_fn.register_hook(after_backward)

    handles = [layer.register_forward_hook(reduce) for layer in problem.network.children()]
    trainer = new_trainer(problem)

    def advance(steps: int) -> None:
        for _ in range(steps):
            trainer.step()
            for parameter in trainer.parameters.values():
                assert parameter.grad is not None
                seen.extend((parameter.grad.norm(), parameter.detach().norm()))
        torch.stack([number.float() for number in seen]).cpu()
        seen.clear()

    yield advance
    for handle in handles:
        handle.remove()


@contextmanager
def histograms(problem: Problem) -> Iterator[Advance]:
    """Train with a histogram of 64 buckets of every parameter's gradient, its range and counts read at once."""
    trainer = new_trainer(problem)

    def advance(steps: int) -> None:
        for _ in range(steps):
            trainer.step()
            for parameter in trainer.parameters.values():
                assert parameter.grad is not None
                gradient = parameter.grad.float().view(-1)
                low, high = gradient.min().item(), gradient.max().item()
                gradient.histc(64, low, high).tolist()

    yield advance


def check(problem: Problem) -> None:
    """Stop unless the monitor's figures are those computed in float64 from what the network's layers hold."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        assert y.grad_fn is not None
        y.grad_fn.register_hook(lambda dx, g: seen.append((g[0].double(), dx[0].double(), y.detach().double())))

    handles = [layer.register_forward_hook(keep) for layer in problem.network.children()]
    with GradientMonitor(problem.network) as monitor:
        new_trainer(problem, monitor).advance(1)
        readings = monitor.read()
    for handle in handles:
        handle.remove()
    for name, (g, dx, y) in zip(reversed(list(readings.layers)), seen, strict=True):
        expected = {
            "upstream_rms": g.square().mean().sqrt(),
            "rms": dx.square().mean().sqrt(),
            "largest": dx.abs().amax(),
            "zeros": (dx == 0).double().mean(),
            "deviation": y.std(correction=0),
        }
        for statistic, value in expected.items():
            torch.testing.assert_close(readings.layer(name)[statistic][0], value.cpu(), rtol=1e-5, atol=0)


def step(problem: Problem, repeats: int, steps: int) -> Iterator[Row]:
    """Steps under the monitor against the same steps without it."""
    bound = "<= 1.25" if problem.device.type == "cpu" else "<= 1.02"
    yield row("step", f"minigrad's monitor, {problem}", in_turns(problem, monitored, unwatched, repeats, steps), bound)


def others(problem: Problem, repeats: int, steps: int) -> Iterator[Row]:
    """Steps under what people use elsewhere against the same steps without it."""
    for name, watching in (("hooks with torch's reductions", hooked), ("a histogram of every parameter", histograms)):
        yield row("others", f"{name}, {problem}", in_turns(problem, watching, unwatched, repeats, steps), "")


def launches(problem: Problem, repeats: int, steps: int) -> Iterator[Row]:
    """Kernels of one backward pass and the reading of its figures, watched and not."""
    if problem.device.type != "cuda":
        print("launches: only a GPU has kernels to count")
        return
    unseen = kernels_of_a_backward_pass(problem, None)
    layers = Layers(problem.network, share=0.05)
    layers.attach()
    seen = kernels_of_a_backward_pass(problem, layers)
    yield Row("launches", "kernels of a backward pass", seen, unseen, seen - unseen, 0, 0, "<= 1")


def kernels_of_a_backward_pass(problem: Problem, layers: Layers | None) -> int:
    """Return how many kernels a backward pass launches, with what adds its figures up if the layers are watched."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(4):  # at first kernels are compiled, and the rows of the passes have not all their room yet
        loss = problem.loss(problem.inputs)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            loss.backward()
            if layers is not None:
                layers.take()
            torch.cuda.synchronize()
    names = [event.name for event in seen.events()]
    return sum("Memcpy" not in name and "Memset" not in name and "cuda" not in name for name in names)


SECTIONS = {"step": step, "others": others, "launches": launches}


def main() -> None:
    """Run the sections and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    parser.add_argument("--repeats", type=int, default=15, help="of every comparison")
    parser.add_argument("--steps", type=int, default=10, help="of every repeat")
    parser.add_argument("--write", action="store_true", help="write kernels/bench/results/monitor_<device>.{json,md}")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(arguments.threads)
    problem = problem_for(device)
    check(problem)
    chosen = (SECTIONS[name](problem, arguments.repeats, arguments.steps) for name in arguments.sections)
    rows = show(r for section in chosen for r in section)
    if arguments.write:
        taken = conditions(arguments.threads)
        if device.type == "cuda":
            taken |= gpu_conditions(device)
        command = f"python kernels/bench/monitor.py --device {device.type} --write"
        write(f"monitor_{device.type}", "What it costs to watch", rows, taken, command)


if __name__ == "__main__":
    main()
