"""The n-th derivative of tanh, one kernel, against autograd nested n times, from the first order to the eighth.

GPU time of minigrad's orders against one another: a derivative is one reading and one writing of memory, whatever its
order. Wall time of both: nested autograd is what a user calls and waits for, a growing crowd of small kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import minigrad
from bench.lines import Cell, Line
from bench.setting import CheckFailed, Setting
from bench.timing import ROUNDS, Contestant, Times, figure, gpu_times, ratio, rotation, wall_times

ORDERS = range(1, 9)
N_ELEMENTS, DRY_ELEMENTS = 2**22, 2**6
ITEMSIZE = 4  # float32
WALL_ROUNDS = 7
CHECKED = 2**12
NESTED = "nested"


def measure(setting: Setting) -> Iterator[Line]:
    """Check all orders, time them against one another, and then each against nested autograd."""
    n_elements = DRY_ELEMENTS if setting.dry else N_ELEMENTS
    for order in ORDERS:
        check(order, setting.device)
    n_bytes = 2 * n_elements * ITEMSIZE
    n_copies, calls = rotation(n_bytes, setting.device)
    x = torch.rand((n_copies, n_elements), device=setting.device).mul_(8).sub_(4)
    contestants = [ours(order, x) for order in ORDERS]
    times = gpu_times(contestants, setting.device, calls, 2 if setting.dry else ROUNDS)
    for order in setting.in_time(ORDERS):
        yield line_of(order, x, times, n_bytes, setting)


def line_of(order: int, x: Tensor, times: Times, n_bytes: int, setting: Setting) -> Line:
    """Time one order against nested autograd, and return it beside its GPU time and that of the first order."""
    contestants = [ours(order, x), Contestant(NESTED, partial(nested, order=order), [(copy,) for copy in x])]
    rounds = 2 if setting.dry else WALL_ROUNDS
    wall = wall_times(contestants, setting.device, calls=2, rounds=rounds)
    taken = figure(times, name(order))
    assert not isinstance(taken, str)
    cells: dict[str, Cell] = {
        "minigrad us": taken,
        "GB/s": n_bytes / taken.median / 1e3,
        "over order 1": ratio(times, name(order), name(1)),
        "minigrad wall us": figure(wall, name(order)),
        "nested wall us": figure(wall, NESTED),
        "speed-up": ratio(wall, NESTED, name(order)),
    }
    bounds = {"over order 1": "<= 1.5"} | ({"speed-up": ">= 100"} if order == 6 else {})
    case = {"derivative": f"tanh, order {order}", "dtype": "float32", "elements": f"2^{x.shape[1].bit_length() - 1}"}
    return Line(case, cells, bounds)


def name(order: int) -> str:
    """Return what a contestant is called."""
    return f"order {order}"


def ours(order: int, x: Tensor) -> Contestant:
    """Return minigrad's derivative of an order."""

    def call(x: Tensor) -> Tensor:
        return minigrad.derivative("tanh", x, order)

    return Contestant(name(order), call, [(copy,) for copy in x], is_ours=True)


def nested(x: Tensor, order: int) -> Tensor:
    """Differentiate torch.tanh so many times."""
    leaf = x.detach().clone().requires_grad_()
    y = torch.tanh(leaf)
    for _ in range(order):
        (y,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
    return y.detach()


def check(order: int, device: torch.device) -> None:
    """Compare an order with autograd nested in float64, relative to the derivative's largest magnitude.

    Raises:
        CheckFailed: minigrad's is further off than the contract allows.
    """
    x = torch.linspace(-4, 4, CHECKED, device=device)
    expected = nested(x.double(), order)
    error = (minigrad.derivative("tanh", x, order).double() - expected).abs().max() / expected.abs().max()
    allowed = 4e-6 if order <= 6 else 3e-5
    if not error.item() <= allowed:
        raise CheckFailed(f"tanh, order {order}: minigrad is off by {error.item():.3g}, allowed are {allowed}")
