"""The command line, in this process and, where a process is the point, in its own."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from minigrad import catalog
from minigrad.train import main
from runs import signalled_after

pytestmark = pytest.mark.usefixtures("pictures_unseen")
SMALL = ["steps=3", "objective.hidden=[8]", "device=cpu"]
QUICK = ["objective=quadratic", "objective.dimensions=3"]  # for a process: no data are loaded, and no path is drawn


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def summaries() -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(Path.cwd().rglob("summary.json"))]


TRAINING_KEYS = (
    "keys of experiment=training: experiment, seed, device, threads, deterministic, run_dir, learning_rate, steps, "
    "warmup_steps, accumulate, clip_norm, precision, on_nonfinite, execution, patience, target_loss, log_every, "
    "judge_every, checkpoint_every, keep, on_verdict, histogram_every, noise_every, noise_batches, hessian_every, "
    "rank_timeout, initial, resume, activation, batch_size, epochs, objective, objective.hidden, objective.init, rule, "
    "rule.weight_decay, schedule, monitor, monitor.window, monitor.share, monitor.vanishing, monitor.depth_vanishing, "
    "monitor.exploding, monitor.saturated, monitor.dead, monitor.false_zeros, monitor.ratio_high, monitor.ratio_low"
)
EXACTNESS_KEYS = (
    "keys of experiment=exactness: experiment, seed, device, threads, deterministic, run_dir, activations, dtypes, "
    "points"
)
EXPERIMENTS = (
    "backpropagation, chain_rule, computational_graph, detaching, exactness, gradient_accumulation, gradient_basics, "
    "gradient_flow, gradient_flow_depth, gradient_modes, higher_order, learning_rate_range, manual_descent, training"
)
OBJECTIVES = (
    "ackley, beale, booth, branin, breast_cancer, diabetes, digits, himmelblau, mnist5k, parabola, python, quadratic, "
    "quadratic_deep, rastrigin, rosenbrock, saddle, spirals, table, wine"
)
RULES = "adam, adamw, gradient_descent, momentum, nesterov, rmsprop"

WRONG = {
    "lerning_rate=3": f"unknown key 'lerning_rate'; did you mean 'learning_rate'? {TRAINING_KEYS}",
    "objective.hiden=[3]": f"unknown key 'objective.hiden'; did you mean 'objective.hidden'? {TRAINING_KEYS}",
    "experiment=exactness learning_rate=3": f"unknown key 'learning_rate'; {EXACTNESS_KEYS}",
    "experiment=exactness objective=digits": f"unknown key 'objective'; {EXACTNESS_KEYS}",
    "experiment=trainin": f"unknown experiment 'trainin'; there are: {EXPERIMENTS}",
    "experiment=../train": f"unknown experiment '../train'; there are: {EXPERIMENTS}",
    "experiment=null": f"unknown experiment 'null'; there are: {EXPERIMENTS}",
    "objective=digts": f"unknown objective 'digts'; there are: {OBJECTIVES}",
    "objective=null": f"unknown objective 'null'; there are: {OBJECTIVES}",
    "rule=adamm": f"unknown rule 'adamm'; there are: {RULES}",
    "rule.name=os.system": "rule=os.system: expected one of gradient_descent, momentum, nesterov, rmsprop, adam, adamw",
    "rule=momentum rule.momentum=1": "rule.momentum=1.0: expected a number from 0 to below 1",
    "schedule=cosin": "unknown schedule 'cosin'; there are: constant, cosine, exponential, one_cycle, step",
    "activation=tan": "activation=tan: expected one of sigmoid, tanh, relu",
    "activation=tanh,relu": "activation=tanh,relu gives several values; add -m to run them one after the other",
    "learning_rate=abc": "learning_rate=abc: expected a number or null",
    "learning_rate=-1": "learning_rate=-1.0: expected a number above 0, below 3.4e38",
    "learning_rate=nan": "learning_rate=NaN: expected a number above 0, below 3.4e38",
    "learning_rate=???": "learning_rate has no value; experiment=training needs a number or null",
    "learning_rate=null": "learning_rate has no value; give a number above 0",
    "learning_rate=${rate}": "learning_rate: Interpolation key 'rate' not found",
    "learning_rate 0.1": "cannot read 'learning_rate'; write a setting as key=value, such as learning_rate=0.1",
    "learning_rate=[": "cannot read 'learning_rate=['; put quotes around a value with special characters: "
    "\"key='a value'\"",
    "~activation": "activation has no value; objective=digits needs one",
    "steps=0": "steps=0: expected an integer from 1 on",
    "steps=1.5": "steps=1.5: expected an integer or null",
    "epochs=0": "epochs=0: expected an integer from 1 on",
    "log_every=0": "log_every=0: expected an integer from 1 on",
    "keep=0": "keep=0: expected an integer from 1 on",
    "warmup_steps=-1": "warmup_steps=-1: expected an integer from 0 on",
    "clip_norm=0": "clip_norm=0.0: expected a finite number above 0",
    "precision=float16": "precision=float16: expected one of float32, float64, bfloat16",
    "on_nonfinite=ignore": "on_nonfinite=ignore: expected one of stop, skip",
    "execution=fast": "execution=fast: expected one of eager, graph, compile",
    "on_verdict=raise": "on_verdict=raise: expected one of warn, stop",
    "monitor=off": "unknown monitor 'off'; there are: gradients, none",
    "monitor.window=0": "monitor.window=0: expected an integer from 1 on",
    "monitor.share=1": "monitor.share=1: expected a number between 0 and 1",
    "monitor.ratio_low=1": "monitor.ratio_low=1: expected a number from 0 on, below ratio_high=0.1",
    "histogram_every=0": "histogram_every=0: expected an integer from 1 on",
    "noise_batches=1": "noise_batches=1: expected an integer from 2 on",
    "objective=parabola noise_every=5": "noise_every=5: objective=parabola has no batches; leave it out",
    "deterministic=maybe": "deterministic=maybe: expected true or false",
    "steps=null epochs=null": "neither steps nor epochs are given; objective=digits needs one of them",
    "objective=parabola precision=bfloat16": "precision=bfloat16: objective=parabola is no network; use float32 or "
    "float64",
    "objective=parabola objective.start=[1,2]": "objective.start=[1.0, 2.0]: expected a list of one finite number",
    "objective=python function=nowhere:f objective.start=[0]": "function=nowhere:f: there is no module 'nowhere' in "
    "the current directory or installed",
    "objective=python objective.start=[0]": "function has no value; objective=python needs one",
    "objective=table": "objective.file has no value; objective=table needs text",
    "objective=table objective.file=nowhere.csv": "objective.file=nowhere.csv: No such file or directory; expected a "
    "file that can be read",
    "initial=nowhere": "nowhere holds no checkpoint: no run has saved one there",
    "objective.hidden=3": "objective.hidden=3: expected a list of integers such as [64, 32]",
    "objective.hidden=[-3]": "objective.hidden=[-3]: expected widths of at least 1",
    "seed=-1": "seed=-1: expected an integer from 0 to 2^32 - 1",
    "device=gpu": "device=gpu: expected auto, cpu, cuda, cuda:1 or another device of PyTorch",
    "--learning-rate=0.1": "unknown option --learning-rate=0.1; a key is given without dashes: learning_rate=0.1; "
    "see minigrad-train --help",
    "-x": "unknown option -x; see minigrad-train --help",
    "--cfg nothing": "argument -c/--cfg: invalid choice: 'nothing' (choose from job, hydra, all); "
    "see minigrad-train --help",
    "-m lerning_rate=1,2": f"unknown key 'lerning_rate'; did you mean 'learning_rate'? {TRAINING_KEYS}",
    "~experiment": f"no experiment is left; name one of {EXPERIMENTS}",
    "-m experiment=glob(zz*)": "the sweep has no run: a pattern matches nothing; see minigrad-train --help for what "
    "there is",
    "-m experiment=glob(tr*) stesp=2": f"unknown key 'stesp'; did you mean 'steps'? {TRAINING_KEYS}",
    "-m objective=digits,digts": f"unknown objective 'digts'; there are: {OBJECTIVES}",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_mistake_is_one_clear_line_and_exit_code_2(line, capsys):
    assert main(line.split()) == 2
    assert capsys.readouterr().err.replace("'job', 'hydra', 'all'", "job, hydra, all") == (
        f"minigrad-train: {WRONG[line]}\n"
    )
    assert not summaries()


def test_a_key_added_with_a_plus_is_refused(capsys):
    assert main(["+momentum=0.9"]) == 2
    assert capsys.readouterr().err.startswith("minigrad-train: unknown key 'momentum'; keys of experiment=training: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_one_line(capsys):
    assert main(["device=cuda"]) == 2
    assert capsys.readouterr().err == (
        "minigrad-train: device=cuda: PyTorch finds no such device here; use device=cpu or device=auto\n"
    )


def test_an_existing_run_directory_is_one_line(capsys):
    Path("mine").mkdir()
    assert main([*SMALL, "run_dir=mine"]) == 2
    assert capsys.readouterr().err == (
        "minigrad-train: run_dir=mine exists; name a new directory, or leave run_dir out\n"
    )


def test_overrides_reach_the_run_and_hydra_writes_nothing(capsys):
    assert main([*SMALL, "activation=relu", "seed=7", "learning_rate=0.25", "run_dir=here"]) == 0
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["here"]
    (summary,) = summaries()
    assert (summary["status"], summary["steps"], summary["seed"]) == ("finished", 3, 7)
    assert summary["learning_rate"] == 0.25
    assert "activation: relu" in Path("here", "config.yaml").read_text()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("test/loss ")
    assert last.endswith("at step 3; the run lies in here; look at it with: tensorboard --logdir here")


def test_steps_take_the_place_of_epochs():
    assert main(["epochs=2", "objective.hidden=[8]", "batch_size=599"]) == 0
    assert main(["epochs=2", "objective.hidden=[8]", "batch_size=599", "steps=3"]) == 0
    assert [summary["steps"] for summary in summaries()] == [4, 3]


def test_a_sweep_runs_every_combination_in_a_directory_of_its_own():
    assert main([*SMALL, "-m", "activation=tanh,relu", "seed=0,1"]) == 0
    assert len(summaries()) == 4
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["runs"]


def test_a_sweep_goes_on_after_a_mistake_and_says_so(capsys):
    assert main([*SMALL, "-m", "activation=tan,relu"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "minigrad-train: activation=tan: expected one of sigmoid, tanh, relu",
        "minigrad-train: 1 of the sweep's 2 runs failed:",
        "  activation=tan: activation=tan: expected one of sigmoid, tanh, relu",
    ]
    assert len(summaries()) == 1


def test_output_that_nobody_reads_ends_the_run_in_one_line():
    command = [sys.executable, "-m", "minigrad.train", *QUICK, "steps=1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        run.stdout.readline()
        run.stdout.close()
        assert run.stderr.read() == "minigrad-train: nobody reads the output any more\n"
    assert run.returncode == 1
    assert summaries()[0]["status"] == "failed"


def test_a_run_that_diverges_names_its_step_and_exits_with_1(capsys):
    assert main(["learning_rate=1e38", "steps=20", "objective.hidden=[8]", "run_dir=here"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("minigrad-train: step ")
    assert captured.err.count("\n") == 1
    assert "stopped; the run lies in here" in captured.out
    (summary,) = summaries()
    assert summary["status"] == "failed"
    assert summary["train/loss"] is not None


def test_an_error_that_is_no_one_s_mistake_keeps_its_traceback(monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("minigrad.objectives.network.Network.judge", broken)
    with pytest.raises(ZeroDivisionError):
        main(SMALL)
    assert summaries()[0]["status"] == "failed"


def process_state() -> dict[str, object]:
    for library in ("sklearn", "torch._inductor.config"):
        importlib.import_module(library)  # sets variables of its own, once
    return {
        "arguments": sys.argv,
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "import path": list(sys.path),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": (torch.get_num_threads(), threading.active_count()),
        "determinism": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
    }


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ([], 0),
        (["deterministic=true", "threads=2"], 0),
        (["deterministic=true", "threads=2", "learning_rate=1e38", "steps=20"], 1),
        (["deterministic=true", "threads=2", "initial=nowhere"], 2),
        (["deterministic=true", "threads=2", "-m", "seed=0,1"], 0),
    ],
)
def test_a_run_leaves_the_process_as_it_was(overrides, code):
    before = process_state()
    assert main([*SMALL, *overrides]) == code
    assert process_state() == before


def test_a_run_that_is_interrupted_leaves_the_process_as_it_was():
    before = process_state()
    with signalled_after(2, signal.SIGTERM):
        assert main([*SMALL, "deterministic=true", "threads=2"]) == 143
    assert process_state() == before


def test_help_lists_what_there_is(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    named = [name for names in catalog.groups().values() for name in names]
    for name in (*named, "learning_rate:", "seed:", "resume:", "patience:", "deterministic:"):
        assert f"\n  {name} " in shown, name
    assert main(["-h", "experiment=exactness"]) == 0
    shown = capsys.readouterr().out
    assert "\n  points: " in shown
    assert "learning_rate" not in shown.partition("keys of")[2]


def test_the_composed_config_can_be_printed(capsys):
    assert main(["--cfg", "job", "steps=5"]) == 0
    assert "steps: 5\n" in capsys.readouterr().out
    assert not summaries()


PROGRAMS = {
    "module": [sys.executable, "-m", "minigrad.train"],
    "script": [str(Path(sys.executable).with_name("minigrad-train"))],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_both_programs_run_from_any_folder(program):
    program = PROGRAMS[program]
    good = subprocess.run([*program, *QUICK, "steps=3"], capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    wrong = subprocess.run([*program, "lerning_rate=3"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr == f"minigrad-train: {WRONG['lerning_rate=3']}\n"
    assert wrong.stdout == ""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a single process there")
def test_an_interrupted_run_says_so_and_exits_with_130():
    command = [sys.executable, "-m", "minigrad.train", *QUICK, "steps=1000000", "run_dir=here"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that was itself started in the background ignores the signal, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    while "step " not in process.stdout.readline():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "minigrad-train: interrupted\n"
    assert "stopped; the run lies in here" in out
    assert summaries()[0]["status"] == "interrupted"
