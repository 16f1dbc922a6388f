"""The fused update from Python: how tensors are cut into tiles, and the launches of a step (`update`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from minigrad_kernels import update
from minigrad_kernels import update_rules as rules
from minigrad_kernels.blocks import BLOCKS, cdiv
from minigrad_kernels.launch import launch
from minigrad_kernels.locations import Locations
from minigrad_kernels.plain_statistics import COLUMNS

MEASURED = 4
"""Numbers that are measured of each tensor."""

_TRITON = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}
_PLACES = {  # of the options among the coefficients
    "momentum": rules.FIRST,
    "beta1": rules.FIRST,
    "decay": rules.SECOND,
    "beta2": rules.SECOND,
    "epsilon": rules.EPSILON,
    "weight_decay": rules.WEIGHT_DECAY,
}


class Outcome(NamedTuple):
    """What a step reports, on the device, in float64.

    Attributes:
        numbers: (3 + n,): the loss, or NaN if none was given; the norm of all gradients together, before they were
            clipped; 1 if parameters and state have changed, 0 if not; then the norm of each gradient, 0 where there is
            none.
        measured: (MEASURED, n) where directions are kept, else None: the norms of gradient, parameter (before the step)
            and its change, and the cosine of the angle between this gradient and the last; NaN where there is none.
    """

    numbers: Tensor
    measured: Tensor | None


@dataclass
class _Group:
    """The tensors of one dtype.

    Attributes:
        tiles: (n, 3) int32, of each tile its tensor, its number within that, and its row among the sums.
        rows: (rows, COLUMNS), the sums of the tiles, among those of other dtypes.
        arguments: what the kernels are compiled for.
    """

    tiles: Tensor
    rows: Tensor
    arguments: dict[str, Any]


class FusedUpdate:
    """Updates all parameters of a model by a rule, in one launch, without the host reading anything.

    A step is rounded once: a parameter comes out within 1 ULP of the larger of itself and its change, as long as the
    squares of gradients are in the dtype's range (in float32's if that is wider) and the sums of a rule do not cancel
    beyond the dtype's own digits; in float64, where the gradient is clipped, within 2 ULP. The norms are summed in a
    fixed order.

    Args:
        rule: one of `STATES` of `update_rules`.
        options: the rule's, by name.
        parameters: at least one, on one device, of float16, bfloat16, float32 or float64; changed in place.
        state: what the rule keeps by name: in its order lists of a tensor like each parameter, and for those that count
            the updates that number, () float64; changed in place.
        clip_norm: a gradient longer than this, all taken together, is scaled down to it; None: never.
        stops: whether nothing changes any more after a step that was not applied, until `release`.
        directions: for a monitor the last gradients, each of length 1, flat in the order of the parameter's memory, in
            float32 at least; changed in place.

    Attributes:
        locations: where all of this lies; a graph that is to be replayed returns to those that it was captured with.

    Raises:
        TypeError: a dtype is none of these.
        ValueError: the rule is unknown, or state or directions do not fit the parameters.
    """

    def __init__(
        self,
        rule: str,
        options: Mapping[str, float],
        parameters: Sequence[Tensor],
        state: Mapping[str, list[Tensor] | Tensor],
        *,
        clip_norm: float | None = None,
        stops: bool = False,
        directions: Sequence[Tensor] | None = None,
    ) -> None:
        lists = [value for value in state.values() if isinstance(value, list)]
        counts = [value for value in state.values() if isinstance(value, Tensor)]
        _check(rule, parameters, lists, counts, directions)
        self._parameters = parameters
        self._n = len(parameters)
        self._updates = counts[0] if counts else None
        self._measures = directions is not None
        self._stops = stops
        self._rule, self._clips = rule, clip_norm is not None
        self._decays = bool(options.get("weight_decay"))
        device = parameters[0].device
        self._single_rows, self._double_rows, self._groups, places = _cut(parameters)
        none: list[Tensor | None] = [None] * self._n
        kept = zip(none if directions is None else directions, *lists, strict=True)  # in the order of the table
        self.locations = Locations(parameters, places, list(kept))
        n_rows = max(len(self._single_rows), len(self._double_rows))
        many = n_rows > BLOCKS.many_tiles
        n_sums = cdiv(n_rows, BLOCKS.norms)
        self._sums = torch.empty((n_sums, COLUMNS), dtype=torch.float64, device=device) if many else None
        self._single, self._double = _coefficients(options, clip_norm, device)
        self._norms = torch.empty(self._n, dtype=torch.float32, device=device)
        self._applied, self._sound = (torch.ones((), dtype=torch.int32, device=device) for _ in range(2))

    def apply(self, gradients: Sequence[Tensor | None], learning_rate: Tensor, loss: Tensor | None = None) -> Outcome:
        """Make a step if its gradients and its loss are finite.

        Args:
            gradients: of each parameter, in its shape and dtype; None leaves parameter and state alone.
            learning_rate: () float64, on the device.
            loss: () floating point, on the device.

        Raises:
            ValueError: a gradient does not fit its parameter.
        """
        self.locations.locate(gradients)
        report = self._double.new_empty(update.REPORTED + self._n)
        measured = self._double.new_empty((MEASURED, self._n)) if self._measures else None
        table = self.locations.table
        for group in self._groups:
            launch(
                update._squares_kernel, len(group.tiles), table,
                rows_ptr=group.rows, table_ptr=table, tiles_ptr=group.tiles,
                **group.arguments, num_warps=BLOCKS.num_warps, enable_fp_fusion=False,
            )  # fmt: skip
        if self._sums is not None:
            launch(
                update._combine_kernel, len(self._sums), table,
                sums_ptr=self._sums, single_rows_ptr=self._single_rows, double_rows_ptr=self._double_rows,
                n_single_rows=len(self._single_rows), n_double_rows=len(self._double_rows),
                ROWS=BLOCKS.norms, num_warps=BLOCKS.num_warps,
            )  # fmt: skip
        self._prepare_and_update(1 + self._n, report, learning_rate, loss)
        if measured is not None:
            launch(
                update._measure_kernel, self._n, table,
                measured_ptr=measured, report_ptr=report,
                single_rows_ptr=self._single_rows, double_rows_ptr=self._double_rows,
                table_ptr=table, n_tensors=self._n, ROWS=BLOCKS.norms, num_warps=BLOCKS.num_warps,
            )  # fmt: skip
        return Outcome(report, measured)

    def apply_unguarded(self, gradients: Sequence[Tensor | None], learning_rate: Tensor) -> None:
        """Make a step whatever the gradients are, as torch.optim does; the arguments are those of `apply`.

        Raises:
            ValueError: a gradient does not fit its parameter, or `clip_norm` or `directions` were given, which need the
                norms that `apply` computes.
        """
        if self._measures or self._clips:
            raise ValueError("clip_norm and directions need the norms of the gradients: call apply(), or give neither")
        self.locations.locate(gradients)
        self._prepare_and_update(1, None, learning_rate, None)

    def release(self) -> None:
        """Apply steps again after one that was not applied."""
        self._sound.fill_(1)

    def _prepare_and_update(
        self, n_programs: int, report: Tensor | None, learning_rate: Tensor, loss: Tensor | None
    ) -> None:
        table = self.locations.table
        launch(
            update._prepare_kernel, n_programs, table,
            report_ptr=report, norms_ptr=self._norms, single_ptr=self._single, double_ptr=self._double,
            applied_ptr=self._applied, sound_ptr=self._sound, updates_ptr=self._updates, loss_ptr=loss,
            learning_rate_ptr=learning_rate, single_rows_ptr=self._single_rows, double_rows_ptr=self._double_rows,
            sums_ptr=None if report is None else self._sums, table_ptr=table, n_single_rows=len(self._single_rows),
            n_double_rows=len(self._double_rows), n_sums=0 if self._sums is None else len(self._sums),
            RULE=self._rule, CLIPS=self._clips, STOPS=self._stops, ROWS=BLOCKS.norms,
            num_warps=BLOCKS.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
        for group in self._groups:
            is_double = group.arguments["DTYPE"] == tl.float64
            launch(
                update._update_kernel, len(group.tiles), table,
                rows_ptr=group.rows if self._measures else None, table_ptr=table, tiles_ptr=group.tiles,
                coefficients_ptr=self._double if is_double else self._single,
                applied_ptr=None if report is None else self._applied,
                norms_ptr=report[update.REPORTED :] if is_double and report is not None else self._norms,
                RULE=self._rule, CLIPS=self._clips, DECAYS=self._decays, N_STATES=rules.STATES[self._rule],
                **group.arguments, num_warps=BLOCKS.num_warps, enable_fp_fusion=False,
            )  # fmt: skip
        self.locations.copy_back()
        torch.autograd.graph.increment_version(self._parameters)


def _check(
    rule: str,
    parameters: Sequence[Tensor],
    lists: list[list[Tensor]],
    counts: list[Tensor],
    directions: Sequence[Tensor] | None,
) -> None:
    if rule not in rules.STATES:
        raise ValueError(f"unknown rule {rule!r}; there are: {', '.join(rules.STATES)}")
    expected = rules.STATES[rule], int(rule in rules.COUNTING)
    if (len(lists), len(counts)) != expected:
        raise ValueError(
            f"the state is {len(lists)} lists of tensors and {len(counts)} counts of updates: {rule} needs "
            f"{expected[0]} and {expected[1]}"
        )
    if not parameters:
        raise ValueError("there are no parameters: pass at least one")
    first_at: dict[int, int] = {}
    for i, parameter in enumerate(parameters):
        j = first_at.setdefault(parameter.data_ptr(), i) if parameter.numel() else i
        if j != i:
            raise ValueError(f"parameters {j} and {i} are the same memory: pass it once")
        if any(size > 1 and stride == 0 for size, stride in zip(parameter.shape, parameter.stride(), strict=True)):
            raise ValueError(f"parameter {i} is expanded, its elements share memory: pass what it was expanded from")
    for i, parameter in enumerate(parameters):
        if parameter.dtype not in _TRITON:
            raise TypeError(f"parameter {i} is of {parameter.dtype}: pass one of {', '.join(map(str, _TRITON))}")
        like = torch.empty_like(parameter, device="meta")
        for state in lists:
            there = state[i]
            if (there.shape, there.stride(), there.dtype) != (like.shape, like.stride(), like.dtype):
                raise ValueError(f"the state of parameter {i} does not lie as it does: pass torch.zeros_like of it")
        if directions is not None:
            direction, wide = directions[i], torch.promote_types(parameter.dtype, torch.float32)
            if direction.numel() != parameter.numel() or direction.dtype != wide or not direction.is_contiguous():
                raise ValueError(
                    f"direction {i} is {tuple(direction.shape)} of {direction.dtype}: pass ({parameter.numel()},) of "
                    f"{wide}"
                )
    tensors = [*parameters, *(tensor for state in lists for tensor in state), *counts, *(directions or [])]
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"parameters and state are on {', '.join(map(str, devices))}: pass them on one device")


def _cut(parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[_Group], list[list[int]]]:
    """Cut parameters into tiles.

    Returns: room for the sums of all tiles that are computed in float32, and of those in float64, (n, COLUMNS) each;
        the tensors by their dtype; and how the entry of each in the table begins.
    """
    device = parameters[0].device
    n_rows = {torch.float32: 0, torch.float64: 0}
    tiles: dict[torch.dtype, list[Tensor]] = {}
    places = []
    for i, parameter in enumerate(parameters):
        wide = torch.promote_types(parameter.dtype, torch.float32)
        n_tiles = cdiv(parameter.numel(), BLOCKS.update[parameter.element_size()])
        number = torch.arange(n_tiles, dtype=torch.int32)
        row = n_rows[wide] + number
        tiles.setdefault(parameter.dtype, []).append(torch.stack([torch.full_like(number, i), number, row], 1))
        places.append([parameter.numel(), n_rows[wide], n_tiles, int(wide == torch.float64)])
        n_rows[wide] += n_tiles
    rows = {wide: torch.empty((n, COLUMNS), dtype=wide, device=device) for wide, n in n_rows.items()}
    groups = []
    for dtype, parts in tiles.items():
        words, block = 1 if dtype.itemsize == 2 else 2, BLOCKS.update[dtype.itemsize]
        arguments = {"DTYPE": _TRITON[dtype], "WORDS": words, "BLOCK": block}
        group = _Group(torch.cat(parts).to(device), rows[torch.promote_types(dtype, torch.float32)], arguments)
        if len(group.tiles):
            groups.append(group)
    return rows[torch.float32], rows[torch.float64], groups, places


def _coefficients(options: Mapping[str, float], clip_norm: float | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the coefficients of a rule in two words each, (COEFFICIENTS, 2) float32 and float64."""
    double = torch.zeros((rules.COEFFICIENTS, 2), dtype=torch.float64)
    for name, value in options.items():
        double[_PLACES[name].value, 0] = value
    for kept, rest in ((rules.FIRST, rules.FIRST_REST), (rules.SECOND, rules.SECOND_REST)):
        double[rest.value, 0] = 1 - double[kept.value, 0]
    double[rules.CLIP_NORM.value, 0] = torch.inf if clip_norm is None else clip_norm
    high = double[:, 0].float()
    single = torch.stack([high, (double[:, 0] - high).float()], 1)
    return single.to(device), double.to(device)
