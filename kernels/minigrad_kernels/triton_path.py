"""The Triton path: the same functions as `plain`, as kernels. Importing it imports Triton."""

from minigrad_kernels.bias import bias_activation, bias_activation_backward
from minigrad_kernels.elementwise import backward_from_output, derivative, double_backward
from minigrad_kernels.fused_update import FusedUpdate
from minigrad_kernels.rows import put_row
from minigrad_kernels.tally import Tally

__all__ = [
    "FusedUpdate",
    "Tally",
    "backward_from_output",
    "bias_activation",
    "bias_activation_backward",
    "derivative",
    "double_backward",
    "put_row",
]
