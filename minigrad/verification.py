"""What an experiment says of a value that it shows: that it is the right one, or a failure with the numbers."""

import torch
from torch import Tensor

from minigrad.errors import RunFailed

Value = Tensor | float


def verify(what: str, found: Value | None, expected: Value, within: float = 0.0) -> None:
    """Raise unless every element found is the one expected, compared in float64.

    Args:
        what: names the value in the message.
        found: any shape but an empty one, real; None, as of a gradient that is missing, is never right.
        expected: the same shape, or one number for all.
        within: the largest absolute difference allowed; infinities and NaN are right only where they are expected.

    Raises:
        RunFailed: one is off; the message has the worst, with its index where there are several.
    """
    if found is None or (isinstance(found, Tensor) and found.numel() == 0):
        raise RunFailed(f"{what} is missing, expected {expected}")
    assert not torch.is_complex(torch.as_tensor(found))  # float64 would drop half of it
    ours, theirs = (torch.as_tensor(value, dtype=torch.float64).detach().cpu() for value in (found, expected))
    if theirs.shape not in ((), ours.shape):
        raise RunFailed(f"{what} is {tuple(ours.shape)}, expected {tuple(theirs.shape)}")
    theirs = theirs.expand_as(ours)
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    error = (ours - theirs).abs().masked_fill(same, 0.0)
    if bool((error <= within).all()):
        return
    index = tuple(int(i) for i in torch.unravel_index(error.nan_to_num(torch.inf).argmax(), ours.shape))
    place = str(list(index)) if index else ""
    limit = f" within {within:g}" if within else ""
    raise RunFailed(f"{what}{place} is {float(ours[index]):.17g}, expected {float(theirs[index]):.17g}{limit}")


def verify_that(what: str, holds: bool) -> None:
    """Raise a RunFailed that says what does not hold, unless it does."""
    if not holds:
        raise RunFailed(f"{what}: this does not hold")
