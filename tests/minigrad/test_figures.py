from itertools import pairwise

import pytest

from minigrad.figures import BLUE, GREY, ORANGE, RED, legend_below, mark, panels


def luminance(color):
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(color)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_the_colours_stay_apart_in_greyscale():
    shades = sorted(map(luminance, (BLUE, RED, GREY, ORANGE)))
    assert all(darker + 0.1 < lighter for darker, lighter in pairwise(shades))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3)])
def test_panels_come_as_a_grid(rows, columns):
    figure, grid = panels(rows, columns, sharex=True)
    assert grid.shape == (rows, columns)
    assert len(figure.axes) == rows * columns


def test_a_legend_below_names_what_several_panels_show_once():
    figure, ((left, right),) = panels(1, 2)
    for axes in (left, right):
        axes.plot([0, 1], [0, 1], label="function")
        mark(axes, 0.5, 0.5, "point")
    legend_below(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["function", "point"]
