"""The whole training step: minigrad's trainer against PyTorch's loop written by hand, compiled and not, and JAX.

The time is that of a step among many, from Python, by the clock. Ours is `Trainer.advance` in graph mode, which also
reports every step's loss and norms; the others read nothing. Of the compiled ones torch.compile has the loss, from the
choice of the batch on, and the update is torch.optim's fused one, as in the loop; JAX compiles the whole step.

Before they are timed, the losses of the first steps have to be those of PyTorch's loop within TOLERANCE, and those of
the graph the trainer's own, made step by step, to the bit: under the monitor, too.

"MiB" is the most that is allocated from before a contestant is set up, without the data, and with what cuBLAS works in.
Allowed is what PyTorch's loop takes, and beyond that one pre-activation for each layer of sigmoid or tanh, or none with
`save="output"`; and, for either, the places of the samples of as many steps as are replayed between two readings, and
BUFFERS.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from bench import peers
from bench.contest import OURS
from bench.lines import Cell, Line
from bench.setting import CheckFailed, Setting
from bench.timing import Absent, Contestant, Times, failure, fastest, figure, ratio, wall_times
from bench.training import MODES, REDUCED, Contender, Data, Task, by_hand, by_jax, by_trainer
from minigrad.captured import CAPACITY, PLACES_BYTES

PLAIN, WATCHED, BY_OUTPUT = "plain", "monitor on", 'save="output"'
CHECKED_STEPS = 20
# Relative, of a loss. Products are summed in another order; bfloat16 rounds to 8 bits after each operation, and which
# operations there are differs: the losses of two of the others are as far apart.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
BUFFERS = 8  # MiB: the update's tables, the sums of its tiles, and what the steps reported
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        task: what is trained.
        variants: of ours: PLAIN, and maybe others.
        bounds: of the speed-ups of PLAIN.
        portion: steps that are made at a time.
        rounds: of so many steps.
    """

    task: Task
    variants: Sequence[str] = (PLAIN,)
    bounds: dict[str, str] = field(default_factory=lambda: {"speed-up over best": ">= 1"})
    portion: int = 100
    rounds: int = 11

    def allowed(self, variant: str) -> float:
        """Return how many MiB a variant may take beyond PyTorch's loop."""
        task = self.task
        saves = task.activation != "relu" and variant != BY_OUTPUT
        saved = sum(task.sizes[1:-1]) * task.batch_size * task.dtype.itemsize if saves else 0
        places = min(CAPACITY * task.batch_size * torch.int64.itemsize, PLACES_BYTES)
        return (saved + places) / MIB + BUFFERS


SMALL = Task((64, 128, 128, 10), 256)
AHEAD = {"speed-up": ">= 5", "speed-up over best": ">= 1.3"}
CASES = (
    Case(SMALL, (PLAIN, WATCHED, BY_OUTPUT), AHEAD),
    Case(Task((784, 512, 512, 10), 1024, activation="relu")),
    Case(
        Task((4096,) * 5, 8192, torch.bfloat16, learning_rate=50.0, classifies=False),  # of a mean over 2^25 numbers
        (PLAIN, BY_OUTPUT),
        portion=20,
        rounds=7,
    ),
    Case(replace(SMALL, rule="adam", learning_rate=1e-3), (PLAIN,), AHEAD),
)


def measure(setting: Setting) -> Iterator[Line]:
    """Check and time every case."""
    for case in setting.in_time(CASES):
        yield from lines_of(tiny(case) if setting.dry else case, setting)


def tiny(case: Case) -> Case:
    """Return a case for a dry run."""
    task = replace(case.task, sizes=(4, 6, 3), batch_size=5, learning_rate=0.01)
    return replace(case, task=task, portion=2, rounds=2)


@dataclass(frozen=True)
class Met:
    """A contestant that has trained for a while.

    Attributes:
        contender: trains.
        losses: of its first steps.
        memory: MiB; or why that is not known.
    """

    contender: Contender
    losses: list[float]
    memory: float | str


def lines_of(case: Case, setting: Setting) -> Iterator[Line]:
    """Check and time one case; a line for each variant of ours.

    Raises:
        CheckFailed: minigrad's losses are wrong.
    """
    data = Data.of(case.task, setting.device)
    others = others_of(case, data, setting)
    loop = others[peers.EAGER]
    assert isinstance(loop, Met)
    mine = {name: checked(case, data, name, loop.losses, setting) for name in case.variants}
    contestants: list[Contestant | Absent] = [
        Contestant(name, mine[name].contender.advance, [(case.portion,)], is_ours=True) for name in case.variants
    ]
    for name, other in others.items():
        if isinstance(other, Met):
            contender = other.contender
            contestants.append(Contestant(name, contender.advance, [(case.portion,)], wait=contender.wait))
        else:
            contestants.append(other)
    of_portions = wall_times(contestants, setting.device, calls=1, rounds=case.rounds)
    times: Times = {
        name: each if isinstance(each, str) else [portion / case.portion for portion in each]
        for name, each in of_portions.items()
    }
    for name in case.variants:
        cells: dict[str, Cell] = {
            f"{OURS} us": figure(times, name),
            **{f"{other} us": figure(times, other) for other in others},
            "speed-up": ratio(times, peers.EAGER, name),
            "speed-up over best": ratio(times, fastest(times, list(others)), name),
            f"{OURS} MiB": mine[name].memory,
            **{f"{other} MiB": memory_of(others[other]) for other in MODES},
            "of allowed": part_of_allowed(case, name, mine[name].memory, loop.memory),
        }
        bounds = {PLAIN: {**case.bounds, "of allowed": "<= 1"}, BY_OUTPUT: {"of allowed": "<= 1"}, WATCHED: {}}
        yield Line({**columns_of(case.task), OURS: name}, cells, bounds[name])


def others_of(case: Case, data: Data, setting: Setting) -> dict[str, Met | Absent]:
    """Return PyTorch's loop, and who else trains as it does, or why another does not."""
    loop = met(partial(by_hand, case.task, data), case, setting.device)
    found: dict[str, Met | Absent] = {peers.EAGER: loop}

    def meet(name: str, make: Callable[[], Contender]) -> Met | Absent:
        try:
            other = met(make, case, setting.device)
        except Exception as error:  # whatever another's code raises costs its column, not ours
            return Absent(name, failure(error))
        agrees = off(other.losses, loop.losses) <= TOLERANCE[case.task.dtype]
        return other if agrees else Absent(name, "computes something else")

    if not setting.dry:
        torch.compiler.reset()  # what was compiled before counts against how often one function is
    for name in (peers.COMPILED, REDUCED):
        if setting.dry:
            found[name] = Absent(name, "not in a dry run")
        else:
            found[name] = meet(name, partial(by_hand, case.task, data, MODES[name]))
    jax = peers.load_jax("cpu" if setting.dry else "gpu")
    if isinstance(jax, str):
        found[peers.JAX] = Absent(peers.JAX, jax)
    else:
        found[peers.JAX] = meet(peers.JAX, partial(by_jax, case.task, data, jax))
    return found


def ours(case: Case, data: Data, variant: str, setting: Setting, execution: str = "graph") -> Contender:
    """Return a variant of minigrad's trainer; where there are no graphs, one that makes its steps one by one."""
    execution = execution if setting.device.type == "cuda" else "eager"
    save = "output" if variant == BY_OUTPUT else "input"
    return by_trainer(case.task, data, execution, save=save, watched=variant == WATCHED)


def checked(case: Case, data: Data, variant: str, expected: list[float], setting: Setting) -> Met:
    """Return a variant of minigrad's trainer whose losses are right.

    Args:
        case: what is trained.
        data: what it is trained on.
        variant: of ours.
        expected: the losses of PyTorch's loop.
        setting: of the section.

    Raises:
        CheckFailed: they are not those of PyTorch's loop, or not the same to the bit without a graph and a monitor.
    """
    found = met(partial(ours, case, data, variant, setting), case, setting.device)
    error, allowed = off(found.losses, expected), TOLERANCE[case.task.dtype]
    if not error <= allowed:
        raise CheckFailed(f"{case.task}, {variant}: minigrad's losses are off by {error:.3g}, allowed are {allowed}")
    unwatched = PLAIN if variant == WATCHED else variant
    if found.losses != ours(case, data, unwatched, setting, "eager").losses(CHECKED_STEPS):
        raise CheckFailed(f"{case.task}, {variant}: the graph's losses are not those of the same steps without it")
    return found


def met(make: Callable[[], Contender], case: Case, device: torch.device) -> Met:
    """Set up who trains, and see its first losses and how much memory it takes."""
    if device.type != "cuda":
        contender = make()
        return Met(contender, contender.losses(CHECKED_STEPS), "counted on a GPU alone")
    gc.collect()
    torch.cuda.synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    contender = make()
    losses = contender.losses(CHECKED_STEPS)
    contender.advance(case.portion)
    torch.cuda.synchronize(device)
    return Met(contender, losses, (torch.cuda.max_memory_allocated(device) - before) / MIB)


def off(losses: list[float], expected: list[float]) -> float:
    """Return the largest relative distance; NaN where a loss is NaN."""
    a, b = (torch.tensor(each, dtype=torch.float64) for each in (losses, expected))
    return ((a - b) / b).abs().max().item()


def memory_of(other: Met | Absent) -> float | str:
    """Return how many MiB a contestant takes, or why that is not known."""
    return other.memory if isinstance(other, Met) else other.reason


def part_of_allowed(case: Case, variant: str, memory: float | str, loop: float | str) -> float | str:
    """Return how much of the memory that is allowed a variant takes, or why that is not known."""
    if isinstance(memory, str) or isinstance(loop, str):
        return memory if isinstance(memory, str) else loop
    return memory / (loop + case.allowed(variant))


def columns_of(task: Task) -> dict[str, str]:
    """Return how a table names what is trained."""
    return {
        "network": f"{'-'.join(map(str, task.sizes))}, {task.activation}",
        "batch": str(task.batch_size),
        "dtype": str(task.dtype).removeprefix("torch."),
        "rule": task.rule,
    }
