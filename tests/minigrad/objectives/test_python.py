import os
import re
import sys
import textwrap

import pytest
import torch

from minigrad.errors import UserError
from minigrad.objectives.function import Function
from minigrad.objectives.python import python

PROBLEMS = """
    import torch

    number = 3

    def bowl(x):
        return ((x - 2) ** 2).sum()

    def shape(x):
        assert x.shape == (len(x),)
        return x.prod()

    def text(x):
        return "3"

    def vector(x):
        return x

    def whole(x):
        return x.sum().long()

    def constant(x):
        return torch.tensor(3.0)

    def detached(x):
        return (x.detach() ** 2).sum()

    def elsewhere(x):
        return torch.ones((), requires_grad=True) * 2

    def root(x):
        return x.sqrt().sum()

    class Well:
        def __call__(self, x):
            return (x ** 4).sum()

    well = Well()
"""


@pytest.fixture(autouse=True)
def _in_a_folder_with_problems(tmp_path, monkeypatch):
    """As for a console script: the current directory holds the module, and is not on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    before = set(sys.modules)
    write("problems.py", PROBLEMS)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("problems", "hills", "broken", "wanderer"):
            del sys.modules[name]


def write(file: str, text: str) -> None:
    os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(textwrap.dedent(text))


def build(function: str | None = "problems:bowl", start: list[float] | None = None) -> Function:
    return python(function, "cpu", start=[0.0, 0.0] if start is None else start)


def test_a_function_of_the_current_directory_is_minimised_though_that_is_not_on_the_path():
    before = list(sys.path)
    objective = build(start=[5.0, 4.0])
    assert sys.path == before
    assert objective.x.tolist() == [5, 4]
    assert objective.loss(None).item() == 13
    for _ in range(100):
        (gradient,) = torch.autograd.grad(objective.loss(None), objective.x)
        with torch.no_grad():
            objective.x -= 0.1 * gradient
    assert objective.x.tolist() == pytest.approx([2, 2], abs=1e-5)


def test_the_current_directory_comes_before_all_else_on_the_path():
    write("elsewhere/problems.py", "bowl = None")
    sys.path.insert(0, os.path.abspath("elsewhere"))
    sys.path.append(os.getcwd())
    before = list(sys.path)
    assert build().loss(None).item() == 8
    assert sys.path == before


def test_a_module_may_change_the_path_itself():
    write("wanderer.py", "import os, sys\nsys.path.remove(os.getcwd())\nsys.path.append('mine')\nfrom torch import sum")
    before = list(sys.path)
    build("wanderer:sum")
    assert sys.path == [*before, "mine"]


def test_a_function_may_lie_in_a_package_and_may_be_any_callable():
    write("hills/__init__.py", "")
    write("hills/steep.py", PROBLEMS)
    assert build("hills.steep:well", start=[2.0]).loss(None).item() == 16


def test_neither_the_minima_nor_the_bounds_are_known():
    objective = build()
    assert objective.landscape.name == "problems:bowl"
    assert objective.landscape.minima == objective.landscape.bounds == ()
    assert list(objective.judge()) == ["test/loss"]


def test_the_function_gets_a_tensor_of_one_axis_where_the_parameter_of_one_variable_has_none():
    objective = build("problems:shape", start=[3.0])
    assert objective.x.shape == ()
    value = objective.loss(None)
    (gradient,) = torch.autograd.grad(value, objective.x)
    assert (value.shape, value.item(), gradient.item()) == ((), 3, 1)


@pytest.mark.parametrize(
    ("start", "grid"), [([1.0], (2, 3)), ([1.0], (4,)), ([1.0, 1.0], (2, 3, 2)), ([1.0] * 3, (5, 3))]
)
def test_a_grid_is_evaluated_one_point_at_a_time(start, grid):
    landscape = build("problems:shape", start=start).landscape
    points = torch.rand(grid)
    expected = points if len(start) == 1 else points.prod(-1)
    torch.testing.assert_close(landscape.value(points), expected, rtol=0, atol=0)


def test_the_point_has_the_dtype_that_was_asked_for():
    objective = python("problems:bowl", "cpu", torch.float64, start=[0.1])
    assert (objective.x.dtype, objective.loss(None).dtype) == (torch.float64, torch.float64)
    assert objective.x.item() == 0.1


FORM = "expected package.module:name, a function from a tensor to a () tensor"
SCALAR = "expected a () floating-point tensor, but it returns"
NO_GRADIENT = (
    "its value does not depend on the point; compute it from the point by torch's operations, "
    "without detach(), item() or numpy()"
)
NO_MODULE = "in the current directory or installed"

WRONG = {
    None: f"function=null: {FORM}",
    "": f"function=: {FORM}",
    "problems": f"function=problems: {FORM}",
    "problems.bowl": f"function=problems.bowl: {FORM}",
    "problems:": f"function=problems:: {FORM}",
    ":bowl": f"function=:bowl: {FORM}",
    ".problems:bowl": f"function=.problems:bowl: {FORM}",
    "problems:bowl:2": f"function=problems:bowl:2: {FORM}",
    "problem:bowl": f"function=problem:bowl: there is no module 'problem' {NO_MODULE}",
    "problem.s:bowl": f"function=problem.s:bowl: there is no module 'problem' {NO_MODULE}",
    "problems.py:bowl": f"function=problems.py:bowl: there is no module 'problems.py' {NO_MODULE}",
    "problems:bowll": "function=problems:bowll: the module 'problems' has no 'bowll'",
    "problems:number": "function=problems:number: expected a function, but 'number' is of type int",
    "problems:text": f"function=problems:text: {SCALAR} a value of type str",
    "problems:vector": f"function=problems:vector: {SCALAR} a (2,) tensor of torch.float32",
    "problems:whole": f"function=problems:whole: {SCALAR} a () tensor of torch.int64",
    "problems:constant": f"function=problems:constant: {NO_GRADIENT}",
    "problems:detached": f"function=problems:detached: {NO_GRADIENT}",
    "problems:elsewhere": f"function=problems:elsewhere: {NO_GRADIENT}",
}


@pytest.mark.parametrize("function", WRONG)
def test_a_function_that_cannot_be_minimised_is_refused_in_one_line(function):
    with pytest.raises(UserError, match=f"^{re.escape(WRONG[function])}$"):
        build(function)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([], "objective.start=[]: expected a list of finite numbers, one per variable"),
        ([float("inf"), 0.0], "objective.start=[inf, 0.0]: expected a list of 2 finite numbers"),
        (
            [-1.0, 1.0],
            "function=problems:root: its value at objective.start=[-1.0, 1.0] is nan; start where it is finite",
        ),
    ],
)
def test_a_start_from_which_there_is_no_descent_is_refused(start, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        build("problems:root", start)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import nothing_of_this_name", ModuleNotFoundError),
        ("from torch import nothing_of_this_name", ImportError),
        ("1 / 0", ZeroDivisionError),
        ("def f(x: return", SyntaxError),
    ],
)
def test_an_error_inside_the_module_keeps_its_traceback_and_the_path_is_restored(code, error):
    write("broken.py", code)
    before = list(sys.path)
    with pytest.raises(error) as raised:
        build("broken:f")
    assert not isinstance(raised.value, UserError)
    assert sys.path == before


def test_an_error_inside_the_function_keeps_its_traceback():
    write("broken.py", "import torch\ndef f(x):\n    return (x - torch.ones(3)).sum()")
    with pytest.raises(RuntimeError, match="size of tensor"):
        build("broken:f")
