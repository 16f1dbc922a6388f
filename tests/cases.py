"""The shapes, strides and values that every ring uses, and which ring it is."""

import os
from collections.abc import Callable

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ACTIVATIONS = ("sigmoid", "tanh", "relu")
SMOOTH = ("sigmoid", "tanh")
HALVES = (torch.float16, torch.bfloat16)
DTYPES = (*HALVES, torch.float32, torch.float64)

Layout = Callable[[torch.dtype, torch.device], torch.Tensor]


def _normal(*shape: int) -> Layout:
    def make(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(shape) + len(shape))
        return (3 * torch.randn(shape, generator=generator)).to(dtype).to(device)

    return make


def _view(base: Layout, view: Callable[[torch.Tensor], torch.Tensor]) -> Layout:
    return lambda dtype, device: view(base(dtype, device))


LAYOUTS: dict[str, Layout] = {
    "one element": _normal(1),
    "63": _normal(63),
    "1000": _normal(1000),
    "several blocks and a rest": _normal(5003),
    "0-d": _normal(),
    "empty": _normal(0),
    "empty, 2-d": _normal(3, 0),
    "matrix": _normal(17, 31),
    "transposed": _view(_normal(17, 31), lambda x: x.t()),
    "sliced": _view(_normal(17, 62), lambda x: x[:, ::2]),
    "sliced rows": _view(_normal(34, 31), lambda x: x[3:20, 5:28]),
    "expanded": _view(_normal(1, 31), lambda x: x.expand(17, 31)),
    "expanded scalar": _view(_normal(), lambda x: x.expand(7, 9)),
    "misaligned": _view(_normal(1001), lambda x: x[1:]),
    "permuted": _view(_normal(3, 5, 7), lambda x: x.permute(2, 0, 1)),
    "channels last": _view(_normal(2, 3, 4, 5), lambda x: x.to(memory_format=torch.channels_last)),
}


def all_halves(dtype: torch.dtype) -> torch.Tensor:
    """Return all 65,536 numbers of a half type, NaNs and infinities included."""
    return torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)


def special_floats(dtype: torch.dtype) -> torch.Tensor:
    """Return NaN, infinities, zeros, the smallest, the largest and subnormal numbers of a dtype, with both signs."""
    info = torch.finfo(dtype)
    values = [0.0, info.tiny, info.tiny / 4, info.smallest_normal * info.eps, info.eps, 1.0, info.max, float("inf")]
    positive = torch.tensor(values, dtype=torch.float64).to(dtype)
    return torch.cat([positive, -positive, torch.tensor([float("nan")], dtype=dtype)])


def dense_floats(dtype: torch.dtype, n: int = 60_000) -> torch.Tensor:
    """Return numbers of a dtype that cover a linear range, every binade down to the smallest normal, and the tails."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    lowest = -1021 if dtype == torch.float64 else -125
    end = 745.0 if dtype == torch.float64 else 104.0
    sign = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0).double()
    return torch.cat(
        [
            torch.linspace(-12, 12, n, dtype=torch.float64),
            sign * torch.exp2(uniform * lowest),
            torch.linspace(-end, end, n, dtype=torch.float64),
        ]
    ).to(dtype)
