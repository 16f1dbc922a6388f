"""The order in which data are trained on: another one in every epoch, and the same whenever a run is repeated."""

import numpy
import torch
from torch import Tensor


class Order:
    """Where the samples of each batch lie among the data, shuffled anew for every epoch.

    An epoch's last samples are left out where they do not fill a batch.

    Args:
        n_samples: how many there are.
        batch_size: at most as many.
        seed: the run's.
        device: where the data lie.
    """

    def __init__(self, n_samples: int, batch_size: int, seed: int, device: torch.device | str) -> None:
        self._n_samples, self._batch_size, self._seed, self._device = n_samples, batch_size, seed, device
        self._last: tuple[int, Tensor] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """How many batches an epoch has."""
        return self._n_samples // self._batch_size

    def places(self, first: int, count: int) -> Tensor:
        """Return the places of the samples of `count` batches from the index `first` on, (count, batch_size)."""
        parts = [self._epoch(first // self.batches_per_epoch)[:0]]
        while count > 0:
            epoch, begin = divmod(first, self.batches_per_epoch)
            part = self._epoch(epoch)[begin : begin + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return parts[1] if len(parts) == 2 else torch.cat(parts)

    def _epoch(self, epoch: int) -> Tensor:
        """Return the places of all batches of an epoch, (batches, batch_size)."""
        if self._last is None or self._last[0] != epoch:
            order = numpy.random.default_rng((self._seed, epoch)).permutation(self._n_samples)
            used = order[: self.batches_per_epoch * self._batch_size].reshape(-1, self._batch_size)
            places = torch.from_numpy(used)
            if torch.device(self._device).type == "cuda":
                places = places.pin_memory()  # else the copy would be waited for
            self._last = epoch, places.to(self._device, non_blocking=True)
        return self._last[1]
