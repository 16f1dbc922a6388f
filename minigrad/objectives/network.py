"""Networks on data: a multilayer perceptron, trained on two thirds of the data and judged on the rest."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from minigrad.errors import UserError
from minigrad.models import Predictor
from minigrad.nn import MLP
from minigrad.objectives import data
from minigrad.objectives.data import Data
from minigrad.objectives.division import divided
from minigrad.objectives.order import Order

Array = NDArray[Any]
Batch = tuple[Tensor, Tensor]


class Network:
    """Cross-entropy or mean squared error of a multilayer perceptron on data.

    A third of the data, drawn at random, by class where there are classes, is held out to judge by. Inputs, and the
    target of a regression, are shifted and scaled by mean and standard deviation of the training part: centred inputs
    train faster, above all with sigmoid. A column that is constant there is only shifted. All data stay on the device,
    scaled. The split, the initial parameters and the order of the batches depend on the seed alone, and are the same on
    every device.

    Args:
        load: gives the data; called once.
        activation: of the hidden layers, "sigmoid", "tanh" or "relu".
        batch_size: training samples per step; an epoch's incomplete last batch is dropped.
        seed: of the split, the initial parameters and the order of the batches.
        device: where everything lies.
        dtype: of the data and the parameters.
        hidden: widths of the hidden layers; none makes it a linear model.
        init: the initial parameters: "torch", PyTorch's own of a linear layer, or normal weights of Glorot's or He's
            deviation, "glorot" (for sigmoid and tanh) or "he" (for ReLU), and biases of 0.

    Attributes:
        model: the network between the data's own units, a `minigrad.models.Predictor`.
        network: the perceptron in it, whose parameters are trained.
        batches_per_epoch: batches in one pass over the training part.
        notes: the data's, and whether the batch had to be smaller than asked for, a line each.

    Raises:
        UserError: a width or a batch size below 1, an unknown `init`, or a target of a single value, by which nothing
            can be judged.
    """

    def __init__(
        self,
        load: Callable[[], Data],
        activation: str,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        *,
        hidden: list[int],
        init: str = "torch",
    ) -> None:
        if any(width < 1 for width in hidden):
            raise UserError(f"objective.hidden={hidden}: expected widths of at least 1")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: expected an integer from 1 on")
        if init not in INITS:
            raise UserError(f"objective.init={init}: expected one of {', '.join(INITS)}")
        given = load()
        classes = given.classes
        inputs, test_inputs, targets, test_targets = _split(given, seed)
        with torch.random.fork_rng(devices=[]):  # initialised on the host: the same on every device
            torch.manual_seed(seed)
            sizes = [inputs.shape[1], *hidden, 1 if classes is None else len(classes)]
            model = Predictor(sizes, activation, classes)
            INITS[init](model.network)
        model.to(device, dtype)
        mean, deviation = _moments(inputs, given.standardise_together)
        model.input_mean.copy_(torch.from_numpy(mean))
        model.input_deviation.copy_(torch.from_numpy(deviation))
        self._inputs, self._test_inputs = (
            torch.tensor((part - mean) / deviation, dtype=dtype, device=device) for part in (inputs, test_inputs)
        )
        if classes is None:
            mean, deviation = _moments(targets[:, None])
            model.target_mean.fill_(mean.item())
            model.target_deviation.fill_(deviation.item())
            targets, test_targets = ((part - mean) / deviation for part in (targets, test_targets))
        self._targets, self._test_targets = (
            torch.tensor(part, dtype=dtype if classes is None else torch.int64, device=device)
            for part in (targets, test_targets)
        )
        self.model: nn.Module = model
        self.network = model.network
        self._classes = classes
        self.notes = list(given.notes)
        if batch_size > len(inputs):
            self.notes.append(
                f"batch_size={batch_size}: there are {len(inputs)} training samples; every batch is all of them"
            )
        self._order = Order(len(inputs), min(batch_size, len(inputs)), seed, device)
        self.batches_per_epoch: int | None = self._order.batches_per_epoch
        self._has_one_batch = batch_size >= len(inputs)

    def parameters(self) -> dict[str, Tensor]:
        """Return the network's weights and biases by their names in the model, layer by layer."""
        return dict(self.model.named_parameters())

    def batch(self, index: int) -> Batch:
        """Return inputs (batch_size, D) and targets (batch_size,), scaled; every epoch has an order of its own."""
        return self.batch_at(self.places(index, 1)[0])

    def places(self, first: int, count: int) -> Tensor:
        """Return where the samples of `count` batches lie among the data, (count, batch_size); 0 for all of them."""
        if self._has_one_batch:
            return self._targets.new_empty((count, 0))
        return self._order.places(first, count)

    def batch_at(self, places: Tensor) -> Batch:
        """Return the batch of a row of `places`."""
        if self._has_one_batch:
            return self._inputs, self._targets  # in any order the same
        return self._inputs[places], self._targets[places]

    def part(self, batch: Batch, rank: int, size: int) -> tuple[Batch, float]:
        """Return a rank's part of a batch and how much of the whole it is."""
        (inputs, targets), share = divided(batch, rank, size)
        return (inputs, targets), share

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of a batch in nats, or the mean squared error of the scaled target, ().

        Computed in float32 at least, whatever autocast made of the network's output.
        """
        inputs, targets = batch
        return self._loss(self._outputs(inputs), targets)

    @torch.no_grad()
    def judge(self) -> dict[str, Tensor]:
        """Return the loss and the quality on the held-out third, () floating point each.

        The quality is `test/accuracy`, the fraction classified right, or `test/r2`, the coefficient of determination:
        1 - (squared error) / (squared distance of the targets from their mean), summed over the held-out third.
        """
        outputs = self._outputs(self._test_inputs)
        loss = self._loss(outputs, self._test_targets)
        if self._classes is None:
            return {"test/loss": loss, "test/r2": 1 - loss / self._test_targets.var(correction=0)}
        accuracy = (outputs.argmax(dim=1) == self._test_targets).float().mean()
        return {"test/loss": loss, "test/accuracy": accuracy}

    def _outputs(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.network(inputs)
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self._classes is None:
            return functional.mse_loss(outputs.squeeze(-1), targets)
        return functional.cross_entropy(outputs, targets)


def spirals(
    activation: str,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    *,
    hidden: list[int],
    init: str = "torch",
    samples: int,
    noise: float,
    arms: int,
) -> Network:
    """Return a network on points of interleaved spirals, made from the run's own seed."""
    load = partial(data.spirals, samples, noise, arms, seed)
    return Network(load, activation, batch_size, seed, device, dtype, hidden=hidden, init=init)


def _as_made(network: MLP) -> None:
    """Leave the parameters as PyTorch initialises them."""


@torch.no_grad()
def _normal(initialise: Callable[[Tensor], Tensor], network: MLP) -> None:
    """Draw normal weights of one of the deviations in torch.nn.init, and set biases to 0."""
    for name, parameter in network.named_parameters():
        if name.endswith("weight"):
            initialise(parameter)
        else:
            parameter.zero_()


INITS: dict[str, Callable[[MLP], None]] = {
    "torch": _as_made,
    "glorot": partial(_normal, nn.init.xavier_normal_),
    "he": partial(_normal, partial(nn.init.kaiming_normal_, nonlinearity="relu")),
}


def _split(given: Data, seed: int) -> list[Array]:
    """Return inputs to train on, held-out inputs, targets to train on, held-out targets."""
    from sklearn.model_selection import train_test_split  # inside: scikit-learn makes a start 1.8 times as long

    strata = None if given.classes is None else given.targets
    parts: list[Array] = train_test_split(
        given.inputs, given.targets, test_size=1 / 3, stratify=strata, random_state=seed
    )
    for name, targets in (("training", parts[2]), ("held-out", parts[3])):
        if numpy.ptp(targets) == 0:
            raise UserError(
                f"seed={seed}: the target is {targets[0]:g} in all {len(targets)} {name} samples, which tells "
                "nothing; use another seed or more data"
            )
    return parts


def _moments(values: Array, together: bool = False) -> tuple[Array, Array]:
    """Return the mean and the standard deviation of each column of (N, D) values, or of all of them, (D,) each.

    A column that is constant, as far as float32 can tell, has its value and 1: it becomes 0, and 0 exactly, where the
    computed moments would be rounded.
    """
    columns = values.reshape(-1, 1) if together else values
    constant = numpy.ptp(columns, axis=0) < numpy.finfo(numpy.float32).tiny
    mean = numpy.where(constant, columns[0], columns.mean(axis=0))
    deviation = numpy.where(constant, 1.0, columns.std(axis=0))
    shape = values.shape[1:]
    return numpy.broadcast_to(mean, shape).copy(), numpy.broadcast_to(deviation, shape).copy()
