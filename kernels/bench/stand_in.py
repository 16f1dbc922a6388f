"""A GPU that is not there: what the host does for a launch, on any machine, as far as Triton's launcher.

Triton compiles for a GPU of compute capability 9.0 and launches on tensors of the CPU; whatever would start a kernel
there is told to a function instead. Nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

DEVICE = -1  # as tensors of the CPU number theirs
STREAM = 100  # with the device's number added


class Start(NamedTuple):
    """What a driver is asked to start.

    Attributes:
        grid: numbers of programs.
        stream: by its handle.
        kernel: by its handle, another for each that is compiled.
        metadata: warps, clusters and shared memory, as Triton packs them.
        arguments: all that the kernel takes, those at compile time too.
    """

    grid: tuple[int, int, int]
    stream: int
    kernel: int
    metadata: Any
    arguments: tuple[Any, ...]


class _Driver:
    """What Triton asks of a driver."""

    def __init__(self, on_start: Callable[[Start], object] | None) -> None:
        self.on_start = on_start
        self.utils = self
        self.launcher_cls = lambda source, metadata: _start
        self.device = DEVICE

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return STREAM + device

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[None, int, int, int, int]:
        return None, id(binary), 0, 0, 1024  # Triton keeps what it has compiled, so no other gets this number


def _start(
    x: int, y: int, z: int, stream: int, kernel: int, metadata: Any,
    launch_metadata: Any, enter: Any, leave: Any, *arguments: Any,
) -> None:  # fmt: skip
    """Do what Triton calls of each compiled kernel, in place of its launcher and the C code within."""
    for hook in (enter, leave):
        if hook is not None:
            hook(launch_metadata)
    if driver.active.on_start is not None:
        driver.active.on_start(Start((x, y, z), stream, kernel, metadata, arguments))


@contextmanager
def without_a_gpu(on_start: Callable[[Start], object] | None = None) -> Iterator[Any]:
    """Let Triton compile and launch on tensors of the CPU; yields what stands in for the driver.

    Args:
        on_start: told of every start of a kernel.
    """
    before = driver._active  # reset_active() would look for a GPU
    driver.set_active(_Driver(on_start))
    try:
        yield driver.active
    finally:
        driver._active = before
