"""The way out of the compiler. Apart, because importing it imports the compiler and, with that, Triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable(  # type: ignore[untyped-decorator]
    reason="torch.compile drops the backward of a Function inside a transform of torch.func"
)
def in_eager_mode(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return function(*arguments), computed outside the graph that is being compiled.

    Raises:
        RuntimeError: PyTorch is older than 2.13. What it compiles after such an excursion can lose its gradients:
            `torch.func.vjp` and `jacrev` gave zeros for any Function, seen in 2.11 with AOTAutograd.
    """
    if torch.__version__ < "2.13":
        raise RuntimeError(
            "inside torch.compile, the transforms of torch.func lose gradients of Functions before PyTorch 2.13: "
            "compile without the transform, transform without compiling, or upgrade PyTorch"
        )
    return function(*arguments)
