"""The graph that autograd records, read as plain data: operations, leaves, what is saved, and what takes what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minigrad.autodiff.nodes import (
    Constant,
    Kept,
    Names,
    Operation,
    Source,
    as_tensors,
    has_storage,
    in_order,
    kept_by,
    label_of,
    leaf_of,
    next_of,
    node_of,
)

# What torch calls the tensors that an operation makes and keeps, besides those that it is given.
_OWN_RESULTS = ("result", "total_weight", "logsumexp", "LU", "pivots")


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
    return [tensor] if has_storage(tensor) else []


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
