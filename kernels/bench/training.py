"""Who trains a network on noise: minigrad's trainer, PyTorch's loop as one writes it by hand, compiled or not, and JAX.

All begin with the same parameters and choose the same batches on the device, by the places of their samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import minigrad
from bench import peers
from bench.elementwise import jaxs_activation
from minigrad import GradientMonitor, Trainer
from minigrad.rules import RULES

REDUCED = "reduce-overhead"
MODES = {peers.EAGER: None, peers.COMPILED: "default", REDUCED: "reduce-overhead"}
"""Of torch.compile, by contestant."""
N_BATCHES = 8
TORCHS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
}


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        sizes: of the input, and of every layer.
        batch_size: samples.
        dtype: of data and parameters.
        activation: of all layers but the last.
        rule: "momentum" or "adam".
        learning_rate: of the rule.
        classifies: whether the loss is the cross-entropy of classes, or the mean square of the output.
    """

    sizes: Sequence[int]
    batch_size: int
    dtype: torch.dtype = torch.float32
    activation: str = "tanh"
    rule: str = "momentum"
    learning_rate: float = 0.01
    classifies: bool = True

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.sizes))}, {self.activation}, {self.rule}"


class Data(NamedTuple):
    """What a network is trained on, on the device.

    Attributes:
        inputs: (samples, sizes[0]).
        classes: (samples,) int64.
        places: (N_BATCHES, batch_size) int64, where the samples of each batch lie.
    """

    inputs: Tensor
    classes: Tensor
    places: Tensor

    @classmethod
    def of(cls, task: Task, device: torch.device) -> Data:
        """Draw as many samples as the batches have."""
        torch.manual_seed(1)
        n = N_BATCHES * task.batch_size
        inputs = torch.randn(n, task.sizes[0], dtype=task.dtype, device=device)
        classes = torch.randint(task.sizes[-1], (n,), device=device)
        return cls(inputs, classes, torch.randperm(n, device=device).view(N_BATCHES, -1))


@dataclass
class Problem:
    """A network and its data: what the trainer asks of an objective."""

    task: Task
    data: Data
    network: torch.nn.Module

    def parameters(self) -> dict[str, Tensor]:
        """Return the network's parameters by name."""
        return dict(self.network.named_parameters())

    def places(self, first: int, count: int) -> Tensor:
        """Return where the samples of `count` batches from the index `first` on lie, (count, batch_size)."""
        return self.data.places[torch.arange(first, first + count, device=self.data.places.device) % N_BATCHES]

    def batch_at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples of these places, and their classes."""
        return self.data.inputs[places], self.data.classes[places]

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a batch."""
        return self.batch_at(self.data.places[index % N_BATCHES])

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean loss of a batch, ()."""
        inputs, classes = batch
        output = self.network(inputs).float()
        return torch.nn.functional.cross_entropy(output, classes) if self.task.classifies else output.square().mean()


@dataclass
class Contender:
    """Who trains.

    Attributes:
        advance: makes so many steps.
        losses: makes so many steps and returns the loss of each.
        wait: for what `advance` returns, where torch does not know of it.
    """

    advance: Callable[[int], Any]
    losses: Callable[[int], list[float]]
    wait: Callable[[Any], object] | None = None


def by_trainer(task: Task, data: Data, execution: str, *, save: str = "input", watched: bool = False) -> Contender:
    """Return minigrad's trainer.

    Args:
        task: what is trained.
        data: what it is trained on.
        execution: the trainer's.
        save: the layers'.
        watched: whether a monitor sees every step; it is read at the end of every portion.
    """
    torch.manual_seed(0)
    network = minigrad.nn.MLP(task.sizes, task.activation, save, device=data.inputs.device, dtype=task.dtype)
    monitor = GradientMonitor(network).attach() if watched else None
    trainer = Trainer(
        Problem(task, data, network), RULES[task.rule], task.learning_rate, execution=execution, monitor=monitor
    )

    def losses(steps: int) -> list[float]:
        record = trainer.advance(steps)
        if monitor is not None:
            monitor.read()
        return record.loss.tolist()

    return Contender(losses, losses)


def by_hand(task: Task, data: Data, mode: str | None = None) -> Contender:
    """Return PyTorch's loop, with torch.optim's fused update on a GPU.

    Args:
        task: what is trained.
        data: what it is trained on.
        mode: in which torch.compile compiles the loss, from the choice of the batch on; None: not at all.
    """
    network = torchs_network(task, data.inputs.device)
    problem = Problem(task, data, network)
    is_fused = True if data.inputs.is_cuda else None
    optimizer = TORCHS[task.rule](network.parameters(), lr=task.learning_rate, fused=is_fused)

    def loss_at(places: Tensor) -> Tensor:
        return problem.loss(problem.batch_at(places))

    function = loss_at if mode is None else torch.compile(loss_at, mode=mode, dynamic=False, fullgraph=True)
    made = itertools.count()

    def step() -> Tensor:
        if mode == MODES[REDUCED]:
            torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad()
        loss = function(data.places[next(made) % N_BATCHES])
        loss.backward()
        optimizer.step()
        return loss

    def advance(steps: int) -> None:
        for _ in range(steps):
            step()

    return Contender(advance, lambda steps: [step().item() for _ in range(steps)])


def torchs_network(task: Task, device: torch.device) -> torch.nn.Sequential:
    """Return the network of PyTorch's modules, with the parameters that minigrad's begins with."""
    torch.manual_seed(0)
    activation = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[task.activation]
    layers: list[torch.nn.Module] = []
    for n_in, n_out in itertools.pairwise(task.sizes):
        layers += [torch.nn.Linear(n_in, n_out, device=device, dtype=task.dtype), activation()]
    return torch.nn.Sequential(*layers[:-1])


def by_jax(task: Task, data: Data, jax: Any) -> Contender:
    """Return JAX's loop over one jitted function, which makes a whole step and is given its arguments' memory."""
    numpy = jax.numpy
    shared = [jax.dlpack.from_dlpack(tensor) for tensor in (data.inputs, data.classes.int(), data.places.int())]
    initial = torchs_network(task, data.inputs.device).parameters()
    parameters = [numpy.array(jax.dlpack.from_dlpack(parameter.detach())) for parameter in initial]
    rule, n_states = {"momentum": (_momentum, 1), "adam": (_adam, 2)}[task.rule]
    states = [tuple(numpy.zeros_like(p) for _ in range(n_states)) for p in parameters]
    activation = jaxs_activation(jax, task.activation)

    def loss(parameters: Any, inputs: Any, classes: Any) -> Any:
        *layers, (weight, bias) = zip(parameters[::2], parameters[1::2], strict=True)
        for inner_weight, inner_bias in layers:
            inputs = activation(inputs @ inner_weight.T + inner_bias)
        output = (inputs @ weight.T + bias).astype(numpy.float32)
        if not task.classifies:
            return (output * output).mean()
        return -numpy.take_along_axis(jax.nn.log_softmax(output), classes[:, None], 1).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(parameters: Any, states: Any, made: Any, inputs: Any, classes: Any, places: Any) -> Any:
        where = places[made % N_BATCHES]
        # As PyTorch by default, and not in TF32.
        with jax.default_matmul_precision("float32" if task.dtype == torch.float32 else None):
            value, gradients = jax.value_and_grad(loss)(parameters, inputs[where], classes[where])
        directions, states = zip(*map(partial(rule, numpy, made + 1), gradients, states), strict=True)
        parameters = [p - task.learning_rate * d for p, d in zip(parameters, directions, strict=True)]
        return parameters, list(states), value

    made = itertools.count()

    def one_step() -> Any:
        nonlocal parameters, states
        parameters, states, value = step(parameters, states, next(made), *shared)
        return value

    def advance(steps: int) -> Any:
        for _ in range(steps):
            value = one_step()
        return value

    return Contender(advance, lambda steps: [float(one_step()) for _ in range(steps)], jax.block_until_ready)


def _momentum(numpy: Any, n: Any, gradient: Any, state: Any) -> Any:
    velocity = 0.9 * state[0] + gradient
    return velocity, (velocity,)


def _adam(numpy: Any, n: Any, gradient: Any, state: Any) -> Any:
    mean, square = 0.9 * state[0] + 0.1 * gradient, 0.999 * state[1] + 0.001 * gradient * gradient
    return mean / (1 - 0.9**n) / (numpy.sqrt(square / (1 - 0.999**n)) + 1e-8), (mean, square)
