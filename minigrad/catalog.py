"""What there is to run: the experiments, and the options of each config group.

Configs and experiments lie under one root: the package's folder in an installed wheel, which carries both, and the
checkout's otherwise. An experiment is loaded by its file's path under that root, and nothing outside it ever is.
"""

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from minigrad.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
CONFIGS = ROOT / "configs"


def groups() -> dict[str, list[str]]:
    """Return the options of every config group, sorted, by the group's name."""
    folders = sorted(folder for folder in CONFIGS.iterdir() if folder.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def check_option(group: str, option: object) -> None:
    """Raise a UserError that lists what there is, unless `group` has `option`."""
    options = groups()[group]
    if option not in options:
        named = "null" if option is None else option
        raise UserError(f"unknown {group} '{named}'; there are: {', '.join(options)}")


def load_experiment(stem: str) -> ModuleType:
    """Import `experiments/<stem>.py`, once; the module defines `Config` and `run`.

    Raises:
        UserError: there is no such experiment.
    """
    check_option("experiment", stem)
    name = f"experiments.{stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{stem}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it is executed: dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def describe(group: str, option: str) -> str:
    """Return one line on an option: the first of its experiment's docstring, or the comment that heads its config."""
    experiment = ROOT / "experiments" / f"{option}.py"
    if group == "experiment" and experiment.is_file():
        tree = ast.parse(experiment.read_text(encoding="utf-8"))  # not imported: help is to be quick
        return (ast.get_docstring(tree) or "").partition("\n")[0]
    lines = (CONFIGS / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    first = next((line for line in lines if not line.startswith("# @")), "")
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def settings(group: str, option: str) -> list[str]:
    """Return the `key: value # comment` lines of an option's config as they stand there.

    Keys are written as on the command line: those of a group with its name, `rule.momentum`.
    """
    lines = (CONFIGS / group / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    own = "" if any(line.startswith("# @package _global_") for line in lines) else f"{group}."
    found = []
    for line in lines:
        if line.startswith(f"{group}:"):
            own = f"{group}."
        elif line.strip()[:1].isalpha() and not line.strip().startswith(("defaults:", "name:")):
            found.append(own + line.strip())
    return found


def choices(stem: str) -> dict[str, str]:
    """Return the option of every group that an experiment takes by default."""
    text = (CONFIGS / "experiment" / f"{stem}.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - /(\w+)(?:@[\w.]+)?: (\w+)$", text, re.MULTILINE))


def overriding(stem: str) -> set[str]:
    """Return the keys of an experiment's config that take the place of what its groups' options bring."""
    text = (CONFIGS / "experiment" / f"{stem}.yaml").read_text(encoding="utf-8")
    groups_come_first = re.search(r"^  - /.*\n(.*\n)*?  - _self_$", text, re.MULTILINE) is not None
    return {line.partition(":")[0] for line in settings("experiment", stem)} if groups_come_first else set()


def common_settings() -> list[str]:
    """Return the lines of the keys that every run has."""
    lines = (CONFIGS / "train.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0].splitlines()
    return [line for line in lines if line[:1].isalpha() and not line.startswith("defaults:")]
