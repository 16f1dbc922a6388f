import itertools
import os
import random
import shutil
from pathlib import Path

import pytest

from minigrad.autodiff import layering
from minigrad.autodiff.layering import in_layers, place

BOX = (60.0, 30.0)


def overlaps(layout, sizes):
    boxes = [(x - w / 2, x + w / 2, y - h / 2, y + h / 2) for (x, y), (w, h) in zip(layout.places, sizes, strict=True)]
    return [
        (i, j)
        for (i, a), (j, b) in itertools.combinations(enumerate(boxes), 2)
        if a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
    ]


def random_graph(nodes, seed):
    """Return sizes and edges of a graph in which every node but the first is taken by one to three lower ones."""
    draw = random.Random(seed)
    sizes = [(draw.uniform(20, 150), draw.uniform(15, 60)) for _ in range(nodes)]
    edges = [
        (source, target)
        for source in range(1, nodes)
        for target in sorted({draw.randrange(max(0, source - 6), source) for _ in range(draw.randint(1, 3))})
    ]
    return sizes, edges


@pytest.mark.parametrize("seed", range(5))
def test_boxes_do_not_overlap_and_lie_above_those_that_take_from_them(seed):
    sizes, edges = random_graph(60, seed)
    layout = in_layers(sizes, edges)
    assert not overlaps(layout, sizes)
    for source, target in edges:
        assert layout.places[source][1] + sizes[source][1] / 2 < layout.places[target][1] - sizes[target][1] / 2
    for (x, y), (width, height) in zip(layout.places, sizes, strict=True):
        assert 0 < x - width / 2 < x + width / 2 < layout.width
        assert 0 < y - height / 2 < y + height / 2 < layout.height


@pytest.mark.parametrize("seed", range(3))
def test_edges_run_from_box_to_box_and_touch_no_other(seed):
    sizes, edges = random_graph(40, seed)
    layout = in_layers(sizes, edges)
    for (source, target), route in zip(edges, layout.routes, strict=True):
        assert len(route) % 3 == 1
        assert route[0][1] == pytest.approx(layout.places[source][1] + sizes[source][1] / 2)
        assert route[-1][1] == pytest.approx(layout.places[target][1] - sizes[target][1] / 2)
        assert abs(route[0][0] - layout.places[source][0]) <= sizes[source][0] / 2
        assert abs(route[-1][0] - layout.places[target][0]) <= sizes[target][0] / 2
        for x, y in route[3:-1:3]:  # where it passes a layer
            for (box_x, box_y), (width, height) in zip(layout.places, sizes, strict=True):
                assert abs(x - box_x) >= width / 2 or abs(y - box_y) > height / 2


def test_a_chain_is_straight_and_a_diamond_symmetric():
    chain = in_layers([BOX] * 4, [(1, 0), (2, 1), (3, 2)])
    assert len({x for x, _ in chain.places}) == 1
    diamond = in_layers([BOX] * 4, [(1, 0), (2, 0), (3, 1), (3, 2)])
    top, left, right, bottom = (diamond.places[i][0] for i in (3, 1, 2, 0))
    assert top == bottom == pytest.approx((left + right) / 2)
    assert right - left == pytest.approx(BOX[0] + layering._GAP)


def test_crossings_that_an_order_avoids_are_avoided():
    # Two chains whose tops are numbered the wrong way round.
    edges = [(1, 0), (2, 0), (3, 2), (4, 1), (5, 4), (6, 3)]
    layout = in_layers([BOX] * 7, edges)
    assert (layout.places[1][0] < layout.places[2][0]) == (layout.places[4][0] < layout.places[3][0])
    assert (layout.places[4][0] < layout.places[3][0]) == (layout.places[5][0] < layout.places[6][0])


def test_more_sweeps_leave_fewer_crossings(monkeypatch):
    found = []
    count = layering._crossings
    monkeypatch.setattr(layering, "_crossings", lambda *a: found.append(count(*a)) or found[-1])
    fewest = {}
    for sweeps in (0, 1, 8):
        monkeypatch.setattr(layering, "_SWEEPS", sweeps)
        fewest[sweeps] = 0
        for seed in range(5):
            found.clear()
            in_layers(*random_graph(40, seed))
            fewest[sweeps] += min(found)
    assert fewest[8] < fewest[1] < fewest[0]


def test_edges_from_either_side_meet_a_box_apart():
    layout = in_layers([BOX] * 4, [(1, 0), (2, 0), (3, 1), (3, 2)])
    left, right, *_ = (route[-1][0] for route in layout.routes)
    assert layout.places[0][0] - 30 < left < layout.places[0][0] < right < layout.places[0][0] + 30


def test_crossings_are_counted():
    #      2 3      the edges 2-1 and 3-0 cross, and 2-1 touches 2-0 only at its end
    #      0 1
    below = [[], [], [1, 0], [0]]
    assert layering._crossings([[0, 1], [2, 3]], below) == 1
    assert layering._crossings([[1, 0], [2, 3]], below) == 0


def test_spreading_is_the_least_squares_solution():
    x = [0.0] * 3
    layering._spread([0, 1, 2], [0.0, 0.0, 500.0], [10.0] * 3, x)
    room = 10 + layering._GAP
    assert x == pytest.approx([-room / 2, room / 2, 500])


def test_a_graph_may_be_empty_or_a_single_box():
    assert in_layers([], []).places == []
    single = in_layers([BOX], [])
    assert single.places == [(layering._MARGIN + 30, layering._MARGIN + 15)]
    assert (single.width, single.height) == (60 + 2 * layering._MARGIN, 30 + 2 * layering._MARGIN)


def test_a_very_long_edge_goes_straight():
    n = layering._LONGEST_BENT + 3
    layout = in_layers([BOX] * n, [*((i + 1, i) for i in range(n - 1)), (n - 1, 0)])
    assert len(layout.routes[-1]) == 4


def test_thousands_of_boxes_are_placed():
    n = 4000
    edges = [(i + 1, i) for i in range(n - 1)] + [(n - 1, i) for i in range(0, n - 1, 7)]
    layout = in_layers([BOX] * n, edges)
    assert layout.height > n * BOX[1]


@pytest.fixture
def path_of(tmp_path, monkeypatch):
    """Put a program called dot on an otherwise empty PATH; return nothing."""

    def put(script):
        program = tmp_path / "dot"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")

    return put


def test_dot_places_the_boxes_where_it_is_installed(path_of, tmp_path):
    path_of(f"""cat > {tmp_path}/input
echo 'graph 1 2 3'
echo 'node 0 1 0.5 0.8 0.4 0 solid box black lightgrey'
echo 'node 1 1 2.5 0.8 0.4 1 solid box black lightgrey'
echo 'edge 1 0 4 1 2.3 1 2 1 1 1 0.7 solid black'
echo stop""")
    layout = place([BOX] * 2, [(1, 0)])
    margin = layering._MARGIN
    assert (layout.width, layout.height) == (144 + 2 * margin, 216 + 2 * margin)
    assert layout.places == [(72 + margin, 180 + margin), (72 + margin, 36 + margin)]
    assert layout.routes[0][0] == pytest.approx((72 + margin, 216 - 2.3 * 72 + margin))
    assert "1 -> 0" in Path(tmp_path, "input").read_text()


def test_a_dot_that_fails_is_an_error_that_says_what_to_do(path_of):
    path_of("echo 'no plugins' >&2; exit 3")
    with pytest.raises(RuntimeError, match=r"dot fails: no plugins; mend it or take it off the PATH"):
        place([BOX], [])


def test_a_large_graph_is_not_given_to_dot(path_of):
    path_of("exit 3")
    n = layering._MOST_FOR_DOT + 1
    assert len(place([BOX] * n, [(i + 1, i) for i in range(n - 1)]).places) == n


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_the_real_dot_is_understood():
    sizes, edges = random_graph(20, 1)
    layout = place(sizes, edges)
    assert not overlaps(layout, sizes)
    for edge, route in zip(edges, layout.routes, strict=True):
        for node, (x, y) in zip(edge, (route[0], route[-1]), strict=True):  # dot may go out at a side
            assert abs(x - layout.places[node][0]) <= sizes[node][0] / 2 + 1
            assert abs(y - layout.places[node][1]) <= sizes[node][1] / 2 + 1
