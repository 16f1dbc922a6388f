"""The GPU benchmark without a GPU: every section runs dry, and none shows the figures of something wrong."""

import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cases
import minigrad
import minigrad_kernels as kernels
import reference
from bench import copies, elementwise, gpu, measure, monitor, peers, step, timing, ulps, update
from bench.lines import Figure, Line
from bench.setting import CheckFailed, Setting

CPU = torch.device("cpu")
RESULTS = Path(__file__).parents[2] / "kernels" / "bench" / "results"
# Triton's interpreter takes seconds for what it shows with one section of each kind of kernel as well.
SECTIONS = ("bias", "exactness", "update") if cases.INTERPRETED else tuple(gpu.SECTIONS)
not_interpreted = pytest.mark.skipif(cases.INTERPRETED, reason="the same on either path")


def section_of(*lines):
    return gpu.Section("Planted", lambda setting: iter(lines), 10)


@pytest.mark.parametrize("name", SECTIONS)
def test_section_runs_dry_and_says_so_in_every_line(name, capsys):
    assert gpu.main(["--dry", "--sections", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 4
    assert all(line.startswith("[dry run] ") for line in lines)
    assert not re.search(r"\b(bounds|reached|missed)\b", "\n".join(lines))


@not_interpreted
def test_the_update_without_triton_says_so_in_place_of_figures(capsys):
    assert gpu.main(["--dry", "--sections", "update"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(update.NEEDS_TRITON) for line in lines) == 5
    assert not any("+-" in line for line in lines)


def too_large(function):
    def planted(*arguments):
        result = function(*arguments)
        return tuple(part * 1.01 for part in result) if isinstance(result, tuple) else result * 1.01

    return planted


def backward_too_large(x, upstream, activation, order):
    result = DERIVATIVE(x, upstream, activation, order)
    return result if upstream is None else result * 1.01


DERIVATIVE = kernels.derivative


MLP = minigrad.nn.MLP


def off_by_a_statistic(problem):
    raise AssertionError("Expected 1.0 but got 2.0.")


WRONG = {
    "elementwise": (minigrad, "sigmoid", too_large(minigrad.sigmoid), "sigmoid, forward, float32, 2^7 elements"),
    "elementwise, backward": (kernels, "derivative", backward_too_large, "tanh, backward"),
    "bias": (minigrad, "bias_activation", too_large(minigrad.bias_activation), "tanh, forward, float32, 8 x 16"),
    "bias, backward": (
        kernels,
        "bias_activation_backward",
        lambda *arguments: (kernels.derivative(arguments[1] + arguments[2], arguments[0], "tanh", 1), arguments[2]),
        "bias gradient",
    ),
    "derivatives": (minigrad, "derivative", too_large(minigrad.derivative), "tanh, order 1"),
    "monitor": (monitor, "check", off_by_a_statistic, "the monitor"),
    "step": (minigrad.nn, "MLP", lambda sizes, _, *a, **b: MLP(sizes, "sigmoid", *a, **b), "minigrad's losses are off"),
    "step, graph": (step, "off", lambda losses, expected: losses.append(0.0) or 0.0, "not those of the same steps"),
    "exactness": (minigrad, "tanh", too_large(minigrad.tanh), "tanh, forward, float32"),
    "exactness, halves": (kernels, "derivative", too_large(kernels.derivative), "first derivative, bfloat16"),
}


@not_interpreted
@pytest.mark.parametrize("case", WRONG)
def test_wrong_result_withholds_the_section_s_figures(case, monkeypatch, capsys):
    module, name, planted, said = WRONG[case]
    section = case.partition(",")[0]
    monkeypatch.setattr(module, name, planted)
    monkeypatch.setitem(gpu.SECTIONS, "last", section_of(Line({"case": "of another section"}, {"us": 1.0})))
    assert gpu.main(["--dry", "--sections", section, "last"]) == 1
    shown = capsys.readouterr().out
    assert f"{section}: no figures, a check failed: " in shown
    assert said in shown
    assert "---" not in shown.partition("last:")[0]  # no table
    assert "of another section" in shown


@pytest.mark.skipif(not cases.INTERPRETED, reason="needs Triton's kernels")
def test_a_wrong_update_is_not_timed(monkeypatch):
    new = kernels.new_fused_update

    def decaying(rule, options, *arguments, **how):
        return new(rule, options | {"weight_decay": 1e-4}, *arguments, **how)

    monkeypatch.setattr(kernels, "new_fused_update", decaying)
    with pytest.raises(CheckFailed, match="gradient_descent, float32, 10 large tensors: minigrad's parameters are off"):
        next(update.measure(Setting(CPU, dry=True, deadline=math.inf)))


@not_interpreted
def test_section_that_breaks_off_leaves_the_others_their_turn(monkeypatch, capsys):
    def broken(setting):
        yield Line({"case": "measured before"}, {"us": 1.0})
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu.SECTIONS, "first", gpu.Section("Planted", broken, 10))
    monkeypatch.setitem(gpu.SECTIONS, "last", section_of(Line({"case": "of another section"}, {"us": 1.0})))
    assert gpu.main(["--dry", "--sections", "first", "last"]) == 1
    shown = capsys.readouterr().out
    assert "RuntimeError: out of memory" in shown
    assert "measured before" not in shown
    assert "of another section" in shown


@not_interpreted
@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--dry", "--sections", "nothing"], "invalid choice: 'nothing'"), (["--dry", "--write"], "leave out")],
)
def test_what_makes_no_sense_is_an_error_of_the_command_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@not_interpreted
def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "--dry" in shown.err


@not_interpreted
def test_a_gpu_on_which_triton_does_not_run_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "path_for", lambda device: "plain")
    assert "install triton" in gpu.obstacle(torch.device("cuda"))


@not_interpreted
def test_all_sections_fit_in_the_time_that_is_promised():
    assert sum(section.seconds for section in gpu.SECTIONS.values()) <= gpu.AT_MOST


@not_interpreted
def test_no_case_is_begun_after_the_deadline():
    setting = Setting(CPU, dry=True, deadline=time.monotonic() - 1)
    assert list(elementwise.measure(setting)) == []
    assert setting.left_out == 18


@not_interpreted
def test_table_is_written_with_its_verdicts_and_conditions(monkeypatch, tmp_path):
    line = Line({"case": "a"}, {"us": Figure.of([1.0, 2.0, 3.0]), "ratio": 1.5, "jax us": "absent"}, {"ratio": "<= 1"})
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setitem(gpu.SECTIONS, "planted", section_of(line, replace(line, bounds={"us": ">= 2"})))
    assert gpu.run("planted", CPU, dry=False, conditions_to_write={"device": "a card", "commit": "abc"})
    written = json.loads((tmp_path / "gpu_planted.json").read_text())
    assert written["conditions"] == {"device": "a card", "commit": "abc"}
    assert written["lines"][0]["cells"]["us"] == {"median": 2.0, "low": 1.5, "high": 2.5}
    assert [line["verdict"] for line in written["lines"]] == ["missed: ratio <= 1", "reached"]
    assert "1 of 2 cases miss a bound" in written["notes"]
    page = (tmp_path / "gpu_planted.md").read_text()
    assert "| a | 2 +-25.0% | 1.5 | absent | missed: ratio <= 1 |" in page
    assert "- device: a card" in page


@not_interpreted
def test_bound_without_a_figure_is_not_judged():
    line = Line({"case": "a"}, {"over best": "jax absent"}, {"over best": "<= 1.03"})
    assert line.judged == {}
    assert line.verdict == ""


@not_interpreted
@pytest.mark.parametrize("name", ["cpu", "monitor_cpu", "trainer"])
def test_recorded_results_are_what_is_written_from_them_again(name, monkeypatch, tmp_path):
    recorded, page = (json.loads((RESULTS / f"{name}.json").read_text()), (RESULTS / f"{name}.md").read_text())
    title, command = (re.search(pattern, page)[1] for pattern in ("# (.*)\n", "`(.*)`\n"))
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    rows = [measure.Row(**row) for row in recorded["rows"]]
    measure.write(name, title, rows, recorded["conditions"], command)
    assert (tmp_path / f"{name}.md").read_text() == page
    assert json.loads((tmp_path / f"{name}.json").read_text()) == recorded


@not_interpreted
def test_contestants_take_turns_in_changing_order_on_one_copy_after_another():
    seen = []

    def contestant(name):
        copies = [(name, number) for number in range(3)]
        return timing.Contestant(name, lambda *arguments: seen.append(arguments), copies)

    times = timing.wall_times([contestant("a"), contestant("b")], CPU, calls=4, rounds=2)
    assert {name: len(samples) for name, samples in times.items()} == {"a": 2, "b": 2}
    assert [name for name, number in seen[::4]] == ["a", "b", "b", "a", "a", "b"]
    assert [number for _, number in seen[:4]] == [0, 1, 2, 0]


@pytest.mark.gpu
def test_replayed_graphs_compute_what_calls_compute_and_take_the_gpu_s_time():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA or ROCm device")
    device = torch.device("cuda")
    numbers = [(torch.randn(2**20, device=device),) for _ in range(3)]
    tanh = timing.Contestant("tanh", minigrad.tanh, numbers, is_ours=True)
    times = timing.gpu_times([tanh, *copies.contestants(numbers)], device, calls=30, rounds=3)
    assert all(0.1 < sample < 10_000 for samples in times.values() for sample in samples)
    called = []

    def another_each_time(x):
        called.append(x)
        return x + len(called)

    with pytest.raises(CheckFailed, match="another: a replayed graph"):
        timing.gpu_times([timing.Contestant("another", another_each_time, numbers, is_ours=True)], device, 3, 2)

    def in_place(x):
        x.add_(1)

    def elsewhere(x):
        x.add(1)

    timing.gpu_times([timing.Contestant("in place", in_place, numbers, is_ours=True)], device, 3, 2)
    with pytest.raises(CheckFailed, match="elsewhere: a replayed graph leaves a copy as it was"):
        timing.gpu_times([timing.Contestant("elsewhere", elsewhere, numbers, is_ours=True)], device, 3, 2)


def raises(*_):
    raise RuntimeError("no kernel image\nfor this device")


@not_interpreted
def test_peer_that_fails_says_so_in_its_column_and_ours_fails_the_section():
    monkeypatched = timing.Contestant("peer", raises, [()])
    assert peers.verified(monkeypatched, []).reason == "failed: RuntimeError: no kernel image for this device"
    with pytest.raises(RuntimeError):
        timing.wall_times([replace(monkeypatched, is_ours=True)], CPU, calls=1, rounds=2)


@not_interpreted
def test_peer_that_computes_something_else_takes_no_part():
    x = torch.linspace(-3, 3, 50)
    cosine, tanh = (timing.Contestant("peer", function, [(x,)]) for function in (torch.cos, torch.tanh))
    assert peers.verified(cosine, [x.double().tanh()]).reason == "computes something else"
    assert peers.verified(tanh, [x.double().tanh()]) is tanh


@not_interpreted
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_the_benchmark_s_ruler_is_that_of_the_tests(activation, order):
    generator = torch.Generator().manual_seed(0)
    for dtype in cases.HALVES:
        x = cases.all_halves(dtype)
        exact = reference.derivative(activation, x, order)
        noisy = (exact * (1 + 0.01 * torch.randn(exact.shape, generator=generator, dtype=exact.dtype))).to(dtype)
        assert torch.equal(ulps.steps(noisy, ulps.exact(activation, x, order)), reference.half_distance(noisy, exact))
    x = torch.cat([cases.dense_floats(torch.float32, 2000), cases.special_floats(torch.float32)])
    exact, actual = reference.derivative(activation, x, order), kernels.derivative(x, None, activation, order)
    torch.testing.assert_close(
        ulps.ulps(actual, ulps.exact(activation, x, order)), reference.ulp_error(actual, exact), rtol=1e-6, atol=1e-6
    )


@not_interpreted
def test_ruler_of_the_benchmark_finds_a_nan_infinitely_far_off():
    nan, one = torch.tensor([float("nan")], dtype=torch.bfloat16), torch.ones(1, dtype=torch.float64)
    for distance in (ulps.steps, ulps.ulps):
        assert distance(nan, one).item() == float("inf")
        assert distance(nan, nan.double()).item() == 0


@pytest.mark.parametrize(("reads", "writes"), [(1, 1), (2, 1), (4, 3)])
def test_copy_reads_and_writes_every_word(reads, writes, poisoned):
    tensors = [torch.randn(5000) for _ in range(reads)]
    expected = tensors[0].view(torch.int32)
    for tensor in tensors[1:]:
        expected = expected ^ tensor.view(torch.int32)
    moved = copies.move(*tensors, writes=writes)
    assert len(moved) == writes
    assert all(torch.equal(out, expected) for out in moved)


def test_copy_of_more_tensors_than_the_kernel_has_is_refused():
    with pytest.raises(ValueError, match="5 reads"):
        copies.move(*[torch.zeros(4)] * 5)


@not_interpreted
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize(("reads", "writes"), [(1, 1), (2, 1), (4, 3)])
def test_copy_compiles_to_wide_accesses_ahead_of_time(reads, writes, target):
    pytest.importorskip("triton", reason="needs Triton, which is on Linux only")
    from bench import aot, move_kernel

    out, read = ("first_out_ptr", "second_out_ptr", "third_out_ptr"), ("a_ptr", "b_ptr", "c_ptr", "d_ptr")
    n_bytes = 4 * move_kernel.BLOCK
    compiled = aot.compile_for(
        aot.TARGETS[target],
        aot.Specialization(
            name="copy",
            kernel=move_kernel._move_kernel,
            dtype="fp32",
            pointers=dict.fromkeys([*out[:writes], *read[:reads]], "i32"),
            constants={"BLOCK": move_kernel.BLOCK},
            sizes={"n_words": False},
            bytes_loaded=reads * n_bytes,
            bytes_stored=writes * n_bytes,
        ),
    )
    assert aot.blocks_on(aot.TARGETS[target].backend).num_warps == move_kernel.NUM_WARPS
    assert compiled.spilled == 0
    assert compiled.wide_loads >= aot.wide_accesses(aot.TARGETS[target], reads * n_bytes)
    assert compiled.wide_stores >= aot.wide_accesses(aot.TARGETS[target], writes * n_bytes)
    assert compiled.addresses_are_64_bit
