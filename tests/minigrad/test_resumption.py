"""What is taken from the run that goes on, what may be given anew, and what is refused."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest
import yaml

from minigrad.train import main
from runs import bits, checkpoints, curves, last_checkpoint, module, resume, run, signalled_after, summary

pytestmark = pytest.mark.usefixtures("pictures_unseen")
TINY = ["objective=quadratic", "objective.dimensions=3"]  # three variables: no path is drawn
ANEW = "on resumption only steps, epochs, device, execution, log_every, on_verdict, rank_timeout may be given anew"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(*overrides: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which a command line is refused."""
    capsys.readouterr()
    assert main(list(overrides)) == 2
    error = capsys.readouterr().err
    assert error.startswith("minigrad-train: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    return error.removeprefix("minigrad-train: ").removesuffix("\n")


def config(name: str) -> dict:
    return yaml.safe_load(Path(name, "config.yaml").read_text())


def test_what_may_be_given_anew_is_taken_and_recorded():
    run("here", "objective=wine", "objective.hidden=[4]", "epochs=1", "log_every=3")
    before = config("here")
    resume("here", "epochs=2", "device=cpu", "log_every=5")
    changed = {"epochs": 2, "device": "cpu", "log_every": 5, "resume": "here"}
    assert config("here") == {**before, **changed}
    assert summary("here")["steps"] == 14
    assert [step for step, _ in curves("here")["train/loss"]] == [0, 3, 6, 10]
    resume("here", "steps=16")
    assert config("here") == {**before, **changed, "steps": 16}
    resume("here", "epochs=3")  # takes the place of steps
    assert config("here") == {**before, **changed, "steps": None, "epochs": 3}
    assert summary("here")["steps"] == 21


def test_all_else_comes_from_the_run(capsys):
    run("here", *TINY, "objective.condition=5", "rule=adam", "rule.beta1=0.5", "seed=3", "steps=4")
    before = config("here")
    resume("here", "steps=6")
    assert config("here") == {**before, "steps": 6, "resume": "here"}


def test_a_value_that_is_the_run_s_own_may_be_repeated():
    run("here", *TINY, "rule=momentum", "rule.momentum=0.5", "learning_rate=0.1", "steps=4")
    assert resume("here", *TINY, "rule=momentum", "learning_rate=0.1", "seed=0", "steps=6")["steps"] == 6
    assert config("here")["rule"]["momentum"] == 0.5


def test_a_run_can_be_moved_before_it_is_resumed():
    run("here", *TINY, "steps=4")
    Path("there").mkdir()
    Path("here").rename("there/run")
    assert resume("there/run", "steps=6")["steps"] == 6
    assert config("there/run")["run_dir"] == "there/run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Where a finished run lies; it was called `here`."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("here", "objective=digits", "objective.hidden=[4]", "learning_rate=0.15", "steps=2")
    return folder / "here"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=3", "learning_rate=3, but the run in here has 0.15"),
        ("seed=1", "seed=1, but the run in here has 0"),
        ("objective=parabola", "objective=parabola, but the run in here has digits"),
        ("rule=adam", "rule=adam, but the run in here has gradient_descent"),
        ("rule.weight_decay=0.1", "rule.weight_decay=0.1, but the run in here has 0.0"),
        ("objective.hidden=[3]", "objective.hidden=[3], but the run in here has [4]"),
        ("schedule=cosine", "schedule=cosine, but the run in here has constant"),
        ("patience=2", "patience=2, but the run in here has null"),
        ("checkpoint_every=7", "checkpoint_every=7, but the run in here has 1000"),
        ("initial=other", "initial=other, but the run in here has null"),
        ("run_dir=other", "run_dir=other, but the run in here has here"),
        ("+extra=1", "extra=1, but the run in here has null"),
    ],
)
def test_a_key_that_differs_from_the_run_s_is_named(override, message, finished, capsys):
    shutil.copytree(finished, "here")
    before = {file: file.read_bytes() for file in Path("here").rglob("*") if file.is_file()}
    assert refused("resume=here", override, capsys=capsys) == f"{message}; {ANEW}"
    assert {file: file.read_bytes() for file in Path("here").rglob("*") if file.is_file()} == before


def test_fewer_steps_than_were_made_are_refused(capsys):
    run("here", *TINY, "steps=10")
    before = summary("here")
    assert refused("resume=here", "steps=9", capsys=capsys) == (
        "the run has made 10 steps already, and 9 are asked for; give more steps"
    )
    assert (summary("here"), config("here")["steps"], checkpoints("here")) == (before, 10, [0, 10])
    assert resume("here", "steps=11")["steps"] == 11


def test_a_directory_without_a_run_is_refused(capsys):
    assert refused("resume=nowhere", capsys=capsys) == (
        "resume=nowhere: nowhere/config.yaml cannot be read: No such file or directory"
    )
    Path("empty").mkdir()
    assert refused("resume=empty", capsys=capsys) == (
        "resume=empty: empty/config.yaml cannot be read: No such file or directory"
    )


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "a: [", "a: \x00", "steps: 3", "experiment: [1]", "a: 2020-99-99", "[" * 5000]
)
def test_a_file_that_is_no_config_is_refused(text, capsys):
    Path("here").mkdir()
    Path("here/config.yaml").write_text(text)
    assert refused("resume=here", capsys=capsys) == "resume=here: here/config.yaml is no config of a run"


def test_a_file_that_is_no_text_is_refused(capsys):
    Path("here").mkdir()
    Path("here/config.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    assert refused("resume=here", capsys=capsys) == "resume=here: here/config.yaml is no config of a run"


def test_a_run_of_another_experiment_is_refused(capsys):
    run("here", "experiment=exactness", "points=1000", "dtypes=[float32]")
    assert refused("resume=here", capsys=capsys) == "resume=here: a run of experiment=exactness cannot be resumed"


def test_a_run_that_is_going_on_elsewhere_is_refused(capsys):
    run("here", *TINY, "steps=4")
    held = os.open("here", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        assert refused("resume=here", "steps=6", capsys=capsys) == (
            "the run in here is going on in another process; wait for it or stop it"
        )
    finally:
        os.close(held)
    assert resume("here", "steps=6")["steps"] == 6


def test_code_is_named_on_the_command_line_alone(capsys):
    code = "def f(x):\n    return (x**2).sum()\n"
    name, other = module(code), module(code)
    recipe = ["objective=python", f"function={name}:f"]
    run("here", *recipe, "objective.start=[1,2,3]", "steps=4")
    assert refused("resume=here", capsys=capsys) == "function has no value; objective=python needs one"
    assert refused("resume=here", "objective=python", f"function={other}:f", capsys=capsys) == (
        f"function={other}:f, but the run in here has {name}:f; {ANEW}"
    )
    assert resume("here", *recipe, "steps=6")["steps"] == 6


# Checkpoints that are damaged.


def spoil(file: Path, how: str) -> None:
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(
        {
            "truncated": content[:-100],
            "empty": b"",
            "a byte changed": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        }[how]
    )


@pytest.mark.parametrize("how", ["truncated", "empty", "a byte changed"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(how, capsys):
    run("whole", *TINY, "steps=30", "checkpoint_every=10", "judge_every=10")
    with signalled_after(25):
        main(["run_dir=here", *TINY, "steps=30", "checkpoint_every=10", "judge_every=10"])
    spoil(Path("here/checkpoints/000000025.pt"), how)
    spoil(Path("here/checkpoints/000000020.pt"), how)
    capsys.readouterr()
    resume("here")
    damaged = "is damaged: its SHA-256 is not the one that it was written with; the one before it is used"
    assert capsys.readouterr().out.splitlines()[1:4] == [
        f"here/checkpoints/000000025.pt {damaged}",
        f"here/checkpoints/000000020.pt {damaged}",
        "goes on at step 10",
    ]
    assert bits(last_checkpoint("here")["trainer"]) == bits(last_checkpoint("whole")["trainer"])
    assert curves("here") == curves("whole")


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(capsys):
    run("here", *TINY, "steps=20", "checkpoint_every=10")
    for file in Path("here/checkpoints").glob("*.pt"):
        spoil(file, "truncated")
    assert refused("resume=here", "steps=30", capsys=capsys) == (
        "here/checkpoints holds no checkpoint that can be used"
    )
    assert checkpoints("here") == [0, 10, 20]


def test_the_checkpoint_of_another_model_or_rule_is_refused(capsys):
    run("here", *TINY, "steps=2")
    run("model", "objective=parabola", "steps=4")
    run("rule", *TINY, "rule=adam", "steps=4")
    for other in ("model", "rule"):
        Path(other, "checkpoints", "000000004.pt").replace("here/checkpoints/000000004.pt")
        message = refused("resume=here", "steps=6", capsys=capsys)
        assert message.startswith("the saved parameters" if other == "model" else "the saved state of the rule")


def test_a_run_s_own_function_is_given_again_and_nothing_else():
    name = module("def bowl(x):\n    return (x**2).sum()\n")
    run("here", "objective=python", f"function={name}:bowl", "objective.start=[1,2]", "steps=4")
    assert resume("here", f"function={name}:bowl", "steps=6")["steps"] == 6


def test_another_experiment_is_named(capsys):
    run("here", *TINY, "steps=4")
    for override in ("experiment=exactness", "experiment=learning_rate_range"):
        assert (
            refused("resume=here", override, capsys=capsys) == f"{override}, but the run in here has training; {ANEW}"
        )
