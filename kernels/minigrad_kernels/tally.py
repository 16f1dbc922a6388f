"""Watched layers on the Triton path: their kernels fill rows of one buffer, and one more launch adds them all up.

The rows of a pass lie in the buffer one layer after the other. It grows until it holds those of all passes between two
readings; where each layer's begin is a table on the device, copied there only when it has changed. So a pass that is
watched has as many launches as one that is not, a reading has one, and neither waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from minigrad_kernels import bias as biased
from minigrad_kernels import elementwise, plain_statistics
from minigrad_kernels.plain_statistics import COLUMNS
from minigrad_kernels.rows import is_captured
from minigrad_kernels.statistics import second_stage
from minigrad_kernels.watch import BACKWARD, FORWARD, Fired, Layer, Watch


class Tally(plain_statistics.Tally):
    """Computes layers on the Triton path and gathers the statistics of their passes, without waiting for the device."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[torch.dtype, _Buffer] = {}

    def forward(
        self, layer: Layer, x: torch.Tensor, bias: torch.Tensor | None, fired: Fired | None = None
    ) -> torch.Tensor:
        """Return the layer's output, as the plain path's `forward`."""
        if bias is None:
            watch = self._watch(layer, FORWARD, x, elementwise.tiles, fired=fired)
            return elementwise.derivative(x, None, layer.activation, 0, watch)
        watch = self._watch(layer, FORWARD, x, biased.tiles, fired=fired)
        return biased.bias_activation(x, bias, layer.activation, watch)

    def backward(
        self, layer: Layer, upstream: torch.Tensor, saved: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the gradients of the layer's input and of its bias, as the plain path's `backward`."""
        if layer.biased:
            watch = self._watch(layer, BACKWARD, saved, biased.backward_tiles, limits=layer.limits)
            return biased.bias_activation_backward(upstream, saved, bias, layer.activation, watch)
        watch = self._watch(layer, BACKWARD, saved, elementwise.tiles, limits=layer.limits)
        if layer.from_output and layer.activation != "relu":
            return elementwise.backward_from_output(upstream, saved, layer.activation, watch), None
        return elementwise.derivative(saved, upstream, layer.activation, 1, watch), None

    def take(self) -> tuple[list[tuple[int, int]], torch.Tensor | None]:
        """Return what was gathered since the last time, and forget it; as the plain path's `take`."""
        keys, others = super().take()
        rows = [] if others is None else [others]
        for buffer in self._buffers.values():
            for more_keys, more_rows in buffer.take():
                keys += more_keys
                rows.append(more_rows)
        return keys, torch.cat(rows) if len(rows) > 1 else rows[0] if rows else None

    def addresses(self) -> list[int]:
        """Return by what memory that stays between passes is known."""
        return [address for buffer in self._buffers.values() for address in buffer.addresses()]

    def _watch(
        self,
        layer: Layer,
        direction: int,
        x: torch.Tensor,
        tiles: Callable[[torch.Tensor], int],
        limits: tuple[float, float] | None = None,
        fired: Fired | None = None,
    ) -> Watch | None:
        """Return where the kernel that is about to run writes its rows; nowhere if there is nothing to see."""
        n_elements = x.numel()
        if n_elements == 0:
            return None
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if dtype not in self._buffers:
            self._buffers[dtype] = _Buffer(dtype, x.device)
        return Watch(self._buffers[dtype].room(tiles(x), n_elements, (layer.number, direction)), limits, fired)


class _Buffer:
    """Rows of one dtype on one device, of the passes since they were last taken."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._rows = torch.empty((0, COLUMNS), dtype=dtype, device=device)
        self._used = 0
        self._keys: list[tuple[int, int]] = []
        self._segments: list[tuple[int, int, int, int]] = []
        self._table: tuple[list[tuple[int, int, int, int]], torch.Tensor] | None = None
        self._finished: list[tuple[list[tuple[int, int]], torch.Tensor]] = []

    def room(self, n_rows: int, n_elements: int, key: tuple[int, int]) -> torch.Tensor:
        """Return rows to be filled by the next launch, (n_rows, COLUMNS)."""
        if self._used + n_rows > len(self._rows):
            self._finish()  # those that are here go by the smaller buffer yet
            self._rows = self._rows.new_empty((max(n_rows, 2 * len(self._rows)), COLUMNS))
        first, self._used = self._used, self._used + n_rows
        self._keys.append(key)
        self._segments.append((first, n_rows, n_elements, key[1]))
        return self._rows[first : self._used]

    def take(self) -> list[tuple[list[tuple[int, int]], torch.Tensor]]:
        """Return keys and sums of all rows since the last time, in the order of the passes."""
        self._finish()
        finished, self._finished = self._finished, []
        return finished

    def addresses(self) -> list[int]:
        """Return where the rows lie, and by what the table of where each layer's begin is known."""
        if self._table is None:
            return [self._rows.data_ptr()]
        segments, table = self._table
        return [self._rows.data_ptr(), table.data_ptr(), hash(tuple(segments))]

    def _finish(self) -> None:
        if not self._segments:
            return
        if self._table is None or self._table[0] != self._segments:
            device = self._rows.device
            if is_captured(self._rows):
                raise RuntimeError("the watched layers' passes are not those of the step before")
            host = torch.tensor(self._segments, pin_memory=device.type == "cuda")  # else the copy would be waited for
            self._table = self._segments, host.to(device, non_blocking=True)
        self._finished.append((self._keys, second_stage(self._rows, self._table[1])))
        self._used, self._keys, self._segments = 0, [], []
