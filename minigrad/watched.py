"""The Function of a layer that is watched: the same results, and statistics of both passes beside them.

It takes the place of `minigrad.functions` for one layer while a monitor is attached, in plain reverse mode. Elsewhere
(nothing recorded, a transform of torch.func, forward mode, tracing) the layer is computed as ever and nothing is seen.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from minigrad import functions
from minigrad_kernels import Layer

_n_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


class Probe(Protocol):
    """What computes a watched layer, and keeps what it sees.

    Attributes:
        layer: what is computed.
    """

    layer: Layer

    @property
    def is_on(self) -> bool:
        """Whether it wants to see anything now."""

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output."""

    def backward(self, upstream: Tensor, saved: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of the input and the bias from what the layer saves: input and bias, or the output."""


class Watched(Function):
    """An activation, after a bias or not, in plain reverse mode, whose passes a probe sees.

    A backward pass that records a graph (`create_graph=True`) is seen as any other. What goes through that graph
    afterwards is of second order, so the same layer's later passes are not seen.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, probe: Probe) -> Tensor:
        ctx.probe, ctx.activation, ctx.is_seen = probe, probe.layer.activation, True
        y = probe.forward(x, bias)
        if probe.layer.from_output:
            ctx.save_for_backward(y, None)
        else:
            ctx.save_for_backward(x, bias)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        saved, bias = ctx.saved_tensors
        probe = ctx.probe
        for_x, for_bias = ctx.needs_input_grad[:2]
        is_differentiated = torch.is_grad_enabled()
        dx = db = None
        if ctx.is_seen and probe.is_on and not _is_legacy_batched(v):
            ctx.is_seen = not is_differentiated
            with torch.no_grad():
                dx, db = probe.backward(v, saved, bias)
        if is_differentiated or dx is None:
            dx, db = functions.backward_of(probe.layer, v, saved, bias)
        return dx if for_x else None, db if for_bias else None, None


def watched(x: Tensor, bias: Tensor | None, probe: Probe) -> Tensor | None:
    """Return the output of a watched layer; None where this pass is not one to be seen.

    Args:
        x: any shape and strides; (..., N) with a bias.
        bias: (N,), x's dtype and device, or None.
        probe: sees it.
    """
    if torch.compiler.is_compiling():
        if not torch.compiler.is_dynamo_compiling():
            return None
        from minigrad.eager import in_eager_mode

        return in_eager_mode(watched, x, bias, probe)  # type: ignore[no-any-return]
    is_recorded = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    is_memory = type(x) in (Tensor, torch.nn.Parameter) and _n_dispatch_modes() == 0 and not _is_legacy_batched(x)
    if not (is_recorded and is_memory and probe.is_on) or functions.transforms_are_active():
        return None
    return Watched.apply(x, bias, probe)  # type: ignore[no-any-return]
