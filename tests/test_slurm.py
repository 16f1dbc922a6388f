"""The recipe for Slurm, with what Slurm provides played by scripts."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from minigrad.train import main
from ranked import ended, free_port, wait_for
from runs import checkpoints, last_checkpoint, summary
from test_house import ROOT

RECIPE = [
    "objective=wine",
    "batch_size=9",
    "precision=float64",
    "judge_every=10",
    "checkpoint_every=10",
    "monitor=none",
]
SRUN = '#!/bin/bash\n[[ $1 == --cpus-per-task=2 ]] && shift\necho $$ > step\nexec "$@"\n'
SCONTROL = """#!/bin/bash
case "$1 $2" in
    "show hostnames") echo localhost ;;
    "show job") cat state ;;
    *) echo "$@" > scontrol ;;
esac
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Return what starts the recipe as Slurm would, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name, content in {"srun": SRUN, "scontrol": SCONTROL}.items():
        Path("bin").mkdir(exist_ok=True)
        Path("bin", name).write_text(content)
        Path("bin", name).chmod(0o755)
    Path("state").write_text("JobId=17 JobState=RUNNING")
    job = {"JOB_ID": "17", "NNODES": "1", "CPUS_PER_TASK": "2", "JOB_NODELIST": "localhost"}
    variables = {f"SLURM_{name}": value for name, value in job.items()}
    variables |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "MASTER_PORT": str(free_port())}

    def start(*overrides):
        command = ["bash", str(ROOT / "docs" / "slurm.sh"), *RECIPE, *overrides]
        return subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL)

    return start


def test_a_preempted_job_is_requeued_and_goes_on_where_it_stopped(slurm):
    with ended(slurm("steps=100000")) as job:
        wait_for(lambda: Path("runs", "slurm_17", "checkpoints").exists())
        torchrun = int(Path("step").read_text())
        children = subprocess.run(["pgrep", "-P", str(torchrun)], capture_output=True, text=True, check=True).stdout
        for process in (torchrun, *map(int, children.split()), job.pid):  # Slurm signals all processes of a step
            os.kill(process, signal.SIGTERM)
        assert job.wait(60) != 0
    assert Path("scontrol").read_text() == "requeue 17\n"
    Path("scontrol").unlink()
    stopped = summary("runs/slurm_17")
    assert (stopped["status"], stopped["ranks"]) == ("interrupted", 2)
    assert stopped["steps"] == checkpoints("runs/slurm_17")[-1]
    total = f"steps={stopped['steps'] + 25}"
    with ended(slurm(total)) as job:
        assert job.wait(120) == 0
    assert not Path("scontrol").exists()
    assert main([*RECIPE, total, "run_dir=one"]) == 0
    two, one = (last_checkpoint(name)["trainer"]["parameters"] for name in ("runs/slurm_17", "one"))
    for name, expected in one.items():
        assert (two[name] - expected).norm() <= 1e-12 * expected.norm()


def test_only_a_job_that_was_interrupted_is_requeued(slurm):
    Path("bin", "torchrun").write_text("#!/bin/bash\nexit 3\n")
    Path("bin", "torchrun").chmod(0o755)
    run = Path("runs", "slurm_17")
    run.mkdir(parents=True)
    for status, state in (("failed", "RUNNING"), ("interrupted", "CANCELLED"), ("interrupted", "RUNNING")):
        (run / "summary.json").write_text(json.dumps({"status": status}, indent=2))
        Path("state").write_text(f"JobId=17 JobState={state}")
        with ended(slurm()) as job:
            assert job.wait(60) == 3
        assert Path("scontrol").exists() == ((status, state) == ("interrupted", "RUNNING"))
