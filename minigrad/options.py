"""The options of rules and schedules: keyword-only parameters, whose ranges are checked once, before the first step."""

import inspect
from collections.abc import Callable, Mapping

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
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or name not in ranges:
            continue
        holds, expected = ranges[name]
        if not isinstance(parameter.default, int | float) or not holds(parameter.default):
            raise UserError(f"{group}.{name}={parameter.default}: expected {expected}")
