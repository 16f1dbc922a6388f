"""How far results are from the exact ones, minigrad's and PyTorch's side by side, at the worst input there is.

Half types: all 65,536 inputs, forward and first derivative. float32: tanh and sigmoid at all 2^32 inputs, judged where
the exact value is a normal number. The exact values are computed in float64 on the same device. There is nothing to
time: the figures are the check, and where one breaks the contract it is named in place of the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import minigrad
import minigrad_kernels as kernels
from bench import peers, ulps
from bench.lines import Cell, Line
from bench.setting import CheckFailed, Setting

AT_ONCE, DRY_AT_ONCE = 2**26, 2**9
ALL = 2**32
# The contract: numbers of a half type from the exact value rounded once; ULP of float32, forward.
OF_HALVES = 1
OF_FLOAT32 = {"tanh": 2, "sigmoid": 4}


def measure(setting: Setting) -> Iterator[Line]:
    """Compare everything.

    Raises:
        CheckFailed: the ruler is wrong, or minigrad breaks its contract.
    """
    check_ruler(setting.device)
    lines = [*halves(setting), *all_of_float32(setting)]
    broken = [line for line in lines if not all(line.judged.values())]
    if broken:
        raise CheckFailed("; ".join(described(line) for line in broken))
    yield from lines


def described(line: Line) -> str:
    """Return a broken contract in words."""
    return f"{', '.join(line.case.values())}: minigrad is off by {line.cells['minigrad']:.4g} at x = {line.cells['at']}"


def check_ruler(device: torch.device) -> None:
    """Measure distances that are known, and exact values that Python's own library knows.

    Raises:
        CheckFailed: the ruler does not find them.
    """
    one = torch.ones(1, dtype=torch.float64, device=device)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        actual = (one + torch.finfo(dtype).eps).to(dtype)
        if ulps.distance(actual, one).item() != 1 or ulps.distance(actual * float("nan"), one).item() != math.inf:
            raise CheckFailed(f"the ruler: in {dtype} the number after 1 is not one ULP away, or NaN not infinitely")
    for number in (-80.0, -3.0, -1e-6, 0.5, 17.0):
        x = torch.tensor([number], dtype=torch.float64, device=device)
        known = {"tanh": math.tanh(number), "sigmoid": 1 / (1 + math.exp(-number))}
        slopes = {"tanh": 1 / math.cosh(number) ** 2, "sigmoid": 1 / (2 * math.cosh(number / 2)) ** 2}
        for order, values in enumerate((known, slopes)):
            for activation, value in values.items():
                if not math.isclose(ulps.exact(activation, x, order).item(), value, rel_tol=1e-13):
                    raise CheckFailed(f"the ruler: {activation} of order {order} at {number} is not {value!r}")


def halves(setting: Setting) -> Iterator[Line]:
    """Compare the forward pass and the first derivative at every number of the half types, in a dry run at few."""
    for dtype in (torch.float16, torch.bfloat16):
        bits = torch.arange(0, 2**16, 2**7 if setting.dry else 1, dtype=torch.int32, device=setting.device)
        x = bits.to(torch.int16).view(dtype)
        for activation in ("tanh", "sigmoid", "relu"):
            for order in (0, 1):
                expected = ulps.exact(activation, x, order)
                results = (kernels.derivative(x, None, activation, order), torchs(activation, x, order))
                found = [worst(ulps.steps(result, expected), x) for result in results]
                case = columns(activation, order, dtype, len(x), "numbers from the rounded value")
                yield line_of(case, found, OF_HALVES)


def all_of_float32(setting: Setting) -> Iterator[Line]:
    """Compare tanh and sigmoid at every number of float32, in a dry run at few."""
    at_once, stride = (DRY_AT_ONCE, ALL // (4 * DRY_AT_ONCE)) if setting.dry else (AT_ONCE, 1)
    for activation, allowed in OF_FLOAT32.items():
        found: list[list[tuple[float, float]]] = []
        for start in range(-ALL // 2, ALL // 2, at_once * stride):
            bits = torch.arange(start, start + at_once * stride, stride, device=setting.device)  # int64: no overflow
            x = bits.to(torch.int32).view(torch.float32)
            expected = ulps.exact(activation, x, 0)
            counts = ~(expected.abs() < torch.finfo(torch.float32).tiny)  # normal, zero counted out, NaN counted in
            results = (getattr(minigrad, activation)(x), torchs(activation, x, 0))
            found.append([worst(torch.where(counts, ulps.ulps(result, expected), 0.0), x) for result in results])
        largest = [max(side, key=lambda pair: pair[0]) for side in zip(*found, strict=True)]
        case = columns(activation, 0, torch.float32, len(found) * at_once, "ULP from the exact value")
        yield line_of(case, largest, allowed)


def torchs(activation: str, x: Tensor, order: int) -> Tensor:
    """Return PyTorch's own result: for the first derivative what its backward pass makes of the rounded output."""
    y: Tensor = getattr(torch, activation)(x)
    return y if order == 0 else peers.TORCHS_BACKWARD[activation](torch.ones_like(y), y)


def worst(distance: Tensor, x: Tensor) -> tuple[float, float]:
    """Return the largest distance and the input that has it."""
    index = int(distance.argmax())
    return distance[index].item(), x[index].item()


def columns(activation: str, order: int, dtype: torch.dtype, n_inputs: int, unit: str) -> dict[str, str]:
    """Return how a table names a case."""
    return {
        "activation": activation,
        "function": ("forward", "first derivative")[order],
        "dtype": str(dtype).removeprefix("torch."),
        "inputs": f"{n_inputs:,}",
        "unit": unit,
    }


def line_of(case: dict[str, str], found: Sequence[tuple[float, float]], allowed: float) -> Line:
    """Return the worst inputs of minigrad and of PyTorch as a line, with the contract."""
    (ours, x), (theirs, other_x) = found
    cells: dict[str, Cell] = {"minigrad": ours, "at": f"{x:.9g}", "torch": theirs, "torch's at": f"{other_x:.9g}"}
    return Line(case, cells, {"minigrad": f"<= {allowed}"})
