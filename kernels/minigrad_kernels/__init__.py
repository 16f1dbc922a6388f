"""Sigmoid, tanh and ReLU, their derivatives to the tenth order and their backward passes, as fused kernels.

Knows PyTorch and Triton and nothing of `minigrad`. Without Triton it imports and runs on the plain path.
"""

from minigrad_kernels.operators import (
    ACTIVATIONS,
    DTYPES,
    backward_from_output,
    bias_activation,
    bias_activation_backward,
    derivative,
    double_backward,
    make_differentiable,
    path_for,
)
from minigrad_kernels.polynomials import MAX_ORDER

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "MAX_ORDER",
    "backward_from_output",
    "bias_activation",
    "bias_activation_backward",
    "derivative",
    "double_backward",
    "make_differentiable",
    "path_for",
]
