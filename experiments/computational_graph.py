"""The graph behind a result: d = (a + b) c, by default at a = 1, b = 2, c = 3, drawn and walked through.

While a result is computed, PyTorch builds a graph of what computed it. Each `grad_fn` is a node, and its
`next_functions` are the nodes of what it was computed from, so the graph is read from the result back to the leaves,
where gradients accumulate. A node keeps what its derivative needs: the product keeps both its factors, the sum nothing.

Backward goes the same way. With e = a + b, so that d = e c, the product sends c to e and e to c, and the sum passes on
what comes: dd/da = dd/db = c and dd/dc = a + b.
"""

from dataclasses import dataclass
from typing import Any

import torch

import minigrad
from minigrad.config import RunConfig, check
from minigrad.run import Run
from minigrad.verification import verify, verify_that


@dataclass
class Config(RunConfig):
    """The keys of this experiment."""

    a: float
    b: float
    c: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("a", "b", "c"):
            value = getattr(self, key)
            check(abs(value) <= 1e18, key, value, "a number from -1e18 to 1e18, so that float32 can hold the product")


def run(config: Config, run: Run) -> str:
    """Build the graph, walk and draw it, go back through it, and verify the gradients and what it keeps."""
    a, b, c = (torch.tensor(value, device=run.device, requires_grad=True) for value in (config.a, config.b, config.c))
    e = a + b
    d = e * c

    nodes = walk(d.grad_fn, {a: "a", b: "b", c: "c"})
    run.table("computational_graph/nodes", ("node", "of", "next_functions"), nodes)
    drawing = minigrad.draw_graph(d, {"a": a, "b": b, "c": c})
    run.graph(drawing)
    run.figure("computational_graph", drawing.to_figure())
    run.text("computational_graph/dot", f"```\n{drawing.to_dot()}```")

    e.retain_grad()  # or the gradient of what is no leaf is passed through and dropped
    d.backward()
    gradients: dict[str, Any] = {"a": a.grad, "b": b.grad, "c": c.grad, "e = a + b": e.grad}
    run.table(
        "computational_graph/gradients",
        ("with respect to", "gradient of d"),
        [(n, float(g)) for n, g in gradients.items()],
    )
    run.scalars(
        0,
        {
            "computational_graph/d": d.item(),
            **{f"computational_graph/dd_d{name[0]}": float(g) for name, g in gradients.items()},
        },
    )

    for name, expected in (("a", c), ("b", c), ("c", a + b), ("e = a + b", c)):
        verify(f"the gradient of {name}", gradients[name], expected)
    graph = drawing.graph
    verify_that(
        "the graph is a product of a sum and a leaf",
        [(node.label, [graph.nodes[i].label for i in node.inputs]) for node in graph.nodes if node.kind == "operation"]
        == [("mul", ["add", "c"]), ("add", ["a", "b"])],
    )
    verify_that(
        "the walk passes the product, the sum and the three leaves",
        [(node.rstrip("0"), leaf) for node, leaf, _ in nodes]
        == [
            ("MulBackward", ""),
            ("AddBackward", ""),
            ("AccumulateGrad", "c"),
            ("AccumulateGrad", "a"),
            ("AccumulateGrad", "b"),
        ],
    )
    verify("the bytes that the graph keeps, two float32 factors,", graph.saved_bytes, 8)
    return f"verified: the gradients of a, b and c are {', '.join(f'{gradients[name].item():g}' for name in 'abc')}"


def walk(node: Any, leaves: dict[Any, str]) -> list[tuple[str, str, str]]:
    """Return the nodes from `node` back to the leaves: each with the leaf it is of, and its `next_functions`."""
    rows, waiting = [], [node]
    while waiting:
        node = waiting.pop(0)
        following = [other for other, _ in node.next_functions if other is not None]
        leaf = leaves.get(getattr(node, "variable", None), "")
        rows.append((_name(node), leaf, ", ".join(map(_name, following)) or "none: here the gradient accumulates"))
        waiting += following
    return rows


def _name(node: Any) -> str:
    return str(node.name()).rpartition("::")[2]
