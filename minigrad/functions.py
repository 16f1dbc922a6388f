"""The autograd Functions: how the activations, and all their derivatives, are differentiated.

One Function carries the mathematics. With n = 0 for the activation itself,

    Derivative_n(x)    = f^(n)(x),           backward: dx = Derivative_{n+1}(x, v)
    Derivative_n(x, g) = g f^(n)(x),         backward: dg = Derivative_n(x, v),  dx = Derivative_{n+1}(x, v g)

so the backward of each order is the Function of the next, and whatever PyTorch composes from them (create_graph,
torch.func, forward mode) is exact to the tenth order. Sigmoid and tanh save x, ReLU saves its output.

Three more Functions serve plain reverse mode: `DoubleBackward` fuses the two results of a double backward,
`BiasActivation` the bias with the activation, and `SavingOutput` saves the output. Under a transform of torch.func or
in forward mode the same values come from `Derivative`, which knows vmap and jvp.

torch.compile and torch.export see none of these Functions but the operators of `minigrad_kernels`, which lead back
here where autograd records them (`make_differentiable`, below); so a saved tensor that is changed is noticed there too.
Inside a transform of torch.func the compiler would drop a Function's backward altogether: there it is sent back to
eager mode (`minigrad.eager`), or raises where it may not leave the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

import minigrad_kernels as kernels

_in_torch_func = torch._C._are_functorch_transforms_active
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


class Derivative(Function):
    """f^(order)(x), times `upstream` unless that is None: differentiable any way PyTorch knows, to the tenth order."""

    forward = staticmethod(kernels.derivative)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, upstream, activation, order = inputs
        if order == 0 and activation == "relu":
            x = output
        ctx.activation, ctx.order = activation, order
        ctx.save_for_backward(x, upstream)
        if transforms_are_active():
            ctx.save_for_forward(x, upstream)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        return _derivative_backward(ctx, v)

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, upstream_tangent: Tensor | None, *_: None) -> Tensor:
        activation, order = ctx.activation, ctx.order
        # PyTorch turns forward mode off here, and with it every jvp around this one (pytorch#197867): back on, and only
        # this level's tangents set aside.
        with forward_ad._set_fwd_grad_enabled(True):
            x, upstream = ctx.saved_tensors
            x = forward_ad.unpack_dual(x, level=0).primal
            if upstream is not None:
                upstream = forward_ad.unpack_dual(upstream, level=0).primal
            terms = []
            if upstream_tangent is not None:
                terms.append(derivative(widen(x), widen(upstream_tangent), activation, order))
            if x_tangent is not None:
                term = derivative(widen(x), widen(x_tangent), activation, _next(order, activation))
                terms.append(term if upstream is None or activation == "relu" else term * widen(upstream))
            return sum(terms[1:], terms[0]).to(x.dtype)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, upstream: Tensor | None, activation: str, order: int
    ) -> tuple[Tensor, int]:
        if in_dims[0] is None:
            assert upstream is not None
            x = x.expand(info.batch_size, *x.shape)
        else:
            x = x.movedim(in_dims[0], 0)
        if upstream is not None:
            upstream = upstream.expand_as(x) if in_dims[1] is None else upstream.movedim(in_dims[1], 0)
        return derivative(x, upstream, activation, order), 0


# Function.apply binds a signature on every call, which only torch.func needs, and which takes as long as all the rest.
_apply_outside_transforms = super(Function, Derivative).apply


def derivative(x: Tensor, upstream: Tensor | None, activation: str, order: int) -> Tensor:
    """Return f^(order)(x), times `upstream` unless that is None, differentiably.

    Raises:
        ValueError: the order is above 10, in a backward of order 10 that needs the eleventh derivative.
    """
    if order > kernels.MAX_ORDER:
        raise ValueError(
            f"derivatives of {activation} go to order {kernels.MAX_ORDER}, and this asks for order {order}: "
            "beyond, float32 keeps too few digits. Differentiate fewer times."
        )
    if torch.compiler.is_compiling():
        return _traced_derivative(x, upstream, activation, order)
    if _in_torch_func():
        return Derivative.apply(x, upstream, activation, order)  # type: ignore[no-any-return]
    if _is_recorded(x, upstream) or forward_ad._current_level >= 0:
        if upstream is not None and _is_legacy_batched(upstream):
            return torch.ops.minigrad.derivative(x, upstream, activation, order)  # type: ignore[no-any-return]
        return _apply_outside_transforms(x, upstream, activation, order)  # type: ignore[no-any-return]
    return kernels.derivative(x, upstream, activation, order)


def _is_recorded(x: Tensor, other: Tensor | None = None) -> bool:
    """Return whether autograd needs a Function, which takes longer to call than an operation on a small tensor."""
    return torch.is_grad_enabled() and (x.requires_grad or (other is not None and other.requires_grad))


def _traced_derivative(x: Tensor, upstream: Tensor | None, activation: str, order: int) -> Tensor:
    if _in_torch_func() and torch.compiler.is_dynamo_compiling():
        from minigrad.eager import in_eager_mode

        return in_eager_mode(Derivative.apply, x, upstream, activation, order)  # type: ignore[no-any-return]
    return torch.ops.minigrad.derivative(x, upstream, activation, order)  # type: ignore[no-any-return]


def _derivative_backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of `Derivative` for x and `upstream`, and None for what is no tensor."""
    x, upstream = ctx.saved_tensors
    if torch.is_grad_enabled():
        x, upstream, v = _alive(x), None if upstream is None else _alive(upstream), _alive(v)
    activation, order = ctx.activation, ctx.order
    if upstream is None:
        return derivative(x, v, activation, _next(order, activation)), None, None, None
    for_x, for_upstream = ctx.needs_input_grad[:2]
    dx = dg = None
    if not for_x:
        dg = derivative(x, v, activation, order)
    elif _is_plain_reverse_mode(v) and activation != "relu" and order < kernels.MAX_ORDER:
        dg, dx = DoubleBackward.apply(v, upstream, x, activation, order)
    else:
        dg = derivative(x, v, activation, order) if for_upstream else None
        dx = derivative(widen(x), widen(v), activation, _next(order, activation))
        dx = (dx if activation == "relu" else dx * widen(upstream)).to(x.dtype)
    return dx, dg, None, None


def _alive(tensor: Tensor) -> Tensor:
    """Return what a wrapper holds that a transform of torch.func left, as in what `torch.func.vjp` returns.

    Autograd records on what is inside; `Function.apply` unwraps likewise.
    """
    return torch._C._functorch.unwrap_if_dead(tensor)


def _is_plain_reverse_mode(v: Tensor) -> bool:
    """Return whether neither a transform is at work, nor `is_grads_batched`, which gives a batch for the gradient v."""
    return not transforms_are_active() and not _is_legacy_batched(v)


def _next(order: int, activation: str) -> int:
    """Return the order of the next derivative; ReLU's are all 0 from the second on, which stands for them."""
    return min(order + 1, 2) if activation == "relu" else order + 1


class DoubleBackward(Function):
    """v f^(n)(x) and v upstream f^(n+1)(x), both from one kernel, for sigmoid and tanh."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, upstream: Tensor, x: Tensor, activation: str, order: int) -> tuple[Tensor, Tensor]:
        ctx.activation, ctx.order = activation, order
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(v, upstream, x)
        return kernels.double_backward(v, upstream, x, activation, order)

    @staticmethod
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, ...]:
        dtype = ctx.saved_tensors[2].dtype
        v, upstream, x = (widen(tensor) for tensor in ctx.saved_tensors)
        for_v, for_upstream, for_x = ctx.needs_input_grad[:3]
        activation, n = ctx.activation, ctx.order
        dv, dg, dx = [], [], []
        if a is not None:
            a = widen(a)
            if for_v:
                dv.append(derivative(x, a, activation, n))
            if for_x:
                dx.append(derivative(x, a * v, activation, n + 1))
        if b is not None:
            b = widen(b)
            if for_v:
                dv.append(derivative(x, b * upstream, activation, n + 1))
            if for_upstream:
                dg.append(derivative(x, b * v, activation, n + 1))
            if for_x:
                dx.append(derivative(x, b * v * upstream, activation, n + 2))
        return *(sum(terms[1:], terms[0]).to(dtype) if terms else None for terms in (dv, dg, dx)), None, None


class SavingOutput(Function):
    """Sigmoid or tanh saving its output: PyTorch's memory, and PyTorch's accuracy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str) -> Tensor:
        ctx.activation = activation
        y = kernels.derivative(x, None, activation, 0)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        return _backward_from_output(v, y, ctx.activation), None


class BiasActivation(Function):
    """f(x + bias) in one kernel. Saves x and bias, or only the output where `save` says so or f is ReLU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, activation: str, save: str) -> Tensor:
        ctx.activation = activation
        y = kernels.bias_activation(x, bias, activation)
        if activation == "relu" or save == "output":
            ctx.save_for_backward(y, None)
        else:
            ctx.save_for_backward(x, bias)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        saved, bias = ctx.saved_tensors
        for_x, for_bias = ctx.needs_input_grad[:2]
        dx, db = _bias_backward(v, saved, bias, ctx.activation)
        return dx if for_x else None, db if for_bias else None, None, None


def saving_output(x: Tensor, activation: str) -> Tensor:
    """Return f(x) of sigmoid or tanh, saving the output where reverse mode alone is at work."""
    if transforms_are_active():
        return derivative(x, None, activation, 0)
    if torch.compiler.is_compiling():
        return torch.ops.minigrad.activation_saving_output(x, activation)  # type: ignore[no-any-return]
    if not _is_recorded(x):
        return kernels.derivative(x, None, activation, 0)
    return SavingOutput.apply(x, activation)  # type: ignore[no-any-return]


def bias_activation(x: Tensor, bias: Tensor, activation: str, save: str = "input") -> Tensor:
    """Return f(x + bias), differentiable any way PyTorch knows; fused where reverse mode alone is at work."""
    if transforms_are_active():
        return derivative(widen(x) + widen(bias), None, activation, 0).to(x.dtype)
    if torch.compiler.is_compiling():
        operators = torch.ops.minigrad
        operator = operators.bias_activation if save == "input" else operators.bias_activation_saving_output
        return operator(x, bias, activation)  # type: ignore[no-any-return]
    if not _is_recorded(x, bias):
        return kernels.bias_activation(x, bias, activation)
    return BiasActivation.apply(x, bias, activation, save)  # type: ignore[no-any-return]


def backward_of(layer: kernels.Layer, v: Tensor, saved: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of a layer's input and bias, differentiable where autograd records.

    Args:
        layer: what was computed.
        v: the gradient that arrives.
        saved: the layer's output if it goes by that, and else its input.
        bias: the bias if it goes by the input and has one, and else None.
    """
    if layer.biased:
        return _bias_backward(v, saved, bias, layer.activation)
    if layer.from_output and layer.activation != "relu":
        return _backward_from_output(v, saved, layer.activation), None
    return derivative(saved, v, layer.activation, 1), None


def _bias_backward(v: Tensor, saved: Tensor, bias: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
    if not torch.is_grad_enabled():
        return kernels.bias_activation_backward(v, saved, bias, activation)
    if bias is not None:
        dz = derivative(widen(saved) + widen(bias), widen(v), activation, 1)
    else:
        dz = _times_derivative_from_output(widen(v), widen(saved), activation)
    db = dz.sum(dim=tuple(range(dz.dim() - 1))) if dz.dim() > 1 else dz.clone()
    return dz.to(v.dtype), db.to(v.dtype)


def _backward_from_output(v: Tensor, y: Tensor, activation: str) -> Tensor:
    if torch.is_grad_enabled():
        return _times_derivative_from_output(v, y, activation)
    return kernels.backward_from_output(v, y, activation)


def _times_derivative_from_output(v: Tensor, y: Tensor, activation: str) -> Tensor:
    """Return v f'(x) where y = f(x), from operations that autograd differentiates again."""
    if activation == "relu":
        return derivative(y, v, "relu", 1)
    return v * ((1 - y) * (1 + y) if activation == "tanh" else (1 - y) * y)


def widen(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor in float32 and any other as it is; differentiable."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def transforms_are_active() -> bool:
    """Return whether a transform of torch.func or a level of forward mode is at work: more than plain reverse mode."""
    return forward_ad._current_level >= 0 or _in_torch_func()


kernels.make_differentiable("derivative", _apply_outside_transforms)
kernels.make_differentiable("activation_saving_output", SavingOutput.apply)
kernels.make_differentiable("bias_activation", lambda x, bias, f: BiasActivation.apply(x, bias, f, "input"))
kernels.make_differentiable("bias_activation_saving_output", lambda x, b, f: BiasActivation.apply(x, b, f, "output"))
