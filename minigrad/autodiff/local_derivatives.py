"""The local derivatives of the operations of a graph, found by evaluating their own backward passes.

An operation is elementwise in an input if the gradient it sends there is `upstream * local`, element by element. So a
backward pass with an upstream gradient of ones gives `local`, and a second one with random numbers tells whether it is
a factor at all. No table of operations is needed, and a Function of the user's works like any other.

What is evaluated must not notice: it runs in inference mode, where nothing can be differentiated, so no gradient can
accumulate anywhere; the tensors that a Function keeps and the random generators are put back. What else a Function's
backward pass may do, such as counting its calls, it does twice more.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from minigrad.autodiff.graph import Operation
from minigrad.autodiff.recording import PRINTABLE

Locals = dict[tuple[int, int], Tensor]


def local_derivatives(nodes: Iterable[Operation]) -> dict[Operation, Locals]:
    """Return for each node the local derivative for each input and result that it is elementwise in.

    There is none for tensors of more than `PRINTABLE` elements; for Functions that PyTorch itself writes in Python
    (checkpoints, compiled code, communication), which may do more than differentiate; for operations whose saved
    tensors are unpacked by hooks, which may recompute; and where the backward pass raises, or differentiates itself.

    Args:
        nodes: of a graph that is not freed; nothing is computed for one that is.
    Returns: by the positions of input and result, shaped as both of them, in the dtype of the input's gradient.
    """
    nodes = [node for node in nodes if _is_in_question(node)]
    random = torch.Generator().manual_seed(0)
    devices = {metadata.device for node in nodes for metadata in node._input_metadata}
    with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
        return {node: _locals_of(node, random) for node in nodes}


def _is_in_question(node: Operation) -> bool:
    """Return whether a node has small tensors only, and a result that is shaped as an input; a leaf has no inputs."""
    results = [_shape(metadata) for metadata in node._input_metadata]
    inputs = [_shape(other._input_metadata[i]) for other, i in node.next_functions if other is not None]
    small = all(math.prod(shape) <= PRINTABLE for shape in results + inputs)
    return small and not set(results).isdisjoint(inputs)


def _locals_of(node: Operation, random: torch.Generator) -> Locals:
    found: Locals = {}
    try:
        if not _is_repeatable(node):
            return found
        with _put_back(node):
            for result, metadata in enumerate(node._input_metadata):
                if not metadata.dtype.is_floating_point:
                    continue  # with complex numbers a factor need not be one: conjugation is elementwise too
                ones = torch.ones(_shape(metadata), dtype=metadata.dtype, device=metadata.device)
                # Of either sign and at most 1: a product with it can change every digit and never overflows.
                factors = torch.rand(ones.shape, generator=random, dtype=torch.float64) / 2 + 0.5
                factors *= torch.randint(2, ones.shape, generator=random) * 2 - 1
                factors = factors.to(ones)
                local, scaled = _backward(node, result, ones), _backward(node, result, factors)
                for i in local.keys() & scaled.keys():
                    if _is_product(scaled[i], local[i], factors):
                        found[i, result] = local[i]
    except Exception:  # a Function's backward may raise whatever it likes; the pass itself will raise it again
        return {}
    return found


def _backward(node: Any, result: int, upstream: Tensor) -> dict[int, Tensor]:
    """Return what a node sends to the inputs shaped as one of its results when only that result has a gradient."""
    gradients = [
        torch.zeros(_shape(metadata), dtype=metadata.dtype, device=metadata.device) for metadata in node._input_metadata
    ]
    gradients[result] = upstream
    is_function = hasattr(node, "saved_tensors")
    with torch.inference_mode():
        sent = node.apply(*gradients) if is_function else node(*gradients)
    sent = sent if isinstance(sent, tuple) else (sent,)
    if is_function:  # answers for every argument of forward, of which only tensors have an edge
        needed = iter([gradient for gradient, wanted in zip(sent, node.needs_input_grad, strict=False) if wanted])
        sent = tuple(None if other is None else next(needed) for other, _ in node.next_functions)
    return {
        i: gradient.clone()
        for i, (gradient, (other, at)) in enumerate(zip(sent, node.next_functions, strict=True))
        if gradient is not None and gradient.shape == upstream.shape == _shape(other._input_metadata[at])
    }


def _is_product(scaled: Tensor, local: Tensor, factors: Tensor) -> bool:
    """Return whether `scaled` is `local * factors` but for some roundings, in the coarser of the two dtypes."""
    if not local.dtype.is_floating_point:
        return False
    limits = max((torch.finfo(local.dtype), torch.finfo(factors.dtype)), key=lambda limits: limits.eps)
    product = local.cpu().double() * factors.cpu().double()
    allowed = 8 * limits.eps * (product.abs() + limits.smallest_normal)
    found = scaled.cpu().double()
    return bool(
        ((found - product).abs() <= allowed)
        .logical_or(found == product)
        .logical_or(found.isnan() & product.isnan())
        .all()
    )


def _is_repeatable(node: Any) -> bool:
    """Return whether a node can be evaluated once more without consequences, so far as that can be known."""
    function = getattr(type(node), "_forward_cls", None)
    if function is not None and function.__module__.partition(".")[0] == "torch":
        return False
    held = [getattr(node, name) for name in _raw_names(node.__class__)]
    saved = [one for several in held for one in (several if isinstance(several, tuple) else (several,))]
    return all(tensor.unpack_hook is None for tensor in saved) and all(
        tensor.numel() <= PRINTABLE for tensor in _kept(node)
    )


@functools.cache
def _raw_names(kind: Any) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_raw_saved_")]


def _kept(node: Any) -> list[Tensor]:
    """Return the tensors that a Function's node keeps; none for an operation of PyTorch's, which leaves them alone."""
    if not hasattr(node, "saved_tensors"):
        return []
    values = (*node.saved_tensors, *vars(node).values())
    return [value for value in values if isinstance(value, Tensor)]


@contextmanager
def _put_back(node: Operation) -> Iterator[None]:
    """Give the tensors that a Function keeps the values and versions they had: some work in place on what they keep."""
    kept = tuple(_kept(node))
    before = [tensor.detach().clone() for tensor in kept]
    with torch.autograd.grad_mode._unsafe_preserve_version_counter(kept):
        try:
            yield
        finally:
            for tensor, values in zip(kept, before, strict=True):
                tensor.detach().copy_(values)


def _shape(metadata: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in metadata.shape)
