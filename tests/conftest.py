"""What all tests share: the device, and determinism that poisons fresh memory with NaN."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from cases import INTERPRETED

torch.set_num_threads(1)  # the suite runs in as many processes as there are cores
if INTERPRETED:
    from triton.runtime import interpreter

    patch_language = interpreter._patch_lang

    @cache
    def patch_language_once(function: Any) -> Any:
        """Put what interprets a kernel into Triton's modules as Triton does at every call, and leave it there."""
        scope = patch_language(function)
        scope.restore = lambda: None
        return scope

    interpreter._patch_lang = patch_language_once
    # It computes every sum and product of integers again in 64 bits, for an assertion that only `debug` makes.
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=builder.options.debug)
    # It makes the same few types again and again.
    for kind in (interpreter.tl.block_type, interpreter.tl.pointer_type):
        kind.__hash__ = interpreter.tl.dtype.__hash__  # by the name, which differs where they do
    interpreter.tl.block_type.with_element_ty = cache(interpreter.tl.block_type.with_element_ty)
    interpreter._get_np_dtype = cache(interpreter._get_np_dtype)
    builder.get_block_ty = cache(builder.get_block_ty)


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
def change_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that changes what Triton's programs take, by the names of `blocks`."""

    def change(**changes: Any) -> None:
        from minigrad_kernels import bias, blocks, elementwise, fused_update, rows, statistics

        for module in (bias, elementwise, fused_update, rows, statistics):
            monkeypatch.setattr(module, "BLOCKS", replace(blocks.BLOCKS, **changes))

    return change


@pytest.fixture
def large_blocks(change_blocks: Callable[..., None]) -> None:
    """Give the interpreter few large programs where a test sweeps many numbers; elsewhere change nothing."""
    if INTERPRETED:
        change_blocks(elementwise=1 << 18)


@pytest.fixture
def pictures_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let figures be drawn but not rendered, which takes as long as a short run does: for tests that look at none."""
    monkeypatch.setattr("minigrad.tracking.as_png", lambda figure: b"")


# Files with tests of half a minute. They begin first, so that at the end no core waits for one that began late.
LONGEST = ("test_interpreter.py", "test_data_parallel.py", "test_slurm.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """Leave what is there when the tests begin out of garbage collections, which thousands of tests make slow."""
    gc.freeze()
