"""The graph that autograd has recorded, drawn: as DOT text, as SVG and as a matplotlib figure."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from minigrad.autodiff.graph import Graph, Node, read
from minigrad.autodiff.layering import Layout, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = 9.0  # of the letters, points
_LETTER = 0.602 * _SIZE  # the advance of a monospaced font
_LINE = 1.25 * _SIZE
_PADDING = 6.0
_ARROW = 6.0  # its length
_MOST_SAVED = 4  # tensors that are listed in a box
_OUTPUT = 2.5  # times as thick is the border of an output
_LARGEST = 40.0  # inches, of a figure's longer side; a larger graph is scaled down to it
_LEGIBLE = 2.0  # points: smaller letters are left out


@dataclass(frozen=True)
class _Style:
    fill: str
    border: str
    dashed: bool = False
    round: bool = False


_OPERATION = _Style(fill="#ffffff", border="#303030", round=True)
_OWN_FUNCTION = _Style(fill="#c9d8f2", border="#0b3d91", round=True)
_LEAF = _Style(fill="#d9d9d9", border="#303030")
_CONSTANT = _Style(fill="#ffffff", border="#808080", dashed=True)


def draw_graph(output: Tensor | Sequence[Tensor], names: Mapping[str, Tensor] | None = None) -> "Drawing":
    """Draw the graph that autograd has recorded of any outputs: what a backward pass from them would go through.

    A box for each operation, with its result's shape and dtype and the tensors it keeps for its backward pass; for each
    leaf, whose gradient accumulates; and for each constant that an operation keeps. An output has a thick border.
    minigrad's Functions are called as in `minigrad`, those of others by their class. Nothing is computed, and nothing
    in the graph changes; so what hooks keep, as those of a checkpoint, is not listed.

    Args:
        output: a tensor or several, of any shape.
        names: leaves and constants by what they are to be called, such as `dict(model.named_parameters())`.

    Returns: the drawing, in whichever form is asked of it.

    Raises:
        TypeError: an output is no tensor, or `names` no mapping from names to tensors.
        ValueError: there is no output.
    """
    return Drawing(read(output, names))


class Drawing:
    """A graph with the means to draw it. A notebook shows it as it is.

    Boxes are placed by Graphviz's `dot` where it is installed, and in layers by minigrad elsewhere.

    Args:
        graph: what to draw.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def to_dot(self) -> str:
        """Return the graph in the DOT language, which Graphviz and other tools read."""
        lines = ["digraph {", f'  node [shape=box, fontname="monospace", fontsize={_SIZE:g}];']
        for number, node in enumerate(self.graph.nodes):
            style, width = _style(node), _OUTPUT if number in self.graph.outputs else 1
            kinds = ",".join(["filled", *["rounded"] * style.round, *["dashed"] * style.dashed])
            label = "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in _lines(node))
            lines.append(
                f'  {number} [label="{label}", style="{kinds}", fillcolor="{style.fill}", color="{style.border}", '
                f"penwidth={width}];"
            )
        lines += [f"  {source} -> {target};" for source, target in self.graph.edges]
        return "\n".join([*lines, "}\n"])

    def to_svg(self) -> str:
        """Return the picture as an SVG document, at a size at which its letters have 9 points."""
        layout = self._layout
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{layout.width:.0f}pt" height="{layout.height:.0f}pt" '
            f'viewBox="0 0 {layout.width:.1f} {layout.height:.1f}" font-family="DejaVu Sans Mono, monospace" '
            f'font-size="{_SIZE:g}" text-anchor="middle">',
            '<rect width="100%" height="100%" fill="white"/>',
        ]
        for route in layout.routes:
            start, *rest = (f"{x:.1f} {y:.1f}" for x, y in route)
            parts.append(f'<path d="M {start} C {" ".join(rest)}" fill="none" stroke="#606060"/>')
            tip, left, right = (f"{x:.1f},{y:.1f}" for x, y in _arrow(route))
            parts.append(f'<polygon points="{tip} {left} {right}" fill="#606060"/>')
        boxes = zip(self.graph.nodes, layout.places, self._sizes, strict=True)
        for number, (node, (x, y), (width, height)) in enumerate(boxes):
            style = _style(node)
            thick = f' stroke-width="{_OUTPUT}"' if number in self.graph.outputs else ""
            dashes = ' stroke-dasharray="3 2"' if style.dashed else ""
            parts.append(
                f'<rect x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" width="{width:.1f}" height="{height:.1f}" '
                f'rx="{_PADDING if style.round else 0:g}" fill="{style.fill}" stroke="{style.border}"{thick}{dashes}/>'
            )
            for i, line in enumerate(_lines(node)):
                weight = ' font-weight="bold"' if i == 0 else ""
                baseline = _baseline(y, height, i)
                parts.append(f'<text x="{x:.1f}" y="{baseline:.1f}"{weight}>{html.escape(line)}</text>')
        return "\n".join([*parts, "</svg>\n"])

    def to_figure(self) -> "Figure":
        """Return the picture as a matplotlib figure; a large one is scaled down to 40 inches, and loses its text."""
        from matplotlib.figure import Figure

        inches = self._layout.width / 72, self._layout.height / 72
        scale = min(1.4, _LARGEST / max(inches))
        figure = Figure(figsize=(max(1.0, inches[0] * scale), max(1.0, inches[1] * scale)))
        self.paint(figure.add_axes((0, 0, 1, 1)), letters=scale * _SIZE >= _LEGIBLE)
        return figure

    def paint(self, axes: "Axes", letters: bool = True) -> None:
        """Draw the picture into axes of matplotlib, as large as it fits, with what stands in the boxes or without."""
        from matplotlib.collections import PatchCollection
        from matplotlib.font_manager import FontProperties
        from matplotlib.patches import FancyBboxPatch, Patch, PathPatch, Polygon
        from matplotlib.path import Path
        from matplotlib.textpath import TextPath
        from matplotlib.transforms import Affine2D

        fonts = [FontProperties(family="monospace", weight=weight) for weight in ("bold", "normal")]
        edges: list[Patch] = []
        boxes: list[Patch] = []
        outlines: list[Patch] = []
        for route in self._layout.routes:
            codes = [Path.MOVETO, *[Path.CURVE4] * (len(route) - 1)]
            edges.append(PathPatch(Path(route, codes), fc="none", ec="#606060", lw=0.8))
            edges.append(Polygon(_arrow(route), fc="#606060", ec="none"))
        placed = zip(self.graph.nodes, self._layout.places, self._sizes, strict=True)
        for number, (node, (x, y), (width, height)) in enumerate(placed):
            style = _style(node)
            boxes.append(
                FancyBboxPatch(
                    (x - width / 2, y - height / 2),
                    width,
                    height,
                    boxstyle=f"round,pad=0,rounding_size={_PADDING}" if style.round else "square,pad=0",
                    fc=style.fill,
                    ec=style.border,
                    ls="--" if style.dashed else "-",
                    lw=0.8 * (_OUTPUT if number in self.graph.outputs else 1),
                )
            )
            for i, line in enumerate(_lines(node) if letters else ()):
                # As outlines in the picture's own units, so that letters fit their boxes at any size.
                path = TextPath((0, 0), line.replace("$", r"\$"), size=_SIZE, prop=fonts[min(i, 1)])
                left = x - len(line) * _LETTER / 2
                to_place = Affine2D().scale(1, -1).translate(left, _baseline(y, height, i))
                outlines.append(PathPatch(path.transformed(to_place), fc="black", ec="none"))
        for patches in (edges, boxes, outlines):
            axes.add_collection(PatchCollection(patches, match_original=True))
        axes.set(xlim=(0, self._layout.width), ylim=(self._layout.height, 0), aspect="equal")
        axes.axis("off")

    def _repr_svg_(self) -> str:
        return self.to_svg()

    @cached_property
    def _sizes(self) -> list[tuple[float, float]]:
        return [
            (max(map(len, lines)) * _LETTER + 2 * _PADDING, len(lines) * _LINE + 2 * _PADDING)
            for lines in map(_lines, self.graph.nodes)
        ]

    @cached_property
    def _layout(self) -> Layout:
        return place(self._sizes, self.graph.edges)


def show_bytes(number: int) -> str:
    """Return a number of bytes as people read it, in powers of 1024."""
    size = float(number)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if size < 100 else f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


def _lines(node: Node) -> list[str]:
    """Return what stands in a node's box."""
    dtype = str(node.dtype).removeprefix("torch.")
    label = re.sub(r"[\x00-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", node.label) or "unnamed"
    lines = [label, *(f"{shape} {dtype}" for shape in node.shapes)]
    if node.kind != "operation":
        return [*lines, f"requires_grad={node.kind == 'leaf'}"]
    if node.hidden is not None:
        return [*lines, f"what it saved is {node.hidden}"]
    lines += [f"saves {saved.name} {saved.shape} {show_bytes(saved.bytes)}" for saved in node.saved[:_MOST_SAVED]]
    more = node.saved[_MOST_SAVED:]
    return [*lines, f"and {len(more)} more, {show_bytes(sum(saved.bytes for saved in more))}"] if more else lines


def _style(node: Node) -> _Style:
    if node.kind == "operation":
        return _OWN_FUNCTION if node.label.startswith("minigrad.") else _OPERATION
    return _LEAF if node.kind == "leaf" else _CONSTANT


def _baseline(y: float, height: float, line: int) -> float:
    return y - height / 2 + _PADDING + (line + 0.8) * _LINE


def _arrow(route: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the head of an arrow at a route's end: its tip, then its two other corners."""
    (x0, y0), (x, y) = route[-2:]
    length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5 or 1.0
    dx, dy = _ARROW * (x - x0) / length, _ARROW * (y - y0) / length
    return [(x, y), (x - dx - dy / 3, y - dy + dx / 3), (x - dx + dy / 3, y - dy - dx / 3)]
