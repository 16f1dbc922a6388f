"""What a call costs where Python decides: a small activation, from the public function down to the bare launch.

Wall time per call, forward, nothing recorded. "launch" is that of `minigrad_kernels.launch`, "Triton's" the one that it
is in place of, and "compiled" calls what has been compiled without a look at the arguments, which is the least that any
launch can take. The results of all are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import minigrad
import minigrad_kernels as kernels
from bench.contest import OURS
from bench.lines import Line
from bench.setting import CheckFailed, Setting
from bench.timing import ROUNDS, Absent, Contestant, figure, ratio, wall_times

SIZES = (2**4, 2**10, 2**16)
CALLS = 200
ACTIVATION = "tanh"
TORCH, OPERATION, LAUNCH, TRITON, COMPILED = "torch", "operation", "launch", "Triton's", "compiled"


def measure(setting: Setting) -> Iterator[Line]:
    """Time the layers of a call at each size."""
    for n_elements in setting.in_time(SIZES[:1] if setting.dry else SIZES):
        x = torch.linspace(-4, 4, n_elements, device=setting.device)
        contestants: list[Contestant | Absent] = [
            Contestant(OURS, minigrad.tanh, [(x,)], is_ours=True),
            Contestant(OPERATION, lambda x: kernels.derivative(x, None, ACTIVATION, 0), [(x,)], is_ours=True),
            Contestant(TORCH, torch.tanh, [(x,)]),
        ]
        for name, call in launches(x, setting).items():
            if isinstance(call, str):
                contestants.append(Absent(name, call))
            else:
                contestants.append(Contestant(name, call, [(x,)], is_ours=True))
        times = wall_times(contestants, setting.device, CALLS, 2 if setting.dry else ROUNDS)
        names = (OURS, OPERATION, LAUNCH, TRITON, COMPILED, TORCH)
        cells = {f"{name} us": figure(times, name) for name in names}
        yield Line(
            {"call": f"{ACTIVATION}, forward, float32", "elements": str(n_elements)},
            {**cells, "over torch": ratio(times, OURS, TORCH), "launch over Triton's": ratio(times, LAUNCH, TRITON)},
            {"launch over Triton's": "<= 1"},
        )


def launches(x: Tensor, setting: Setting) -> dict[str, Callable[[Tensor], None] | str]:
    """Return what launches the kernel into memory that is there already, in every way; or why nothing can.

    Raises:
        CheckFailed: a launch computes something else than the function.
    """
    if setting.device.type != "cuda":
        return dict.fromkeys((LAUNCH, TRITON, COMPILED), "compiled for a GPU only")
    from minigrad_kernels.launch import launch

    out, index = torch.empty_like(x), x.get_device()
    kernel, n_programs, arguments = forward(x, out)

    def call_launch(x: Tensor) -> None:
        launch(kernel, n_programs, x, **arguments)

    def call_triton(x: Tensor) -> None:
        kernel[(n_programs,)](**arguments)

    compiled = kernel[(n_programs,)](**arguments)
    values = [arguments[name] for name in kernel.arg_names]

    def call_compiled(x: Tensor) -> None:
        stream = torch._C._cuda_getCurrentRawStream(index)
        compiled.run(n_programs, 1, 1, stream, compiled.function, compiled.packed_metadata, None, None, None, *values)

    calls = {LAUNCH: call_launch, TRITON: call_triton, COMPILED: call_compiled}
    for name, call in calls.items():
        out.fill_(torch.nan)
        call(x)
        if not torch.equal(out, minigrad.tanh(x)):
            raise CheckFailed(f"{name}: another result than minigrad.tanh has")
    return dict(calls)


def forward(x: Tensor, out: Tensor) -> tuple[Any, int, dict[str, Any]]:
    """Return the kernel that computes `ACTIVATION`, in how many programs, and its arguments and options."""
    from minigrad_kernels import elementwise
    from minigrad_kernels.blocks import BLOCKS

    kernel = elementwise._derivative_kernel
    given = {
        "out_ptr": out,
        "x_ptr": x,
        "n_elements": x.numel(),
        "ACTIVATION": ACTIVATION,
        "ORDER": 0,
        "UPSTREAM": "none",
        "BLOCK": elementwise.block_size(x.element_size()),
        "num_warps": BLOCKS.num_warps,
    }
    return kernel, elementwise.tiles(x), dict.fromkeys(kernel.arg_names) | given
