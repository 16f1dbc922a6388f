"""The wheel: what it carries, and that it works by itself, installed beside nothing and used from an empty folder."""

import email
import json
import os
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Where the wheel's folders come from.
CARRIED = {
    "minigrad": "minigrad",
    "minigrad_kernels": "kernels/minigrad_kernels",
    "minigrad/configs": "configs",
    "minigrad/experiments": "experiments",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """Install the wheel into an environment that sees this one's packages but its own minigrad; return its programs."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=os.name != "nt")
    paths = sysconfig.get_paths("venv", {"base": str(folder), "platbase": str(folder)})
    # Folders named so come after its own, and no .pth file in them is read: an editable install works through one.
    visible = [*site.getsitepackages(), site.getusersitepackages()]
    Path(paths["purelib"], "visible.pth").write_text("\n".join(visible))
    python = str(next(Path(paths["scripts"]).glob("python*")))
    install = ["install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True, capture_output=True)
    return Path(paths["scripts"])


@pytest.fixture
def run(programs, tmp_path):
    """Run a program of that environment from an empty folder; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*command: str) -> str:
        command = (str(programs / command[0]), *command[1:])
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_wheel_carries_the_library_its_configs_and_its_experiments_and_nothing_else(wheel):
    expected = {
        f"{place}/{file.relative_to(ROOT / source).as_posix()}"
        for place, source in CARRIED.items()
        for file in (ROOT / source).rglob("*")
        if file.suffix in (".py", ".yaml", ".typed")
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    (record,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    assert names == expected | {f"{record}/{name}" for name in about}
    for name in ("minigrad/py.typed", "minigrad_kernels/py.typed", "minigrad/configs/train.yaml"):
        assert name in names


def test_the_wheel_declares_its_program_and_triton_on_linux_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        read = {name.split("/")[-1]: archive.read(name).decode() for name in archive.namelist() if "dist-info" in name}
    assert read["entry_points.txt"].split("\n")[:2] == ["[console_scripts]", "minigrad-train = minigrad.train:main"]
    metadata = email.message_from_string(read["METADATA"])
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    (triton,) = [line for line in metadata.get_all("Requires-Dist") if line.startswith("triton")]
    assert triton.partition("; ")[2] == "sys_platform == 'linux'"


def test_the_installed_wheel_trains(run, tmp_path):
    out = run("minigrad-train", "steps=20", "device=cpu", "objective.hidden=[8]", "run_dir=here")
    assert out.splitlines()[-1].endswith("tensorboard --logdir here")
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 20)


def test_the_installed_wheel_runs_an_experiment(run, tmp_path):
    run("minigrad-train", "experiment=exactness", "points=2000", "dtypes=[float32]", "device=cpu", "run_dir=here")
    assert json.loads((tmp_path / "here" / "summary.json").read_text())["status"] == "finished"
    assert (tmp_path / "here" / "figures" / "exactness.png").is_file()


def test_the_installed_wheel_passes_a_gradient_check(run, programs):
    code = (
        "import torch, minigrad, minigrad_kernels\n"
        "x = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)\n"
        "assert torch.autograd.gradcheck(minigrad.tanh, x) and torch.autograd.gradgradcheck(minigrad.tanh, x)\n"
        "print(minigrad.__file__, minigrad_kernels.__file__, minigrad.nn.Tanh.__module__, sep='\\n')"
    )
    *files, _ = run("python", "-c", code).splitlines()
    assert all(Path(file).is_relative_to(programs.parent) for file in files), files
