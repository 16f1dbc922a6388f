"""The noise of a batch's gradient: how large a batch has to be before more samples stop paying."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class NoiseScale(NamedTuple):
    """What the gradients of several batches tell of the gradient over all samples, and of its noise.

    Attributes:
        squared_gradient: |G|^2, the squared norm of the gradient over all samples; an unbiased estimate, and so, by
            chance, 0 or below where noise prevails.
        trace: tr(Sigma), the variance over the samples of each element of the gradient, summed; an unbiased estimate.
        scale: trace / squared_gradient, in samples. NaN where the squared gradient comes out as 0 or below, which asks
            for more batches or larger ones, or where one of the two is not finite.
    """

    squared_gradient: float
    trace: float
    scale: float


def gradient_noise_scale(
    losses: Iterable[Callable[[], Tensor]], parameters: Sequence[Tensor], batch_size: int
) -> NoiseScale:
    """Estimate the simple gradient noise scale, B_simple = tr(Sigma) / |G|^2, from the gradients of several batches.

    What it says: with batches much smaller than the scale, doubling them saves about half of the steps; with batches
    much larger, it saves next to none (McCandlish, Kaplan, Amodei and the OpenAI Dota team, An empirical model of
    large-batch training, arXiv:1812.06162).

    How: appendix A.1 there compares batches of two sizes. The small ones are the n batches of b samples; the large one
    is all of them together, whose gradient is the mean of theirs:

        |G|^2     = (n b |g_large|^2 - b mean|g_small|^2) / (n b - b)
        tr(Sigma) = (mean|g_small|^2 - |g_large|^2) / (1 / b - 1 / (n b))

    As mean|g_small|^2 - |g_large|^2 is the mean of |g_i - g_large|^2, this is computed as

        tr(Sigma) = b sum|g_i - g_large|^2 / (n - 1),    |G|^2 = |g_large|^2 - tr(Sigma) / (n b)

    in one pass (Welford, Note on a method for calculating corrected sums of squares and products, Technometrics 4(3),
    1962): the same numbers, without the difference of two large ones.

    Args:
        losses: at least two; each gives the mean loss of a batch of its own, one number, with the graph that its
            backward pass goes through. The batches are drawn independently. Take so many that |G|^2 stands out from its
            noise, about tr(Sigma) / (n b): a quotient of estimates is itself unbiased only then.
        parameters: those to differentiate by, at least one, each once; of any floating-point dtypes and devices. Their
            `.grad` stays as it is. One the loss does not depend on has gradient 0.
        batch_size: samples in each batch, b, from 1 on.

    Returns: the estimates, by one read from the device. Two gradients are held at a time, that of a batch and the mean
        so far, of half types in float32. Squares are accumulated in float64 (on MPS, which has none, in float32).

    Raises:
        ValueError: there are fewer than two losses, an argument is out of its range, or a loss depends on nothing that
            requires a gradient.
    """
    if not parameters:
        raise ValueError("there are no parameters: pass at least one tensor that requires a gradient")
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}: pass the number of samples in each batch, at least 1")
    means = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
    squares = torch.zeros_like(_squared_norm(means[0]))
    count = 0
    for loss in losses:
        count += 1
        for gradient, mean in zip(_gradients(loss, parameters), means, strict=True):
            difference = gradient - mean
            mean += difference / count
            squares += (count - 1) / count * _squared_norm(difference).to(squares.device)
    if count < 2:
        raise ValueError(f"`losses` gives {count}: pass at least 2, or noise cannot be told from the gradient")
    squared_norm = torch.stack([_squared_norm(mean).to(squares.device) for mean in means]).sum()
    large, scatter = torch.stack([squared_norm, squares]).tolist()
    trace = batch_size * scatter / (count - 1)
    squared_gradient = large - trace / (count * batch_size)
    is_known = 0 < squared_gradient < math.inf and math.isfinite(trace)
    return NoiseScale(squared_gradient, trace, trace / squared_gradient if is_known else math.nan)


def _gradients(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    with torch.enable_grad():
        value = loss()
    if not value.requires_grad:
        raise ValueError("a loss depends on nothing that requires a gradient: is there a detach or a no_grad?")
    return torch.autograd.grad(value, parameters, materialize_grads=True)


def _squared_norm(x: Tensor) -> Tensor:
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    norm: Tensor = torch.linalg.vector_norm(x, dtype=wide)
    return norm.square()
