"""The ranks of a run: processes that divide every batch among them, started by torchrun. Otherwise there is one.

All ranks run the same program and take the same decisions; what only one of them can know, such as the name of a new
directory, is decided by the first and told to the others.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import math
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from minigrad.errors import RunFailed, UserError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

_DIRECTORY = "minigrad/directory"
_JOINED = itertools.count()


class RankLost(RunFailed):
    """Another rank has ended, or has not answered in time."""


class Ranks:
    """The processes of a run, as one of them sees them; by default it is alone.

    What exchanges something is called by all of them, in the same order.

    Args:
        rank: of this process, from 0.
        size: how many there are.
        store: kept by torchrun, through which a run finds its directory again; None: this process is alone.
        timeout: seconds that a rank waits for another.

    Attributes:
        rank: the argument.
        size: the argument.
        is_alone: whether torchrun has not started it; what it has started goes the way of several, even if it is one.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None, timeout: float = math.inf) -> None:
        self.rank = rank
        self.size = size
        self.is_alone = store is None
        self._store = store
        self._timeout = timeout

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def of_first(self, function: Callable[[], T]) -> T:
        """Call a function on the first rank; return its result, or raise its UserError or RunFailed, on all."""
        if self.is_alone:
            return function()
        outcome: list[Any] = [None, None]
        if self.is_first:
            try:
                outcome[0] = function()
            except (UserError, RunFailed) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def on_each(self, function: Callable[[], T]) -> T:
        """Call a function on every rank; return its result here, or raise the UserError of the first that failed."""
        if self.is_alone:
            return function()
        result: Any = None
        failure: UserError | None = None
        try:
            result = function()
        except UserError as error:
            failure = error
        for first in filter(None, self.gathered(failure)):
            raise first
        found: T = result
        return found

    def gathered(self, value: T) -> list[T]:
        """Return the value of every rank, in their order; any value that can be pickled."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def unite(self, flags: Tensor) -> None:
        """Make flags, integers from 0 on, those of all ranks: what one has set is set on all. Not differentiable."""
        if not self.is_alone:
            dist.all_reduce(flags, dist.ReduceOp.MAX)

    def highest(self, number: int) -> Callable[[], int]:
        """Begin to look for the largest number of all ranks; return what waits for it and returns it."""
        found = torch.tensor(number)
        work = None if self.is_alone else dist.all_reduce(found, dist.ReduceOp.MAX, async_op=True)

        def wait() -> int:
            if work is not None:
                work.wait()
            return int(found)

        return wait

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Raise RankLost where a connection breaks or another rank does not answer."""
        with _connected(self._timeout):
            yield

    def remember(self, directory: Path) -> None:
        """Let ranks that torchrun restarts know where the run lies."""
        if self._store is not None:
            self._store.set(_DIRECTORY, str(directory))


ALONE = Ranks()


def are_started() -> bool:
    """Return whether torchrun, or what sets the same variables, has started this process as one of several ranks."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def local_rank() -> int:
    """Return the number of this process among those on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def restarts() -> int:
    """Return how often torchrun has started the ranks anew because one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def remembered() -> Path | None:
    """Return where the run lies that restarted ranks are to go on with, if an earlier attempt came so far."""
    if not are_started() or restarts() == 0:
        return None
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=1)))
    directory = Path(store.get(_DIRECTORY).decode()) if store.check([_DIRECTORY]) else None
    return None if directory is None or not (directory / "config.yaml").is_file() else directory


@contextmanager
def joined(timeout: float | None) -> Iterator[Ranks]:
    """Be one of the ranks that torchrun has started, or alone, for a while; the first rank alone prints.

    Tensors on the CPU travel by gloo, those on GPUs by NCCL.

    Args:
        timeout: seconds that a rank waits for another before it gives up; None if there may be no other.

    Raises:
        UserError: there are ranks, and there may be none.
        RankLost: another rank has ended, or does not answer in time.
    """
    if not are_started():
        yield ALONE
        return
    if timeout is None:
        raise UserError("this experiment runs in one process: start it without torchrun")
    # DistributedDataParallel imports it: where there are ranks already, it would keep their connection for good, whose
    # threads may then abort a process that ends (https://github.com/pytorch/pytorch/pull/179291 describes the abort).
    importlib.import_module("torch._dynamo")
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    limit = timedelta(seconds=timeout)
    with _connected(timeout):
        store, rank, size = next(rendezvous("env://", timeout=limit))
        # torchrun's store outlives a restart, and with it the addresses of ranks that are no more.
        own = PrefixStore(f"minigrad/{restarts()}/{next(_JOINED)}", store)
        dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=limit)
    ranks = Ranks(rank, size, store, timeout)
    try:
        with nullcontext() if ranks.is_first else _silence(), ranks.connected():
            yield ranks
    except RankLost:
        raise  # and do not leave in good order, which might wait for those that are gone
    except BaseException:
        dist.destroy_process_group()
        raise
    gc.collect()  # of what still holds the connection, so that its threads end here
    dist.destroy_process_group()


@contextmanager
def _connected(timeout: float) -> Iterator[None]:
    """Say what it means that a connection breaks, or that nothing comes for so many seconds."""
    try:
        yield
    except RunFailed:
        raise
    except RuntimeError as error:
        if not _is_of_the_connection(error):
            raise
        words = " ".join(str(error).split()).partition(". This is typically")[0]
        raise RankLost(
            f"another rank has ended, has not answered for {timeout:g} seconds, or does something else: {words}"
        ) from error


def _is_of_the_connection(error: RuntimeError) -> bool:
    """Return whether an error comes from what connects the ranks: few of its errors have a type of their own."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    is_raised_there = innermost.f_globals.get("__name__", "").startswith("torch.distributed.")
    words = ("/gloo/", "pair closure", "NCCL error")  # where autograd calls it, there is no frame of it
    return isinstance(error, dist.DistError) or is_raised_there or any(word in str(error) for word in words)


@contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield
