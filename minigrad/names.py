"""What nodes of autograd's graph are called that minigrad's Functions have made."""

import torch

from minigrad.functions import BiasActivation, Derivative, DoubleBackward, SavingOutput
from minigrad.watched import Watched


def name_of(node: torch.autograd.graph.Node) -> str | None:
    """Return what a node of the graph computed in words of the public functions; None if it is not minigrad's."""
    function = getattr(type(node), "_forward_cls", None)
    if function not in (Derivative, DoubleBackward, SavingOutput, BiasActivation, Watched):
        return None
    activation, order = node.activation, getattr(node, "order", 0)  # type: ignore[attr-defined]
    if function is DoubleBackward:
        return f"minigrad.double_backward({activation}, {order})"
    if function is BiasActivation or (function is Watched and node.probe.layer.biased):  # type: ignore[attr-defined]
        return f"minigrad.bias_activation({activation})"
    return f"minigrad.{activation}" if order == 0 else f"minigrad.derivative({activation}, {order})"
