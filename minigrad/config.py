"""From a composed config to a typed one: YAML holds the values, dataclasses and signatures hold the types."""

import difflib
import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, make_dataclass
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minigrad.errors import UserError

C = TypeVar("C")
R = TypeVar("R")

_MOST_THREADS = 1024  # far more make OpenMP end the process


@dataclass
class RunConfig:
    """The keys of every run; an experiment's own `Config` extends them.

    Values come from `configs/`, checked here for their range.
    """

    experiment: str
    seed: int
    device: str
    threads: int | None
    deterministic: bool
    run_dir: str | None

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**32, "seed", self.seed, "an integer from 0 to 2^32 - 1")
        if self.threads is not None:
            check_at_least("threads", self.threads, 1)
            check(self.threads <= _MOST_THREADS, "threads", self.threads, f"{_MOST_THREADS} at most")
        check(self.run_dir != "", "run_dir", "", "a path, or null for a new directory below runs/")

    @property
    def label(self) -> str:
        """What the run is called in its directory's name."""
        return self.experiment

    @property
    def seconds_for_ranks(self) -> float | None:
        """How long a rank waits for another; None: the experiment runs in one process."""
        return None


def check(condition: bool, key: str, value: object, expected: str) -> None:
    """Raise a UserError that names the key, the value and what was expected, unless `condition` holds."""
    if not condition:
        raise UserError(f"{key}={show(value)}: expected {expected}")


def check_positive(key: str, value: float) -> None:
    """Raise a UserError unless `value` is a finite number above zero."""
    check(0 < value < math.inf, key, value, "a finite number above 0")


def check_learning_rate(key: str, value: float) -> None:
    """Raise a UserError unless `value` is above zero and a float32 can hold it."""
    check(0 < value < 3.4e38, key, value, "a number above 0, below 3.4e38")


def check_at_least(key: str, value: int, least: int) -> None:
    """Raise a UserError if `value` is below `least`."""
    check(value >= least, key, value, f"an integer from {least} on")


def check_one_of(key: str, value: object, choices: Iterable[str]) -> None:
    """Raise a UserError unless `value` is one of `choices`."""
    choices = list(choices)
    check(value in choices, key, value, f"one of {', '.join(choices)}")


def unknown_key(key: str, keys: Iterable[str], owner: str) -> UserError:
    """Return the error for a key that does not exist: the nearest one there is, then all of them."""
    keys = list(keys)
    nearest = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    return UserError(f"unknown key '{key}'; {hint}keys of {owner}: {', '.join(keys)}")


def typed(schema: type[C], values: Mapping[str, Any], owner: str, prefix: str = "") -> C:
    """Turn plain values into an instance of a dataclass, each value checked against its field's type.

    Args:
        schema: a dataclass; it checks ranges in its `__post_init__`.
        values: its fields by name; one with a default may be missing.
        owner: whose keys these are, for the messages: "experiment=training".
        prefix: what stands before a key on the command line, such as "objective.".

    Raises:
        UserError: a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    known = fields(schema)  # type: ignore[arg-type]  # `type[C]` cannot say: a dataclass
    names = [field.name for field in known if field.name in values or field.default is MISSING]
    kinds = typing.get_type_hints(schema)
    for key in values:
        if key not in names:
            raise unknown_key(prefix + key, [prefix + name for name in names], owner)
    node = OmegaConf.structured(schema)
    for name in names:
        if name not in values or values[name] == "???":
            raise UserError(f"{prefix}{name} has no value; {owner} needs {_describe(kinds[name])}")
        if "${" in show(values[name]):
            raise UserError(f"{prefix}{name}={show(values[name])}: expected a value, not a reference to one")
        try:
            node[name] = values[name]
        except OmegaConfBaseException:
            expected = _describe(kinds[name])
            raise UserError(f"{prefix}{name}={show(values[name])}: expected {expected}") from None
    checked = OmegaConf.to_container(node)  # a "???" inside a group is left for whoever binds the group
    assert isinstance(checked, dict)
    return schema(**{name: checked[name] for name in names})


def as_yaml(config: RunConfig) -> str:
    """Return a config's keys and values as YAML."""
    return OmegaConf.to_yaml(asdict(config))


def hyperparameters(config: RunConfig) -> dict[str, bool | float | str]:
    """Return a config's values as a flat table: keys of groups with a dot, lists as text, without what is null."""
    flat: dict[str, bool | float | str] = {}
    for key, value in asdict(config).items():
        inner = {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}
        for name, v in inner.items():
            if v is not None and key not in ("run_dir", "resume"):
                flat[name.removesuffix(".name")] = v if isinstance(v, bool | int | float | str) else show(v)
    return flat


def bind(table: Mapping[str, Callable[..., R]], node: Mapping[str, Any], group: str) -> Callable[..., R]:
    """Look up what a config group names and bind its options.

    Names map to classes and functions through a fixed table; nothing else can be reached from a config. An entry's
    keyword-only parameters are its options, with their types; its other parameters are what all entries are given.

    Args:
        table: the entries by name.
        node: the group's part of the config: `name`, and the options of that entry.
        group: the group's name, for the messages.

    Raises:
        UserError: an unknown name, an unknown or missing option, a value of the wrong type.
    """
    options = dict(node)
    name = options.pop("name", None)
    check_one_of(group, name, table)
    entry = table[name]
    parameters = inspect.signature(entry, eval_str=True).parameters.values()
    own = [(p.name, p.annotation) for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    checked: object = typed(make_dataclass(name, own), options, f"{group}={name}", f"{group}.")
    return functools.partial(entry, **vars(checked))


def show(value: object) -> str:
    """Return a value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _describe(kind: Any) -> str:
    """Say in words which values a field's type takes."""
    words = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join("null" if argument is type(None) else _describe(argument) for argument in arguments)
    if typing.get_origin(kind) is list:
        plural = {int: "integers", float: "numbers", str: "names"}
        examples = {int: "[64, 32]", float: "[0.5, 1]", str: "[a, b]"}
        return f"a list of {plural[arguments[0]]} such as {examples[arguments[0]]}"
    return words.get(kind, "a group of keys")
