"""Sigmoid, tanh and ReLU, their derivatives to the tenth order and their backward passes, as fused kernels.

Knows PyTorch and Triton and nothing of `minigrad`. Without Triton it imports and runs on the plain path.
"""

from minigrad_kernels.operators import (
    ACTIVATIONS,
    DTYPES,
    backward_from_output,
    bias_activation,
    bias_activation_backward,
    check_device,
    derivative,
    double_backward,
    make_differentiable,
    new_fused_update,
    new_tally,
    path_for,
    put_row,
)
from minigrad_kernels.plain_statistics import COLUMNS, Tally, norm
from minigrad_kernels.polynomials import MAX_ORDER
from minigrad_kernels.watch import BACKWARD, FORWARD, Fired, Layer

__all__ = [
    "ACTIVATIONS",
    "BACKWARD",
    "COLUMNS",
    "DTYPES",
    "FORWARD",
    "MAX_ORDER",
    "Fired",
    "Layer",
    "Tally",
    "backward_from_output",
    "bias_activation",
    "bias_activation_backward",
    "check_device",
    "derivative",
    "double_backward",
    "make_differentiable",
    "new_fused_update",
    "new_tally",
    "norm",
    "path_for",
    "put_row",
]
