"""The same values in other places of memory: what a function must not mind."""

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from minigrad.autodiff.jacobians import contiguous, same

# Where in its memory a tensor lies: the offset, and the strides where they are not those of a contiguous one.
_Placement = tuple[int, tuple[int, ...]]
_CONTIGUOUS: _Placement = (0, ())


def layouts(
    what: str, tensors: Sequence[Tensor], names: Sequence[str], free_from: int = 0
) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield tensors in layouts that differ from one another and from contiguous, each with what that is called.

    First as they lie; then all in the same one; then, where there are several, one after the other by itself.

    Args:
        what: all of them are called.
        tensors: of any strides; what is yielded may share memory with them.
        names: of each.
        free_from: those from this number on may get other values, and are expanded along any dimension, as the upstream
            gradients that sums send are; those before only along dimensions in which their values are all the same.
    """
    every = [_layouts(x, free=i >= free_from) for i, x in enumerate(tensors)]
    ways = [(f"{what} as given", list(tensors))]
    ways += [(f"{what} {layout}", [of_one[layout] for of_one in every]) for layout in every[0]]
    for i, of_one in enumerate(every):
        moved = (name for name in ("transposed", "sliced") if _placement(of_one[name]) != _CONTIGUOUS)
        layout = next(moved, "shifted")
        mixed = [of_one[layout] if j == i else contiguous(x) for j, x in enumerate(tensors)]
        ways.append((f"{names[i]} alone {layout}", mixed))
    seen = {(_CONTIGUOUS,) * len(tensors)}
    for name, laid in ways:
        placements = tuple(map(_placement, laid))
        if placements not in seen:
            seen.add(placements)
            yield name, laid


def _layouts(x: Tensor, free: bool) -> dict[str, Tensor]:
    """Return copies by the names of their layouts; some may come out contiguous, or the same as others."""
    along = [dim for dim in range(x.dim()) if free or same(x, x.narrow(dim, 0, min(1, x.shape[dim])).expand_as(x))]
    return {
        "transposed": _transposed(x),
        "sliced": _sliced(x),
        "padded": _padded(x),
        "shifted": _shifted(x),
        "expanded": _expanded(x, along),
        "expanded along dim 0": _expanded(x, [dim for dim in along if dim == 0]),
        "expanded along dim -1": _expanded(x, [dim for dim in along if dim == x.dim() - 1]),
    }


def _transposed(x: Tensor) -> Tensor:
    """Return a copy whose first dimension is the one that lies closest in memory."""
    reverse = tuple(reversed(range(x.dim())))
    return contiguous(x.permute(reverse)).permute(reverse)


def _sliced(x: Tensor) -> Tensor:
    """Return a copy in every second element of a larger memory that is NaN elsewhere."""
    return x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 3), math.nan)[..., 2:-1:2].copy_(x) if x.dim() else x


def _padded(x: Tensor) -> Tensor:
    """Return a copy of packed rows with NaN between them."""
    return x.new_full((*x.shape[:-1], x.shape[-1] + 3), math.nan)[..., :-3].copy_(x) if x.dim() else x


def _shifted(x: Tensor) -> Tensor:
    """Return a contiguous copy in the midst of a memory that is NaN elsewhere, not where that begins."""
    return x.new_full((x.numel() + 3,), math.nan)[2:-1].view(x.shape).copy_(x)


def _expanded(x: Tensor, along: Sequence[int]) -> Tensor:
    """Return what is first along some dimensions, with stride 0 along these."""
    shape = x.shape
    for dim in along:
        x = x.narrow(dim, 0, min(1, shape[dim]))
    return contiguous(x).expand(shape)


def _placement(x: Tensor) -> _Placement:
    """Return where a tensor lies, the same for all that are contiguous: their strides vary where a size is 0 or 1."""
    if x.numel() == 0:
        return _CONTIGUOUS
    return int(x.storage_offset()), () if x.is_contiguous() else x.stride()
