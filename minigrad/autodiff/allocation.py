"""How much memory the tensors hold that a computation makes, at most at a time."""

import weakref
from typing import Any

from torch import _C, Tensor, UntypedStorage, strided
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorages(TorchDispatchMode):
    """Counts the storages that operations make within this context, each until it is freed.

    Strided tensors count; one that was there before does not, nor does a view or a change of it in place. An operation
    of minigrad's is counted step by step. What a kernel of PyTorch's may take and free within itself, and what an
    allocator keeps in reserve, is not seen. Every operation costs some microseconds more.

    Attributes:
        peak: bytes, the most that were held at a time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no types
        self.peak = self._now = 0
        self._live: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages that it made."""
        if operation.namespace == "minigrad":  # straight to the device's implementation, whose own steps count too
            keys = _C._dispatch_keys(args[0]) & _C._after_ADInplaceOrView_keyset
            with self:
                return operation.redispatch(keys, *args)
        result = operation(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given and storage._cdata not in self._live:
                self._live.add(storage._cdata)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return result

    def _freed(self, storage: int, n_bytes: int) -> None:
        self._live.remove(storage)
        self._now -= n_bytes


def _storages(tree: Any) -> list[UntypedStorage]:
    """Return the storages of the strided tensors in a tree."""
    tensors = [value for value in tree_leaves(tree) if isinstance(value, Tensor) and value.layout is strided]
    return [tensor.untyped_storage() for tensor in tensors]
