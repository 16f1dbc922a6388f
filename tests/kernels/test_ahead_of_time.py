"""Every kernel, compiled for GPUs that are not here, keeps the house's rules in its machine code."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cases import INTERPRETED

if INTERPRETED:
    pytest.skip("Triton compiles nothing in a process whose kernels it interprets", allow_module_level=True)
triton = pytest.importorskip("triton", reason="needs Triton, which is on Linux only")

_spec = importlib.util.spec_from_file_location("aot", Path(__file__).parents[2] / "kernels" / "bench" / "aot.py")
aot = importlib.util.module_from_spec(_spec)
sys.modules["aot"] = aot
_spec.loader.exec_module(aot)

ORDERS = (0, 1, 2, 10)  # the others differ in the length of their polynomial only
SPECIALIZATIONS = {
    backend: {f"{s.dtype} {s.name}": s for s in aot.specializations(aot.blocks_on(backend), ORDERS)}
    for backend in ("cuda", "hip")
}
# With statistics a kernel takes twice as long to compile. So of those only what differs in the part that writes them:
# a half type, and single and (backward) double precision; not sigmoid beside tanh, whose derivative takes more; nor an
# expanded gradient beside a dense one. The report (aot.py) has all, for all targets.
WATCHED = {
    name
    for name, s in SPECIALIZATIONS["cuda"].items()
    if s.is_watched
    and (s.dtype in ("bf16", "fp32") or (s.dtype == "fp64" and "g_ptr" in s.pointers))
    and not ("sigmoid" in name or "expanded" in name or name.endswith("relu backward from the output, watched"))
}
# The update takes longer yet, in two words above all. So every target compiles one with all there is, adamw that is
# measured, every dtype is compiled (float16 goes the way of bfloat16), and every formula.
UPDATES = {
    "fp32 update by adamw, measured": ("sm_90", "gfx942"),
    "bf16 update by adamw, measured": ("sm_100", "gfx942"),
    "fp64 update by adamw, measured": ("sm_80",),
    "fp32 update by gradient_descent, unguarded": ("sm_90",),
    "fp64 preparation of adam, unguarded": ("sm_90",),
    "fp32 update by nesterov": ("sm_90",),
    "fp32 update by rmsprop, measured": ("sm_80",),
    "fp64 preparation of adamw": tuple(aot.TARGETS),
}
# Nor is there more to see on a second GPU of a kind where a kernel does less than one that is compiled for all: with an
# expanded gradient, one number in place of a block, and in float16, which every GPU converts in one instruction
# (bfloat16 takes more on sm_80 and gfx942).
DOES_LESS = {name for name, s in SPECIALIZATIONS["cuda"].items() if s.dtype == "fp16" or "expanded" in name}
ONE_OF_A_KIND = ("sm_90", "gfx942")
COMPILED = [
    (name, target)
    for name, s in SPECIALIZATIONS["cuda"].items()
    for target in (ONE_OF_A_KIND if s.is_watched or name in DOES_LESS else aot.TARGETS)
    if (not s.is_update or target in UPDATES.get(name, ())) and (not s.is_watched or name in WATCHED)
]
# AMD's compiler keeps up to 6 scalar registers in lanes of a vector register, which it counts as spilled; NVIDIA's puts
# one number of a measured update in float64 aside.
MOST_SPILLED = {"gfx942": 6, "sm_80": 8}


@pytest.fixture(autouse=True)
def _no_line_numbers(monkeypatch):
    """Spare the compilers the kernels' line numbers, which are no code."""
    monkeypatch.setattr(triton.knobs.compilation, "disable_line_info", True)


@pytest.mark.parametrize(("name", "target"), COMPILED)
def test_kernel_compiles_to_clean_code(name, target):
    s = SPECIALIZATIONS[aot.TARGETS[target].backend][name]
    compiled = aot.compile_for(aot.TARGETS[target], s)
    assert compiled.spilled <= (MOST_SPILLED.get(target, 0) if s.is_watched or s.is_measured else 0)
    assert compiled.wide_loads >= aot.wide_accesses(aot.TARGETS[target], s.bytes_loaded)
    assert compiled.wide_stores >= aot.wide_accesses(aot.TARGETS[target], s.bytes_stored)
    assert compiled.addresses_are_64_bit
    assert not compiled.uses_atomics
    assert compiled.uses_float64 == (s.dtype == "fp64")


@pytest.mark.parametrize("target", aot.TARGETS)
def test_misaligned_operand_leaves_the_others_wide(target):
    s = SPECIALIZATIONS[aot.TARGETS[target].backend]["fp32 tanh order 1, upstream dense"]
    compiled = aot.compile_for(aot.TARGETS[target], replace(s, misaligned=frozenset({"x_ptr"})))
    assert (
        compiled.wide_loads >= aot.wide_accesses(aot.TARGETS[target], s.bytes_loaded) // 2
    )  # AMD reads all of it wide
    assert compiled.wide_stores == aot.wide_accesses(aot.TARGETS[target], s.bytes_stored)


OF_REDUCTIONS = {
    "order 0, upstream none": ("shfl.sync", "bar.sync"),
    "order 1, upstream dense": ("shfl.sync", "bar.sync"),
    "backward from the output": ("shfl.sync", "bar.sync"),
    "with bias": ("shfl.sync",),  # the bias goes through shared memory, which takes a barrier
}


@pytest.mark.parametrize("name", OF_REDUCTIONS)
def test_kernel_without_statistics_has_no_trace_of_them(name):
    s = SPECIALIZATIONS["cuda"][f"fp32 tanh {name}"]
    ptx, watched = (aot.compile_for(aot.TARGETS["sm_90"], each).assembly for each in (s, s.watched))
    of_triton = 2  # scratch pointers that every kernel is given
    assert len(re.findall(r"\.param .*_param_\d+,?\n", ptx)) == len(s.pointers) + len(s.sizes) + of_triton
    assert all(instruction in watched and instruction not in ptx for instruction in OF_REDUCTIONS[name])


def test_checks_see_what_they_look_for():
    """The patterns find a float64 instruction, an atomic and narrow accesses where there are some."""
    s = SPECIALIZATIONS["cuda"]["fp64 tanh order 1, upstream dense"]
    narrow = replace(s, misaligned=frozenset(s.pointers))
    compiled = aot.compile_for(aot.TARGETS["sm_90"], narrow)
    assert compiled.uses_float64
    assert compiled.wide_loads == 0
    assert compiled.wide_stores == 0
    atomic = aot.Compiled(
        ttir="tensor<8xf32>", assembly="\tatom.global.gpu.acq_rel.add.f32 %f1, [%rd1], %f2;", registers=0, spilled=0
    )
    assert atomic.uses_atomics
    assert not atomic.addresses_are_64_bit
    short = "%9 = tt.addptr %8, %7 : tensor<1024x!tt.ptr<f32>>, tensor<1024xi32>"
    early = "%1 = arith.muli %0, %c1024_i32 : i32\n" + short.replace("i32>", "i64>")
    assert not aot.Compiled(ttir=early, assembly="", registers=0, spilled=0).addresses_are_64_bit
    assert not aot.Compiled(ttir=short, assembly="", registers=0, spilled=0).addresses_are_64_bit
