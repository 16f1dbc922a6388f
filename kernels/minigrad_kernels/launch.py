"""Launching a kernel: what Triton decides anew at every launch is decided once for all arguments of a kind.

At each launch Triton looks at every argument, writes what it finds and the options as a text, and looks up under it
what it has compiled. On the host that takes several times as long as the rest of a launch, and longer than a small
kernel runs. Here a launch is known by what Triton compiles for: the kernel, the device, every constant and option, of
every tensor the dtype and whether its address is a multiple of 16, and of every integer, below 2^63, whether it is 1, a
multiple of 16, and within 32 bits. The first launch of a kind is Triton's own, the others call what that has compiled.

`python kernels/bench/cpu.py --sections launching` measures what it saves, on the host, up to Triton's launcher. The
price is that it relies on what Triton 3.6 and 3.7 look at and how they call what they have compiled; a test compares
the launches with Triton's own, on any machine. Triton's own launch stays in other versions, in its interpreter, on
ROCm, where it also asks how far a tensor reaches, and where something is hooked into launches, as a profiler is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import triton
from triton import knobs
from triton.runtime import JITFunction, driver

_IS_KNOWN = triton.__version__.startswith(("3.6.", "3.7.")) and torch.version.hip is None
_COMPILED: dict[tuple[Any, ...], tuple[Any, ...]] = {}
_N_RUNTIME: dict[Any, int] = {}  # how many of a kernel's arguments are none at compile time


def launch(kernel: Any, n_programs: int, on: torch.Tensor, /, **arguments: Any) -> None:
    """Launch a kernel in the current stream of a tensor's device.

    Args:
        kernel: jitted; its compile-time arguments are its last.
        n_programs: at least 1.
        on: a tensor on the device.
        arguments: all that the kernel takes, by name and in its order, then the options: num_warps and so on.

    Raises:
        TypeError: the arguments are others than the kernel takes, or in another order.
    """
    if not _IS_KNOWN or not isinstance(kernel, JITFunction) or _is_hooked(kernel):
        with torch.cuda.device_of(on):
            _launch_anew(kernel, n_programs, arguments)
    elif driver.active.get_current_device() == on.get_device():
        _launch_known(kernel, n_programs, arguments)
    else:
        with torch.cuda.device_of(on):
            _launch_known(kernel, n_programs, arguments)


def _launch_known(kernel: Any, n_programs: int, arguments: dict[str, Any]) -> None:
    """Launch on the current device, by Triton's own means only what is not known."""
    device, values = driver.active.get_current_device(), tuple(arguments.values())
    kind = _kind(kernel, device, arguments, values)
    known = _COMPILED.get(kind)
    if known is None:
        compiled = _launch_anew(kernel, n_programs, arguments)
        if compiled is not None:  # else a hook of Triton's has kept it from being compiled
            _COMPILED[kind] = compiled.run, compiled.function, compiled.packed_metadata, len(kernel.arg_names)
        return
    run, function, metadata, n_arguments = known
    stream = driver.active.get_current_stream(device)
    run(n_programs, 1, 1, stream, function, metadata, None, None, None, *values[:n_arguments])


def _kind(kernel: Any, device: int, names: Iterable[str], values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what Triton compiles for: launches of one kind are of the same compiled kernel."""
    function = kernel.fn  # a kernel's own hash is slow
    n_runtime = _N_RUNTIME.get(function)
    if n_runtime is None:
        n_runtime = _N_RUNTIME[function] = sum(not parameter.is_constexpr for parameter in kernel.params)
    kind = [function, device, *names, *values[n_runtime:]]
    kind += knobs.runtime.debug, knobs.compilation.instrumentation_mode
    for value in values[:n_runtime]:
        if value is None:
            kind.append(None)
        elif type(value) is int:
            kind.append((value == 1, value % 16 == 0, -(2**31) <= value < 2**31))
        elif type(value) is float:
            kind.append(float)  # float32, whatever it is
        else:
            kind.append((value.dtype, value.data_ptr() % 16 == 0))
    return tuple(kind)


def _launch_anew(kernel: Any, n_programs: int, arguments: dict[str, Any]) -> Any:
    """Launch by Triton's own means, and return what it has compiled."""
    given, taken = list(arguments), list(kernel.arg_names)
    if given[: len(taken)] != taken:
        raise TypeError(f"{', '.join(given)} came: pass {', '.join(taken)}, in this order, and then options")
    return kernel[(n_programs,)](**arguments)


def _is_hooked(kernel: Any) -> bool:
    """Return whether something wants to see a launch, or what it is compiled from."""
    hooks = knobs.runtime
    enter, leave = hooks.launch_enter_hook, hooks.launch_exit_hook
    return bool(
        kernel.pre_run_hooks
        or getattr(enter, "calls", enter)
        or getattr(leave, "calls", leave)
        or getattr(hooks, "add_stages_inspection_hook", None)  # Triton 3.7's
    )
