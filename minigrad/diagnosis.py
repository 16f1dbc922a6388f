"""What is wrong with a command line that does not compose, in one line that names it and what there is."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from minigrad import catalog
from minigrad.config import unknown_key
from minigrad.errors import UserError


def diagnose(overrides: Sequence[str], sweeps: bool, error: Exception) -> UserError:
    """Return the error to show for overrides that Hydra could not compose.

    Args:
        overrides: as given on the command line.
        sweeps: whether several runs were asked for.
        error: Hydra's or OmegaConf's; its own words are the last resort.
    """
    try:
        _check(overrides, sweeps)
    except UserError as found:
        return found
    words = " ".join(str(error).split()) or " ".join(str(error.__cause__).split())
    return UserError(words.partition(" Config search path:")[0])


def _check(overrides: Sequence[str], sweeps: bool) -> None:
    parsed = [_parse(text) for text in overrides]
    for override in parsed:
        if override.is_sweep_override() and not sweeps:
            raise UserError(f"{override.input_line} gives several values; add -m to run them one after the other")
    groups = catalog.groups()
    for override in parsed:
        if override.key_or_group in groups:
            for option in _values(override, groups[override.key_or_group]):
                catalog.check_option(override.key_or_group, option)
    named = [override for override in parsed if override.key_or_group == "experiment"]
    stems = [str(stem) for stem in _values(named[-1], groups["experiment"])] if named else ["training"]
    for stem in stems:
        keys = _keys(stem, [o for o in parsed if o.key_or_group in groups and not o.is_sweep_override()])
        for override in parsed:
            if not override.is_hydra_override() and override.key_or_group not in keys:
                raise unknown_key(override.key_or_group, keys, f"experiment={stem}")


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        pass
    if "=" not in text:
        raise UserError(f"cannot read '{text}'; write a setting as key=value, such as learning_rate=0.1")
    raise UserError(f"cannot read '{text}'; put quotes around a value with special characters: \"key='a value'\"")


def _values(override: Override, options: list[str]) -> Iterator[object]:
    """Yield what an override of a group names; of a pattern, those of the group's `options` that match."""
    value: object = override.value()
    if isinstance(value, Glob):
        yield from value.filter(options)
    elif override.is_sweep_override():
        yield from override.sweep_string_iterator()
    else:
        yield value


def _keys(stem: str, chosen: Sequence[Override]) -> list[str]:
    """Return the keys that can be given with an experiment, those of its groups written with a dot."""
    with initialize_config_dir(str(catalog.CONFIGS), version_base="1.3"):
        own = compose("train", [f"experiment={stem}"])
        options = [f"{o.key_or_group}={o.value()}" for o in chosen if o.key_or_group in own]
        values = OmegaConf.to_container(compose("train", [f"experiment={stem}", *options]))
    assert isinstance(values, dict)
    return ["experiment", *_flatten(values)]


def _flatten(values: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield f"{prefix}{key}"
            yield from _flatten({name: inner for name, inner in value.items() if name != "name"}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
