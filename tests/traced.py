"""Small graphs to trace, and what a trace says of them."""

import torch
from torch.autograd import Function


def leaf(values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def operations(trace):
    return {step.label: step for step in trace.steps if step.leaf is None}


def value(gradient):
    return gradient.value.tolist()


class Cube(Function):
    """A user's Function: x^3."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return upstream * 3 * x**2


def reason(trace, name="x"):
    """Return what the chain rule says of a leaf that it has no product for."""
    return next(line for line in trace.chain_rule().splitlines() if f"/ d {name}:" in line).partition(": ")[2]


class Fails(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, upstream):
        raise ArithmeticError("on purpose")
