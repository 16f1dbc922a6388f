"""Bias and activation in one kernel, and its backward with the bias gradient, against PyTorch's chain of operations.

The chain adds the bias and applies the activation; backward it multiplies by the derivative, from the output that
PyTorch saves, and sums over the rows. It is taken as PyTorch carries it out, and as torch.compile fuses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import minigrad
import minigrad_kernels as kernels
from bench import peers, ulps
from bench.contest import BOUND_BY_MEMORY, OURS, hold
from bench.lines import Line
from bench.setting import CheckFailed, Setting
from bench.timing import Absent, Contestant, ratio, rotation

DTYPES = (torch.float32, torch.bfloat16)
SHAPES, DRY_SHAPES = ((4096, 1024), (16384, 4096)), ((8, 16),)  # 2^22 and 2^26 elements
# Relative to the exact value: float32's own contract, which also covers that x + bias is rounded to float32 first.
ALLOWED = 4e-6
ALLOWED_OF_HALVES = 1  # numbers of the dtype
OF_THE_SUM = 1e-5  # relative to the sum of magnitudes, for a sum in float32


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        activation: "tanh", "sigmoid" or "relu".
        order: 0 for the forward pass, 1 for the backward.
        dtype: of all tensors.
        shape: rows and columns.
    """

    activation: str
    order: int
    dtype: torch.dtype
    shape: tuple[int, int]

    @property
    def n_bytes(self) -> int:
        """How many bytes a call has to move, the bias and its gradient aside: x and y, or g, what was saved, and dx."""
        return (2 + self.order) * self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def columns(self) -> dict[str, str]:
        """How a table names it."""
        return {
            "activation": self.activation,
            "pass": ("forward", "backward")[self.order],
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": f"{self.shape[0]} x {self.shape[1]}",
        }

    def __str__(self) -> str:
        return f"{', '.join(self.columns.values())}, with bias"


def measure(setting: Setting) -> Iterator[Line]:
    """Check and time every case."""
    shapes = DRY_SHAPES if setting.dry else SHAPES
    cases = [
        Case(activation, order, dtype, shape)
        for shape in reversed(shapes)  # the largest first: it has both bounds
        for dtype in DTYPES
        for activation in ("tanh", "sigmoid", "relu")
        for order in (0, 1)
    ]
    for case in setting.in_time(cases):
        yield line_of(case, setting)


def line_of(case: Case, setting: Setting) -> Line:
    """Check and time one case.

    Raises:
        CheckFailed: minigrad's result is wrong.
    """
    n_copies, calls = rotation(case.n_bytes, setting.device)
    x = torch.randn((n_copies, *case.shape), dtype=case.dtype, device=setting.device).mul_(3)
    bias = torch.randn(case.shape[1], dtype=case.dtype, device=setting.device)
    g = torch.randn_like(x)
    if case.order == 0:
        ours, others = forward(case, x, bias, setting)
        read: list[tuple[Tensor, ...]] = [(copy,) for copy in x]
    else:
        ours, others = backward(case, g, x, bias, setting)
        read = list(zip(g, x, strict=True))
    expected = exact(case, g[0], x[0], bias)
    check(case, ours.call(*ours.copies[0]), expected)
    others = [peers.verified(other, [value.view(-1) for value in expected]) for other in others]
    cells, times = hold(ours, others, read, case.n_bytes, calls, setting)
    cells["speed-up"] = ratio(times, peers.COMPILED, OURS)
    bounds = {"speed-up": ">= 1"}
    return Line(case.columns, cells, bounds | ({"of copy": ">= 0.95"} if x[0].numel() >= BOUND_BY_MEMORY else {}))


def forward(case: Case, x: Tensor, bias: Tensor, setting: Setting) -> tuple[Contestant, list[Contestant | Absent]]:
    """Return who computes f(x + bias): minigrad, and the others."""
    activation = getattr(torch, case.activation)
    arguments = [(copy, bias) for copy in x]

    def ours(x: Tensor, bias: Tensor) -> Tensor:
        return minigrad.bias_activation(x, bias, case.activation)

    def chain(x: Tensor, bias: Tensor) -> Tensor:
        return activation(x + bias)  # type: ignore[no-any-return]

    others = [peers.eager(chain, arguments), peers.compiled(chain, arguments, setting)]
    return Contestant(OURS, ours, arguments, is_ours=True), others


def backward(
    case: Case, g: Tensor, x: Tensor, bias: Tensor, setting: Setting
) -> tuple[Contestant, list[Contestant | Absent]]:
    """Return who computes g f'(x + bias) and its sum over the rows, each from what its forward saves."""
    y = getattr(torch, case.activation)(x + bias)
    times_derivative = peers.TORCHS_BACKWARD[case.activation]
    by_output = case.activation == "relu"

    def ours(g: Tensor, saved: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.bias_activation_backward(g, saved, None if by_output else bias, case.activation)

    def chain(g: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        dx = times_derivative(g, y)
        return dx, dx.sum(0)

    arguments = list(zip(g, y, strict=True))
    others = [peers.eager(chain, arguments), peers.compiled(chain, arguments, setting)]
    saved = list(zip(g, y if by_output else x, strict=True))
    return Contestant(OURS, ours, saved, is_ours=True), others


def exact(case: Case, g: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Return the results in float64: f(x + bias), or the gradients of x and of the bias."""
    value = ulps.exact(case.activation, x.double() + bias.double(), case.order)
    if case.order == 0:
        return (value,)
    dx = value.mul_(g.double())
    return dx, dx.sum(0)


def check(case: Case, results: Tensor | tuple[Tensor, Tensor], expected: tuple[Tensor, ...]) -> None:
    """Compare minigrad's results with float64.

    Raises:
        CheckFailed: one is further off than it may be.
    """
    first, *db = results if isinstance(results, tuple) else (results,)
    if case.dtype.itemsize == 2:
        off, allowed = ulps.steps(first, expected[0]).max().item(), float(ALLOWED_OF_HALVES)
    else:
        off, allowed = relative(first, expected[0], expected[0].abs()), ALLOWED
    if not off <= allowed:
        raise CheckFailed(f"{case}: minigrad is off by {off:.3g}, allowed are {allowed}")
    for total in db:
        rounding = torch.finfo(case.dtype).eps / 2 * expected[1].abs()
        off = relative(total, expected[1], rounding + OF_THE_SUM * expected[0].abs().sum(0))
        if not off <= 1:
            raise CheckFailed(f"{case}: minigrad's bias gradient is {off:.3g} times as far off as its sum allows")


def relative(actual: Tensor, expected: Tensor, scale: Tensor) -> float:
    """Return the largest distance, relative to a scale; NaN where a result is NaN."""
    off = (actual.double() - expected).abs() / scale
    return torch.where(actual.double() == expected, 0.0, off).max().item()
