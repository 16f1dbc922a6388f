"""The statistics of `statistics` in plain PyTorch, and the rows in which both paths report them.

A row has `COLUMNS` numbers over all elements of a pass, accumulated in float64 where the device has it:

    forward    elements, mean of the output, sum of the squares of the deviations from it
    backward   elements, sum of squares of the upstream gradient, of the outgoing one, its largest magnitude, and how
               many elements of it are 0, saturated, not finite, and 0 only because the dtype is too small

Sums, and the squares of deviations from a mean, are what the rows of several passes can be put together from.
"""

from __future__ import annotations

import math

import torch

from minigrad_kernels import plain
from minigrad_kernels.plain import widen
from minigrad_kernels.watch import BACKWARD, FORWARD, Fired, Layer

COLUMNS = 8

Number = float | torch.Tensor
Row = list[Number]  # numbers on the CPU, () tensors on the device elsewhere

_ROW = 1024
_MANY = 2**15  # elements from which rows pay


class Tally:
    """Computes layers on the plain path and gathers the statistics of their passes, where they are computed."""

    def __init__(self) -> None:
        self._keys: list[tuple[int, int]] = []
        self._rows: list[Row] = []
        self._device = torch.device("cpu")
        self._scratch = Scratch()

    def forward(
        self, layer: Layer, x: torch.Tensor, bias: torch.Tensor | None, fired: Fired | None = None
    ) -> torch.Tensor:
        """Return the layer's output, laid out as by the function that is not watched, and to the same bits.

        Args:
            layer: what to compute.
            x: any shape and strides; (..., N) with a bias.
            bias: (N,), of x's dtype, or None.
            fired: to which the units that fire are added, if wanted.
        """
        if bias is None:
            y = plain.derivative(x, None, layer.activation, 0)
        else:
            y = plain.bias_activation(x, bias, layer.activation)
        self.saw_forward(layer, y, fired)
        return y

    def backward(
        self, layer: Layer, upstream: torch.Tensor, saved: torch.Tensor, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the gradients of the layer's input and of its bias, likewise.

        Args:
            layer: what was computed.
            upstream: the gradient that arrives, of saved's shape and dtype.
            saved: the layer's output if it goes by that, and else its input.
            bias: the bias if it goes by the input and has one, and else None.
        """
        value, db = saved, None
        if layer.biased:
            value = plain.biased(saved, bias)
            dx, db = plain.biased_backward(upstream, value, saved.dtype, layer.activation, bias is None)
        elif layer.from_output and layer.activation != "relu":
            dx = plain.backward_from_output(upstream, saved, layer.activation)
        else:
            dx = plain.derivative(saved, upstream, layer.activation, 1)
        self.saw_backward(layer, upstream, dx, value)
        return dx, db

    def saw_forward(self, layer: Layer, y: torch.Tensor, fired: Fired | None = None) -> None:
        """Note the statistics of a layer's output that something else has computed."""
        if y.numel():
            self._add(layer, FORWARD, forward_row(y, self._scratch), y.device)
            if fired is not None:
                fired.mark(y)

    def saw_backward(self, layer: Layer, upstream: torch.Tensor, dx: torch.Tensor, value: torch.Tensor) -> None:
        """Note the statistics of a backward pass that something else has computed; `value` as in `backward_row`."""
        if dx.numel():
            how = (layer.activation, layer.from_output, layer.limits)
            self._add(layer, BACKWARD, backward_row(upstream, dx, value, *how, self._scratch), dx.device)

    def take(self) -> tuple[list[tuple[int, int]], torch.Tensor | None]:
        """Return what was gathered since the last time, and forget it.

        Returns: the number of the layer and FORWARD or BACKWARD of each row, and (rows, COLUMNS) on the device; None if
            there is nothing.
        """
        keys, rows = self._keys, self._rows
        self._keys, self._rows = [], []
        return keys, _table(rows, self._device) if rows else None

    def addresses(self) -> list[int]:
        """Return by what memory that stays between passes is known; here there is none."""
        return []

    def _add(self, layer: Layer, direction: int, row: Row, device: torch.device) -> None:
        self._keys.append((layer.number, direction))
        self._rows.append(row)
        self._device = device


def forward_row(y: torch.Tensor, scratch: Scratch) -> Row:
    """Return the row of a forward pass from its output y of any shape, not empty."""
    n = y.numel()
    if _is_large(y):
        squares, of_the_mean, total = _deviations(y)
        if 9 * squares < of_the_mean:  # the difference has lost a digit
            pivot = total / n
            squares, of_the_mean, total = _deviations(torch.sub(y, pivot, out=scratch.like(y)))
            total += n * pivot
        if math.isfinite(squares):
            return [n, total / n, squares, 0, 0, 0, 0, 0]
    wide = y.to(_accumulation(y.device), copy=True)
    mean = wide.mean()
    length = _read(torch.linalg.vector_norm(wide.sub_(mean)))
    return [n, _read(mean), length * length, 0, 0, 0, 0, 0]


def _deviations(values: torch.Tensor) -> tuple[float, float, float]:
    """Return of large `values` the squares of the deviations from the mean, those of the mean itself, and the sum."""
    total, length = float(_sum(values)), float(norm(values))
    of_the_mean = total * total / values.numel()
    squares = length * length - of_the_mean
    return 0.0 if squares < 0 else squares, of_the_mean, total  # not so where it is NaN


def backward_row(
    upstream: torch.Tensor,
    dx: torch.Tensor,
    value: torch.Tensor,
    activation: str,
    from_output: bool,
    limits: tuple[float, float],
    scratch: Scratch,
) -> Row:
    """Return the row of a backward pass.

    Args:
        upstream: the gradient that arrives, any shape and strides, not empty.
        dx: the one that leaves, of that shape.
        value: the activation's input, or its output if `from_output`, of that shape.
        activation: "sigmoid", "tanh" or "relu".
        from_output: what `value` is.
        limits: between which a sigmoid's or tanh's `value` is not saturated; of ReLU `value` is always the output.
        scratch: for what is needed only here.
    """
    length, upstream_length = norm(dx), norm(upstream)
    smallest, largest = torch.aminmax(dx)
    largest = torch.maximum(-smallest, largest)
    zeros = dx.numel() - _read(torch.count_nonzero(dx))
    low, high = limits
    value = widen(value)  # a half type would round the limits that it is compared with
    if activation == "relu":
        saturated = value.numel() - _read(torch.count_nonzero(value))
    elif low == -high:
        saturated = _count(torch.abs(value, out=scratch.like(value)).gt_(high))
    else:
        saturated = _read(torch.count_nonzero((value < low) | (value > high)))
    nonfinite: Number = 0
    if isinstance(length, torch.Tensor) or not math.isfinite(length):
        nonfinite = dx.numel() - _read(torch.count_nonzero(dx.isfinite()))
    false_zeros: Number = 0
    if activation != "relu" and (isinstance(zeros, torch.Tensor) or zeros > 0):
        defined = value == value if from_output else value.isfinite()
        false_zeros = _read(torch.count_nonzero((dx == 0) & (upstream != 0) & defined))
    counts = (zeros, saturated, nonfinite, false_zeros)
    return [dx.numel(), upstream_length * upstream_length, length * length, _read(largest), *counts]


class Scratch:
    """Memory for intermediate results, kept from one use to the next: fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self._flat = torch.empty(0)

    def like(self, values: torch.Tensor) -> torch.Tensor:
        """Return memory for a result of the shape, dtype and device of `values`, until the next call."""
        if values.device.type != "cpu":  # whose allocators keep memory themselves; and a graph needs what stays
            return torch.empty_like(values)
        n = values.numel()
        if len(self._flat) < n or self._flat.dtype != values.dtype or self._flat.device != values.device:
            self._flat = values.new_empty(n)
        return self._flat[:n].view(values.shape)


def norm(values: torch.Tensor) -> Number:
    """Return the Euclidean norm of all `values`, of any shape, relative 1e-6; in float64, of magnitudes from 1e-154 on.

    A large tensor is taken in rows, of which float32 adds up no more than it can without losing digits, at a third of
    the cost of float64. Where squares might leave its range, float64 takes all.
    """
    if _is_large(values):
        rows, rest = _rows(values)
        length: float = torch.linalg.vector_norm(torch.linalg.vector_norm(rows, dim=1), dtype=torch.float64).item()
        if len(rest):
            length = math.hypot(length, torch.linalg.vector_norm(rest, dtype=torch.float64).item())
        # Elements whose squares float32 cannot hold are then 1e-6 of it at most.
        if 1e-15 * math.sqrt(values.numel()) < length < 1e18:
            return length
    return _read(torch.linalg.vector_norm(values, dtype=_accumulation(values.device)))


def _count(ones: torch.Tensor) -> Number:
    """Return how many elements are 1, the others being 0: as numbers they are added up faster than as flags."""
    if ones.dtype == torch.float32 and ones.numel() <= 2**24:  # up to which float32 has all integers
        flat = ones.view(-1)
        return _read(torch.dot(flat, flat))
    return _sum(ones)


def _sum(values: torch.Tensor) -> Number:
    """Return the sum of the elements of a tensor; exact of zeros and ones."""
    if not _is_large(values):
        return _read(values.sum(dtype=_accumulation(values.device)))
    rows, rest = _rows(values)
    total: float = rows.sum(1).sum(dtype=torch.float64).item()
    return total + rest.sum(dtype=torch.float64).item() if len(rest) else total


def _is_large(values: torch.Tensor) -> bool:
    """Return whether a tensor is better taken in rows: on the CPU, in float32, and of many elements."""
    return values.dtype == torch.float32 and values.is_cpu and values.numel() >= _MANY


def _rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a tensor's elements as rows of `_ROW` and the rest."""
    flat = values.reshape(-1)
    whole = len(flat) // _ROW * _ROW
    return flat[:whole].view(-1, _ROW), flat[whole:]


def _read(number: torch.Tensor) -> Number:
    """Return a () tensor's number on the CPU, where to read it is not to wait for it; elsewhere the tensor."""
    return number.item() if number.device.type == "cpu" else number


def _table(rows: list[Row], device: torch.device) -> torch.Tensor:
    wide = _accumulation(device)
    if device.type == "cpu":
        return torch.tensor(rows, dtype=wide)
    filled = [n if isinstance(n, torch.Tensor) else torch.full((), n, device=device) for row in rows for n in row]
    return torch.stack([number.to(wide) for number in filled]).view(len(rows), COLUMNS)


def _accumulation(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which MPS does not have
