"""The graph that autograd records, read as plain data: operations, leaves, what is saved, and what takes what."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from minigrad.functions import name_of

T = TypeVar("T")
Operation = torch.autograd.graph.Node
# What torch calls the tensors that an operation makes and keeps, besides those that it is given.
_OWN_RESULTS = ("result", "total_weight", "indices")


@dataclass(frozen=True)
class Saved:
    """A tensor that an operation keeps for its backward pass.

    Attributes:
        name: what the operation calls it.
        shape: its sizes.
        dtype: of its elements.
        bytes: of the storage that it keeps alive, which several tensors may share.
        storage: the same number for tensors that share a storage.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    storage: int


@dataclass(frozen=True)
class Node:
    """An operation, or a tensor that operations take from outside.

    Attributes:
        kind: "operation"; "leaf", which requires a gradient; or "constant", which does not.
        label: the operation's or the tensor's name.
        shapes: of the results of an operation, one each, or of the tensor.
        dtype: of the first result, or of the tensor.
        saved: what the operation keeps; None if a backward pass has freed it.
        inputs: the numbers of the nodes whose results it takes: those with a gradient in the order of the arguments,
            then those without that it keeps. What has no gradient and is not kept has left no trace.
    """

    kind: str
    label: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    saved: tuple[Saved, ...] | None
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """What autograd has recorded of some outputs.

    Attributes:
        nodes: each once, however often it is used; whatever a node takes comes after it.
        outputs: the numbers of the outputs' nodes.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Return pairs of numbers, from the node that gives a tensor to the one that takes it."""
        return [(source, target) for target, node in enumerate(self.nodes) for source in node.inputs]

    @property
    def saved_bytes(self) -> int:
        """Return the bytes that the graph keeps alive for its backward pass, every storage counted once."""
        return sum({saved.storage: saved.bytes for node in self.nodes for saved in node.saved or ()}.values())


def read(output: Tensor | Sequence[Tensor], names: Mapping[str, Tensor] | None = None) -> Graph:
    """Read the graph of one output or several; nothing is computed, and the graph stays as it is.

    Args:
        output: what was computed. A tensor that autograd has no record of is a graph of its own, of one node.
        names: tensors by what they are to be called, such as `dict(model.named_parameters())`.

    Raises:
        TypeError: an output is no tensor.
    """
    called, sources = Names(names), [node_of(tensor) for tensor in as_tensors(output, "output")]
    kept: dict[Source, list[tuple[str, Tensor]] | None] = {}

    def inputs_of(source: Source) -> list[Source]:
        kept[source] = [] if isinstance(source, Constant) else saved_by(source)
        return [] if isinstance(source, Constant) else [*next_of(source), *_constants(kept[source])]

    inputs = in_order(sources, inputs_of)
    numbers = {source: number for number, source in enumerate(inputs)}
    nodes = []
    for source, taken in inputs.items():
        saved = kept[source]
        nodes.append(
            Node(
                *_description(source, called),
                saved=None if saved is None else tuple(_saved(name, tensor) for name, tensor in saved),
                inputs=tuple(numbers[other] for other in taken),
            )
        )
    return Graph(tuple(nodes), tuple(dict.fromkeys(numbers[source] for source in sources)))


class Names:
    """What tensors are called.

    Args:
        names: tensors by their names.
    """

    def __init__(self, names: Mapping[str, Tensor] | None) -> None:
        self._tensors = dict(names or {})  # held, so that an id stays theirs
        self._names = {id(tensor): name for name, tensor in self._tensors.items()}

    def __call__(self, tensor: Tensor) -> str:
        """Return the tensor's name, or what can be said of one that has none."""
        name = self._names.get(id(tensor))
        if name is not None:
            return name
        if tensor.dim() == 0 and not tensor.requires_grad:
            return f"{tensor.item():.6g}"
        return "leaf" if tensor.requires_grad else "constant"


class Constant:
    """A tensor without a gradient that operations keep, and so the one trace of it in the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and self.tensor is other.tensor

    def __hash__(self) -> int:
        return id(self.tensor)


Source = Operation | Constant


def as_tensors(output: Tensor | Sequence[Tensor], name: str) -> tuple[Tensor, ...]:
    """Return one tensor or several as a tuple; raise a TypeError that names the argument if they are none."""
    tensors = tuple(output) if isinstance(output, list | tuple) else (output,)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{name}` is or holds a {type(tensor).__name__}: pass a tensor, or a list of tensors")
    return tensors


def node_of(tensor: Tensor) -> Source:
    """Return where a tensor comes from: the operation that made it, its leaf's accumulation, or itself."""
    return torch.autograd.graph.get_gradient_edge(tensor).node if tensor.requires_grad else Constant(tensor)


def next_of(node: Operation) -> list[Operation]:
    """Return the nodes that a node's backward pass sends gradients to, in the order of its arguments."""
    return [other for other, _ in node.next_functions if other is not None]


def leaf_of(node: Source) -> Tensor | None:
    """Return the leaf whose gradient accumulates in a node, or None."""
    return getattr(node, "variable", None)


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


def saved_by(node: Operation) -> list[tuple[str, Tensor]] | None:
    """Return the tensors that an operation keeps for its backward pass and their names; None if they are freed."""
    try:
        if hasattr(node, "saved_tensors"):  # a Function written in Python
            kept = [value for value in node.saved_tensors if value is not None]
            found: list[tuple[str, Any]] = [
                ("result" if value.grad_fn is node else f"tensor {i}", value) for i, value in enumerate(kept)
            ]
        else:
            names = [name for name in dir(node) if name.startswith("_saved_")]
            found = [(name.removeprefix("_saved_"), getattr(node, name)) for name in names]
    except RuntimeError as error:
        if "freed" not in str(error):
            raise
        return None
    several = [
        (f"{name} {i}", inner) for name, value in found if isinstance(value, tuple) for i, inner in enumerate(value)
    ]
    return [(name, value) for name, value in found + several if isinstance(value, Tensor)]


def label_of(node: Operation) -> str:
    """Return what an operation is called: a public function of minigrad's, a Function's class, or as in torch."""
    name = name_of(node)
    if name is not None:
        return name
    function = getattr(type(node), "_forward_cls", None)
    if function is not None:
        return str(function.__name__)
    words = re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", words).lower()


def _constants(saved: list[tuple[str, Tensor]] | None) -> list[Constant]:
    """Return the tensors that an operation was given and keeps, and that need no gradient."""
    return [
        Constant(tensor)
        for name, tensor in saved or ()
        if not tensor.requires_grad and not name.startswith(_OWN_RESULTS)
    ]


def _saved(name: str, tensor: Tensor) -> Saved:
    storage = tensor.untyped_storage()
    return Saved(name, tuple(tensor.shape), tensor.dtype, storage.nbytes(), storage._cdata)


def _description(source: Source, called: Names) -> tuple[str, str, tuple[tuple[int, ...], ...], torch.dtype]:
    """Return the kind of a node, its label, the shapes and the dtype."""
    tensor = source.tensor if isinstance(source, Constant) else leaf_of(source)
    if tensor is not None:
        return "leaf" if tensor.requires_grad else "constant", called(tensor), (tuple(tensor.shape),), tensor.dtype
    assert not isinstance(source, Constant)
    results = source._input_metadata  # of the gradients that come in, which are shaped as the results that went out
    return "operation", label_of(source), tuple(tuple(result.shape) for result in results), results[0].dtype
