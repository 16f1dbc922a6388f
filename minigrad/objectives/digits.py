"""Handwritten digits, classified by a small network of minigrad's own layers."""

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from minigrad.errors import UserError
from minigrad.nn import MLP

Batch = tuple[Tensor, Tensor]


class Digits:
    """Cross-entropy of a multilayer perceptron on scikit-learn's digits.

    1,797 images of 8 x 8 pixels, split at random by class: two thirds to train, one third to judge. All pixels are
    shifted and scaled by one mean and one standard deviation, those of the training images: centred inputs train
    faster, above all with sigmoid, and dividing every pixel by its own deviation would blow up those at the border,
    which are hardly ever set. All data stay on the device. The split, the initial parameters and the order of the
    batches depend on the seed alone, and are the same on every device.

    Args:
        activation: of the hidden layers, "sigmoid", "tanh" or "relu".
        batch_size: training samples per step; an epoch's incomplete last batch is dropped.
        seed: of the split, the initial parameters and the order of the batches.
        device: where everything lies.
        hidden: widths of the hidden layers; none makes it a linear classifier.

    Raises:
        UserError: a width below 1, or a batch larger than the training data.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """

    def __init__(
        self, activation: str, batch_size: int, seed: int, device: torch.device | str, *, hidden: list[int]
    ) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        if any(width < 1 for width in hidden):
            raise UserError(f"objective.hidden={hidden}: expected widths of at least 1")
        images, labels = load_digits(return_X_y=True)
        train_images, test_images, train_labels, test_labels = train_test_split(
            images, labels, test_size=1 / 3, stratify=labels, random_state=seed
        )
        mean, deviation = train_images.mean(), train_images.std()
        self._train_images, self._test_images = (
            torch.tensor((part - mean) / deviation, dtype=torch.float32, device=device)
            for part in (train_images, test_images)
        )
        self._train_labels, self._test_labels = (
            torch.tensor(part, dtype=torch.int64, device=device) for part in (train_labels, test_labels)
        )
        if not 1 <= batch_size <= len(self._train_images):
            raise UserError(f"batch_size={batch_size}: expected 1 to {len(self._train_images)}, the training samples")
        with torch.random.fork_rng(devices=[]):  # initialised on the host: the same on every device
            torch.manual_seed(seed)
            self.model = MLP([images.shape[1], *hidden, 10], activation=activation).to(device)
        self._batch_size = batch_size
        self._seed = seed
        self._order: tuple[int, Tensor] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the training data."""
        return len(self._train_images) // self._batch_size

    def parameters(self) -> list[Tensor]:
        """Return the network's weights and biases, layer by layer."""
        return list(self.model.parameters())

    def batch(self, step: int) -> Batch:
        """Return images (batch_size, 64) and labels (batch_size,) of a step; every epoch has an order of its own."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = numpy.random.default_rng((self._seed, epoch)).permutation(len(self._train_images))
            self._order = epoch, torch.from_numpy(order).to(self._train_images.device)
        chosen = self._order[1][place * self._batch_size :][: self._batch_size]
        return self._train_images[chosen], self._train_labels[chosen]

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of a batch in nats, () float32."""
        images, labels = batch
        return functional.cross_entropy(self.model(images), labels)

    @torch.no_grad()
    def judge(self) -> dict[str, Tensor]:
        """Return the loss and the fraction classified right on the held-out third, () float32 each."""
        logits = self.model(self._test_images)
        return {
            "test/loss": functional.cross_entropy(logits, self._test_labels),
            "test/accuracy": (logits.argmax(dim=1) == self._test_labels).float().mean(),
        }
