import inspect

import numpy
import pytest
import torch

from minigrad.errors import UserError
from minigrad.objectives.table import read, table

NUMBERS = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def csv(tmp_path):
    """Write a .csv file of columns and read it."""

    def write(columns: dict, target: str | None = None, task: str | None = None):
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        (tmp_path / "t.csv").write_text("\n".join(lines), encoding="utf-8")
        return read("t.csv", target, task)

    return write


def refusal(function, *arguments, **named) -> str:
    with pytest.raises(UserError) as refused:
        function(*arguments, **named)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_last_column_is_learned_from_the_others(csv):
    found = csv({"a": NUMBERS, "b": NUMBERS[::-1], "kind": list("yxyxyx")})
    assert found.inputs.tolist() == [[a, b] for a, b in zip(NUMBERS, NUMBERS[::-1], strict=True)]
    assert (found.targets.tolist(), found.classes) == ([1, 0, 1, 0, 1, 0], ["x", "y"])
    assert (found.inputs.dtype, found.targets.dtype) == (numpy.float64, numpy.int64)
    assert not found.standardise_together
    assert found.notes == ["t.csv: 6 rows, 2 columns; target 'kind', 2 classes: classification"]


def test_any_column_may_be_learned(csv):
    found = csv({"a": NUMBERS, "b": NUMBERS[::-1]}, target="a")
    assert found.inputs.tolist() == [[b] for b in NUMBERS[::-1]]
    assert (found.targets.tolist(), found.targets.dtype, found.classes) == (NUMBERS, numpy.float64, None)
    assert found.notes == ["t.csv: 6 rows, 1 column; target 'a', 0.5 to 5.5: regression"]


@pytest.mark.parametrize(
    ("target", "classes", "hint"),
    [
        (list("aabbaabba"), ["a", "b"], ""),
        ([1, 2, 10] * 3, ["1", "2", "10"], " (whole numbers; if they are amounts: objective.task=regression)"),
        (["1.0", "-2", "1"] * 3, ["-2", "1"], " (whole numbers; if they are amounts: objective.task=regression)"),
        (["true", "false", "true"] * 3, ["false", "true"], ""),
        ([1, 2, 2, 3, 3, 3, 1, 2, 4], None, " (whole numbers; if they are classes: objective.task=classification)"),
        (range(9), None, " (whole numbers; if they are classes: objective.task=classification)"),
        ([0.5, 1, 2] * 3, None, ""),
        (
            list(range(20)) * 3,
            [str(k) for k in range(20)],
            " (whole numbers; if they are amounts: objective.task=regression)",
        ),
        (list(range(21)) * 3, None, ""),
    ],
)
def test_the_task_is_found_by_the_values_of_the_target(csv, target, classes, hint):
    found = csv({"a": range(len(target)), "y": target})
    assert found.classes == classes
    task = "regression" if classes is None else "classification"
    assert found.notes[0].endswith(f": {task}{hint}")


def test_the_task_that_is_asked_for_is_not_doubted(csv):
    columns = {"a": NUMBERS * 2, "y": [0, 1, 2, 3] * 3}
    regressed = csv(columns, task="regression")
    assert (regressed.classes, regressed.targets.dtype) == (None, numpy.float64)
    assert regressed.notes == ["t.csv: 12 rows, 1 column; target 'y', 0 to 3: regression"]
    many = csv({"a": range(63), "y": [*range(21)] * 3}, task="classification")
    assert len(many.classes) == 21
    assert many.notes == ["t.csv: 63 rows, 1 column; target 'y', 21 classes: classification"]


def test_an_npz_file_is_read_likewise(tmp_path):
    x = numpy.arange(18, dtype=numpy.float32).reshape(6, 3) ** 2
    sick = numpy.array([True, False, True, True, False, False])
    numpy.savez(tmp_path / "t.npz", x=x, sick=sick, y=numpy.arange(6) / 4)
    regressed = read("t.npz")
    assert regressed.inputs.tolist() == numpy.column_stack([x, sick]).tolist()
    assert regressed.notes == ["t.npz: 6 rows, 4 columns; target 'y', 0 to 1.25: regression"]
    classified = read("t.npz", target="sick")
    assert (classified.classes, classified.targets.tolist()) == (["False", "True"], sick.astype(int).tolist())
    assert read("t.npz", target="sick", task="regression").targets.tolist() == sick.astype(float).tolist()


def test_an_npz_files_last_array_of_several_columns_is_no_target(tmp_path):
    numpy.savez(tmp_path / "t.npz", y=numpy.arange(6), x=numpy.zeros((6, 2)))
    assert refusal(read, "t.npz") == (
        "t.npz: the last array has several columns; say with objective.target which of these to learn: "
        "'y', 'x[0]', 'x[1]'"
    )


def test_columns_that_never_change_stay_and_are_noted(csv, tmp_path):
    columns = {"a": [7] * 6, "b": NUMBERS, "c": [0.1] * 6, "y": NUMBERS}
    found = csv(columns)
    assert found.inputs.shape == (6, 3)
    assert found.notes == [
        "t.csv: 6 rows, 3 columns; target 'y', 0.5 to 5.5: regression",
        "t.csv: the same in every row, so nothing is learned from it: 'a', 'c'",
    ]
    objective = table("tanh", 4, 0, "cpu", hidden=[3], file="t.csv", target=None, task=None)
    assert not objective.batch(0)[0][:, [0, 2]].any()
    assert not objective._test_inputs[:, [0, 2]].any()


WITHOUT = "expected at least 3; add rows, leave the class out or name another objective.target"


@pytest.mark.parametrize(
    ("columns", "chosen", "message"),
    [
        (
            {"a": NUMBERS, "species": NUMBERS},
            {"target": "specis"},
            "objective.target=specis: no such column in t.csv; did you mean 'species'? there are 'a', 'species'",
        ),
        (
            {"a": NUMBERS, "b": NUMBERS},
            {"target": "weight"},
            "objective.target=weight: no such column in t.csv; there are 'a', 'b'",
        ),
        (
            {"a": NUMBERS},
            {},
            "t.csv: the only column is 'a'; expected others to learn it from, and in a .csv file comma, semicolon or "
            "tab between them",
        ),
        ({"a": [], "b": []}, {}, "t.csv: 0 rows; expected at least 6, of which a third is held out"),
        ({"a": NUMBERS[1:], "b": NUMBERS[1:]}, {}, "t.csv: 5 rows; expected at least 6, of which a third is held out"),
        (
            {"a": [1, 2, 3, "", 5, "NA"], "y": [1, 2, "nan", 4, 5, 6]},
            {},
            "t.csv, column 'y', line 4: no value, the first of 3 missing; fill them in or leave their rows out",
        ),
        (
            {"a": NUMBERS, "y": ["u", "v", "Null", "u", "v", "u"]},
            {},
            "t.csv, column 'y', line 4: no value, the first of 1 missing; fill them in or leave their rows out",
        ),
        (
            {"a": [1, 2, "inf", 4, 5, 6], "y": NUMBERS},
            {},
            "t.csv, column 'a', line 4: inf, expected a finite number up to 3.4e+38; correct it or leave its row out",
        ),
        (
            {"a": NUMBERS, "y": [1, 2, 3, 4, "-1e39", "1e999"]},
            {},
            "t.csv, column 'y', line 6: -1e+39, expected a finite number up to 3.4e+38; correct it or leave its row "
            "out",
        ),
        (
            {"colour": [1, "red", 3, "blue", 5, 6], "y": NUMBERS},
            {},
            "t.csv, column 'colour', line 3: the text 'red', expected numbers; give each of its values a column of 0 "
            "and 1, or leave the column out",
        ),
        (
            {"a": [1] * 6, "b": [2] * 6, "y": NUMBERS},
            {},
            "t.csv: no column but the target 'y' changes; expected one to learn it from",
        ),
        (
            {"a": NUMBERS, "y": [2.5] * 6},
            {},
            "t.csv: target 'y' is 2.5 in every row; expected values that differ",
        ),
        ({"a": NUMBERS, "y": ["u"] * 6}, {}, "t.csv: target 'y' is 'u' in every row; expected two classes"),
        ({"a": NUMBERS, "y": [3] * 6}, {}, "t.csv: target 'y' is '3' in every row; expected two classes"),
        (
            {"a": NUMBERS, "y": list("uuuuuv")},
            {},
            f"t.csv: class 'v' of target 'y' has too few rows, 1; {WITHOUT}",
        ),
        (
            {"a": NUMBERS, "y": [0, 0, 0, 0, 1, 1]},
            {"task": "classification"},
            f"t.csv: class '1' of target 'y' has too few rows, 2; {WITHOUT}",
        ),
        (
            {"a": NUMBERS, "y": [1, 2, 1, "x", 1, 2]},
            {"task": "regression"},
            "t.csv, column 'y', line 5: the text 'x', expected numbers; give objective.task=classification or another "
            "objective.target",
        ),
        (
            {"a": NUMBERS, "y": [1, 2, 1.5, 1, 1, 2]},
            {"task": "classification"},
            "t.csv, column 'y', line 4: 1.5, expected whole numbers, text or booleans for classes; give "
            "objective.task=regression",
        ),
        (
            {"a": NUMBERS, "y": NUMBERS},
            {"task": "cluster"},
            "objective.task=cluster: expected classification, regression or null",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_refused_in_one_line(csv, columns, chosen, message):
    assert refusal(csv, columns, **chosen) == message


def test_text_of_an_npz_file_is_text_though_it_be_digits(tmp_path):
    numpy.savez(tmp_path / "t.npz", x=numpy.array(list("123456")), y=numpy.arange(6))
    assert refusal(read, "t.npz") == (
        "t.npz, column 'x', row 0, counted from 0: the text '1', expected numbers; give each of its values a column "
        "of 0 and 1, or leave the column out"
    )


@pytest.mark.parametrize("seed", range(20))
def test_every_class_of_three_rows_is_trained_on_and_judged(csv, seed):
    csv({"a": range(25), "y": [*"abcdefg"] * 3 + [*"aaab"]})
    objective = table("tanh", 4, seed, "cpu", hidden=[3], file="t.csv", target=None, task=None)
    for part in (objective._targets, objective._test_targets):
        assert set(part.tolist()) == set(range(7))


def test_the_network_maps_the_files_own_units(csv):
    given = csv({"a": NUMBERS * 2, "b": [100, 300, 200] * 4, "y": NUMBERS * 2})
    objective = table("tanh", 4, 0, "cpu", torch.float64, hidden=[3], file="t.csv", target="y", task="regression")
    assert objective.notes == given.notes
    assert objective.model.input_mean.tolist() != [0, 0]
    predicted = objective.model(torch.tensor(given.inputs))
    assert predicted.shape == (12,)
    assert predicted.dtype == torch.float64


def test_the_options_are_those_of_the_config():
    parameters = inspect.signature(table, eval_str=True).parameters.values()
    options = {p.name: p.annotation for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert options == {"hidden": list[int], "init": str, "file": str, "target": str | None, "task": str | None}
