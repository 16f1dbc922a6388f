"""The nodes of autograd's own graph: how to walk them, what they are called, and what they keep."""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from minigrad.autodiff.saving import give_back
from minigrad.names import name_of

T = TypeVar("T")
Operation = torch.autograd.graph.Node
# What torch says where a saved tensor cannot be had, and what that means.
_HIDDEN = {"freed": "freed", "modified by an inplace operation": "changed in place"}
# Where one of torch's names in capitals has its underscores: NllLoss, Log1P, FftR2C, MaxPool2DWithIndices.
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[0-9])(?=[A-Z][a-z])|(?<=[0-9]D)(?=[A-Z])")


class Constant:
    """A tensor without a gradient that operations keep, and so the one trace of it in the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and _identity(self.tensor) == _identity(other.tensor)

    def __hash__(self) -> int:
        return hash(_identity(self.tensor))


Source = Operation | Constant


def as_tensors(output: Tensor | Sequence[Tensor], name: str) -> tuple[Tensor, ...]:
    """Return one tensor or several as a tuple; raise a TypeError that names the argument if they are none."""
    tensors = tuple(output) if isinstance(output, list | tuple) else (output,)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{name}` is or holds a {type(tensor).__name__}: expected a tensor, or a list of tensors")
    return tensors


def node_of(tensor: Tensor) -> Source:
    """Return where a tensor comes from: the operation that made it, its leaf's accumulation, or itself."""
    return torch.autograd.graph.get_gradient_edge(tensor).node if tensor.requires_grad else Constant(tensor)


def next_of(node: Operation) -> list[Operation]:
    """Return the nodes that a node's backward pass sends gradients to, in the order of its arguments."""
    return [other for other, _ in node.next_functions if other is not None]


def leaf_of(node: Source) -> Tensor | None:
    """Return the leaf whose gradient accumulates in a node, or None."""
    return None if isinstance(node, Constant | BackwardCFunction) else getattr(node, "variable", None)


def in_order(outputs: Sequence[T], inputs_of: Callable[[T], list[T]]) -> dict[T, list[T]]:
    """Return every node that the outputs depend on with its inputs, each before its own inputs; without recursion."""
    inputs: dict[T, list[T]] = {}
    finished: dict[T, None] = {}
    stack = [reversed(outputs)]  # the last is finished first, and so comes last
    path: list[T] = []
    while stack:
        node = next(stack[-1], None)
        if node is None:
            stack.pop()
            if path:
                finished[path.pop()] = None
        elif node not in inputs:
            inputs[node] = inputs_of(node)
            stack.append(reversed(inputs[node]))
            path.append(node)
    return {node: inputs[node] for node in reversed(finished)}


def label_of(node: Operation) -> str:
    """Return what an operation is called: a public function of minigrad's, a Function's class, or as in torch."""
    name = name_of(node)
    if name is not None:
        return name
    function = getattr(type(node), "_forward_cls", None)
    if function is not None:
        return str(function.__name__)
    words = re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])
    return _WORDS.sub("_", words).lower()


class Names:
    """What tensors are called.

    Args:
        names: tensors by their names.
    """

    def __init__(self, names: Mapping[str, Tensor] | None) -> None:
        names = {} if names is None else names
        if not isinstance(names, Mapping) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in names.items()
        ):
            raise TypeError("`names` is no mapping from names to tensors: pass one, as dict(model.named_parameters())")
        self._tensors = dict(names)  # held, so that an identity stays theirs
        self._names = {_identity(tensor): name for name, tensor in self._tensors.items()}

    def __call__(self, tensor: Tensor) -> str:
        """Return the tensor's name, or what can be said of one that has none."""
        name = self._names.get(_identity(tensor))
        if name is not None:
            return name
        if tensor.requires_grad:
            return "leaf"
        # One that can be read without waiting for a device: a Python number among others.
        readable = type(tensor) is Tensor and tensor.device.type == "cpu" and not tensor.is_nested
        return f"{tensor.item():.6g}" if readable and tensor.dim() == 0 else "constant"


def _identity(tensor: Tensor) -> Hashable:
    """Return what a constant has in common with no other but its aliases, of which autograd may give back any."""
    if tensor.requires_grad or not has_storage(tensor):  # a leaf is given back itself
        return id(tensor)
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def has_storage(tensor: Tensor) -> bool:
    """Return whether a tensor shows a storage of its own: not a sparse or nested one, nor inside torch.func."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return tensor.layout is torch.strided and not tensor.is_nested and not wrapped


class Kept(NamedTuple):
    """What an operation keeps for its backward pass, with its names; and why that cannot be told, as in `Node`."""

    tensors: list[tuple[str, Tensor]]
    hidden: str | None


def kept_by(node: Any) -> Kept:
    """Return what an operation keeps, without running anybody's code for it."""
    try:
        if _packed_by_hooks(node):
            return Kept([], "kept by hooks")
        if isinstance(node, BackwardCFunction):  # a Function written in Python
            found: list[tuple[str, Any]] = [
                ("result" if value is not None and value.grad_fn is node else f"tensor {i}", value)
                for i, value in enumerate(node.saved_tensors)
            ]
            found += [(f"ctx.{name}", value) for name, value in vars(node).items()]
        else:
            names = [name for name in dir(node) if name.startswith("_saved_")]
            found = [(name.removeprefix("_saved_"), getattr(node, name)) for name in names]
    except RuntimeError as error:
        reasons = [reason for word, reason in _HIDDEN.items() if word in str(error)]
        if not reasons:
            raise
        return Kept([], reasons[0])
    several = [
        (f"{name} {i}", inner) for name, value in found if isinstance(value, tuple) for i, inner in enumerate(value)
    ]
    return Kept([(name, value) for name, value in found + several if isinstance(value, Tensor)], None)


def _packed_by_hooks(node: Operation) -> bool:
    """Return whether hooks have packed what an operation saves; to look at it would run what they compute.

    `saved_for_backward`'s own compute nothing.
    """
    raw = [getattr(node, name) for name in dir(type(node)) if name.startswith("_raw_saved_")]
    saved = [one for value in raw for one in (value if isinstance(value, tuple) else (value,))]
    return any(one is not None and one.unpack_hook not in (None, give_back) for one in saved)
