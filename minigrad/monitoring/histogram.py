"""How large a gradient's elements are: counts by powers of two, made on the device, and as TensorBoard takes them.

    counts = count_magnitudes(*gradients)
    tracker.histogram("log2_gradient/0.weight", step, counts[1:-1].tolist(), EDGES)
    writer.add_histogram_raw("log2_gradient/0.weight", **raw_histogram(counts[1:-1].tolist(), EDGES), global_step=step)

The page's axis is then log2|g|, a unit for each factor of two, and the tag should say so: TensorBoard draws a bucket as
wide as it is, and of the powers of two themselves only the largest would be seen. Zeros and non-finite values have no
place on that axis; they are in the counts, first and last.
"""

from collections.abc import Sequence
from itertools import pairwise
from operator import mul
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

# From 2^-63 on a square, such as norms and Adam need, is a normal number in float32 and bfloat16. From 2^16 on float16
# is infinite; its smallest number is 2^-24, so that all it can hold lies between.
LOWEST, HIGHEST = -63, 16
EDGES = tuple(map(float, range(LOWEST - 1, HIGHEST + 2)))
"""Of the buckets of finite magnitudes other than 0, as exponents of two; the first and the last bucket are open."""
BUCKETS = len(EDGES) + 1
"""Of all, with those for zeros and for what is not finite."""


class _Format(NamedTuple):
    """How IEEE 754 lays out a number: sign, biased exponent, fraction."""

    integer: torch.dtype
    fraction_bits: int
    bias: int


_FORMATS = {torch.float32: _Format(torch.int32, 23, 127), torch.float64: _Format(torch.int64, 52, 1023)}


def count_magnitudes(*tensors: Tensor) -> Tensor:
    """Count the elements of one tensor, or of several together, by magnitude in powers of two.

    It waits for nothing, and runs under `torch.use_deterministic_algorithms(True)` too; sums of integers are the same
    in any order. Exponents are read from the bits: a power of two, where a bucket begins, is told from all below it.

    Args:
        tensors: at least one, of any shape and stride, empty ones included; float16, bfloat16, float32 or float64.

    Returns: (BUCKETS,) int64, on the device of the first tensor:

    - [0]: zeros of either sign;
    - [1]: other magnitudes below 2^LOWEST; there are the subnormal numbers of all dtypes but float16;
    - [2 + i]: magnitudes from 2^(LOWEST + i) to below 2^(LOWEST + i + 1);
    - [-2]: finite magnitudes from 2^HIGHEST on;
    - [-1]: infinities and NaN.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: there is no tensor.
    """
    if not tensors:
        raise ValueError("there is no tensor to count: pass at least one")
    counts = _count(tensors[0])
    for tensor in tensors[1:]:
        counts += _count(tensor).to(counts.device, non_blocking=True)
    return counts


def _count(tensor: Tensor) -> Tensor:
    x = tensor.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()  # which holds each of their numbers exactly
    if x.dtype not in _FORMATS:
        raise TypeError(f"a tensor is {tensor.dtype}: expected float16, bfloat16, float32 or float64")
    integer, fraction_bits, bias = _FORMATS[x.dtype]
    magnitude = x.reshape(-1).view(integer) & torch.iinfo(integer).max
    nonzero = magnitude.count_nonzero()[None]
    # Not bincount, which reads the largest index on the host.
    one = torch.ones((), dtype=torch.int64, device=x.device)
    by_exponent = torch.zeros(2 * bias + 2, dtype=torch.int64, device=x.device)
    by_exponent.index_add_(0, magnitude >> fraction_bits, one.expand(x.numel()))
    low, high, nonfinite = bias + LOWEST, bias + HIGHEST, 2 * bias + 1
    zeros = x.numel() - nonzero
    below = by_exponent[:low].sum(0, keepdim=True) - zeros
    above = by_exponent[high:nonfinite].sum(0, keepdim=True)
    return torch.cat([zeros, below, by_exponent[low:high], above, by_exponent[nonfinite:]])


class RawHistogram(TypedDict):
    """What `SummaryWriter.add_histogram_raw` takes besides the tag and the step, under its names."""

    min: float
    max: float
    num: int
    sum: float
    sum_squares: float
    bucket_limits: list[float]
    bucket_counts: list[int]


def raw_histogram(counts: Sequence[int], edges: Sequence[float]) -> RawHistogram:
    """Return a histogram as TensorBoard keeps it.

    Args:
        counts: (buckets,), of the values in each bucket.
        edges: (buckets + 1,), rising: where each bucket begins, and where the last one ends.

    Returns: its smallest and largest value are the outer edges of the buckets that are not empty, or of all if all are;
        the sums are those of as many values in the middle of each bucket.

    Raises:
        ValueError: the lengths do not fit.
    """
    if len(edges) != len(counts) + 1:
        raise ValueError(f"there are {len(edges)} edges for {len(counts)} buckets: pass one edge more than buckets")
    filled = [i for i, count in enumerate(counts) if count] or range(len(counts))
    middles = [(left + right) / 2 for left, right in pairwise(edges)]
    return RawHistogram(
        min=edges[filled[0]],
        max=edges[filled[-1] + 1],
        num=sum(counts),
        sum=sum(map(mul, counts, middles)),
        sum_squares=sum(count * middle**2 for count, middle in zip(counts, middles, strict=True)),
        bucket_limits=list(edges[1:]),
        bucket_counts=list(counts),
    )
