"""Compile every kernel ahead of time, for GPUs that need not be present, and read what the compiler made of it.

    python kernels/bench/aot.py                     a table: registers, spills, 16-byte accesses, instructions
    python kernels/bench/aot.py --targets sm_90     for these targets only

The test suite compiles the same list and holds it to the house rules (tests/kernels/test_ahead_of_time.py).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minigrad_kernels import MAX_ORDER, bias, elementwise, rows, statistics, update, update_rules
from minigrad_kernels.blocks import Blocks, blocks_on

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"fp16": tl.float16, "bf16": tl.bfloat16, "fp32": tl.float32, "fp64": tl.float64}
ITEMSIZE = {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}
BIASED_COLUMNS = 1 << 10  # any width from which a tile is as wide as it gets


@dataclass(frozen=True)
class Specialization:
    """One kernel with its compile-time arguments, as the launcher would ask for it.

    Attributes:
        name: what the report calls it.
        kernel: the jitted function.
        dtype: Triton's name of the tensors' dtype.
        pointers: argument to element type; all 16-byte aligned but those in `misaligned`.
        constants: compile-time arguments; those named nowhere else are None.
        sizes: integer arguments, and whether each is a multiple of 16.
        bytes_loaded: by one program in the unmasked bulk, from the operands that are as large as the result.
        bytes_stored: likewise.
        misaligned: pointers to compile without the knowledge of alignment.
        numbers: float32 arguments.
        fuses: whether the compiler may contract a product and a sum.
    """

    name: str
    kernel: Any
    dtype: str
    pointers: dict[str, str]
    constants: dict[str, Any]
    sizes: dict[str, bool]
    bytes_loaded: int
    bytes_stored: int
    misaligned: frozenset[str] = field(default=frozenset())
    numbers: frozenset[str] = field(default=frozenset())
    fuses: bool = True

    @property
    def is_watched(self) -> bool:
        """Whether it writes statistics."""
        return "statistics_ptr" in self.pointers

    @property
    def is_update(self) -> bool:
        """Whether it is compiled for one of the update rules."""
        return "RULE" in self.constants

    @property
    def is_measured(self) -> bool:
        """Whether it is an update that measures what it does."""
        return self.is_update and "rows_ptr" in self.pointers

    @property
    def watched(self) -> Specialization:
        """The same kernel with statistics of what it holds and, of ReLU itself, with the units that fire."""
        pointers = self.pointers | {"statistics_ptr": "fp64" if self.dtype == "fp64" else "fp32"}
        sizes = self.sizes
        backward = {"low", "high"} & set(self.kernel.arg_names) if "g_ptr" in self.pointers else set()
        if not backward and self.constants["ACTIVATION"] == "relu":
            pointers |= {"fired_ptr": "u8"}
            sizes = sizes | {name: False for name in ("unit_stride", "period") if name in self.kernel.arg_names}
        return replace(self, name=f"{self.name}, watched", pointers=pointers, sizes=sizes, numbers=frozenset(backward))


@dataclass(frozen=True)
class Compiled:
    """What one specialization became on one target.

    Attributes:
        ttir: Triton's own intermediate code.
        assembly: PTX or AMD assembly.
        registers: per thread.
        spilled: bytes of local memory per thread (NVIDIA) or registers spilled to memory (AMD).
    """

    ttir: str
    assembly: str
    registers: int
    spilled: int

    @property
    def wide_loads(self) -> int:
        """Number of 16-byte loads from global memory in the code."""
        return len(re.findall(r"ld\.global[.\w:]*\.v(?:4\.b32|2\.b64)|(?:global|buffer)_load_dwordx4", self.assembly))

    @property
    def wide_stores(self) -> int:
        """Number of 16-byte stores to global memory in the code."""
        return len(re.findall(r"st\.global[.\w:]*\.v(?:4\.b32|2\.b64)|(?:global|buffer)_store_dwordx4", self.assembly))

    @property
    def uses_float64(self) -> bool:
        """Whether any instruction computes in double precision."""
        return bool(re.search(r"\.f64\b|_f64(?:_|\b)", self.assembly))

    @property
    def uses_atomics(self) -> bool:
        """Whether any instruction is an atomic one."""
        return bool(re.search(r"^\s*(?:@\S+\s+)?(?:atom|red)\.|_atomic_", self.assembly, re.MULTILINE))

    @property
    def addresses_are_64_bit(self) -> bool:
        """Whether every tensor of pointers is offset by 64-bit numbers, and nothing is multiplied in fewer bits."""
        offsets = re.findall(r"tt\.addptr .*: tensor<[^>]*!tt\.ptr<[^>]*>>?, tensor<[^>]*x(i\d+)", self.ttir)
        products = re.findall(r"arith\.muli .*: (?:tensor<[^>]*x)?(i\d+)", self.ttir)
        return (bool(offsets) or "tensor<" not in self.ttir) and {*offsets, *products} <= {"i64"}


def specializations(blocks: Blocks, orders: Iterable[int] = range(MAX_ORDER + 1)) -> Iterator[Specialization]:
    """Yield every kernel with every dtype and activation, for these orders; sizes that are no multiple of anything."""
    for dtype, itemsize in ITEMSIZE.items():
        for activation in ("sigmoid", "tanh", "relu"):
            yield from _derivatives(blocks, dtype, itemsize, activation, orders)
            yield from _from_output(blocks, dtype, itemsize, activation)
            yield from _with_bias(blocks, dtype, itemsize, activation)
        yield _column_sum(blocks, dtype)
    yield from _second_stage(blocks)
    yield from _updates(blocks)
    yield from _around_updates(blocks)


def wide_accesses(target: GPUTarget, n_bytes: int) -> int:
    """Return in how many 16-byte accesses the threads of one program move so many bytes, each thread its share."""
    return n_bytes // (16 * blocks_on(target.backend).num_warps * int(target.warp_size))


def _derivatives(
    blocks: Blocks, dtype: str, itemsize: int, activation: str, orders: Iterable[int]
) -> Iterator[Specialization]:
    for order in orders:
        if activation == "relu" and order > 1:
            continue
        for upstream in {0: ("none",), 1: ("none", "dense", "expanded")}.get(order, ("dense",)):
            s = Specialization(
                name=f"{activation} order {order}, upstream {upstream}",
                kernel=elementwise._derivative_kernel,
                dtype=dtype,
                pointers={"out_ptr": dtype, "x_ptr": dtype} | ({} if upstream == "none" else {"g_ptr": dtype}),
                constants={"ACTIVATION": activation, "ORDER": order, "UPSTREAM": upstream}
                | {"BLOCK": blocks.elementwise // itemsize},
                sizes={"n_elements": False},
                bytes_loaded=blocks.elementwise * (2 if upstream == "dense" else 1),
                bytes_stored=blocks.elementwise,
            )
            yield s
            if order == 0 or (order == 1 and upstream != "none"):
                yield s.watched
        if activation != "relu" and 1 <= order < MAX_ORDER:
            for expanded in ("", "v", "g", "vg") if order == 1 else ("",):
                yield _double_backward(blocks, dtype, itemsize, activation, order, expanded)


def _double_backward(
    blocks: Blocks, dtype: str, itemsize: int, activation: str, order: int, expanded: str
) -> Specialization:
    suffix = f", {' and '.join(expanded)} expanded" if expanded else ""
    return Specialization(
        name=f"{activation} double backward of order {order}{suffix}",
        kernel=elementwise._double_backward_kernel,
        dtype=dtype,
        pointers=dict.fromkeys(("dg_ptr", "dx_ptr", "v_ptr", "g_ptr", "x_ptr"), dtype),
        constants={
            "ACTIVATION": activation,
            "ORDER": order,
            "V_EXPANDED": "v" in expanded,
            "G_EXPANDED": "g" in expanded,
        }
        | {"BLOCK": blocks.elementwise // itemsize},
        sizes={"n_elements": False},
        bytes_loaded=(3 - len(expanded)) * blocks.elementwise,
        bytes_stored=2 * blocks.elementwise,
    )


def _from_output(blocks: Blocks, dtype: str, itemsize: int, activation: str) -> Iterator[Specialization]:
    for expanded in (False, True):
        s = Specialization(
            name=f"{activation} backward from the output" + (", g expanded" if expanded else ""),
            kernel=elementwise._backward_from_output_kernel,
            dtype=dtype,
            pointers=dict.fromkeys(("dx_ptr", "g_ptr", "y_ptr"), dtype),
            constants={"ACTIVATION": activation, "G_EXPANDED": expanded, "BLOCK": blocks.elementwise // itemsize},
            sizes={"n_elements": False},
            bytes_loaded=(1 if expanded else 2) * blocks.elementwise,
            bytes_stored=blocks.elementwise,
        )
        yield from (s, s.watched)


def _with_bias(blocks: Blocks, dtype: str, itemsize: int, activation: str) -> Iterator[Specialization]:
    rows, block = blocks.tile_shape(itemsize, BIASED_COLUMNS)
    forward = Specialization(
        name=f"{activation} with bias",
        kernel=bias._bias_activation_kernel,
        dtype=dtype,
        pointers=dict.fromkeys(("y_ptr", "x_ptr", "bias_ptr"), dtype),
        constants={"ACTIVATION": activation, "ROWS": rows, "BLOCK": block},
        sizes={"n_rows": False, "n_columns": True, "tiles_in_row": False},
        bytes_loaded=blocks.tile,
        bytes_stored=blocks.tile,
    )
    yield from (forward, forward.watched)
    for saved in ("output",) if activation == "relu" else ("input", "output"):
        backward = Specialization(
            name=f"{activation} with bias, backward from the {saved}",
            kernel=bias._bias_activation_backward_kernel,
            dtype=dtype,
            pointers=dict.fromkeys(("dx_ptr", "g_ptr", "saved_ptr"), dtype)
            | {"partial_ptr": "fp64" if dtype == "fp64" else "fp32"}
            | ({"bias_ptr": dtype} if saved == "input" else {}),
            constants={"ACTIVATION": activation, "ROWS": rows, "BLOCK": block},
            sizes={"n_rows": False, "n_columns": True, "tiles_in_row": False, "n_tiles": False},
            bytes_loaded=2 * blocks.tile,
            bytes_stored=blocks.tile,
        )
        yield from (backward, backward.watched)


def _column_sum(blocks: Blocks, dtype: str) -> Specialization:
    rows, block = blocks.column_sum
    return Specialization(
        name="sum of the partial bias gradients",
        kernel=bias._column_sum_kernel,
        dtype=dtype,
        pointers={"out_ptr": dtype, "partial_ptr": "fp64" if dtype == "fp64" else "fp32"},
        constants={"ROWS": rows, "BLOCK": block},
        sizes={"n_rows": False, "n_columns": True},
        bytes_loaded=rows * block * (8 if dtype == "fp64" else 4),
        bytes_stored=0,
    )


def _second_stage(blocks: Blocks) -> Iterator[Specialization]:
    for partial in ("fp32", "fp64"):
        yield Specialization(
            name=f"second stage of {partial} statistics",
            kernel=statistics._second_stage_kernel,
            dtype="fp64",
            pointers={"out_ptr": "fp64", "partial_ptr": partial, "segments_ptr": "i64"},
            constants={"ROWS": blocks.statistics},
            sizes={},
            bytes_loaded=0,
            bytes_stored=0,
        )


def _updates(blocks: Blocks) -> Iterator[Specialization]:
    tables = {"table_ptr": "i64", "tiles_ptr": "i32"}
    for dtype, itemsize in ITEMSIZE.items():
        wide = "fp64" if dtype == "fp64" else "fp32"
        tile_bytes = blocks.update[itemsize] * itemsize
        of_dtype = {"DTYPE": DTYPES[dtype], "WORDS": 1 if itemsize == 2 else 2, "BLOCK": blocks.update[itemsize]}
        yield Specialization(
            name="squares of gradients",
            kernel=update._squares_kernel,
            dtype=dtype,
            pointers={"rows_ptr": wide} | tables,
            constants=of_dtype,
            sizes={},
            bytes_loaded=tile_bytes,
            bytes_stored=0,
            fuses=False,
        )
        for rule, n_states in update_rules.STATES.items():
            norms = {"norms_ptr": "fp32"}
            guard = norms | {"applied_ptr": "i32"}
            for kind, more in {", unguarded": norms, "": guard, ", measured": guard | {"rows_ptr": wide}}.items():
                full = kind != ", unguarded"
                yield Specialization(
                    name=f"update by {rule}{kind}",
                    kernel=update._update_kernel,
                    dtype=dtype,
                    pointers=tables | {"coefficients_ptr": wide} | more,
                    constants={"RULE": rule, "CLIPS": full, "DECAYS": full, "N_STATES": n_states} | of_dtype,
                    sizes={},
                    bytes_loaded=tile_bytes * (2 + n_states),
                    bytes_stored=tile_bytes * (1 + n_states),
                    fuses=False,
                )


def _around_updates(blocks: Blocks) -> Iterator[Specialization]:
    sums = {"single_rows_ptr": "fp32", "double_rows_ptr": "fp64", "table_ptr": "i64"}
    for rule in update_rules.STATES:
        counts = {"updates_ptr": "fp64"} if rule in update_rules.COUNTING else {}
        for kind, more in {
            ", unguarded": {},
            "": {"report_ptr": "fp64", "loss_ptr": "fp32"},
            " of many tiles": {"report_ptr": "fp64", "loss_ptr": "fp32", "sums_ptr": "fp64"},
        }.items():
            yield Specialization(
                name=f"preparation of {rule}{kind}",
                kernel=update._prepare_kernel,
                dtype="fp64",
                pointers=dict.fromkeys(("double_ptr", "learning_rate_ptr"), "fp64")
                | dict.fromkeys(("norms_ptr", "single_ptr"), "fp32")
                | dict.fromkeys(("applied_ptr", "sound_ptr"), "i32")
                | sums
                | counts
                | more,
                constants={"RULE": rule, "CLIPS": bool(more), "STOPS": bool(more), "ROWS": blocks.norms},
                sizes={"n_single_rows": False, "n_double_rows": False, "n_sums": False},
                bytes_loaded=0,
                bytes_stored=0,
                fuses=False,
            )
    yield Specialization(
        name="row of a table",
        kernel=rows._put_row_kernel,
        dtype="b64",  # it only moves
        pointers={"table_ptr": "fp64", "values_ptr": "fp64", "row_ptr": "i64"},
        constants={"BLOCK": blocks.row},
        sizes={"n_columns": False},
        bytes_loaded=0,
        bytes_stored=0,
    )
    yield Specialization(
        name="sums of the squares of many tiles",
        kernel=update._combine_kernel,
        dtype="fp64",
        pointers={"sums_ptr": "fp64", "single_rows_ptr": "fp32", "double_rows_ptr": "fp64"},
        constants={"ROWS": blocks.norms},
        sizes={"n_single_rows": False, "n_double_rows": False},
        bytes_loaded=0,
        bytes_stored=0,
    )
    yield Specialization(
        name="measurement of an update",
        kernel=update._measure_kernel,
        dtype="fp64",
        pointers={"measured_ptr": "fp64", "report_ptr": "fp64"} | sums,
        constants={"ROWS": blocks.norms},
        sizes={"n_tensors": False},
        bytes_loaded=0,
        bytes_stored=0,
    )


def compile_for(target: GPUTarget, specialization: Specialization) -> Compiled:
    """Compile one specialization. Raises what Triton raises where it cannot."""
    s = specialization
    names = s.kernel.arg_names
    given = {name: f"*{pointed}" for name, pointed in s.pointers.items()}
    given |= dict.fromkeys(s.sizes, "i32") | dict.fromkeys(s.numbers, "fp32")
    signature = {name: given.get(name, "constexpr") for name in names}
    constants = dict.fromkeys([name for name in names if name not in given]) | s.constants
    aligned = {name for name in s.pointers if name not in s.misaligned} | {n for n, even in s.sizes.items() if even}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in aligned}
    source = ASTSource(fn=s.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": blocks_on(target.backend).num_warps, "enable_fp_fusion": s.fuses}
    binary = triton.compile(source, target=target, options=options)
    if target.backend == "cuda":
        registers, local_bytes = _resources(binary.asm["cubin"])
        return Compiled(binary.asm["ttir"], binary.asm["ptx"], registers, local_bytes)
    assembly = binary.asm["amdgcn"]
    spilled = sum(map(int, re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", assembly)))
    return Compiled(binary.asm["ttir"], assembly, int(re.findall(r"\.vgpr_count:\s*(\d+)", assembly)[0]), spilled)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Return the registers and the bytes of local memory, where spilled ones go, of the one kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_cuobjdump(), "-res-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    assert used is not None, report
    registers, stack, local = map(int, used.groups())
    return registers, stack + local


@cache
def _cuobjdump() -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    targets = parser.parse_args().targets
    print(f"triton {triton.__version__}; 16-byte accesses as found / as the unmasked bulk needs\n")
    print(f"{'target':8} {'dtype':6} {'kernel':48} {'registers':>9} {'spilled':>8} {'loads':>8} {'stores':>8}")
    for target in targets:
        for s in specializations(blocks_on(TARGETS[target].backend)):
            c = compile_for(TARGETS[target], s)
            loads, stores = (wide_accesses(TARGETS[target], n) for n in (s.bytes_loaded, s.bytes_stored))
            print(
                f"{target:8} {s.dtype:6} {s.name:48} {c.registers:9} {c.spilled:8} "
                f"{c.wide_loads:>5}/{loads:<2} {c.wide_stores:>5}/{stores:<2}"
            )


if __name__ == "__main__":
    main()
