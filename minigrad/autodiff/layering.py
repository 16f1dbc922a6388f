"""Where to draw the nodes of a directed acyclic graph: in layers, from what is given above to the outputs below.

Graphviz's `dot` places graphs of up to some dozen nodes where it is installed. Elsewhere, and beyond, the same method
in brief: every node one layer above the highest of those that take from it; an edge over several layers as a chain of
bends; the order in a layer by the mean of the neighbours' places, sweep after sweep, the one with the fewest crossings
kept; then each node as near above its neighbours as the order allows.

Source: K. Sugiyama, S. Tagawa and M. Toda, "Methods for Visual Understanding of Hierarchical System Structures", IEEE
    Transactions on Systems, Man, and Cybernetics, 1981; E. R. Gansner et al., "A Technique for Drawing Directed
    Graphs", IEEE Transactions on Software Engineering, 1993.
"""

import bisect
import itertools
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Edge = tuple[int, int]

_GAP = 14.0  # between the boxes of a layer, points
_RISE = 26.0  # between two layers
_BEND = 4.0  # what an edge that passes through a layer takes there
_MARGIN = 8.0
_MOST_FOR_DOT = 60  # nodes: at 150 it can take 6 seconds, at some thousands minutes
_LONGEST_BENT = 24  # layers; a longer edge goes straight, or bends would outnumber the nodes
_SWEEPS = 8


@dataclass(frozen=True)
class Layout:
    """Places in points, 1/72 of an inch; y grows downward.

    Attributes:
        width: of the whole, margins included.
        height: likewise.
        places: the centre of each node.
        routes: for each edge, in the order given, a curve of cubic Bézier pieces from the lower side of its source to
            the upper side of its target: a point, then two control points and a point for each piece.
    """

    width: float
    height: float
    places: list[Point]
    routes: list[list[Point]]


def place(sizes: Sequence[Point], edges: Sequence[Edge]) -> Layout:
    """Place boxes of the given sizes.

    Args:
        sizes: the width and height of each node's box, points.
        edges: pairs (source, target) of nodes' numbers; every target is numbered below its sources.

    Raises:
        RuntimeError: `dot` is installed and fails.
    """
    dot = shutil.which("dot")
    return _by_dot(dot, sizes, edges) if dot and len(sizes) <= _MOST_FOR_DOT else in_layers(sizes, edges)


def in_layers(sizes: Sequence[Point], edges: Sequence[Edge]) -> Layout:
    """Place boxes without `dot`; see `place`."""
    ranks = [0] * len(sizes)
    for source, target in sorted(edges, key=lambda edge: edge[1]):
        ranks[source] = max(ranks[source], ranks[target] + 1)
    chains = _chains(ranks, edges)
    layers: list[list[int]] = [[] for _ in range(max(ranks, default=-1) + 1)]
    for node, rank in enumerate(ranks):
        layers[rank].append(node)
    below: list[list[int]] = [[] for _ in ranks]
    above: list[list[int]] = [[] for _ in ranks]
    for chain in chains:
        for upper, lower in itertools.pairwise(chain):
            if ranks[upper] == ranks[lower] + 1:
                below[upper].append(lower)
                above[lower].append(upper)
    layers = _ordered(layers, above, below)
    widths = [sizes[node][0] if node < len(sizes) else _BEND for node in range(len(ranks))]
    x = _abscissas(layers, above, below, widths)
    tops, bottoms, y = [0.0] * len(layers), [0.0] * len(layers), _MARGIN
    for rank in reversed(range(len(layers))):
        tops[rank] = y
        bottoms[rank] = y + max(sizes[node][1] if node < len(sizes) else 0.0 for node in layers[rank])
        y = bottoms[rank] + _RISE
    places = [(x[i], (tops[ranks[i]] + bottoms[ranks[i]]) / 2) for i in range(len(sizes))]
    routes = []
    for chain in chains:
        source, *bends, target = chain
        start = _towards(x[chain[1]], x[source], widths[source]), places[source][1] + sizes[source][1] / 2
        end = _towards(x[chain[-2]], x[target], widths[target]), places[target][1] - sizes[target][1] / 2
        middle = [(x[bend], y) for bend in bends for y in (tops[ranks[bend]], bottoms[ranks[bend]])]
        routes.append(_curve([start, *middle, end]))
    right = max((x[i] + widths[i] / 2 for i in range(len(ranks))), default=0.0)
    return Layout(right + _MARGIN, y - _RISE + _MARGIN, places, routes)


def _chains(ranks: list[int], edges: Sequence[Edge]) -> list[list[int]]:
    """Return each edge as the nodes it passes from its source to its target; new ones, with ranks, are its bends."""
    chains = []
    for source, target in edges:
        passed = range(ranks[source] - 1, ranks[target], -1)
        if len(passed) >= _LONGEST_BENT:
            passed = range(0)
        chains.append([source, *range(len(ranks), len(ranks) + len(passed)), target])
        ranks.extend(passed)
    return chains


def _ordered(layers: list[list[int]], above: list[list[int]], below: list[list[int]]) -> list[list[int]]:
    """Return the layers, each in an order in which few edges cross."""
    current = best = layers
    fewest = _crossings(layers, below)
    for sweep in range(_SWEEPS):
        if fewest == 0:
            break
        upward = sweep % 2 == 0
        neighbours = below if upward else above
        current = [list(layer) for layer in current]
        place = {node: float(i) for layer in current for i, node in enumerate(layer)}
        for rank in range(1, len(current)) if upward else range(len(current) - 2, -1, -1):
            current[rank].sort(key=lambda node: _mean([place[n] for n in neighbours[node]], place[node]))
            place.update({node: float(i) for i, node in enumerate(current[rank])})
        crossings = _crossings(current, below)
        if crossings < fewest:
            best, fewest = current, crossings
    return best


def _crossings(layers: list[list[int]], below: list[list[int]]) -> int:
    """Count the crossings between neighbouring layers."""
    total = 0
    for lower, upper in itertools.pairwise(layers):
        place = {node: i for i, node in enumerate(lower)}
        passed: list[int] = []
        for node in upper:
            ends = sorted(place[n] for n in below[node])
            total += sum(len(passed) - bisect.bisect_right(passed, end) for end in ends)
            for end in ends:
                bisect.insort(passed, end)
    return total


def _abscissas(
    layers: list[list[int]], above: list[list[int]], below: list[list[int]], widths: list[float]
) -> list[float]:
    """Return the x of every node: near the mean of its neighbours, in its layer's order, without overlap."""
    x = [0.0] * len(widths)
    for layer in layers:
        _spread(layer, [0.0] * len(layer), widths, x)
    for sweep in range(_SWEEPS):
        upward = sweep % 2 == 0
        neighbours = below if upward else above
        for layer in layers if upward else reversed(layers):
            _spread(layer, [_mean([x[n] for n in neighbours[node]], x[node]) for node in layer], widths, x)
    left = min((x[i] - widths[i] / 2 for i in range(len(x))), default=0.0)
    return [value - left + _MARGIN for value in x]


def _spread(layer: list[int], wanted: list[float], widths: list[float], x: list[float]) -> None:
    """Set the x of a layer's nodes as near to what is wanted, in the least squares, as order and widths allow.

    With the room that the nodes before it need taken off, each node may be anywhere but before its predecessor: that is
    isotonic regression, and to pool adjacent violators solves it.
    """
    offsets = [0.0]
    for left, right in itertools.pairwise(layer):
        offsets.append(offsets[-1] + (widths[left] + widths[right]) / 2 + _GAP)
    pools: list[tuple[float, int]] = []  # a sum and how many it is of
    for value, offset in zip(wanted, offsets, strict=False):
        total, number = value - offset, 1
        while pools and pools[-1][0] / pools[-1][1] > total / number:
            before, several = pools.pop()
            total, number = total + before, number + several
        pools.append((total, number))
    means = [total / number for total, number in pools for _ in range(number)]
    for node, mean, offset in zip(layer, means, offsets, strict=False):
        x[node] = mean + offset


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _towards(other: float, x: float, width: float) -> float:
    """Return where an edge meets a box that is at x: off its middle, towards where the edge leads."""
    return x + max(-0.3 * width, min(0.3 * width, 0.2 * (other - x)))


def _curve(ends: list[Point]) -> list[Point]:
    """Return a smooth curve that goes downward through points, vertical in each of them."""
    curve = ends[:1]
    for (x0, y0), (x1, y1) in itertools.pairwise(ends):
        middle = (y0 + y1) / 2
        curve += [(x0, middle), (x1, middle), (x1, y1)]
    return curve


def _by_dot(dot: str, sizes: Sequence[Point], edges: Sequence[Edge]) -> Layout:
    """Let Graphviz place the boxes; its plain output is in inches, y upward."""
    lines = [f"{i} [width={width / 72}, height={height / 72}]" for i, (width, height) in enumerate(sizes)]
    lines += [f"{source} -> {target}" for source, target in edges]
    head = f"nodesep={_GAP / 72}; ranksep={_RISE / 72}; node [shape=box, fixedsize=true]; edge [arrowhead=none]"
    text = f"digraph {{ {head}; {'; '.join(lines)} }}"
    done = subprocess.run([dot, "-Tplain"], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{dot} fails: {done.stderr.strip()}; mend it or take it off the PATH, and do without it")
    places: list[Point] = [(0.0, 0.0)] * len(sizes)
    curves: dict[Edge, list[list[Point]]] = {}
    width = height = 0.0

    def points(numbers: list[str]) -> list[Point]:
        values = [float(number) * 72 for number in numbers]
        return [(x + _MARGIN, height - y + _MARGIN) for x, y in zip(values[::2], values[1::2], strict=True)]

    for kind, *words in map(str.split, done.stdout.splitlines()):
        if kind == "graph":
            width, height = float(words[1]) * 72, float(words[2]) * 72
        elif kind == "node":
            places[int(words[0])] = points(words[1:3])[0]
        elif kind == "edge":
            curves.setdefault((int(words[0]), int(words[1])), []).append(points(words[3 : 3 + 2 * int(words[2])]))
    routes = [curves[edge].pop() for edge in edges]
    return Layout(width + 2 * _MARGIN, height + 2 * _MARGIN, places, routes)
