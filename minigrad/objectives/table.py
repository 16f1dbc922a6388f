"""A network on the user's own table: one column is learned from the others.

What cannot be trained on as it stands is an error in one line that names the file, the column and the line; no value is
filled in, converted or left out. The two choices made unasked, of the target and of the task, are told in the notes.
"""

import difflib
from functools import partial

import numpy
import torch

from minigrad.errors import UserError
from minigrad.objectives.columns import Array, Columns, is_missing, is_number, listed, read_columns, shown
from minigrad.objectives.data import Data
from minigrad.objectives.network import Network

_LEAST_ROWS = 6  # two of them held out
_LEAST_OF_A_CLASS = 3  # the split by class then gives training and judging one each
_MOST_CLASSES = 20  # that whole numbers are taken for, unasked
_LARGEST = float(numpy.finfo(numpy.float32).max)  # also in a float64 run: whoever loads the model may be in float32


def table(
    activation: str,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    *,
    hidden: list[int],
    init: str = "torch",
    file: str,
    target: str | None,
    task: str | None,
) -> Network:
    """Return a network on the user's own table; `read` says what file, target and task may be."""
    return Network(
        partial(read, file, target, task), activation, batch_size, seed, device, dtype, hidden=hidden, init=init
    )


def read(file: str, target: str | None = None, task: str | None = None) -> Data:
    """Read a table to learn one of its columns from the others.

    The others hold finite numbers, the target finite numbers, text or booleans; a missing value is an error. A column
    that never changes stays, is 0 for the network, and is noted.

    Args:
        file: a path that ends in .csv or .npz; see `minigrad.objectives.columns.read_columns`.
        target: the column to learn; None: the last.
        task: "classification", "regression", or None: text and booleans are classes, and so are whole numbers with at
            most 20 different values, each of which occurs at least 3 times; other numbers are a regression.

    Raises:
        UserError: the file is no such table, or nothing can be learned from it.
    """
    if task not in ("classification", "regression", None):
        raise UserError(f"objective.task={task}: expected classification, regression or null")
    found = read_columns(file)
    target = _target(found, target)
    features = [name for name in found.named if name != target]
    if not features:
        raise UserError(
            f"{file}: the only column is {shown(target)}; expected others to learn it from, and in a .csv file comma, "
            "semicolon or tab between them"
        )
    _check_values(found)
    advice = "give each of its values a column of 0 and 1, or leave the column out"
    inputs = numpy.stack([_numbers(found, name, advice) for name in features], axis=1)
    constant = [name for name, column in zip(features, inputs.T, strict=True) if numpy.ptp(column) == 0]
    if len(constant) == len(features):
        raise UserError(f"{file}: no column but the target {shown(target)} changes; expected one to learn it from")
    hint = ""
    if task is None:
        task, hint = _task(found.named[target])
    if task == "classification":
        targets, classes = _classes(found, target)
        extent = f"{len(classes)} classes"
    else:
        targets, classes = _values(found, target), None
        extent = f"{targets.min():g} to {targets.max():g}"
    many = "s" if len(features) > 1 else ""
    notes = [
        f"{file}: {len(inputs)} rows, {len(features)} column{many}; target {shown(target)}, {extent}: {task}{hint}"
    ]
    if constant:
        notes.append(f"{file}: the same in every row, so nothing is learned from it: {listed(constant)}")
    return Data(inputs, targets, classes, notes=notes)


def _target(found: Columns, target: str | None) -> str:
    """Return the name of the column to learn."""
    if target in found.named:
        return target
    if target is not None:
        nearest = difflib.get_close_matches(target, found.named, n=1)
        hint = f"did you mean {shown(nearest[0])}? " if nearest else ""
        raise UserError(
            f"objective.target={target}: no such column in {found.file}; {hint}there are {listed(found.named)}"
        )
    if found.last is None:
        raise UserError(
            f"{found.file}: the last array has several columns; say with objective.target which of these to learn: "
            f"{listed(found.named)}"
        )
    return found.last


def _check_values(found: Columns) -> None:
    """Raise a UserError unless there are rows enough, no value is missing and all numbers are finite in float32."""
    names, columns = list(found.named), list(found.named.values())
    rows = len(columns[0])
    if rows < _LEAST_ROWS:
        raise UserError(f"{found.file}: {rows} rows; expected at least {_LEAST_ROWS}, of which a third is held out")
    missing = numpy.stack([is_missing(column) for column in columns], axis=1)
    if missing.any():
        row, k = numpy.argwhere(missing)[0]
        raise UserError(
            f"{found.at(names[k], row)}: no value, the first of {missing.sum()} missing; fill them in or leave their "
            "rows out"
        )
    for name, column in found.named.items():
        if column.dtype == numpy.float64 and (large := numpy.abs(column) > _LARGEST).any():
            row = int(large.argmax())
            raise UserError(
                f"{found.at(name, row)}: {column[row]:g}, expected a finite number up to {_LARGEST:.2g}; correct it or "
                "leave its row out"
            )


def _numbers(found: Columns, name: str, advice: str) -> Array:
    """Return a column as float64, or raise a UserError with a sample of its text and what to do."""
    column = found.named[name]
    if column.dtype != object:
        return column.astype(numpy.float64)
    row = next((row for row, text in enumerate(column) if not is_number(text)), 0)
    raise UserError(f"{found.at(name, row)}: the text {shown(column[row])}, expected numbers; {advice}")


def _task(column: Array) -> tuple[str, str]:
    """Return the task that a target's values speak for, and how to choose otherwise where they do not say much."""
    if column.dtype != numpy.float64:
        return "classification", ""
    values, counts = numpy.unique(column, return_counts=True)
    if len(values) > _MOST_CLASSES or (values % 1 != 0).any():
        return "regression", ""
    if counts.min() >= _LEAST_OF_A_CLASS:
        return "classification", " (whole numbers; if they are amounts: objective.task=regression)"
    return "regression", " (whole numbers; if they are classes: objective.task=classification)"


def _classes(found: Columns, target: str) -> tuple[Array, list[str]]:
    """Return (N,) int64 indices of classes and the classes' names, sorted: numbers by value, text by character."""
    column = found.named[target]
    if column.dtype == numpy.float64:
        broken = column % 1 != 0
        if broken.any():
            row = int(broken.argmax())
            raise UserError(
                f"{found.at(target, row)}: {column[row]:g}, expected whole numbers, text or booleans for classes; give "
                "objective.task=regression"
            )
    values, indices, counts = numpy.unique(column, return_inverse=True, return_counts=True)
    classes = [f"{value:.0f}" if column.dtype == numpy.float64 else str(value) for value in values]
    if len(classes) == 1:
        raise UserError(
            f"{found.file}: target {shown(target)} is {shown(classes[0])} in every row; expected two classes"
        )
    rarest = int(counts.argmin())
    if counts[rarest] < _LEAST_OF_A_CLASS:
        raise UserError(
            f"{found.file}: class {shown(classes[rarest])} of target {shown(target)} has too few rows, "
            f"{counts[rarest]}; expected at least {_LEAST_OF_A_CLASS}; add rows, leave the class out or name another "
            "objective.target"
        )
    return indices.astype(numpy.int64), classes


def _values(found: Columns, target: str) -> Array:
    """Return (N,) float64 values for a regression."""
    values = _numbers(found, target, "give objective.task=classification or another objective.target")
    if numpy.ptp(values) == 0:
        raise UserError(
            f"{found.file}: target {shown(target)} is {values[0]:g} in every row; expected values that differ"
        )
    return values
