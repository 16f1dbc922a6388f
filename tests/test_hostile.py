"""Files and command lines that try to run something: every one ends in one line, and runs nothing.

Each would leave a file `pwned` behind if any of it were executed.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml

import minigrad
from minigrad.errors import UserError
from minigrad.train import main
from runs import run

COMMAND = "touch pwned"
TINY = ["objective=quadratic", "objective.dimensions=3", "steps=2"]


class Bomb:
    """Runs the command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (COMMAND,)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Where a finished run lies."""
    folder = tmp_path_factory.mktemp("finished") / "here"
    run(str(folder), *TINY)
    return folder


@pytest.fixture
def here(finished, tmp_path) -> None:
    """A copy of that run, in `here`."""
    shutil.copytree(finished, tmp_path / "here")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET", "a secret")
    # What a reference to code in a file of this folder would find: importing it is enough.
    Path("evil.py").write_text("open('pwned', 'w').close()\ndef f(*args):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)


def one_line(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """Return the one line in which a command line ends."""
    capsys.readouterr()
    assert main(list(overrides)) in (1, 2)
    assert not Path("pwned").exists()
    error = capsys.readouterr().err
    assert error.startswith("minigrad-train: ")
    assert error.count("\n") == 1
    assert "a secret" not in error
    return error


def test_the_bomb_would_go_off():
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("pwned").exists()


def changed(**values: Any) -> Callable[[str], str]:
    return lambda text: yaml.safe_dump({**yaml.safe_load(text), **values})


def in_group(group: str, **values: Any) -> Callable[[str], str]:
    return lambda text: changed(**{group: {**yaml.safe_load(text)[group], **values}})(text)


CONFIGS = {
    "an objective of this folder": changed(objective={"name": "python", "start": [1.0]}, function="evil:f"),
    "code for an objective": in_group("objective", name="os.system"),
    "code for a rule": in_group("rule", name="evil:f"),
    "code for a schedule": in_group("schedule", name="evil.f"),
    "a target at the top": changed(_target_="os.system", command=COMMAND),
    "a target in a group": in_group("rule", _target_="os.system", _args_=[COMMAND]),
    "a target for a group": changed(rule={"_target_": "os.system", "_args_": [COMMAND]}),
    "an object": lambda text: text + f"\nextra: !!python/object/apply:os.system ['{COMMAND}']\n",
    "a module": lambda text: text.replace("seed: 0", "seed: !!python/module:evil"),
    "a name": lambda text: text.replace("name: constant", "name: !!python/name:evil.f"),
    "an interpolation of the environment": changed(device="${oc.env:SECRET}"),
    "an interpolation in a group": in_group("objective", start="${oc.env:SECRET}"),
    "an interpolation of code": changed(seed="${oc.create:${oc.decode:evil}}"),
    "an interpolation of a key": changed(learning_rate="${seed}"),
    "an experiment elsewhere": changed(experiment="../../evil"),
    "an experiment with a path": changed(experiment=str(Path("/tmp/evil"))),
    "Hydra's own keys": changed(hydra={"callbacks": {"x": {"_target_": "os.system"}}}),
    "keys that are no text": lambda text: text + "\n1: 2\n? [a, b]\n: 3\n",
    "a group that is none": changed(rule=[COMMAND]),
    "a number for text": changed(experiment=3),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_runs_nothing(name, here, capsys):
    file = Path("here/config.yaml")
    text = CONFIGS[name](file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    one_line(capsys, "resume=here", "steps=4")


@pytest.mark.parametrize("function", ["os:system", "evil:f"])
def test_a_function_in_a_config_is_left_aside(function, here):
    file = Path("here/config.yaml")
    file.write_text(changed(function=function)(file.read_text()))
    assert main(["resume=here", "steps=4"]) == 0
    assert not Path("pwned").exists()


def sealed(payload: bytes) -> bytes:
    """Return what a checkpoint with this payload looks like: its SHA-256 is right."""
    return payload + b"\nsha256 " + hashlib.sha256(payload).hexdigest().encode() + b"\n"


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return sealed(buffer.getvalue())


def content(**values: Any) -> bytes:
    """Return a checkpoint with some values changed, or left out where they are None."""
    file = Path("here/checkpoints/000000002.pt")
    whole = {**torch.load(io.BytesIO(file.read_bytes()[:-73]), weights_only=True), **values}
    return saved({key: value for key, value in whole.items() if value is not None})


MODELS = {
    "code for a model": {"name": "os.system", "arguments": {"command": COMMAND}, "buffers": {}},
    "a private name": {"name": "__import__", "arguments": {"name": "evil"}, "buffers": {}},
    "arguments that are none": {"name": "Point", "arguments": {"command": COMMAND}, "buffers": {}},
    "an activation that is none": {
        "name": "Predictor",
        "arguments": {"sizes": [1, 1], "activation": "os.system", "classes": None},
        "buffers": {},
    },
    "a model that is too large": {"name": "Point", "arguments": {"shape": [10**15]}, "buffers": {}},
    "a model that is text": "os.system",
    "buffers that are text": {"name": "Point", "arguments": {"shape": [3]}, "buffers": COMMAND},
    "no model": None,
}
CHECKPOINTS: dict[str, Callable[[], bytes]] = {
    "a pickle": lambda: sealed(pickle.dumps(Bomb())),
    "a pickle as torch writes it": lambda: saved(Bomb()),
    "a pickle in a checkpoint": lambda: content(stopping=Bomb()),
    "another format": lambda: content(format="minigrad 99"),
    "text": lambda: saved(COMMAND),
    "nothing of use": lambda: saved({"format": "minigrad 1"}),
    "a trainer that is text": lambda: content(trainer=COMMAND),
    "a trainer without steps": lambda: content(trainer={}),
    "parameters that are text": lambda: content(trainer={"steps": 2, "parameters": {"x": COMMAND}, "rule": {}}),
    "generators that are text": lambda: content(generators=COMMAND),
    "generators of another kind": lambda: content(generators={"python": [1, [2], 3]}),
    "a path without a stride": lambda: content(path={"stride": 0, "points": []}),
    "no metrics": lambda: content(metrics=3),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_hostile_checkpoint_runs_nothing_on_resumption(name, here, capsys):
    hostile = CHECKPOINTS[name]()
    for file in Path("here/checkpoints").glob("*.pt"):
        file.write_bytes(hostile)
    one_line(capsys, "resume=here", "steps=4")


@pytest.mark.parametrize("name", [*CHECKPOINTS, *MODELS])
def test_a_hostile_checkpoint_runs_nothing_when_it_is_loaded(name, here, capsys):
    hostile = CHECKPOINTS[name]() if name in CHECKPOINTS else content(model=MODELS[name])
    for file in Path("here/checkpoints").glob("*.pt"):
        file.write_bytes(hostile)
    if name in MODELS or "trainer" in name or "parameters" in name or name.startswith(("a pickle", "text", "nothing")):
        with pytest.raises(UserError) as caught:
            minigrad.load("here")
        assert "\n" not in str(caught.value)
        if name not in MODELS:
            one_line(capsys, *TINY, "initial=here")
    assert not Path("pwned").exists()


@pytest.mark.parametrize("text", ["", "[]", "3", '{"steps": "../../evil"}', '{"steps": null}', '{"loss": 1}', "\x00"])
def test_a_hostile_note_of_the_best_checkpoint_runs_nothing(text, here, capsys):
    Path("here/checkpoints/best.json").write_text(text)
    with pytest.raises(UserError):
        minigrad.load("here", checkpoint="best")
    assert main(["resume=here", "steps=4"]) == 0  # it can be written anew
    assert json.loads(Path("here/checkpoints/best.json").read_text())["steps"] == 4


def objects() -> None:
    numpy.savez("data.npz", x=numpy.arange(9.0), y=numpy.array([Bomb()] * 9, dtype=object))


def pickled() -> None:
    Path("data.npz").write_bytes(pickle.dumps(Bomb()))


def text(content: str) -> Callable[[], Any]:
    return lambda: Path("data.csv").write_text(content)


TABLES: dict[str, Callable[[], Any]] = {
    "pickled objects in an array": objects,
    "a pickle": pickled,
    "formulas": text("a,y\n" + f"=cmd|'{COMMAND}'!A1,@SUM(1)\n" * 9),
    "code": text("a,y\n" + "__import__('evil'),1\n" * 9),
    "a huge field": text("a,y\n" + "9" * 200_000 + ",1\n" * 9),
    "a null character": text("a,y\n" + "\x00,1\n" * 9),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_hostile_table_runs_nothing(name, capsys):
    TABLES[name]()
    (file,) = Path.cwd().glob("data.*")
    one_line(capsys, "objective=table", f"objective.file={file.name}")


@pytest.mark.parametrize(
    "line",
    [
        "+_target_=os.system",
        "objective.name=os.system",
        "objective.name=evil:f",
        "rule={_target_:os.system,_args_:[touch pwned]}",
        "+rule._target_=os.system",
        "experiment=../../evil",
        "objective=../../../evil",
        "function=os:system",
        "objective=python function=evil;f objective.start=[0]",
        "objective=python function=../evil:f objective.start=[0]",
        "seed=${oc.create:{_target_:os.system}}",
        "hydra.run.dir=${oc.create:{_target_:os.system}}",
        "hydra/launcher=evil",
        "-m hydra.launcher._target_=evil.f",
        "-m hydra.sweeper._target_=evil.f",
        "+hydra.callbacks.x._target_=evil.f",
        "hydra.job_logging={class:evil.f}",
        "--config-dir=.",
        "objective=table objective.file=/dev/null",
    ],
)
def test_a_hostile_command_line_runs_nothing(line, capsys):
    one_line(capsys, *TINY[2:], *line.split(" "))
