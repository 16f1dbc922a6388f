"""The local derivatives of the operations of a graph, found by evaluating their own backward passes.

An operation is elementwise in an input if the gradient it sends there is `upstream * local`, element by element. So a
backward pass with an upstream gradient of ones gives `local`, and further ones tell whether it is a factor at all: they
start with powers of two, of either sign and different for each element, by which floating-point numbers are multiplied
without rounding. No table of operations is needed, and a Function of the user's works like any other.

What is evaluated must not notice: it runs in inference mode, where nothing can be differentiated, so no gradient can
accumulate anywhere; the tensors that a Function keeps and the random generators are put back. What else a Function's
backward pass may do, such as counting its calls or adding to a buffer of its own, it does so many times more.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from minigrad import generators
from minigrad.autodiff.nodes import Operation, kept_by
from minigrad.autodiff.recording import PRINTABLE

Locals = dict[tuple[int, int], Tensor]

# A single element meets the first three, so that a gradient that is clipped, from above or below, or lost if it is
# small, is seen not to be a product. Any `PRINTABLE` in a row differ, so that elements that change places are seen too.
_FACTORS = (32.0, -16.0, 1 / 32, -1 / 8, 4.0, -2.0, 1 / 4)
_TRIALS = 3


def local_derivatives(nodes: Iterable[Operation]) -> dict[Operation, Locals]:
    """Return for each node the local derivative for each input and result that it is elementwise in.

    There is none for tensors of more than `PRINTABLE` elements; for complex ones, of which conjugation is elementwise
    and no factor; for Functions that PyTorch itself writes in Python (checkpoints, compiled code, communication), which
    may do more than differentiate; for operations in place on a part of a tensor, of which it can't be known what they
    run; for operations whose saved tensors are packed by hooks, which may recompute, or were changed in place; and
    where the backward pass raises, or differentiates itself.

    Args:
        nodes: of a graph that is not freed; nothing is computed for one that is.
    Returns: by the positions of input and result, shaped as both of them, in the dtype of the input's gradient.
    """
    state = generators.state_dict()
    try:
        return {node: _locals_of(node) for node in nodes if _is_in_question(node)}
    finally:
        generators.load_state_dict(state)


def _is_in_question(node: Operation) -> bool:
    """Return whether a node has small tensors only, a result shaped as an input, and nothing hidden in it."""
    function = getattr(type(node), "_forward_cls", type(None))
    if type(node).__name__ == "CopySlices" or function.__module__.partition(".")[0] == "torch":
        return False
    results = [metadata.shape for metadata in node._input_metadata]
    inputs = [other._input_metadata[i].shape for other, i in node.next_functions if other is not None]
    small = all(torch.Size(shape).numel() <= PRINTABLE for shape in results + inputs)
    return small and any(shape in inputs for shape in results)


def _locals_of(node: Any) -> Locals:
    kept = kept_by(node)
    # PyTorch's own operations leave alone what they keep.
    own = [tensor for _, tensor in kept.tensors] if isinstance(node, BackwardCFunction) else []
    if kept.hidden is not None or not all(
        tensor.numel() <= PRINTABLE and tensor.layout is torch.strided for tensor in own
    ):
        return {}
    found: Locals = {}
    for result, metadata in enumerate(node._input_metadata):
        if not metadata.dtype.is_floating_point:
            continue
        local = _sent(node, own, result, _upstream(metadata, (1.0,) * PRINTABLE))
        for trial in range(_TRIALS):
            if local:
                factors = _upstream(metadata, _FACTORS[trial:] + _FACTORS[:trial])
                scaled = _sent(node, own, result, factors.clone())  # which a Function may overwrite
                local = {i: each for i, each in local.items() if i in scaled and _is_product(scaled[i], each, factors)}
        found |= {(i, result): each for i, each in local.items()}
    return found


def _upstream(metadata: Any, values: Sequence[float]) -> Tensor:
    shape = torch.Size(metadata.shape)
    return torch.tensor(values[: shape.numel()], dtype=metadata.dtype, device=metadata.device).view(shape)


def _sent(node: Any, kept: Sequence[Tensor], result: int, upstream: Tensor) -> dict[int, Tensor]:
    """Return what a node sends to the inputs shaped as one of its results when only that result has a gradient."""
    shape = upstream.shape
    gradients = [
        upstream
        if i == result
        else torch.zeros(torch.Size(metadata.shape), dtype=metadata.dtype, device=metadata.device)
        for i, metadata in enumerate(node._input_metadata)
    ]
    is_function = isinstance(node, BackwardCFunction)
    with _put_back(kept):
        try:
            with torch.inference_mode():
                sent = node.apply(*gradients) if is_function else node(*gradients)
        except Exception:  # a Function's backward may raise whatever it likes; the pass itself will raise it again
            return {}
        sent = sent if isinstance(sent, tuple) else (sent,)
        if is_function:  # answers for every argument of forward, of which only tensors have an edge
            needed = iter([gradient for gradient, wanted in zip(sent, node.needs_input_grad, strict=False) if wanted])
            sent = tuple(None if other is None else next(needed, None) for other, _ in node.next_functions)
        return {
            i: gradient.clone()
            for i, (gradient, (other, at)) in enumerate(zip(sent, node.next_functions, strict=True))
            if isinstance(gradient, Tensor)
            and gradient.layout is torch.strided
            and gradient.dtype.is_floating_point
            and gradient.shape == shape == torch.Size(other._input_metadata[at].shape)
        }


def _is_product(scaled: Tensor, local: Tensor, factors: Tensor) -> bool:
    """Return whether `scaled` is `local * factors`: exactly, but for what is lost below the smallest normal number."""
    limits = max((torch.finfo(local.dtype), torch.finfo(factors.dtype)), key=lambda limits: limits.eps)
    expected = (local.cpu().double() * factors.cpu().double()).to(scaled.dtype)
    lost = 4 * max(_FACTORS) * limits.smallest_normal * limits.eps
    return torch.allclose(scaled.cpu().double(), expected.double(), rtol=0, atol=lost, equal_nan=True)


@contextmanager
def _put_back(kept: Sequence[Tensor]) -> Iterator[None]:
    """Give tensors the values and versions they had, since some Functions work in place on what they keep.

    Only what has changed is written, for memory may be read-only.
    """
    once = [_without_repetition(tensor) for tensor in kept]
    before = [tensor.clone() for tensor in once]
    versioned = tuple(tensor for tensor in kept if not tensor.is_inference())  # which have no version
    with torch.autograd.grad_mode._unsafe_preserve_version_counter(versioned):
        try:
            yield
        finally:
            for tensor, values in zip(once, before, strict=True):
                if not torch.equal(_bits(tensor), _bits(values)):
                    with torch.inference_mode():
                        tensor.copy_(values)


def _without_repetition(tensor: Tensor) -> Tensor:
    """Return a view in which every element that `expand` repeats occurs once, since others cannot be written to."""
    sizes = [min(size, 1) if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.detach().as_strided(sizes, tensor.stride())


def _bits(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)
