import io
import math

import pytest
import torch
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from torch import Tensor

from minigrad.objectives.landscapes import LANDSCAPES, Landscape, parabola
from minigrad.path import Path, draw

BOWL = Landscape("bowl", lambda point: (point**2).sum(-1), start=(1, 1))
LINE = Landscape("line", parabola, start=(0,))


def walked(total: int, first: int = 0, last: int | None = None, path: Path | None = None) -> Path:
    """The path of a run of `total` steps that is at (step, -step) at every step from `first` to `last`."""
    path = path or Path(total)
    for step in range(first, (total if last is None else last) + 1):
        path.add(step, torch.tensor([float(step), -float(step)]))
    return path


def path_of(*points: float | list[float]) -> Path:
    path = Path(len(points))
    for step, point in enumerate(points):
        path.add(step, torch.tensor(point))
    return path


# Gathering


@pytest.mark.parametrize(("steps", "stride"), [(1, 1), (500, 1), (501, 2), (1000, 2), (1001, 4), (10**9, 2**21)])
def test_a_long_run_has_a_long_stride(steps, stride):
    assert Path(steps).stride == stride


@pytest.mark.parametrize(("steps", "stride"), [(1, 1), (500, 1), (1001, 4)])
def test_a_run_keeps_a_point_at_every_stride(steps, stride):
    path = walked(steps)
    assert path.points == [[step, -step] for step in range(0, steps + 1, stride)]
    assert len(path.points) <= 501


def test_a_point_is_copied():
    path, x = Path(10), torch.zeros((), requires_grad=True)
    path.add(0, x)
    with torch.no_grad():
        x.add_(1)
    path.add(1, x)
    assert path.points == [[0.0], [1.0]]


def test_a_step_looked_at_twice_counts_once():
    path = Path(10)
    for step in (0, 0, 1, 1, 2):
        path.add(step, torch.tensor(float(step)))
    assert path.points == [[0], [1], [2]]


def test_float64_points_keep_their_digits():
    path = Path(1)
    path.add(0, torch.tensor([1 / 3, math.pi], dtype=torch.float64))
    assert path.points == [[1 / 3, math.pi]]


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 15, 16, 17, 30])
@pytest.mark.parametrize("after", [30, 40, 200, 900])
def test_a_run_that_goes_on_perhaps_for_longer_gathers_the_same(after, cut, monkeypatch):
    monkeypatch.setattr("minigrad.path._MOST_POINTS", 20)
    before = 30
    first = walked(before, last=cut)
    second = Path(after)
    second.load_state_dict(first.state_dict())
    walked(after, first=cut, path=second)  # the step at which it goes on is looked at again
    whole = walked(after)
    assert (second.stride, second.points) == (whole.stride, whole.points)


def test_a_shorter_run_keeps_the_stride_it_began_with():
    path = Path(100)
    path.load_state_dict(walked(2000, last=40).state_dict())
    assert path.stride == 4
    assert walked(100, first=41, path=path).points == [[step, -step] for step in range(0, 101, 4)]


def test_what_was_loaded_is_not_shared():
    first, second = walked(10, last=3), Path(10)
    second.load_state_dict(first.state_dict())
    second.add(4, torch.zeros(2))
    assert len(first.points) == 4


# Drawing; a warning is an error here


@pytest.fixture(autouse=True)
def coarse(monkeypatch) -> None:
    """Draw fewer points than a user gets: quicker."""
    monkeypatch.setattr("minigrad.path._GRID", 50)


def rendered(figure: Figure) -> Figure:
    figure.savefig(io.BytesIO(), format="png", dpi=20)
    return figure


def lines(figure: Figure) -> dict[str, list[list[float]]]:
    """The points of every line in the figure, by its label."""
    return {str(line.get_label()): torch.tensor(line.get_xydata()).tolist() for line in figure.axes[0].lines}


@pytest.mark.parametrize("landscape", LANDSCAPES.values(), ids=LANDSCAPES)
def test_every_landscape_is_drawn(landscape):
    start = torch.tensor(landscape.start, dtype=torch.float64).reshape(landscape.shape)
    path = Path(10)
    for step in range(5):
        path.add(step, start * (1 - 0.1 * step))
    figure = rendered(draw(landscape, path, start / 2))
    axes = figure.axes[0]
    assert axes.get_title() == f"{landscape.name}: 5 points of the path"
    assert (axes.get_xlabel(), axes.get_ylabel()) == (("x", "f(x)") if landscape.shape == () else ("x", "y"))
    found = lines(figure)
    assert len(found["path"]) == 6
    assert [point[0] for point in (found["path"][0], found["path"][-1])] == [landscape.start[0], landscape.start[0] / 2]
    assert found["start"] == found["path"][:1]
    assert found["end"] == found["path"][-1:]
    assert len([line for line in axes.lines if line.get_marker() == "*"]) == len(landscape.minima)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [*(["parabola"] if landscape.shape == () else []), "path", "start", "end", "minimum"]
    if landscape.shape:
        assert figure.axes[1].get_ylabel() == "log10 of the height above the lowest point drawn"


def test_one_variable_is_drawn_on_the_graph():
    figure = draw(LANDSCAPES["parabola"], path_of(0.0, 1.0), torch.tensor(2.0))
    found = lines(figure)
    assert found["path"] == [[0, 10], [1, 5], [2, 2]]
    assert found["minimum"] == [[3, 1]]
    assert (found["parabola"][0], found["parabola"][-1]) == ([-1, 17], [7, 17])


def test_two_variables_are_drawn_over_the_contours_of_the_bounds():
    figure = draw(LANDSCAPES["booth"], path_of([-8.0, 8.0]), torch.tensor([1.0, 3.0]))
    assert figure.axes[0].axis() == (-10, 10, -10, 10)
    assert lines(figure)["path"] == [[-8, 8], [1, 3]]


def test_the_bounds_widen_to_hold_a_path_that_leaves_them():
    figure = draw(LANDSCAPES["booth"], path_of([0.0, 0.0], [15.0, -12.0]), torch.zeros(2))
    assert figure.axes[0].axis() == (-10, 15, -12, 10)


@pytest.mark.parametrize("far", [1e3, 1e20, 1e38, -1e38])
def test_a_path_that_leaves_for_infinity_is_cut_off(far):
    figure = draw(LANDSCAPES["booth"], path_of([0.0, 0.0], [50.0, -40.0]), torch.tensor([far, 0.0]))
    left, right, bottom, top = figure.axes[0].axis()
    assert -30 <= left < right <= 30
    assert (bottom, top) == (-30, 10)
    figure = draw(LANDSCAPES["parabola"], path_of(0.0, 10.0), torch.tensor(far))
    left, right, bottom, top = figure.axes[0].axis()
    assert -10 < left < right < 16
    assert -10 < bottom < top < 200


@pytest.mark.parametrize("minima", [(), ((0, 0),)])
def test_without_bounds_those_of_the_path_are_taken_with_a_margin(minima):
    bowl = Landscape("bowl", BOWL.value, start=(1, 1), minima=minima)
    figure = draw(bowl, path_of([0.0, 0.0], [10.0, -5.0]), torch.tensor([4.0, 5.0]))
    assert figure.axes[0].axis() == pytest.approx((-1, 11, -6, 6))
    figure = draw(LINE, path_of(0.0, 10.0), torch.tensor(4.0))
    assert [lines(figure)["line"][i][0] for i in (0, -1)] == [-1, 11]


@pytest.mark.parametrize(
    "landscape", [BOWL, LINE, LANDSCAPES["beale"], LANDSCAPES["parabola"]], ids=lambda each: each.name
)
def test_a_single_point_is_drawn(landscape):
    point = torch.ones(landscape.shape)
    for path in (path_of(), path_of(point.tolist())):
        figure = draw(landscape, path, point)
        left, right, bottom, top = figure.axes[0].axis()
        assert left < 1 < right
        assert bottom < top
        assert lines(figure)["path"][-1][0] == 1
    rendered(figure)


@pytest.mark.parametrize("size", [1e25, 1e200])
def test_huge_points_are_drawn(size):
    end = torch.tensor([size, -size], dtype=torch.float64)
    assert lines(rendered(draw(BOWL, path_of([1.0, 1.0]), end)))["end"] == [[size, -size]]
    rendered(draw(LANDSCAPES["booth"], path_of([1.0, 1.0]), end))
    rendered(draw(LINE, path_of(1.0), end[0]))


ODD: dict[str, tuple[Landscape, Landscape]] = {
    name: (
        Landscape(name, value, start=(1,)),
        Landscape(name, lambda point, value=value: value(point).sum(-1), start=(1, 1)),
    )
    for name, value in {
        "flat": lambda x: 0 * x + 5,
        "not defined everywhere": lambda x: x.log() ** 2,
        "infinite at a place": lambda x: (x * 2).round().reciprocal() ** 2,
        "defined nowhere": lambda x: x * math.nan,
        "infinite everywhere": lambda x: x * 0 + math.inf,
    }.items()
}


@pytest.mark.parametrize("name", ODD)
def test_a_function_of_any_kind_is_drawn(name):
    one, two = ODD[name]
    rendered(draw(one, path_of(1.0, 0.01), torch.tensor(2.0)))
    rendered(draw(two, path_of([1.0, 1.0], [0.01, 0.01]), torch.tensor([2.0, 1.0])))


def test_where_a_function_is_not_finite_the_contours_of_the_rest_are_kept():
    _, two = ODD["not defined everywhere"]
    figure = draw(two, path_of([1.0, 1.0], [0.01, 0.01]), torch.tensor([2.0, 1.0]))
    shades = [collection for collection in figure.axes[0].collections if len(collection.get_paths()) > 1]
    assert len(shades) == 1
    low, high = shades[0].get_clim()
    assert -6 < low < high < 3
    assert isinstance(shades[0].colorbar, Colorbar)


def test_the_height_is_shown_as_a_logarithm():
    # From 0 to 2 * 12^2 above the lowest point; an offset of 1e-5 of that at the lowest.
    figure = draw(BOWL, path_of([0.0, 10.0], [10.0, 0.0]), torch.tensor([0.0, 0.0]))
    values = figure.axes[0].collections[0].get_array()
    highest = 2 * 11.0**2
    assert values.max() == pytest.approx(math.log10(highest), abs=0.3)
    assert values.min() == pytest.approx(math.log10(1e-5 * highest), abs=0.3)


def test_a_long_path_says_which_points_are_drawn():
    path = Path(2000)
    for step in range(2001):
        path.add(step, torch.tensor(step / 2000))
    figure = draw(LANDSCAPES["parabola"], path, torch.tensor(1.0))
    assert figure.axes[0].get_title() == "parabola: 501 points of the path, one in 4 steps"


def test_drawing_keeps_no_graph_and_changes_nothing():
    calls = []

    def value(point: Tensor) -> Tensor:
        calls.append((torch.is_grad_enabled(), point.dtype))
        return (point**2).sum(-1)

    end = torch.tensor([2.0, 3.0], requires_grad=True)
    path = path_of([1.0, 1.0])
    draw(Landscape("bowl", value, start=(1, 1)), path, end)
    assert calls == [(False, torch.float32)]  # the point's own
    assert end.grad is None
    assert path.points == [[1, 1]]
