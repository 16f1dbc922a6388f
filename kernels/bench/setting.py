"""What a section of the GPU benchmark is told, and how it says that something is wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


class CheckFailed(Exception):  # noqa: N818 - it names what happened, and a section raises it to say so
    """A result that is to be timed is wrong: the section's figures are withheld, and the message says which result."""


@dataclass
class Setting:
    """Where and for how long a section measures.

    Attributes:
        device: that computes.
        dry: whether only to show that everything runs, at tiny sizes.
        deadline: by `time.monotonic()`; no case is begun after it.
        left_out: how many cases the deadline has cost.
    """

    device: torch.device
    dry: bool
    deadline: float
    left_out: int = 0

    def in_time(self, cases: Sequence[T]) -> Iterator[T]:
        """Yield the cases as long as the section's time lasts, and count those that are left out."""
        for index, case in enumerate(cases):
            if time.monotonic() > self.deadline:
                self.left_out += len(cases) - index
                return
            yield case
