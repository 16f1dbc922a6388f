# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803 -- Triton's constants are written in capitals
"""A kernel that moves memory and does nothing else, from several tensors to several: the limit of all that do more.

    every output = the bitwise exclusive or of all inputs

in words of 32 bits, so that dtypes do not matter and no input can be left unread. The exclusive or costs nothing beside
memory. As in `minigrad_kernels.elementwise`, programs wholly inside load and store without a mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

NUM_WARPS = 4
BLOCK = 2048
"""Words of each tensor that a program moves: four 16-byte accesses in flight for every thread of four warps."""


@triton.jit
def _move_block(
    first_out_ptr, second_out_ptr, third_out_ptr, a_ptr, b_ptr, c_ptr, d_ptr, offsets, n_words,
    MASKED: tl.constexpr,
):  # fmt: skip
    mask = offsets < n_words if MASKED else None  # [BLOCK]
    words = tl.load(a_ptr + offsets, mask=mask)
    if b_ptr is not None:
        words ^= tl.load(b_ptr + offsets, mask=mask)
    if c_ptr is not None:
        words ^= tl.load(c_ptr + offsets, mask=mask)
    if d_ptr is not None:
        words ^= tl.load(d_ptr + offsets, mask=mask)
    tl.store(first_out_ptr + offsets, words, mask=mask)
    if second_out_ptr is not None:
        tl.store(second_out_ptr + offsets, words, mask=mask)
    if third_out_ptr is not None:
        tl.store(third_out_ptr + offsets, words, mask=mask)


@triton.jit
def _move_kernel(
    first_out_ptr, second_out_ptr, third_out_ptr, a_ptr, b_ptr, c_ptr, d_ptr, n_words,
    BLOCK: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = start + tl.arange(0, BLOCK)  # [BLOCK], 64-bit: a tensor may have more than 2^31 words
    if start + BLOCK <= n_words:
        _move_block(
            first_out_ptr, second_out_ptr, third_out_ptr, a_ptr, b_ptr, c_ptr, d_ptr, offsets, n_words, MASKED=False
        )
    else:
        _move_block(
            first_out_ptr, second_out_ptr, third_out_ptr, a_ptr, b_ptr, c_ptr, d_ptr, offsets, n_words, MASKED=True
        )
