"""Forward and backward of the three activations against copies of the same bytes, PyTorch, torch.compile and JAX.

Forward is what a user calls, without recording; backward is the one kernel that a backward pass runs, against the one
that PyTorch's own backward pass runs, compiled and not. JAX's backward is that of jax.vjp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import minigrad
import minigrad_kernels as kernels
from bench import peers, ulps
from bench.contest import BOUND_BY_MEMORY, OURS, hold
from bench.lines import Line
from bench.setting import CheckFailed, Setting
from bench.timing import Absent, Contestant, rotation

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES, DRY_SIZES = (2**10, 2**14, 2**18, 2**22, 2**26, 2**28), (2**7,)
CHECKED_AT_ONCE = 2**24  # elements: their float64 values take 128 MiB
# The largest distance from float64: numbers of a half type, or ULP of float32; a backward also rounds the product.
ALLOWED = {("tanh", 0): 2, ("sigmoid", 0): 4, ("relu", 0): 0, ("tanh", 1): 9, ("sigmoid", 1): 9, ("relu", 1): 0}
ALLOWED_OF_HALVES = 1


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        activation: "tanh", "sigmoid" or "relu".
        order: 0 for the forward pass, 1 for the backward.
        dtype: of all tensors.
        n_elements: of each tensor.
    """

    activation: str
    order: int
    dtype: torch.dtype
    n_elements: int

    @property
    def n_bytes(self) -> int:
        """How many bytes a call has to move: x and y, or the gradients and what was saved."""
        return (2 + self.order) * self.n_elements * self.dtype.itemsize

    @property
    def columns(self) -> dict[str, str]:
        """How a table names it."""
        return {
            "activation": self.activation,
            "pass": ("forward", "backward")[self.order],
            "dtype": str(self.dtype).removeprefix("torch."),
            "elements": f"2^{self.n_elements.bit_length() - 1}",
        }

    def __str__(self) -> str:
        return ", ".join([*self.columns.values()]) + " elements"


def measure(setting: Setting) -> Iterator[Line]:
    """Check and time every case."""
    sizes = DRY_SIZES if setting.dry else SIZES
    cases = [
        Case(activation, order, dtype, n)
        for dtype in DTYPES
        for activation in ("tanh", "sigmoid", "relu")
        for order in (0, 1)
        for n in sizes
    ]
    for case in setting.in_time(cases):
        yield line_of(case, setting)


def line_of(case: Case, setting: Setting) -> Line:
    """Check and time one case.

    Raises:
        CheckFailed: minigrad's result is wrong.
    """
    n_copies, calls = rotation(case.n_bytes, setting.device)
    shape = (n_copies, case.n_elements)
    x = torch.randn(shape, dtype=case.dtype, device=setting.device).mul_(3)
    ours, others = forward(case, x, setting) if case.order == 0 else backward(case, x, setting)
    check(case, ours)
    beginning = [exact(case, ours.copies[0], slice(CHECKED_AT_ONCE))]
    others = [peers.verified(other, beginning) for other in others]
    cells, _ = hold(ours, others, ours.copies, case.n_bytes, calls, setting)
    bounds = {"over best": "<= 1.03"}
    return Line(case.columns, cells, bounds | ({"of copy": ">= 0.97"} if case.n_elements >= BOUND_BY_MEMORY else {}))


def forward(case: Case, x: Tensor, setting: Setting) -> tuple[Contestant, list[Contestant | Absent]]:
    """Return who computes f(x): minigrad, and the others."""
    arguments = [(row,) for row in x]
    ours, torchs = getattr(minigrad, case.activation), getattr(torch, case.activation)
    return Contestant(OURS, ours, arguments, is_ours=True), [
        peers.eager(torchs, arguments),
        peers.compiled(lambda x: torchs(x), arguments, setting),
        peers.jax_jit(lambda jax: jaxs_activation(jax, case.activation), arguments, setting),
    ]


def backward(case: Case, x: Tensor, setting: Setting) -> tuple[Contestant, list[Contestant | Absent]]:
    """Return who computes g f'(x), each from what its forward saves: minigrad, and the others."""
    g = torch.randn_like(x)
    y = getattr(torch, case.activation)(x)
    saved = y if case.activation == "relu" else x
    name, torchs = case.activation, peers.TORCHS_BACKWARD[case.activation]

    def ours(g: Tensor, saved: Tensor) -> Tensor:
        return kernels.derivative(saved, g, name, 1)

    def jaxs(jax: Any) -> Callable[..., Any]:
        function = jaxs_activation(jax, name)
        return lambda g, x: jax.vjp(function, x)[1](g)[0]

    return Contestant(OURS, ours, list(zip(g, saved, strict=True)), is_ours=True), [
        peers.eager(torchs, list(zip(g, y, strict=True))),
        peers.compiled(torchs, list(zip(g, y, strict=True)), setting),
        peers.jax_jit(jaxs, list(zip(g, x, strict=True)), setting),
    ]


def jaxs_activation(jax: Any, activation: str) -> Callable[..., Any]:
    """Return JAX's function of that name."""
    functions = {"tanh": jax.numpy.tanh, "sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu}
    return functions[activation]  # type: ignore[no-any-return]


def exact(case: Case, arguments: Sequence[Tensor], where: slice) -> Tensor:
    """Return a part of the result of our arguments in float64."""
    *upstream, x = (argument[where] for argument in arguments)
    value = ulps.exact(case.activation, x, case.order)
    return value * upstream[0].double() if upstream else value


def check(case: Case, ours: Contestant) -> None:
    """Compare all of minigrad's result on the first copy with float64.

    Raises:
        CheckFailed: it is further off than the contract allows.
    """
    actual = ours.call(*ours.copies[0])
    allowed = ALLOWED_OF_HALVES if case.dtype.itemsize == 2 else ALLOWED[case.activation, case.order]
    for start in range(0, case.n_elements, CHECKED_AT_ONCE):
        where = slice(start, start + CHECKED_AT_ONCE)
        off = ulps.distance(actual[where], exact(case, ours.copies[0], where)).max().item()
        if not off <= allowed:
            raise CheckFailed(f"{case}: minigrad is off by {off:.3g} ULP, allowed are {allowed}")
