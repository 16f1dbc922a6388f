import pytest

from minigrad.tables import markdown, plain

COLUMNS = ("name", "value", "holds")
ROWS = [("x", 1.5, True), ("a|b", -12, False)]


def test_a_table_is_aligned_with_numbers_to_the_right():
    assert plain(COLUMNS, ROWS).splitlines() == [
        "name  value  holds",
        "----  -----  -----",
        "x       1.5  True",
        "a|b     -12  False",
    ]


def test_markdown_aligns_numbers_and_escapes_bars():
    assert markdown(COLUMNS, ROWS).splitlines() == [
        "| name | value | holds |",
        "| :-- | --: | :-- |",
        "| x | 1.5 | True |",
        "| a\\|b | -12 | False |",
    ]


def test_a_column_of_words_and_numbers_is_one_of_words():
    assert plain(("n",), [("none",), (3,)]).splitlines()[-1] == "3"
    assert ":--" in markdown(("n",), [(3,), ("none",)])


@pytest.mark.parametrize("form", [plain, markdown])
def test_numbers_have_six_digits_and_integers_all(form):
    assert "0.333333" in form(("n",), [(1 / 3,)])
    assert "12345678" in form(("n",), [(12345678,)])


@pytest.mark.parametrize(("form", "lines"), [(plain, 2), (markdown, 2)])
def test_a_table_may_have_no_rows(form, lines):
    assert len(form(COLUMNS, []).splitlines()) == lines
