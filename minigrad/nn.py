"""Modules: the activations, a linear layer with its activation fused, a multilayer perceptron, and a replacement."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minigrad import functional
from minigrad.checks import check_activation, check_save
from minigrad.watched import Probe


class _Activation(torch.nn.Module):
    activation: str
    probe: Probe | None = None  # a monitor's, while it is attached

    def __init__(self, save: str = "input") -> None:
        super().__init__()
        check_save(save)
        self.save = save

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to each element."""
        return functional.activate(x, self.activation, self.save, self.probe)

    def extra_repr(self) -> str:
        """Name what differs from the default."""
        return "" if self.save == "input" else f"save={self.save!r}"


class Sigmoid(_Activation):
    """`minigrad.sigmoid` as a module. Any shape to the same shape.

    Args:
        save: "input" for exact gradients or "output" for PyTorch's memory.
    """

    activation = "sigmoid"


class Tanh(_Activation):
    """`minigrad.tanh` as a module. Any shape to the same shape.

    Args:
        save: "input" for exact gradients or "output" for PyTorch's memory.
    """

    activation = "tanh"


class ReLU(_Activation):
    """`minigrad.relu` as a module. Any shape to the same shape."""

    activation = "relu"

    def __init__(self) -> None:
        super().__init__()


class Linear(torch.nn.Linear):
    """activation(x W^T + b), the bias and the activation in one kernel. (..., in_features) to (..., out_features).

    A `torch.nn.Linear` in all else: parameters, their names and their initial values.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        bias: whether to add a bias.
        activation: "sigmoid", "tanh", "relu", or None for a linear layer alone.
        save: "input" for exact gradients or "output" for PyTorch's memory.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: an unknown activation or `save`.
    """

    probe: Probe | None = None  # a monitor's, while it is attached

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str | None = None,
        save: str = "input",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if activation is not None:
            check_activation(activation)
        check_save(save)
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.activation = activation
        self.save = save

    def forward(self, x: Tensor) -> Tensor:
        """Return activation(x W^T + b)."""
        if self.activation is None:
            return super().forward(x)
        product = torch.nn.functional.linear(x, self.weight)
        if self.bias is None:
            return functional.activate(  # type: ignore[unreachable] # torch's stub
                product, self.activation, self.save, self.probe
            )
        return functional.activate_biased(product, self.bias, self.activation, self.save, self.probe)

    def extra_repr(self) -> str:
        """Name the sizes and what differs from the default."""
        parts = [super().extra_repr()]
        if self.activation is not None:
            parts.append(f"activation={self.activation!r}")
        if self.save != "input":
            parts.append(f"save={self.save!r}")
        return ", ".join(parts)


class MLP(torch.nn.Sequential):
    """A multilayer perceptron: `Linear` layers, each but the last with an activation.

    (..., sizes[0]) to (..., sizes[-1]).

    Args:
        sizes: the width of the input, of each hidden layer and of the output; at least two.
        activation: "sigmoid", "tanh" or "relu", of every layer but the last.
        save: "input" for exact gradients or "output" for PyTorch's memory.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: `sizes` is no sequence of integers.
        ValueError: fewer than two sizes or one below 1; an unknown activation or `save`.
    """

    def __init__(
        self, sizes: Sequence[int], activation: str = "tanh", save: str = "input", device: Any = None, dtype: Any = None
    ) -> None:
        check_activation(activation)
        if not isinstance(sizes, Sequence) or not all(type(size) is int for size in sizes):
            raise TypeError(f"`sizes` is {sizes!r}: pass a sequence of integer widths, input first, as [64, 32, 10]")
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"`sizes` is {list(sizes)}: pass at least two widths, input first, each at least 1")
        last = len(sizes) - 2
        super().__init__(
            *(
                Linear(n_in, n_out, activation=None if i == last else activation, save=save, device=device, dtype=dtype)
                for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes))
            )
        )


_OF_TORCH: dict[type[torch.nn.Module], type[_Activation]] = {
    torch.nn.Sigmoid: Sigmoid,
    torch.nn.Tanh: Tanh,
    torch.nn.ReLU: ReLU,
}


def replace_activations(module: torch.nn.Module) -> torch.nn.Module:
    """Replace torch's sigmoid, tanh and ReLU modules by minigrad's, in place, wherever they are in a model.

    A module that is used in several places is replaced by one module in all of them. Activations that a model calls as
    functions (`torch.relu(x)`) are not modules and stay, as do subclasses, whose behaviour may be another. An in-place
    ReLU becomes one that is not: the values are the same, and one tensor more is allocated.

    Args:
        module: the model; or an activation itself, whose replacement is then returned.
    Returns: the model, its activations replaced.

    Raises:
        ValueError: one of them has hooks, which would be lost; then the model is as it was.
    """
    replacements: dict[torch.nn.Module, torch.nn.Module] = {}
    for old in module.modules():
        if type(old) in _OF_TORCH:
            if any(getattr(old, hooks) for hooks in _HOOKS):
                raise ValueError(
                    f"{old} has hooks, which would be lost: remove them before, and add them again; those of a "
                    "GradientMonitor go with its detach(), and another is to be made afterwards"
                )
            replacements[old] = _OF_TORCH[type(old)]().train(old.training)
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(module, module)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
