"""Time on the GPU alone, and time as Python sees it, of several contestants that take turns.

GPU time: many calls are captured in one CUDA graph, which is replayed between two events, so that neither Python nor a
launch is part of it. Wall time: calls from Python, one after another, until the last has ended, by the clock.

Every call takes the next of several copies of its arguments and leaves its results beside those of the calls before,
so that a large enough set of copies finds nothing in the GPU's cache. The contestants take turns in every round, in
changing order: what a round's ratios compare happened within milliseconds.

A library with a queue of its own, as JAX has, cannot be captured. Its GPU time is that of many queued calls by the
clock, up to the wait for the last: amortised, and an upper limit where a call takes the GPU less time than Python.

On the CPU, for a dry run, both times are the clock's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.lines import Figure
from bench.setting import CheckFailed

ROUNDS = 15
MOST_COPIES = 1024
MOST_EAGER_CALLS = 200
BYTES_PER_REPLAY = 4 * 10**9  # take a GPU of 3 TB/s more than a millisecond, a thousand times what an event resolves
LEAD_CYCLES = 1_000_000  # about half a millisecond, in which the launch of any graph is prepared


@dataclass(frozen=True)
class Contestant:
    """What is timed.

    Attributes:
        name: of its column.
        call: returns fresh tensors, or None where it changes its first argument in place.
        copies: the arguments of a call, several times; all of one shape, dtype and alignment.
        is_ours: whether a failure of it is one of the section; another's is shown in its column.
        wait: for the results of a library with a queue of its own; None for torch and Triton.
    """

    name: str
    call: Callable[..., Any]
    copies: Sequence[tuple[Any, ...]]
    is_ours: bool = False
    wait: Callable[[Any], object] | None = None


@dataclass(frozen=True)
class Absent:
    """A contestant that takes no part, and why."""

    name: str
    reason: str


Times = dict[str, list[float] | str]
"""Microseconds per call, one number a round, by name; or why there are none."""


def rotation(n_bytes: int, device: torch.device) -> tuple[int, int]:
    """Return how many copies of the arguments a case takes, and how many calls a replay.

    Args:
        n_bytes: that one call has to read and write.
        device: the copies exceed its cache fourfold, unless that takes more than 1,024 of them.
    """
    if device.type != "cuda":
        return 2, 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    copies = min(MOST_COPIES, max(2, -(-4 * cache // n_bytes)))
    return copies, max(copies, min(MOST_COPIES, BYTES_PER_REPLAY // n_bytes))


def gpu_times(contestants: Sequence[Contestant | Absent], device: torch.device, calls: int, rounds: int) -> Times:
    """Return the GPU time of a call of each; on the CPU by the clock.

    Raises:
        CheckFailed: what a replay computes is not what a call computes.
    """

    def prepare(contestant: Contestant) -> Callable[[], float]:
        if device.type != "cuda" or contestant.wait is not None:
            return _eager(contestant, device, calls)
        return _replayed(contestant, device, calls)

    return _in_turns(contestants, prepare, rounds)


def wall_times(contestants: Sequence[Contestant | Absent], device: torch.device, calls: int, rounds: int) -> Times:
    """Return the time of a call of each from Python, by the clock."""
    return _in_turns(contestants, lambda contestant: _eager(contestant, device, calls), rounds)


def figure(times: Times, name: str) -> Figure | str:
    """Return the time of one contestant, or why there is none."""
    samples = times[name]
    return samples if isinstance(samples, str) else Figure.of(samples)


def ratio(times: Times, over: str, under: str) -> Figure | str:
    """Return the ratio of two contestants' times round by round, or why there is none."""
    a, b = times[over], times[under]
    if isinstance(a, str) or isinstance(b, str):
        return a if isinstance(a, str) else str(b)
    return Figure.of([x / y for x, y in zip(a, b, strict=True)])


def fastest(times: Times, names: Sequence[str]) -> str:
    """Return which of these contestants has the smallest median; the first where none has any."""
    medians = {name: Figure.of(samples).median for name in names if not isinstance(samples := times[name], str)}
    return min(medians, key=medians.__getitem__) if medians else names[0]


def _in_turns(
    contestants: Sequence[Contestant | Absent], prepare: Callable[[Contestant], Callable[[], float]], rounds: int
) -> Times:
    times: Times = {}
    runs: dict[str, Callable[[], float]] = {}
    for contestant in contestants:
        times[contestant.name] = []
        if isinstance(contestant, Absent):
            times[contestant.name] = contestant.reason
            continue
        try:
            runs[contestant.name] = prepare(contestant)
        except Exception as error:  # whatever another's code raises costs its column, not ours
            if contestant.is_ours:
                raise
            times[contestant.name] = failure(error)
    names = list(runs)
    for number in range(rounds + 1):
        first = number % max(1, len(names))
        for name in names[first:] + names[:first]:
            taken, samples = runs[name](), times[name]
            if number > 0 and isinstance(samples, list):  # the first round warms up
                samples.append(taken)
    return times


def failure(error: Exception) -> str:
    """Return what an error leaves in a table: its kind and the beginning of its message."""
    message = " ".join(str(error).split())
    return f"failed: {type(error).__name__}: {message[:60]}"


def _rotate(contestant: Contestant, calls: int) -> list[Any]:
    """Carry out the calls on one copy after another; return the last results that each copy gave."""
    results: list[Any] = [None] * min(calls, len(contestant.copies))
    for number in range(calls):
        place = number % len(results)
        results[place] = contestant.call(*contestant.copies[place])
    return results


def _eager(contestant: Contestant, device: torch.device, calls: int) -> Callable[[], float]:
    """Return what carries out calls from Python and returns the microseconds that one took."""
    calls = min(calls, MOST_EAGER_CALLS)

    def run() -> float:
        _synchronize(device)
        start = time.perf_counter()
        results = _rotate(contestant, calls)
        if contestant.wait is not None:
            contestant.wait(results)
        _synchronize(device)
        return (time.perf_counter() - start) / calls * 1e6

    return run


def _replayed(contestant: Contestant, device: torch.device, calls: int) -> Callable[[], float]:
    """Capture calls in a graph; return what replays it and returns the microseconds that one call took."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, loads and autotunes what a capture must not
            expected = contestant.call(*contestant.copies[0])
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # JAX has threads, which may call CUDA meanwhile
        results = _rotate(contestant, calls)
    for tensor in _tensors(results[0]):
        tensor.fill_(float("nan") if tensor.is_floating_point() else -1)  # what a replay does not write shows
    changed = _changed(contestant, results)
    before = [beginning.clone() for beginning in changed]
    graph.replay()
    if any(map(torch.equal, changed, before)):
        raise CheckFailed(f"{contestant.name}: a replayed graph leaves a copy as it was")
    for actual, tensor in zip(_tensors(results[0]), _tensors(expected), strict=True):
        try:
            torch.testing.assert_close(actual, tensor)
        except AssertionError as error:
            raise CheckFailed(f"{contestant.name}: a replayed graph computes something else than a call") from error
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> float:
        torch.cuda.synchronize(device)
        torch.cuda._sleep(LEAD_CYCLES)  # keeps the GPU busy until the graph stands in its queue
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / calls

    return run


def _changed(contestant: Contestant, results: list[Any]) -> list[Tensor]:
    """Return the beginning of each copy that the calls change in place; nothing where they return results."""
    if next(_tensors(results), None) is not None:
        return []
    return [copy[0].view(-1)[:64] for copy in contestant.copies[: len(results)]]


def _tensors(results: Any) -> Iterator[Tensor]:
    """Yield the tensors of what a call returned: none, one or several."""
    if isinstance(results, Tensor):
        yield results
    elif isinstance(results, tuple | list):
        for result in results:
            yield from _tensors(result)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
