"""The operations, on the path that fits their tensors: Triton's kernels or plain PyTorch.

None of them is differentiable by itself: `minigrad.functions` makes them so. Each exists twice. The function is for
plain tensors in eager mode and costs little more than the choice of a path. The operator of the same name in
`torch.ops.minigrad` is the same function behind PyTorch's dispatcher, with a rule for shapes: tracers (torch.compile,
export, fake tensors, tensor subclasses) see it whole, so what is traced runs the same kernel and gives the same bits.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch.autograd import forward_ad

from minigrad_kernels import plain
from minigrad_kernels.plain_statistics import Tally
from minigrad_kernels.polynomials import MAX_ORDER

if TYPE_CHECKING:
    from minigrad_kernels.fused_update import FusedUpdate

ACTIVATIONS = ("sigmoid", "tanh", "relu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ACCEPTED = frozenset(DTYPES)

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")  # as Triton reads it
_TRITON_DEVICE = "cpu" if _INTERPRETED else "cuda"  # ROCm's devices are called cuda too
_OLDEST = (8, 0)  # compute capability, by Triton's own list of what it supports
# Bound once: looking each up through its module costs as much as calling it.
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_n_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_functorch_wrapper = torch._C._functorch.is_functorch_wrapped_tensor
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_LIBRARY = torch.library.Library("minigrad", "DEF")
_DIFFERENTIABLE: dict[str, Callable[..., Any]] = {}

F = TypeVar("F", bound=Callable[..., Any])


def path_for(device: torch.device | str) -> str:
    """Return which path runs on `device`: "triton" or "plain".

    Triton's kernels run on CUDA and ROCm devices where Triton is installed and, with TRITON_INTERPRET=1 in the
    environment, on the CPU in Triton's interpreter. Everywhere else plain PyTorch runs.
    """
    return "triton" if _HAS_TRITON and torch.device(device).type == _TRITON_DEVICE else "plain"


def check_device(device: torch.device | str) -> None:
    """Raise an error if Triton's kernels are to run on a device and cannot.

    Raises:
        RuntimeError: the GPU is older than those that Triton makes code for.
    """
    if path_for(device) == "triton":
        _triton_path(_index(device))


def new_tally(device: torch.device | str) -> Tally:
    """Return what computes watched layers on `device`, on the path that runs there, and gathers their statistics."""
    return _triton_path(_index(device)).Tally() if path_for(device) == "triton" else Tally()


def new_fused_update(
    rule: str,
    options: Mapping[str, float],
    parameters: Sequence[torch.Tensor],
    state: Mapping[str, list[torch.Tensor] | torch.Tensor],
    *,
    clip_norm: float | None = None,
    stops: bool = False,
    directions: Sequence[torch.Tensor] | None = None,
) -> FusedUpdate:
    """Return what updates all parameters of a model by one kernel, on a device whose path is Triton's.

    Args:
        rule: as of `FusedUpdate`, like the rest.
        options: likewise.
        parameters: likewise.
        state: likewise.
        clip_norm: likewise.
        stops: likewise.
        directions: likewise.

    Raises:
        TypeError: as `FusedUpdate` does.
        ValueError: likewise.
    """
    path = _triton_path(parameters[0].get_device() if parameters else -1)
    return path.FusedUpdate(  # type: ignore[no-any-return]
        rule, options, parameters, state, clip_norm=clip_norm, stops=stops, directions=directions
    )


def put_row(table: torch.Tensor, row: torch.Tensor, values: torch.Tensor) -> None:
    """Write table[row] = values, where only the device knows the row; for a device whose path is Triton's.

    Args:
        table: (rows, n), contiguous; changed in place.
        row: one int64, below `rows`, on the same device.
        values: (n,), contiguous, of the table's dtype.
    """
    _triton_path(table.get_device()).put_row(table, row, values)


def _index(device: torch.device | str) -> int:
    """Return the number of a device among those of its kind, -1 for the CPU."""
    return torch.empty(0, device=device).get_device()


@functools.cache
def _triton_path(index: int) -> Any:
    """Return Triton's path on a device, by its number.

    Raises:
        RuntimeError: the GPU is older than those that Triton makes code for.
    """
    if index >= 0 and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(index)
        if capability < _OLDEST:
            found, needed = (".".join(map(str, version)) for version in (capability, _OLDEST))
            raise RuntimeError(
                f"{torch.cuda.get_device_name(index)} has compute capability {found}, and Triton needs {needed} at "
                "least: compute on the CPU, or uninstall triton to compute with PyTorch's own operations there"
            )
    return importlib.import_module("minigrad_kernels.triton_path")  # only now: importing Triton takes a while


def _operator(schema: str, shapes: Callable[..., Any]) -> Callable[[F], F]:
    """Define torch.ops.minigrad.<name> from a function, and send traced tensors through it.

    Args:
        schema: the arguments and results in PyTorch's schema language; the first argument is a tensor.
        shapes: the function on fake tensors.
    """

    def decorate(function: F) -> F:
        name = function.__name__
        _LIBRARY.define(name + schema)
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        _LIBRARY.impl(name, _autograd_rule(name), "Autograd", with_keyset=True)
        torch.library.register_fake(f"minigrad::{name}", shapes, lib=_LIBRARY)
        operator = getattr(torch.ops.minigrad, name)
        n_tensors = schema.count("Tensor", 0, schema.index("->"))

        @functools.wraps(function)
        def choose(*arguments: Any) -> Any:
            return operator(*arguments) if _are_traced(arguments[:n_tensors]) else function(*arguments)

        return cast(F, choose)

    return decorate


def _are_traced(tensors: tuple[Any, ...]) -> bool:
    """Return whether a tensor is not simply memory: a tracer's, a subclass's, or a wrapper's that torch.func left.

    Such wrappers are plain `Tensor`s to Python: those of a transform that has ended, as in the function that
    `torch.func.vjp` returns, and the batched ones of `torch.autograd.grad(..., is_grads_batched=True)`.
    """
    if _is_compiling() or _n_dispatch_modes() > 0:
        return True
    for tensor in tensors:
        if tensor is None:
            continue
        kind = type(tensor)
        if kind is not torch.Tensor and kind is not torch.nn.Parameter:
            return True
        if _is_functorch_wrapper(tensor) or _is_legacy_batched(tensor):
            return True
        if tensor.requires_grad and _is_grad_enabled():
            return True  # to the operator's rule under autograd
    return False


def make_differentiable(name: str, function: Callable[..., Any]) -> None:
    """Have `function` serve torch.ops.minigrad.<name> where autograd records: in an exported program, above all.

    Args:
        name: of an operator of this module.
        function: takes the operator's arguments and is differentiable in reverse mode.
    """
    _DIFFERENTIABLE[name] = function


def _path(x: torch.Tensor, activation: str) -> Any:
    """Return the module that computes on x, once x and the activation are such that it can."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; there are: {', '.join(ACTIVATIONS)}")
    if x.dtype not in _ACCEPTED:
        raise TypeError(f"a tensor of {x.dtype} came: pass one of {', '.join(map(str, DTYPES))}")
    if x.layout is not torch.strided:
        raise TypeError(f"a tensor of layout {x.layout} came: pass a dense one")
    on_triton = x.is_cpu if _INTERPRETED else x.is_cuda  # far cheaper than x.device.type
    return _triton_path(x.get_device()) if _HAS_TRITON and on_triton else plain


def _check_upstream(upstream: torch.Tensor, x: torch.Tensor) -> None:
    if upstream.shape != x.shape or upstream.dtype != x.dtype or upstream.device != x.device:
        raise ValueError(
            f"a gradient is {tuple(upstream.shape)} of {upstream.dtype} on {upstream.device} and its partner "
            f"{tuple(x.shape)} of {x.dtype} on {x.device}: pass one alike"
        )


def _check_bias(x: torch.Tensor, bias: torch.Tensor) -> None:
    if bias.shape != x.shape[-1:] or x.dim() == 0 or bias.dtype != x.dtype:
        raise ValueError(
            f"`bias` is {tuple(bias.shape)} of {bias.dtype} and x is {tuple(x.shape)} of {x.dtype}: "
            "pass a bias as long as x's last dimension, of x's dtype"
        )


def _autograd_rule(name: str) -> Callable[..., Any]:
    """Return what the operator does under autograd: never a result whose derivative would silently be zero."""

    def rule(keyset: Any, *arguments: Any) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        recorded = _is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        in_forward_mode = any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
        if recorded and not in_forward_mode and name in _DIFFERENTIABLE:
            return _DIFFERENTIABLE[name](*arguments)
        if recorded or in_forward_mode:
            raise RuntimeError(
                f"torch.ops.minigrad.{name} cannot be differentiated this way: call the functions of minigrad, and "
                "outside torch.compile where it is in forward mode or inside a transform of torch.func"
            )
        with torch._C._AutoDispatchBelowAutograd():
            below = keyset & torch._C._after_autograd_keyset
            return getattr(torch.ops.minigrad, name).default.redispatch(below, *arguments)

    return rule


@_operator(
    "(Tensor x, Tensor? upstream, str activation, int order) -> Tensor",
    lambda x, upstream, activation, order: torch.empty_like(x),
)
def derivative(x: torch.Tensor, upstream: torch.Tensor | None, activation: str, order: int, /) -> torch.Tensor:
    """Return f^(order)(x), times `upstream` unless that is None. Not differentiable.

    Args:
        x: any shape and strides; float16, bfloat16, float32 or float64. ReLU's derivatives also take its output here.
        upstream: x's shape, dtype and device, or None; for an order from 1 on.
        activation: "sigmoid", "tanh" or "relu".
        order: 0, the activation itself, to 10.
    Returns: a new tensor of x's shape and dtype, laid out as torch's own function would.
    """
    path = _path(x, activation)
    if upstream is not None:
        _check_upstream(upstream, x)
    if not (0 if upstream is None else 1) <= order <= MAX_ORDER:
        raise ValueError(f"`order` is {order}: pass 0 to {MAX_ORDER}, and with an upstream gradient 1 to {MAX_ORDER}")
    return path.derivative(x, upstream, activation, order)  # type: ignore[no-any-return]


@_operator(
    "(Tensor v, Tensor upstream, Tensor x, str activation, int order) -> (Tensor, Tensor)",
    lambda v, upstream, x, activation, order: (torch.empty_like(x), torch.empty_like(x)),
)
def double_backward(
    v: torch.Tensor, upstream: torch.Tensor, x: torch.Tensor, activation: str, order: int, /
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return v f^(order)(x) and v upstream f^(order+1)(x), for 1 <= order <= 9. Not differentiable.

    These are the gradients of upstream f^(order)(x) with respect to `upstream` and x, where v arrives at it.

    Args:
        v: x's shape, dtype and device.
        upstream: likewise.
        x: any shape and strides.
        activation: "sigmoid" or "tanh".
        order: of the product that is differentiated.
    """
    path = _path(x, activation)
    if activation == "relu":
        raise ValueError("ReLU has no double backward: its second derivative is 0; pass sigmoid or tanh")
    _check_upstream(v, x)
    _check_upstream(upstream, x)
    if not 1 <= order < MAX_ORDER:
        raise ValueError(f"`order` is {order}: pass 1 to {MAX_ORDER - 1}")
    return path.double_backward(v, upstream, x, activation, order)  # type: ignore[no-any-return]


@_operator(
    "(Tensor upstream, Tensor y, str activation) -> Tensor",
    lambda upstream, y, activation: torch.empty_like(y),
)
def backward_from_output(upstream: torch.Tensor, y: torch.Tensor, activation: str, /) -> torch.Tensor:
    """Return upstream f'(x) from y = f(x): exact for ReLU, and for the others as inexact as y is rounded.

    Not differentiable.

    Args:
        upstream: y's shape, dtype and device.
        y: any shape and strides.
        activation: "sigmoid", "tanh" or "relu".
    """
    path = _path(y, activation)
    _check_upstream(upstream, y)
    return path.backward_from_output(upstream, y, activation)  # type: ignore[no-any-return]


@_operator(
    "(Tensor x, Tensor bias, str activation) -> Tensor",
    lambda x, bias, activation: torch.empty_like(x),
)
def bias_activation(x: torch.Tensor, bias: torch.Tensor, activation: str, /) -> torch.Tensor:
    """Return f(x + bias), rounded once. Not differentiable.

    Args:
        x: (..., N), any strides.
        bias: (N,), x's dtype and device.
        activation: "sigmoid", "tanh" or "relu".
    """
    path = _path(x, activation)
    _check_bias(x, bias)
    return path.bias_activation(x, bias, activation)  # type: ignore[no-any-return]


@_operator("(Tensor x, str activation) -> Tensor", lambda x, activation: torch.empty_like(x))
def activation_saving_output(x: torch.Tensor, activation: str, /) -> torch.Tensor:
    """Return f(x), as `derivative` of order 0; its operator is the one to differentiate by the stored output.

    Args:
        x: any shape and strides.
        activation: "sigmoid" or "tanh".
    """
    return derivative(x, None, activation, 0)


@_operator("(Tensor x, Tensor bias, str activation) -> Tensor", lambda x, bias, activation: torch.empty_like(x))
def bias_activation_saving_output(x: torch.Tensor, bias: torch.Tensor, activation: str, /) -> torch.Tensor:
    """Return f(x + bias), as `bias_activation`; its operator is the one to differentiate by the stored output.

    Args:
        x: (..., N), any strides.
        bias: (N,), x's dtype and device.
        activation: "sigmoid", "tanh" or "relu".
    """
    return bias_activation(x, bias, activation)


@_operator(
    "(Tensor upstream, Tensor saved, Tensor? bias, str activation) -> (Tensor, Tensor)",
    lambda upstream, saved, bias, activation: (torch.empty_like(saved), saved.new_empty(saved.shape[-1:])),
)
def bias_activation_backward(
    upstream: torch.Tensor, saved: torch.Tensor, bias: torch.Tensor | None, activation: str, /
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of f(x + bias), (..., N) and (N,). Not differentiable.

    The second is summed over rows in a fixed order, from unrounded values.

    Args:
        upstream: (..., N).
        saved: (..., N), the input x if `bias` is given, the output y if not.
        bias: (N,) or None.
        activation: "sigmoid", "tanh" or "relu".
    """
    path = _path(saved, activation)
    _check_upstream(upstream, saved)
    if bias is not None:
        _check_bias(saved, bias)
    return path.bias_activation_backward(upstream, saved, bias, activation)  # type: ignore[no-any-return]
