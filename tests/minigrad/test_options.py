import functools

import pytest

from minigrad.errors import UserError
from minigrad.options import Range, check_options

RANGES: dict[str, Range] = {"size": (lambda value: 0 < value < 10, "a number above 0 and below 10")}


def function(size: str, *, other: float = -5.0) -> None:
    """Its `size` is no option, and its option has no range."""


def sized(start: float, *, size: float = 1.0, other: float = -5.0) -> None:
    """Its option has a range."""


def boundless(*, size: float) -> None:
    """Its option has no default."""


def test_what_is_in_its_range_or_has_none_passes():
    check_options(function, "rule", RANGES)
    check_options(sized, "rule", RANGES)
    check_options(functools.partial(sized, size=9, other=1e9), "rule", RANGES)
    check_options(sized, "rule", {})


def test_a_default_is_checked_too():
    with pytest.raises(UserError, match=r"^rule\.other=-5\.0: expected a number above 0 and below 10$"):
        check_options(sized, "rule", {"other": RANGES["size"]})


@pytest.mark.parametrize(
    "value", [0, 10, -1.5, float("nan"), float("inf"), "5", None, [5], 5j], ids=lambda value: str(value)
)
def test_what_is_out_of_its_range_is_refused_by_name_and_value(value):
    with pytest.raises(UserError) as caught:
        check_options(functools.partial(sized, size=value), "schedule", RANGES)
    assert str(caught.value) == f"schedule.size={value}: expected a number above 0 and below 10"


def test_the_outermost_binding_counts():
    inner = functools.partial(sized, size=50)
    check_options(functools.partial(inner, size=5), "rule", RANGES)
    with pytest.raises(UserError):
        check_options(inner, "rule", RANGES)


def test_an_option_without_a_value_is_refused():
    with pytest.raises(UserError, match=r"^rule\.size="):
        check_options(boundless, "rule", RANGES)
    check_options(functools.partial(boundless, size=3), "rule", RANGES)
