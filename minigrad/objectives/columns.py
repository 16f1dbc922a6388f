"""What the user's own .csv or .npz file holds, column by column.

Nothing in a file is run: arrays of Python objects are refused, unread. Nothing is filled in, dropped or guessed either:
what is no table is an error in one line that names the file, the line or column, and what is expected.
"""

import csv
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from minigrad.errors import UserError

Array = NDArray[Any]

_MISSING = {"", "na", "nan", "null"}  # in lower case
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf(inity)?)", re.ASCII | re.IGNORECASE)
_EXPECTED = "expected what numpy.savez writes, of numbers, booleans and text"
_MOST_LISTED = 20
_MOST_SHOWN = 40


@dataclass(frozen=True)
class Columns:
    """What a file holds.

    Attributes:
        file: as the user named it.
        named: (N,) each: float64, with NaN where a value is missing; booleans; or text, as objects.
        last: the column to learn when none is named; None where there is no telling.
        place: says where in the file a row stands.
    """

    file: str
    named: dict[str, Array]
    last: str | None
    place: Callable[[int], str]

    def at(self, name: str, row: int) -> str:
        """Return the start of a message about one value."""
        return f"{self.file}, column {shown(name)}, {self.place(row)}"


def read_columns(file: str) -> Columns:
    """Read a .csv file, UTF-8 text with a line of names first, or an .npz file of arrays.

    A .csv file's columns are separated by comma, semicolon or tab, of which the first line has most; blank lines are
    none. An .npz file's arrays have N rows each: (N,) and (N, 1) are a column of the array's name, (N, D) are columns
    `name[0]`, `name[1]`, ...

    Raises:
        UserError: the file cannot be read, or is no such table.
    """
    path = Path(os.path.expanduser(file))  # the shell leaves the ~ of objective.file=~/data.csv
    reader = {".csv": _read_csv, ".npz": _read_npz}.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"objective.file={file}: expected a name that ends in .csv or .npz")
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"objective.file={file}: {reason}; expected a file that can be read") from None
    return reader(file, content)


def is_number(text: str) -> bool:
    """Say whether a text of the table is a number: decimal, with a point, ASCII digits; or an infinity."""
    return _NUMBER.fullmatch(text) is not None


def is_missing(column: Array) -> Array:
    """Return (N,) booleans: where a column has no value. Empty, NA, NaN and null are none, in any case."""
    if column.dtype == object:
        return numpy.array([text.lower() in _MISSING for text in column], dtype=bool)
    return numpy.isnan(column)


def shown(text: str) -> str:
    """Return a name or a value of the file as a message shows it: quoted, escaped, and not too long."""
    return repr(text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "...")


def listed(names: Iterable[str]) -> str:
    """Return names as a message lists them: the first of them and their number, if there are many."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > _MOST_LISTED else ""
    return ", ".join(map(shown, names[:_MOST_LISTED])) + more


def _read_csv(file: str, content: bytes) -> Columns:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}: not UTF-8; save the table as UTF-8 text") from None
    first = next((line for line in io.StringIO(text, newline="") if line.strip()), None)
    if first is None:
        raise UserError(f"{file}: the file is empty; expected a line of column names, then a line per sample")
    separator = max(",;\t", key=lambda candidate: len(next(csv.reader([first], delimiter=candidate))))
    rows, lines = _rows(file, text, separator)
    names, first_line = rows.pop(0), lines.pop(0)
    # 2019 may name a column, 5.1 does not.
    if all(map(is_number, names)) or any("." in name and is_number(name) for name in names):
        raise UserError(
            f"{file}, line {first_line}: numbers, expected the names of the columns; put a line of them first"
        )
    _check_names(file, names)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names):
            raise UserError(
                f"{file}, line {line}: values: {len(row)}, expected {len(names)}, one for each column; put those with "
                f"{separator!r} in them in quotes"
            )
    columns = {name: _parsed([row[k] for row in rows]) for k, name in enumerate(names)}
    return Columns(file, columns, names[-1], lambda row: f"line {lines[row]}")


def _rows(file: str, text: str, separator: str) -> tuple[list[list[str]], list[int]]:
    """Return the rows that are not blank, and the line where each starts."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    rows, lines, line = [], [], 1
    try:
        for row in reader:
            if row:
                rows.append([value.strip() for value in row])
                lines.append(line)
            line = reader.line_num + 1  # a quoted value may span lines
    except csv.Error as error:
        raise UserError(f"{file}, line {line}: {error}; check the quotes from there on") from None
    return rows, lines


def _parsed(texts: list[str]) -> Array:
    """Return numbers, NaN where one is missing, or the text if any of it is something else."""
    column = numpy.array(texts, dtype=object)
    missing = is_missing(column)
    if all(map(is_number, column[~missing])):
        column[missing] = "nan"
        return column.astype(numpy.float64)
    return column


def _read_npz(file: str, content: bytes) -> Columns:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise UserError(f"{file}: not an .npz file; {_EXPECTED}")
    try:
        with numpy.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # any of the kinds that two parsers raise on bytes that are not what they claim to be
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{file}: cannot be read as arrays ({reason}); {_EXPECTED}") from None
    pairs: list[tuple[str, Array]] = []
    for name, array in arrays.items():
        _check_array(file, name, array)
        if pairs and len(array) != len(pairs[0][1]):
            raise UserError(
                f"{file}: array {shown(name)} has {len(array)} rows, but {shown(pairs[0][0])} has {len(pairs[0][1])}; "
                "expected a row per sample in each"
            )
        if array.ndim == 1 or array.shape[1] == 1:
            pairs.append((name, _plain(array.reshape(-1))))
        else:
            pairs += [(f"{name}[{k}]", _plain(column)) for k, column in enumerate(array.T)]
    if not pairs:
        raise UserError(f"{file}: there are no columns in it; {_EXPECTED}")
    _check_names(file, [name for name, _ in pairs])
    columns = dict(pairs)
    last = name if name in columns else None
    return Columns(file, columns, last, lambda row: f"row {row}, counted from 0")


def _check_array(file: str, name: str, array: Any) -> None:
    if not isinstance(array, numpy.ndarray):
        raise UserError(f"{file}: {shown(name)} is no array; {_EXPECTED}")
    if array.dtype.kind not in "biufU":
        raise UserError(f"{file}: array {shown(name)} is {array.dtype}; {_EXPECTED}")
    if array.ndim not in (1, 2):
        raise UserError(f"{file}: array {shown(name)} is {array.shape}; expected (N,) or (N, D)")


def _plain(column: Array) -> Array:
    """Return an array's column in one of the three dtypes of a table's."""
    if column.dtype.kind == "U":
        return numpy.array([text.strip() for text in column.tolist()], dtype=object)
    return column if column.dtype == bool else column.astype(numpy.float64)


def _check_names(file: str, names: list[str]) -> None:
    for k, name in enumerate(names):
        if not name:
            raise UserError(f"{file}: column {k + 1} of {len(names)} has no name; name it or leave it out")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file}: two columns are named {shown(twice)}; give each a name of its own")
