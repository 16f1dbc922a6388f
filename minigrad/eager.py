"""The way out of the compiler. Apart, because importing it imports the compiler and, with that, Triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable(  # type: ignore[untyped-decorator]
    reason="torch.compile drops the backward of a Function inside a transform of torch.func"
)
def in_eager_mode(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return function(*arguments), computed outside the graph that is being compiled."""
    return function(*arguments)
