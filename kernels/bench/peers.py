"""Whom minigrad is compared with: PyTorch as it is, torch.compile and JAX, each checked before it is timed."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from bench.setting import Setting
from bench.timing import MOST_EAGER_CALLS, Absent, Contestant, failure

EAGER, COMPILED, JAX = "torch", "torch.compile", "jax"
TORCHS_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh": lambda g, y: torch.ops.aten.tanh_backward(g, y),
    "sigmoid": lambda g, y: torch.ops.aten.sigmoid_backward(g, y),
    "relu": lambda g, y: torch.ops.aten.threshold_backward(g, y, 0),
}
"""What PyTorch's own backward passes call, with the upstream gradient and the output that was saved."""
TOLERANCE = 0.05
"""Of a peer's result, relative to its largest: enough for what rounding does to a half type and to a sum of them."""


def eager(function: Callable[..., Any], copies: Sequence[tuple[Tensor, ...]]) -> Contestant:
    """Return PyTorch's own operations."""
    return Contestant(EAGER, function, copies)


def compiled(
    function: Callable[..., Any], copies: Sequence[tuple[Tensor, ...]], setting: Setting
) -> Contestant | Absent:
    """Return a function as torch.compile makes it for just these shapes, or why there is none.

    What was compiled before is forgotten: from a function's ninth shape on torch would leave it uncompiled, silently.
    """
    if setting.dry:
        return Absent(COMPILED, "not in a dry run")
    torch.compiler.reset()
    return Contestant(COMPILED, torch.compile(function, dynamic=False, fullgraph=True), copies)


def jax_jit(
    make: Callable[[Any], Callable[..., Any]], copies: Sequence[tuple[Tensor, ...]], setting: Setting
) -> Contestant | Absent:
    """Return a function as jax.jit makes it, or why there is none.

    Args:
        make: returns the function; it is given the module jax.
        copies: torch's tensors, which JAX reads where they are.
        setting: a dry run takes JAX on the CPU too.
    """
    jax = load_jax("cpu" if setting.dry else "gpu")
    if isinstance(jax, str):
        return Absent(JAX, jax)
    shared = [tuple(jax.dlpack.from_dlpack(tensor) for tensor in copy) for copy in copies[:MOST_EAGER_CALLS]]
    return Contestant(JAX, jax.jit(make(jax)), shared, wait=jax.block_until_ready)


@functools.cache
def load_jax(platform: str) -> Any:
    """Return the module jax, or a string that says why it cannot be used on the platform, "gpu" or "cpu"."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else it takes three quarters of the memory
    try:
        jax = importlib.import_module("jax")
    except ImportError:
        return "jax absent"
    try:
        jax.devices(platform)
    except RuntimeError:
        return f"jax has no {platform}"
    return jax


def verified(peer: Contestant | Absent, expected: Sequence[Tensor]) -> Contestant | Absent:
    """Return the peer if it computes on its first copy what it should, and else why it takes no part.

    Args:
        peer: torch.compile and JAX compile it here.
        expected: the beginnings of its results, flat, in float64.
    """
    if isinstance(peer, Absent):
        return peer
    try:
        results = peer.call(*peer.copies[0])
        results = results if isinstance(results, tuple | list) else (results,)
        for result, exact in zip(results, expected, strict=True):
            actual = result if isinstance(result, Tensor) else from_dlpack(result)
            off = (actual.reshape(-1)[: len(exact)].double() - exact).abs().max()
            if not off <= TOLERANCE * exact.abs().max():
                return Absent(peer.name, "computes something else")
    except Exception as error:  # whatever another's code raises costs its column, not ours
        return Absent(peer.name, failure(error))
    return peer
