import io
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from matplotlib.figure import Figure

import minigrad
from minigrad.autodiff import drawing as drawing_module
from minigrad.autodiff.drawing import show_bytes


@pytest.fixture(autouse=True)
def _without_dot(monkeypatch):
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def drawing():
    x, w = torch.rand(8, 5), torch.rand(5, 4, requires_grad=True)
    return minigrad.draw_graph(minigrad.tanh(x @ w), {"x": x, "w": w})


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_dot_text_has_every_node_and_edge(drawing):
    dot = drawing.to_dot()
    assert '0 [label="minigrad.tanh\\n(8, 4) float32\\nsaves tensor 0 (8, 4) 128 B"' in dot
    assert '[label="w\\n(5, 4) float32\\nrequires_grad=True"' in dot
    assert '[label="x\\n(8, 5) float32\\nrequires_grad=False", style="filled,dashed"' in dot
    assert re.findall(r"(\d) -> (\d)", dot) == [("1", "0"), ("2", "1"), ("3", "1")]


def test_svg_shows_what_dot_says(drawing):
    assert texts(drawing.to_svg()) == [
        *("minigrad.tanh", "(8, 4) float32", "saves tensor 0 (8, 4) 128 B"),
        *("mm", "(8, 4) float32", "saves self (8, 5) 160 B"),
        *("w", "(5, 4) float32", "requires_grad=True"),
        *("x", "(8, 5) float32", "requires_grad=False"),
    ]
    assert drawing.to_svg().count("<path") == 3
    assert drawing._repr_svg_() == drawing.to_svg()


def test_a_figure_has_the_picture_s_proportions_and_ink_for_every_box(drawing):
    figure = drawing.to_figure()
    assert isinstance(figure, Figure)
    edges, boxes, letters = figure.axes[0].collections
    assert (len(edges.get_paths()), len(boxes.get_paths()), len(letters.get_paths())) == (2 * 3, 4, 12)
    assert figure.get_size_inches() == pytest.approx(
        [1.4 * n / 72 for n in (drawing._layout.width, drawing._layout.height)]
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert len(buffer.getvalue()) > 5_000


def test_letters_fit_their_boxes(drawing):
    _, boxes, letters = drawing.to_figure().axes[0].collections
    box, words = (collection.get_paths()[0].get_extents() for collection in (boxes, letters))
    assert box.x0 < words.x0 < words.x1 < box.x1
    assert box.y0 < words.y0 < words.y1 < box.y1


def test_odd_names_are_escaped():
    x = torch.rand(3, requires_grad=True)
    odd = 'a "b" \\ <c> & d'
    drawing = minigrad.draw_graph(x.exp(), {odd: x})
    assert 'label="a \\"b\\" \\\\ <c> & d\\n' in drawing.to_dot()
    assert odd in texts(drawing.to_svg())


@pytest.mark.parametrize(
    ("name", "shown"), [("$\\foo$", "$\\foo$"), ("", "unnamed"), ("a\x00\x1bb\n", "a\ufffd\ufffdb\ufffd")]
)
def test_a_name_is_no_formula_and_no_control_sequence(name, shown):
    x = torch.rand(3, requires_grad=True)
    drawing = minigrad.draw_graph(x.exp(), {name: x})
    assert shown in texts(drawing.to_svg())
    drawing.to_figure().savefig(io.BytesIO(), format="png")


def test_outputs_have_thick_borders():
    x = torch.rand(3, requires_grad=True)
    y = x.exp()
    drawing = minigrad.draw_graph([y.sin(), y])
    assert re.findall(r'label="(\w+)\\n.*penwidth=2.5', drawing.to_dot()) == ["sin", "exp"]
    assert drawing.to_svg().count("stroke-width") == 2
    widths = drawing.to_figure().axes[0].collections[1].get_linewidths()
    assert sorted(widths) == pytest.approx([0.8, 2.0, 2.0])


def test_an_arrow_points_along_its_edge_to_where_it_ends(drawing):
    for route in drawing._layout.routes:
        tip, left, right = drawing_module._arrow(route)
        assert tip == route[-1]
        assert left[1] == right[1] < tip[1]
        assert (left[0] + right[0]) / 2 == pytest.approx(tip[0])


def test_many_saved_tensors_are_summed_up():
    tensors = [torch.rand(2, requires_grad=True) for _ in range(7)]

    class Many(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            ctx.save_for_backward(*inputs)
            return inputs[0].clone()

        @staticmethod
        def backward(ctx, v):
            return (v,) * 7

    lines = texts(minigrad.draw_graph(Many.apply(*tensors)).to_svg())
    assert "saves tensor 3 (2,) 8 B" in lines
    assert "and 3 more, 24 B" in lines


def test_what_is_freed_is_said():
    x = torch.rand(3, requires_grad=True)
    y = x.exp()
    y.sum().backward()
    assert "what it saved is freed" in texts(minigrad.draw_graph(y).to_svg())


def test_thousands_of_nodes_are_drawn_and_a_figure_of_them_can_be_saved():
    x = w = torch.rand(1, requires_grad=True)
    for _ in range(2000):
        x = x * w
    drawing = minigrad.draw_graph(x)
    assert drawing.to_svg().count("<rect") == 2001 + 1
    figure = drawing.to_figure()
    assert max(figure.get_size_inches()) == 40
    assert len(figure.axes[0].collections[2].get_paths()) == 0, "letters that nobody can read"
    figure.savefig(io.BytesIO(), format="png", dpi=50)


def test_a_graph_of_one_node_is_drawn():
    assert texts(minigrad.draw_graph(torch.rand(2)).to_svg()) == ["constant", "(2,) float32", "requires_grad=False"]


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0 B"), (1000, "1000 B"), (1024, "1 KiB"), (150_000, "146 KiB"), (3 << 30, "3 GiB")]
)
def test_bytes_are_shown_as_people_read_them(number, shown):
    assert show_bytes(number) == shown
