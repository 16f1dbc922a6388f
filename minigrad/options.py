"""The options of rules and schedules: keyword-only parameters, whose ranges are checked once, before the first step."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from minigrad.errors import UserError

Range = tuple[Callable[[float], bool], str]  # which values pass, and the words for them


def check_options(function: Callable[..., object], group: str, ranges: Mapping[str, Range]) -> None:
    """Check the values to which a function's keyword-only parameters are bound, its defaults included.

    Args:
        function: a function, or a functools.partial of one.
        group: what stands before an option in the message: "rule" for `rule.momentum`.
        ranges: by option's name; an option without one is free.

    Raises:
        UserError: an option is out of its range; the message names it, its value and what was expected.
    """
    for name, value in options_of(function).items():
        if name not in ranges:
            continue
        holds, expected = ranges[name]
        if not isinstance(value, int | float) or not holds(value):
            raise UserError(f"{group}.{name}={value}: expected {expected}")


def options_of(function: Callable[..., object]) -> dict[str, Any]:
    """Return the values to which a function's keyword-only parameters are bound, its defaults included."""
    parameters = inspect.signature(function).parameters.items()
    return {name: p.default for name, p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
