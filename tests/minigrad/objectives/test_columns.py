import io
import pickle
import zipfile

import numpy
import pytest

from minigrad.errors import UserError
from minigrad.objectives.columns import listed, read_columns, shown

NPZ = "expected what numpy.savez writes, of numbers, booleans and text"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def csv(tmp_path):
    """Write and read a .csv file."""

    def read(content: str | bytes):
        (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_columns("t.csv")

    return read


@pytest.fixture
def npz(tmp_path):
    """Write and read an .npz file."""

    def read(**arrays):
        numpy.savez(tmp_path / "t.npz", **arrays)
        return read_columns("t.npz")

    return read


def refusal(read, *arguments, **arrays) -> str:
    with pytest.raises(UserError) as refused:
        read(*arguments, **arrays)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_csv_file_is_read_whatever_separates_its_columns_and_lines(csv, separator, end, mark):
    rows = (("a", "b", "gr\u00f6\u00dfe"), ("1", "-2.5", "x"), ("+.5e1", "2.", "y"))
    found = csv(mark + end.join(separator.join(row) for row in rows).encode())
    assert list(found.named) == ["a", "b", "gr\u00f6\u00dfe"]
    assert found.named["a"].tolist() == [1, 5]
    assert found.named["b"].tolist() == [-2.5, 2]
    assert found.named["gr\u00f6\u00dfe"].tolist() == ["x", "y"]
    assert (found.last, found.at("a", 1)) == ("gr\u00f6\u00dfe", "t.csv, column 'a', line 3")


def test_the_separator_is_the_one_that_the_first_line_has_most_of(csv):
    assert list(csv("a;b;c, d\n1;2;3\n").named) == ["a", "b", "c, d"]
    assert list(csv('"a;b;c",d\n1;2\n'.replace("1;2", "1,2")).named) == ["a;b;c", "d"]


def test_lines_are_those_of_the_file_though_some_are_blank_and_values_span_several(csv):
    found = csv('\na,b\n\n1,"two\nlines"\n2,x\n\n')
    assert found.named["b"].tolist() == ["two\nlines", "x"]
    assert [found.place(row) for row in range(2)] == ["line 4", "line 6"]


def test_spaces_around_names_and_values_are_none_of_theirs(csv):
    found = csv('a , "b"\n 1, "x, y" \n'.replace('" \n', '"\n'))
    assert (found.named["a"].tolist(), found.named["b"].tolist()) == ([1], ["x, y"])


def test_missing_values_leave_numbers_numbers(csv):
    found = csv("a,b,c\n1,x,\n,,NA\nNaN,na,null\n")
    assert numpy.array_equal(found.named["a"], [1, numpy.nan, numpy.nan], equal_nan=True)
    assert found.named["b"].tolist() == ["x", "", "na"]
    assert numpy.isnan(found.named["c"]).all()


@pytest.mark.parametrize("text", ["1_000", "0x10", "1,5", "\u0661", "1e", "--1", "1 2", "True", "-"])
def test_what_is_not_plainly_a_number_is_text(csv, text):
    assert csv(f"a;b\n{text};1\n").named["a"].tolist() == [text]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "t.csv: the file is empty; expected a line of column names, then a line per sample"),
        (" \n\n", "t.csv: the file is empty; expected a line of column names, then a line per sample"),
        (b"a,b\n1,\xe9\n", "t.csv, line 2: not UTF-8; save the table as UTF-8 text"),
        ("a,b\n1,2\n".encode("utf-16"), "t.csv, line 1: not UTF-8; save the table as UTF-8 text"),
        ("a,,b\n1,2,3\n", "t.csv: column 2 of 3 has no name; name it or leave it out"),
        ("a,b,a\n1,2,3\n", "t.csv: two columns are named 'a'; give each a name of its own"),
        ("1,2\n3,4\n", "t.csv, line 1: numbers, expected the names of the columns; put a line of them first"),
        (
            "5.1,3.5,setosa\n4.9,3,setosa\n",
            "t.csv, line 1: numbers, expected the names of the columns; put a line of them first",
        ),
        (
            "a,b\n1,2\n1,2,3\n",
            "t.csv, line 3: values: 3, expected 2, one for each column; put those with ',' in them in quotes",
        ),
        (
            "a;b\n1\n",
            "t.csv, line 2: values: 1, expected 2, one for each column; put those with ';' in them in quotes",
        ),
        ('a,b\n1,2\n"3,4\n', "t.csv, line 3: unexpected end of data; check the quotes from there on"),
        ('a,b\n"1"2,3\n', "t.csv, line 2: ',' expected after '\"'; check the quotes from there on"),
        (
            f"a,b\n{'x' * 200_000},3\n",
            "t.csv, line 2: field larger than field limit (131072); check the quotes from there on",
        ),
    ],
)
def test_what_is_no_csv_table_is_refused_in_one_line(csv, content, message):
    assert refusal(csv, content) == message


def test_years_may_name_columns(csv):
    assert list(csv("2019,2020,growth\n1,2,3\n").named) == ["2019", "2020", "growth"]


def test_an_npz_file_names_the_columns_of_an_array_by_number(npz):
    found = npz(x=numpy.arange(6).reshape(2, 3), y=numpy.array([[True], [False]]), z=numpy.array([" a", "b"]))
    assert list(found.named) == ["x[0]", "x[1]", "x[2]", "y", "z"]
    assert found.named["x[1]"].tolist() == [1, 4]
    assert [found.named[name].dtype for name in ("x[1]", "y", "z")] == [numpy.float64, bool, object]
    assert found.named["z"].tolist() == ["a", "b"]
    assert (found.last, found.at("z", 1)) == ("z", "t.npz, column 'z', row 1, counted from 0")


def test_the_last_array_is_no_target_where_it_has_several_columns(npz):
    assert npz(y=numpy.zeros(2), x=numpy.zeros((2, 3))).last is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, f"t.npz: there are no columns in it; {NPZ}"),
        ({"x": numpy.zeros((3, 0))}, f"t.npz: there are no columns in it; {NPZ}"),
        ({"x": numpy.float64(1)}, "t.npz: array 'x' is (); expected (N,) or (N, D)"),
        ({"x": numpy.zeros((3, 2, 2))}, "t.npz: array 'x' is (3, 2, 2); expected (N,) or (N, D)"),
        ({"x": numpy.zeros(3, complex)}, f"t.npz: array 'x' is complex128; {NPZ}"),
        ({"x": numpy.zeros(3, "datetime64[s]")}, f"t.npz: array 'x' is datetime64[s]; {NPZ}"),
        ({"x": numpy.zeros(3, "S2")}, f"t.npz: array 'x' is |S2; {NPZ}"),
        (
            {"x": numpy.zeros((3, 2)), "y": numpy.zeros(4)},
            "t.npz: array 'y' has 4 rows, but 'x[0]' has 3; expected a row per sample in each",
        ),
        (
            {"x": numpy.zeros((3, 2)), "x[1]": numpy.zeros(3)},
            "t.npz: two columns are named 'x[1]'; give each a name of its own",
        ),
    ],
)
def test_what_is_no_table_of_arrays_is_refused_in_one_line(npz, arrays, message):
    assert refusal(npz, **arrays) == message


class Trap:
    """Leaves a mark if it is ever unpickled."""

    def __reduce__(self):
        return open, ("sprung", "w")


def test_nothing_in_a_file_is_run(npz, tmp_path):
    found = refusal(npz, x=numpy.array([Trap()], dtype=object))
    reason = "Object arrays cannot be loaded when allow_pickle=False"
    assert found == f"t.npz: cannot be read as arrays ({reason}); {NPZ}"
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Trap()))
    assert refusal(read_columns, "p.npz") == f"p.npz: not an .npz file; {NPZ}"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("x.npy", pickle.dumps(Trap()))
    (tmp_path / "z.npz").write_bytes(archive.getvalue())
    assert refusal(read_columns, "z.npz") == f"z.npz: 'x' is no array; {NPZ}"
    # A pickle before the archive: numpy takes such a file for a pickle.
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Trap()) + archive.getvalue())
    assert refusal(read_columns, "b.npz").startswith("b.npz: cannot be read as arrays (")
    assert not (tmp_path / "sprung").exists()


def test_a_damaged_archive_is_refused_in_one_line(tmp_path):
    numpy.savez_compressed(tmp_path / "t.npz", x=numpy.arange(1000))
    whole = (tmp_path / "t.npz").read_bytes()
    (tmp_path / "t.npz").write_bytes(whole[:100])
    assert refusal(read_columns, "t.npz") == f"t.npz: not an .npz file; {NPZ}"
    messages = []
    for place in range(0, len(whole) - 4, 5):
        (tmp_path / "t.npz").write_bytes(whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :])
        try:
            found = read_columns("t.npz")
        except UserError as error:
            messages.append(str(error))
        else:  # a place that carries a date or a flag, not the array
            assert numpy.array_equal(next(iter(found.named.values())), numpy.arange(1000))
    assert len(messages) > len(whole) / 5 * 0.9
    assert all(message.startswith("t.npz: ") and "\n" not in message for message in messages)
    (tmp_path / "t.npz").write_bytes(b"")
    assert refusal(read_columns, "t.npz") == f"t.npz: not an .npz file; {NPZ}"


def test_an_array_that_claims_to_be_larger_than_memory_is_refused(tmp_path):
    header = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)})
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    assert refusal(read_columns, "t.npz").startswith("t.npz: cannot be read as arrays (")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("none.csv", "objective.file=none.csv: No such file or directory; expected a file that can be read"),
        ("folder.csv", "objective.file=folder.csv: Is a directory; expected a file that can be read"),
        ("t.txt", "objective.file=t.txt: expected a name that ends in .csv or .npz"),
        ("", "objective.file=: expected a name that ends in .csv or .npz"),
        ("a\0b.csv", "objective.file=a\0b.csv: embedded null byte; expected a file that can be read"),
        (
            "t.csv/u.csv",
            "objective.file=t.csv/u.csv: Not a directory; expected a file that can be read",
        ),
        (
            f"{'x' * 300}.csv",
            f"objective.file={'x' * 300}.csv: File name too long; expected a file that can be read",
        ),
    ],
)
def test_what_is_no_file_to_read_is_refused_in_one_line(tmp_path, file, message):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "t.csv").touch()
    assert refusal(read_columns, file) == message


def test_a_file_that_may_not_be_read_is_refused(monkeypatch):
    def forbid(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("minigrad.objectives.columns.Path.read_bytes", forbid)
    expected = "objective.file=t.csv: Permission denied; expected a file that can be read"
    assert refusal(read_columns, "t.csv") == expected


def test_a_file_below_the_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "t.CSV").write_text("a,b\n1,2\n")
    assert read_columns("~/t.CSV").last == "b"


def test_names_are_shown_escaped_and_short_and_not_all_of_many():
    assert shown("a\n\x1b[31m") == r"'a\n\x1b[31m'"
    assert shown("x" * 100) == repr("x" * 37 + "...")
    assert listed("abc") == "'a', 'b', 'c'"
    assert listed(map(str, range(784))).endswith("'18', '19', ... (784 in all)")
