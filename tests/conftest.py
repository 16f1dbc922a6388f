"""What all tests share: the device, and determinism that poisons fresh memory with NaN."""

import gc
import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from cases import INTERPRETED

torch.set_num_threads(1)  # the suite runs in as many processes as there are cores
if INTERPRETED:
    from triton.runtime import interpreter

    @cache
    def builtins_of(package: Any) -> list[str]:
        """Return the names that Triton interprets; to find them takes longer than most calls within a kernel."""
        return [name for name, member in inspect.getmembers(package) if interpreter.tl.core.is_builtin(member)]

    def patch_builtins(package: Any, builder: Any, scope: Any) -> None:
        """Do as Triton does at every such call."""
        for name in builtins_of(package):
            if interpreter.tl.core.is_builtin(member := getattr(package, name)):
                interpreter._patch_attr(package, name, member, builder, scope)

    interpreter._patch_builtin = patch_builtins


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device under test: the CPU (in Triton's interpreter where TRITON_INTERPRET=1) and, with `-m gpu`, a GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA or ROCm device")
    return torch.device(request.param)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill every fresh tensor with NaN, so that an element that is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the interpreter few large programs where a test sweeps many numbers; elsewhere change nothing."""
    if INTERPRETED:
        from minigrad_kernels import elementwise

        monkeypatch.setattr(elementwise, "BYTES_PER_PROGRAM", 1 << 18)


def pytest_collection_finish() -> None:
    """Leave what is there when the tests begin out of garbage collections, which thousands of tests make slow."""
    gc.freeze()
