"""The graph that autograd records, read as plain data: operations, leaves, what is saved, and what takes what."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from minigrad.functions import name_of

T = TypeVar("T")
Operation = torch.autograd.graph.Node
# What torch calls the tensors that an operation makes and keeps, besides those that it is given.
_OWN_RESULTS = ("result", "total_weight", "logsumexp", "LU", "pivots")
# What torch says where a saved tensor cannot be had, and what that means.
_HIDDEN = {"freed": "freed", "modified by an inplace operation": "changed in place"}
# Where one of torch's names in capitals has its underscores: NllLoss, Log1P, FftR2C, MaxPool2DWithIndices.
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[0-9])(?=[A-Z][a-z])|(?<=[0-9]D)(?=[A-Z])")


@dataclass(frozen=True)
class Saved:
    """A tensor that an operation keeps for its backward pass.

    Attributes:
        name: what the operation calls it.
        shape: its sizes.
        dtype: of its elements.
        bytes: of the storage that it keeps alive, which several tensors may share; of a sparse tensor, of its parts.
        storage: the same number for tensors that share a storage.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    storage: int


@dataclass(frozen=True)
class Node:
    """An operation, or a tensor that has none.

    Attributes:
        kind: "operation"; "leaf", which requires a gradient; or "constant", which does not and is kept by an operation:
            it was given, or, by some of the Functions written in Python, made inside: autograd does not know.
        label: the operation's or the tensor's name.
        shapes: of the results of an operation, one each, or of the tensor.
        dtype: of the first result, or of the tensor.
        saved: what the operation keeps.
        hidden: why that cannot be told: "freed" by a backward pass, "changed in place", or "kept by hooks", which may
            compute it again; None where it can.
        inputs: the numbers of the nodes whose results it takes: those with a gradient in the order of the arguments,
            then those without that it keeps. What has no gradient and is not kept has left no trace.
    """

    kind: str
    label: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    saved: tuple[Saved, ...]
    hidden: str | None
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
        return sum({saved.storage: saved.bytes for node in self.nodes for saved in node.saved}.values())


def read(output: Tensor | Sequence[Tensor], names: Mapping[str, Tensor] | None = None) -> Graph:
    """Read the graph of one output or several; nothing is computed, and the graph stays as it is.

    Args:
        output: what was computed. A tensor that autograd has no record of is a graph of its own, of one node.
        names: leaves and constants by what they are to be called, such as `dict(model.named_parameters())`.

    Raises:
        TypeError: an output is no tensor, or `names` no mapping from names to tensors.
        ValueError: there is no output.
    """
    called, sources = Names(names), [node_of(tensor) for tensor in as_tensors(output, "output")]
    if not sources:
        raise ValueError("`output` is empty: pass a tensor, or a list of tensors")
    kept: dict[Source, Kept] = {}

    def inputs_of(source: Source) -> list[Source]:
        kept[source] = Kept([], None) if isinstance(source, Constant) else kept_by(source)
        return [] if isinstance(source, Constant) else [*next_of(source), *_constants(source, kept[source].tensors)]

    inputs = in_order(sources, inputs_of)
    numbers = {source: number for number, source in enumerate(inputs)}
    nodes = []
    for source, taken in inputs.items():
        saved = tuple(_saved(name, tensor) for name, tensor in kept[source].tensors)
        places = tuple(numbers[other] for other in taken)
        nodes.append(Node(*_description(source, called), saved, kept[source].hidden, places))
    return Graph(tuple(nodes), tuple(dict.fromkeys(numbers[source] for source in sources)))


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
        self._tensors = dict(names)  # held, so that an id stays theirs
        self._names = {id(tensor): name for name, tensor in self._tensors.items()}

    @property
    def given(self) -> set[str]:
        """All names there are."""
        return set(self._tensors)

    def __call__(self, tensor: Tensor) -> str:
        """Return the tensor's name, or what can be said of one that has none."""
        name = self._names.get(id(tensor))
        if name is not None:
            return name
        if type(tensor) is Tensor and tensor.device.type == "cpu" and _is_number(tensor):
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


class Kept(NamedTuple):
    """What an operation keeps for its backward pass, with its names; and why that cannot be told, as in `Node`."""

    tensors: list[tuple[str, Tensor]]
    hidden: str | None


def kept_by(node: Any) -> Kept:
    """Return what an operation keeps, without running anybody's code for it."""
    try:
        if packed_by_hooks(node):
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


def packed_by_hooks(node: Operation) -> bool:
    """Return whether hooks have packed what an operation saves; to look at it would run them, and what they compute."""
    raw = [getattr(node, name) for name in dir(type(node)) if name.startswith("_raw_saved_")]
    saved = [one for value in raw for one in (value if isinstance(value, tuple) else (value,))]
    return any(one is not None and one.unpack_hook is not None for one in saved)


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


def _constants(node: Operation, saved: list[tuple[str, Tensor]]) -> list[Constant]:
    """Return the tensors without a gradient that an operation keeps and was given, so far as autograd knows."""
    results = [_shape(metadata) for metadata in node._input_metadata]
    return [
        Constant(tensor)
        for name, tensor in saved
        if not tensor.requires_grad
        and not name.startswith((*_OWN_RESULTS, "ctx."))
        and not (name == "indices" and _shape(tensor) in results)  # max's own; embedding's are given
    ]


def _saved(name: str, tensor: Tensor) -> Saved:
    parts = _parts(tensor)
    if not parts:  # a layout that does not show its storage
        return Saved(name, _shape(tensor), tensor.dtype, tensor.numel() * tensor.element_size(), id(tensor))
    storages = [part.untyped_storage() for part in parts]
    n_bytes = sum(storage.nbytes() for storage in storages)
    return Saved(name, _shape(tensor), tensor.dtype, n_bytes, storages[0]._cdata)


def _parts(tensor: Tensor) -> list[Tensor]:
    """Return the strided tensors that a tensor consists of."""
    if tensor.layout is torch.sparse_coo:
        return [tensor._values(), tensor._indices()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.values(), tensor.crow_indices(), tensor.col_indices()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.values(), tensor.ccol_indices(), tensor.row_indices()]
    return [tensor] if tensor.layout is torch.strided and not tensor.is_nested else []


def _is_number(tensor: Tensor) -> bool:
    return not tensor.requires_grad and not tensor.is_nested and tensor.dim() == 0


def _shape(tensor: Any) -> tuple[int, ...]:
    """Return the shape of a tensor, or of a gradient as autograd describes it; () of one that has several."""
    nested = tensor.is_nested if isinstance(tensor, Tensor) else tensor.is_nested_tensor
    return () if nested else tuple(tensor.shape)


def _description(source: Source, called: Names) -> tuple[str, str, tuple[tuple[int, ...], ...], torch.dtype]:
    """Return the kind of a node, its label, the shapes and the dtype."""
    tensor = source.tensor if isinstance(source, Constant) else leaf_of(source)
    if tensor is not None:
        return "leaf" if tensor.requires_grad else "constant", called(tensor), (_shape(tensor),), tensor.dtype
    assert not isinstance(source, Constant)
    results = source._input_metadata  # of the gradients that come in, which are shaped as the results that went out
    return "operation", label_of(source), tuple(map(_shape, results)), results[0].dtype
