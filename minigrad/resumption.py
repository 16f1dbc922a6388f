"""Where a run's values come from: the command line, or the run that it resumes, with what may be given anew."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from minigrad import catalog
from minigrad.config import show
from minigrad.errors import UserError

ANEW = ("steps", "epochs", "device", "execution", "log_every", "on_verdict", "rank_timeout")


def settled(values: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Return the values to run with: those of the command line, or, with `resume`, those of the run to go on with.

    Args:
        values: the composed config of the command line, `experiment` among it.
        given: the keys that the command line names, those of groups with a dot.

    Raises:
        UserError: there is no run to go on with, a key differs from the run's and may not, or `function`, which names
            code, comes from elsewhere than the command line.
    """
    if values.get("resume") is not None:
        values = _resumed(values, given)
    if values.get("function") is not None and "function" not in given:
        raise UserError("function names code, and is taken from the command line alone; give it there")
    return dict(values)


def choices_of_the_resumed(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that choose what the run to resume has chosen, so that its options are known.

    Raises:
        UserError: there is no run to go on with.
    """
    pairs = (override.lstrip("+~").partition("=") for override in overrides)
    given = {key: value.strip("'\"") for key, _, value in pairs}
    if given.get("resume", "null") == "null":
        return []
    stored = _read(Path(given["resume"]).expanduser())
    experiment = given.get("experiment", stored["experiment"])
    if experiment != stored["experiment"]:
        raise _difference("experiment", experiment, stored["experiment"], given["resume"])
    chosen = {group: _named(stored.get(group)) for group in catalog.groups() if group not in given}
    return [f"{group}={option}" for group, option in chosen.items() if option in catalog.groups()[group]]


def _resumed(values: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Return the config of the run in `values["resume"]`, with what was given anew."""
    directory = Path(str(values["resume"])).expanduser()
    stored = _read(directory)
    for key in given:
        here, there = _named(_find(values, key)), _named(_find(stored, key))
        if key != "resume" and key not in ANEW and here != there:
            raise _difference(key, here, there, directory)
    anew = {key: values[key] for key in ANEW if key in given or (key in values and key not in stored)}
    if "epochs" in given and "steps" not in given:
        anew["steps"] = None
    # Code is named on the command line alone, never by a file; without it the objective says what is missing.
    code = {"function": values.get("function")} if "function" in stored else {}
    return {**stored, **anew, **code, "resume": str(directory), "run_dir": str(directory)}


def _read(directory: Path) -> dict[str, Any]:
    file = directory / "config.yaml"
    try:
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"resume={directory}: {file} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError):  # no YAML, or none of plain values
        stored = None
    if not isinstance(stored, dict) or not isinstance(stored.get("experiment"), str):
        raise UserError(f"resume={directory}: {file} is no config of a run")
    if "resume" not in stored:
        raise UserError(f"resume={directory}: a run of experiment={stored['experiment']} cannot be resumed")
    return {str(key): value for key, value in stored.items()}


def _difference(key: str, here: Any, there: Any, directory: object) -> UserError:
    return UserError(
        f"{key}={show(here)}, but the run in {directory} has {show(there)}; "
        f"on resumption only {', '.join(ANEW)} may be given anew"
    )


def _find(values: Any, key: str) -> Any:
    """Return the value of a key written with dots; None where there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _named(value: Any) -> Any:
    """Return a group's name in place of its content."""
    return value["name"] if isinstance(value, Mapping) and "name" in value else value
