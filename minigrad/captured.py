"""The captured step: all that happens on the device in a step, recorded once as a CUDA graph and replayed.

Between two readings there is neither Python nor waiting in a step: the graph takes its batch and its learning rate from
tables on the device by a counter that it advances itself, and writes what it reports into a row of another.

Source: CUDA graphs as PyTorch offers them, https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigrad.errors import UserError
from minigrad.monitoring.monitor import GradientMonitor
from minigrad.monitoring.steps import Step
from minigrad.objectives.objective import Resident
from minigrad_kernels import put_row

if TYPE_CHECKING:
    from minigrad_kernels.fused_update import FusedUpdate

WARM_UP = 3
"""Steps in a row that have to be alike before one is captured."""
CAPACITY = 512
"""Steps that are replayed before what they reported has to be copied, at most."""
PLACES_BYTES = 2**22
"""That the places of their batches take, at most; one step's are always there."""


class Graph:
    """A CUDA graph, and the stream that it is captured and replayed on.

    Raises:
        UserError: the device has no CUDA graphs.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise UserError(f"execution=graph: there are CUDA graphs on a GPU only, and this is {device}; use eager")
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Launch on the graph's stream, after what was launched before and before what is launched later."""
        before = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(before)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            before.wait_stream(self._stream)

    def capture(self, function: Callable[[], None]) -> None:
        """Record what a function launches, within `stream`; nothing of it is computed yet."""
        self._graph = torch.cuda.CUDAGraph()
        # cuBLAS keeps room to work in for every stream: the graph's has to be the graph's own, which nobody else frees.
        torch._C._cuda_clearCublasWorkspaces()
        try:
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                function()
        finally:
            torch._C._cuda_clearCublasWorkspaces()

    def replay(self) -> None:
        """Launch all that was captured."""
        assert self._graph is not None
        self._graph.replay()


class CapturedStep:
    """A trainer's step as a graph.

    Args:
        graph: on the device of the rest, with nothing captured yet.
        objective: chooses batches on the device.
        backward: returns the mean loss of some batches, and leaves the gradient in the parameters.
        update: of the parameters.
        parameters: those that are trained.
        accumulate: batches per step.
        monitor: sees the step, if there is one.

    Attributes:
        stream: context in which the steps of the warm-up are made, and `advance` is called.
    """

    def __init__(
        self,
        graph: Graph,
        objective: Resident,
        backward: Callable[[Iterable[Any]], tuple[Tensor, list[Tensor]]],
        update: FusedUpdate,
        parameters: list[Tensor],
        accumulate: int,
        monitor: GradientMonitor | None,
    ) -> None:
        device = parameters[0].device
        self._graph, self._objective, self._backward, self._update = graph, objective, backward, update
        self._parameters, self._accumulate, self._monitor = parameters, accumulate, monitor
        self._gradients: list[Tensor | None] = []
        self._located = update.locations.located
        self._fixed: list[Any] = []  # what the graph was captured for
        self._last: list[Any] = []  # the same of the last step that was made one by one, and how many before were alike
        self._n_alike = 0
        self._row = torch.zeros(1, dtype=torch.int64, device=device)
        self._rates = torch.zeros(CAPACITY, dtype=torch.float64, device=device)
        self._numbers = torch.zeros((CAPACITY, 3 + len(parameters)), dtype=torch.float64, device=device)
        self._places = torch.empty(0)
        self._seen: Tensor | None = None
        self._step: Step | None = None
        self.stream = self._graph.stream
        if monitor is not None:
            monitor.addresses()  # from now on they stay

    def is_warming_up(self, first_batch: int) -> bool:
        """Return whether the next step is to be made one by one: before it is captured it has to have come to rest.

        Then kernels are compiled, libraries have set themselves up, and all memory that stays has its place.

        Args:
            first_batch: index of the batch to begin with.
        """
        fixed = self._what_is_fixed(self._objective.places(first_batch, self._accumulate))
        if fixed == self._fixed:
            return False
        self._n_alike = self._n_alike + 1 if fixed == self._last else 0
        self._last = fixed
        return self._n_alike < WARM_UP

    def advance(self, first_batch: int, rates: list[float], after_step: Callable[[], bool]) -> Tensor:
        """Replay a step for each learning rate.

        Args:
            first_batch: index of the batch to begin with.
            rates: the learning rates, CAPACITY at most.
            after_step: called after every step; true ends it there.

        Returns: (steps, 3 + parameters) float64 on the device, what the steps that were made reported: as many as there
            are rates, or as there was room for the places of.

        Raises:
            UserError: the step cannot be captured.
        """
        places = self._objective.places(first_batch, self._accumulate)
        count = min(len(rates), _room(places))
        if self._what_is_fixed(places) != self._fixed:
            self._capture(places)
        places = self._objective.places(first_batch, count * self._accumulate)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # a step that was not replayed has left others
        self._update.locations.return_to(self._located)
        self._places[:count].copy_(places.reshape(count, self._accumulate, *places.shape[1:]))
        on_host = torch.tensor(rates[:count], dtype=torch.float64)
        self._rates[:count].copy_(on_host.pin_memory() if self._rates.is_cuda else on_host, non_blocking=True)
        self._row.zero_()
        made = 0
        try:
            while made < count:
                self._graph.replay()
                made += 1
                if self._monitor is not None:
                    self._monitor.replayed()
                if after_step():
                    break
        finally:
            torch.autograd.graph.increment_version(self._parameters)
            if self._monitor is not None and self._step is not None and self._seen is not None:
                self._monitor.extend([self._step.with_numbers(row) for row in self._seen[:made].clone()])
        return self._numbers[:made].clone()

    def _what_is_fixed(self, places: Tensor) -> list[Any]:
        """Return all by which a graph may fit no longer, from the places of a step's batches."""
        watched = None
        if self._monitor is not None:
            watched = self._monitor.is_attached, self._monitor.is_paused, self._monitor.addresses()
        return [places.shape, places.dtype, watched, *(parameter.data_ptr() for parameter in self._parameters)]

    def _capture(self, places: Tensor) -> None:
        self._fixed, self._last = [], []
        self._places = places.new_zeros((_room(places), self._accumulate, *places.shape[1:]))
        self._seen = None
        if self._monitor is not None:
            self._monitor.forget()  # what was seen since the last step is not the captured one's
        try:
            self._graph.capture(self._make_step)
            if self._step is not None:  # only now is known how many numbers a monitor sees in a step
                n_numbers = self._step.numbers(places.device).numel()
                self._seen = torch.zeros((CAPACITY, n_numbers), dtype=torch.float64, device=places.device)
                self._graph.capture(self._make_step)
        except RuntimeError as error:  # of CUDA, cuBLAS or the allocator: whatever it is that cannot be captured
            if self._monitor is not None:
                self._monitor.forget()
            said, _, _ = str(error).partition("\n")
            raise UserError(
                "execution=graph: the step cannot be captured; its loss may read a number on the host (item(), if, "
                f"print), copy from there, or change shapes; start again with execution=eager ({said})"
            ) from error
        self._gradients = [parameter.grad for parameter in self._parameters]
        self._located = self._update.locations.located
        self._fixed = self._what_is_fixed(places)

    def _make_step(self) -> None:
        """Make the step of the row that the counter says."""
        places = self._places.index_select(0, self._row)[0]
        loss, gradients = self._backward(self._objective.batch_at(places[i]) for i in range(self._accumulate))
        with torch.no_grad():
            rate = self._rates.index_select(0, self._row)
            numbers, measured = self._update.apply(gradients, rate, loss)
            put_row(self._numbers, self._row, numbers)
            if self._monitor is not None:
                self._step = self._monitor.take(measured)
                if self._seen is not None:
                    put_row(self._seen, self._row, self._step.numbers(places.device))
            self._row += 1


def _room(places: Tensor) -> int:
    """Return for how many steps there is room, by the places of one step's batches."""
    return min(CAPACITY, max(1, PLACES_BYTES // max(1, places.numel() * places.element_size())))
