"""What operations save for their backward pass, measured while they run.

Autograd hands every tensor that it saves to a pair of hooks, torch.autograd.graph.saved_tensors_hooks: `pack` returns
what is to be kept, `unpack` gives the tensor back. The ones here take a note and keep the tensor. With hooks, PyTorch
would neither look whether a saved tensor was changed in place, nor keep an operation's own output without a cycle of
references that leaks it; `_keep` and `give_back` do both as PyTorch does without them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_KINDS = ("leaf", "result", "constant")  # one that several kinds of tensors share is of the first of them


@dataclass(frozen=True)
class SavedStorage:
    """A storage that operations keep for their backward pass.

    Attributes:
        kind: "leaf": of a tensor that requires a gradient and was given, as a parameter is: it exists anyway.
            "result": of what an operation gave and autograd recorded: but for the backward pass it could be freed once
            no one else uses it. "constant": of a tensor without a gradient; whether it exists anyway, as a batch of
            data does, or was made for the backward pass, as dropout's mask and whatever a Function computes inside,
            autograd does not know.
        shape: of the tensor that was saved first.
        dtype: of its elements.
        bytes: of the whole storage, of which the tensor may be a part.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int


class SavedForBackward:
    """A record of storages, each once however many tensors share it. It keeps none of them alive."""

    def __init__(self) -> None:
        # A weak reference leaves the memory free, but not the storage's address: that is nobody else's while it lasts.
        self._storages: dict[StorageWeakRef, SavedStorage] = {}

    @property
    def tensors(self) -> tuple[SavedStorage, ...]:
        """What was saved, in the order in which it was."""
        return tuple(self._storages.values())

    @property
    def bytes(self) -> int:
        """Bytes of all that was saved."""
        return sum(saved.bytes for saved in self.tensors)

    @property
    def leaf_bytes(self) -> int:
        """Bytes of leaves, such as parameters, which exist anyway."""
        return self._bytes_of("leaf")

    @property
    def result_bytes(self) -> int:
        """Bytes of results of operations: what the backward pass keeps from being freed on the way."""
        return self._bytes_of("result")

    @property
    def constant_bytes(self) -> int:
        """Bytes of tensors without a gradient, such as data and masks."""
        return self._bytes_of("constant")

    @property
    def freed_bytes(self) -> int:
        """Bytes of what is freed by now; after a backward pass, and without the output, what lived for it alone."""
        return sum(saved.bytes for storage, saved in self._storages.items() if storage.expired())

    def add(self, tensor: Tensor) -> None:
        """Note that a tensor is saved.

        Raises:
            TypeError: the tensor is sparse, or of another layout that has several storages or none.
        """
        if tensor.layout is not torch.strided:
            raise TypeError(
                f"an operation saves a tensor of layout {tensor.layout}; saved_for_backward counts strided ones alone: "
                "take this operation out of the context"
            )
        storage = tensor.untyped_storage()
        key, kind = StorageWeakRef(storage), _kind_of(tensor)
        known = self._storages.setdefault(key, SavedStorage(kind, tuple(tensor.shape), tensor.dtype, storage.nbytes()))
        self._storages[key] = replace(known, kind=min(known.kind, kind, key=_KINDS.index))

    def _bytes_of(self, kind: str) -> int:
        return sum(saved.bytes for saved in self.tensors if saved.kind == kind)


@contextmanager
def saved_for_backward() -> Iterator[SavedForBackward]:
    """Measure what the operations inside this context save for their backward pass.

    With `as saved`, `saved.bytes` and what else it tells can be read at any time. What the operations compute, their
    gradients to any order, when memory is freed and the error after an in-place change stay as they are. Contexts nest,
    and hooks that were in force outside stay in force.

    Not measured: a Python number in an operation, as in `2 * x`, which autograd keeps without asking; what a Function
    keeps as an attribute of its `ctx`, past `save_for_backward`; what hooks further inside keep in their own way (for
    `torch.utils.checkpoint` those are the inputs alone, rightly); other threads. Nothing is saved under `no_grad` and
    `inference_mode`. A saved tensor that is looked at, as `y.grad_fn._saved_self`, is equal to but not the same object
    as the original. PyTorch refuses torch.func's transforms of reverse mode inside, with a RuntimeError. To measure
    what torch.compile made, use the context around it, not in what it compiles.

    Yields: the record, empty at first.

    Raises:
        TypeError: inside, where an operation saves a sparse tensor.
    """
    saved = SavedForBackward()
    outside = torch._C._autograd._top_saved_tensors_default_hooks(True)
    pack, unpack = outside or (_keep, give_back)  # type: ignore[unreachable]  # torch's stub forgets its None

    def note_and_pack(tensor: Tensor) -> object:
        saved.add(tensor)
        return pack(tensor)

    with torch.autograd.graph.saved_tensors_hooks(note_and_pack, unpack):
        yield saved


def _kind_of(tensor: Tensor) -> str:
    # Operations save views too: of x W^T it is W^T, a view of a leaf. Where the leaf is a view itself, `_base` is what
    # that was taken from, and a part of the leaf counts as a leaf's only if the whole is saved too.
    recorded = [owner for owner in (tensor, tensor._base) if owner is not None and owner.requires_grad]
    if not recorded:
        return "constant"
    return "leaf" if any(owner.is_leaf for owner in recorded) else "result"


def _keep(tensor: Tensor) -> tuple[Tensor, int]:
    # A result refers to the operation that made it, which may be the one that saves it: kept as it is, neither would
    # ever be freed. Autograd itself puts the history back on what `give_back` returns.
    return tensor if tensor.is_leaf else tensor.detach(), tensor._version


def give_back(kept: tuple[Tensor, int]) -> Tensor:
    """Return a tensor that `saved_for_backward` had noted; raise as autograd does if it was changed since."""
    tensor, version = kept
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"[{tensor.type()} {list(tensor.shape)}] is at version {tensor._version}; expected version {version} "
            "instead. Change a copy of it, from clone(), or change it after the backward pass."
        )
    return tensor
