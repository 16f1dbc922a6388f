"""The fused update of all parameters against torch.optim's, foreach and fused, and against copies of the same bytes.

Few large tensors, where memory is the limit, and many small ones, where launches are. `apply_unguarded` measures no
norm and skips no step, as torch.optim does; the cases called "clipped" are the whole `apply`, and the peers clip as
well, by `torch.nn.utils.clip_grad_norm_`. The copy reads and writes as many tensors as the update, without the norms.

Every step goes on from the last, and all contestants read the same gradients, which torch's clipping shortens in place.
Before it is timed, a contestant makes two steps on its first copy, which are compared with those of torch.optim in
float64, one element after the other; the timed graphs are seen to change every copy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

import minigrad_kernels as kernels
from bench.contest import OURS, hold
from bench.lines import Line
from bench.setting import CheckFailed, Setting
from bench.timing import Absent, Contestant, failure, ratio, rotation
from minigrad.options import options_of
from minigrad.rules import RULES, new_state

FOREACH, FUSED = "torch foreach", "torch fused"
NEEDS_TRITON = "needs Triton's kernels: on a GPU, or with TRITON_INTERPRET=1"

FEW, MANY = "10 large", "500 small"
SIZES = {FEW: [2**24] * 10, MANY: [64 + 2493 * i % 4033 for i in range(500)]}  # the small from 64 to 4096, even and odd
DRY_SIZES = {FEW: [40], MANY: [3, 17]}
GRAIN = 512  # bytes: where PyTorch places the tensors of a model
MOST_CALLS = 40  # a replay; from Python torch's take milliseconds where there are many tensors

TORCHS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "gradient_descent": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
}
READS = {"gradient_descent": 2, "momentum": 3, "adam": 4}
"""Tensors that a step reads: parameter, gradient and state. It writes all but the gradient."""

RATE = 0.1
CHECKED_STEPS = (1.0, 0.25)  # factors of the gradient, the second of which is not clipped
CHECKED_AT_ONCE = 2**24  # elements
OURS_ALLOWED = 4  # epsilons of the dtype: two steps of one rounding each, and a norm that is summed in float32
# Relative: foreach rounds after every operation, and takes 1 - 0.999^n in float32 where it can be captured.
TORCHS_ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        rule: of the update.
        tensors: FEW or MANY.
        dtype: of all tensors.
        clips: whether a step is guarded, and its gradient clipped.
        sizes: of the tensors, in elements.
    """

    rule: str
    tensors: str
    dtype: torch.dtype
    clips: bool
    sizes: Sequence[int]

    @property
    def n_bytes(self) -> int:
        """How many bytes a step has to move: the norm needs the gradients before anything else can be done."""
        return (2 * READS[self.rule] - 1 + self.clips) * sum(self.sizes) * self.dtype.itemsize

    @property
    def limit(self) -> float:
        """To what the gradients' norm is clipped: about half of what it is, standard normal as they are."""
        return math.sqrt(sum(self.sizes)) / 2

    @cached_property
    def starts(self) -> list[int]:
        """Where in memory each tensor begins, and a next copy of them all, in elements."""
        grain = GRAIN // self.dtype.itemsize
        return list(itertools.accumulate((-(-size // grain) * grain for size in self.sizes), initial=0))

    @property
    def columns(self) -> dict[str, str]:
        """How a table names it."""
        return {
            "rule": f"{self.rule}, clipped" if self.clips else self.rule,
            "dtype": str(self.dtype).removeprefix("torch."),
            "tensors": self.tensors,
        }

    def __str__(self) -> str:
        return f"{', '.join(self.columns.values())} tensors"


def measure(setting: Setting) -> Iterator[Line]:
    """Check and time every case; on the plain path, where there is no fused update, say so."""
    kinds = [
        *((rule, tensors, torch.float32, False) for tensors in (FEW, MANY) for rule in TORCHS),
        ("momentum", FEW, torch.bfloat16, False),
        *(("momentum", tensors, torch.float32, True) for tensors in (FEW, MANY)),
    ]
    sizes = DRY_SIZES if setting.dry else SIZES
    cases = [Case(rule, tensors, dtype, clips, sizes[tensors]) for rule, tensors, dtype, clips in kinds]
    for case in setting.in_time(cases[::2] if setting.dry else cases):  # half of them have all that there is
        if kernels.path_for(setting.device) == "plain":
            yield Line(case.columns, {f"{OURS} us": NEEDS_TRITON})
        else:
            yield line_of(case, setting)


def line_of(case: Case, setting: Setting) -> Line:
    """Check and time one case.

    Raises:
        CheckFailed: minigrad's parameters are not those of float64.
    """
    n_copies, calls = rotation(case.n_bytes, setting.device)
    calls = min(calls, max(n_copies, MOST_CALLS))
    gradients = torch.zeros((n_copies, case.starts[-1]), dtype=case.dtype, device=setting.device)
    for row in gradients:  # what lies between the tensors stays zero, and no step changes anything there
        for gradient in cut(row, case):
            gradient.normal_()
    parameters = {name: torch.randn_like(gradients) for name in (OURS, FOREACH, FUSED)}
    ours, *others = (entrant(name, case, parameters[name], gradients) for name in parameters)
    assert isinstance(ours, Contestant)
    reads = READS[case.rule]  # for a copy the others' parameters do as well as our state
    read = [tensors[:reads] for tensors in zip(gradients, *parameters.values(), strict=True)]
    cells, times = hold(ours, others, read, case.n_bytes, calls, setting, writes=reads - 1)
    cells["over fused"] = ratio(times, OURS, FUSED)
    cells["speed-up over foreach"] = ratio(times, FOREACH, OURS)
    bounds = {"over fused": "<= 1.03"}
    if not case.clips:
        bounds |= {"of copy": ">= 0.95"} if case.tensors == FEW else {"speed-up over foreach": ">= 2"}
    return Line(case.columns, cells, bounds)


def entrant(name: str, case: Case, parameters: Tensor, gradients: Tensor) -> Contestant | Absent:
    """Return who makes steps, checked and with every copy's state set up; or why another does not.

    Args:
        name: of OURS, FOREACH and FUSED.
        case: what they do.
        parameters: (copies, elements), changed in place.
        gradients: likewise, with zeros between the tensors.

    Raises:
        CheckFailed: minigrad's parameters are not those of float64.
    """
    try:
        steps = [
            step_of(name, case, *(cut(flat, case) for flat in pair)) for pair in zip(parameters, gradients, strict=True)
        ]
        off = distance(case, steps[0], parameters[0], gradients[0])
        for step in steps[1:]:  # tables and state are made by a first step, and must not be while a graph is captured
            step()
    except Exception as error:  # whatever another's code raises costs its column, not ours
        if name == OURS:
            raise
        return Absent(name, failure(error))
    allowed = OURS_ALLOWED * torch.finfo(case.dtype).eps if name == OURS else TORCHS_ALLOWED[case.dtype]
    if off <= allowed:
        return Contestant(name, make, list(zip(parameters, steps, strict=True)), is_ours=name == OURS)
    if name == OURS:
        raise CheckFailed(f"{case}: minigrad's parameters are off by {off:.3g}, allowed are {allowed:.3g}")
    return Absent(name, "computes something else")


def make(parameters: Tensor, step: Callable[[], object]) -> None:
    """Make a step that changes the parameters."""
    step()


def cut(flat: Tensor, case: Case) -> list[Tensor]:
    """Return the tensors that lie in memory one after the other."""
    return [flat[start : start + size] for start, size in zip(case.starts, case.sizes, strict=False)]


def step_of(name: str, case: Case, parameters: list[Tensor], gradients: list[Tensor]) -> Callable[[], object]:
    """Return what makes a step on these parameters, with state of its own."""
    if name == OURS:
        rule = RULES[case.rule]
        clip_norm = case.limit if case.clips else None
        update = kernels.new_fused_update(
            case.rule, options_of(rule), parameters, new_state(rule, parameters), clip_norm=clip_norm
        )
        rate = torch.full((), RATE, dtype=torch.float64, device=gradients[0].device)
        return partial(update.apply if case.clips else update.apply_unguarded, gradients, rate)
    leaves = [torch.nn.Parameter(parameter) for parameter in parameters]
    for leaf, gradient in zip(leaves, gradients, strict=True):
        leaf.grad = gradient
    how: dict[str, Any] = {"foreach": True} if name == FOREACH else {"fused": True}
    if case.rule == "adam":
        how["capturable"] = leaves[0].is_cuda
    optimizer = TORCHS[case.rule](leaves, lr=RATE, **how)
    if not case.clips:
        return optimizer.step

    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(leaves, case.limit, foreach=True)
        optimizer.step()

    return clip_and_step


def distance(case: Case, step: Callable[[], object], parameters: Tensor, gradients: Tensor) -> float:
    """Make the steps that are checked, and return how far from float64 they lead, relative to what they add up.

    Args:
        case: what is done.
        step: makes a step.
        parameters: (elements,), changed in place.
        gradients: (elements,), as they were afterwards.
    """
    before, given = parameters.clone(), gradients.clone()
    for factor in CHECKED_STEPS:
        gradients.copy_(given * factor)
        step()
    gradients.copy_(given)
    norm = given.double().norm().item()
    furthest = []
    for start in range(0, len(given), CHECKED_AT_ONCE):
        where = slice(start, start + CHECKED_AT_ONCE)
        old, actual = before[where].double(), parameters[where].double()
        expected = exact(case, old, given[where].double(), norm)
        off = (actual - expected).abs() / (old.abs() + 2 * (expected - old).abs())
        furthest.append(torch.where(actual == expected, 0.0, off).max())
    return torch.stack(furthest).max().item()


def exact(case: Case, parameters: Tensor, gradients: Tensor, norm: float) -> Tensor:
    """Return what the checked steps make of parameters, by torch.optim in float64.

    Args:
        case: what is done.
        parameters: (elements,) float64.
        gradients: (elements,) float64.
        norm: of all gradients, of which these may be a part.
    """
    leaf = torch.nn.Parameter(parameters.clone())
    optimizer = TORCHS[case.rule]([leaf], lr=RATE, foreach=False)
    for factor in CHECKED_STEPS:
        clip = min(1.0, case.limit / (abs(factor) * norm)) if case.clips else 1.0
        leaf.grad = gradients * (factor * clip)
        optimizer.step()
    return leaf.detach()
