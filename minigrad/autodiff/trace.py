"""What is known of a backward pass that has run: its steps, as a table, and as the chain rule with numbers in it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from minigrad.autodiff.recording import Gradient, or_nothing, shown
from minigrad.tables import plain

_MOST_PATHS, _MOST_FACTORS = 8, 12  # of the formula for one leaf; a longer one is not read


@dataclass(frozen=True, eq=False)
class Flow:
    """What an operation sends on to where one of its inputs came from.

    Attributes:
        to: the label of the step that it goes to.
        result: the position of the input among that operation's results.
        gradient: what is sent, after the hooks on the operation; None where autograd leaves out zeros.
        locals: the derivatives of the operation's results in this input, one each: shaped as the input where the
            operation is elementwise in it; None elsewhere, for large tensors, and where its backward pass cannot be
            evaluated more than once.
    """

    to: str
    result: int
    gradient: Gradient | None
    locals: tuple[Tensor | None, ...]

    @property
    def local(self) -> Tensor | None:
        """Return the local derivative of an operation that has a single result; None if there is none, or more."""
        return self.locals[0] if len(self.locals) == 1 else None


@dataclass(frozen=True, eq=False)
class Leaf:
    """What became of a leaf.

    Attributes:
        arrived: the gradient of this pass, after the leaf's hooks; None where autograd leaves out zeros.
        before: what was in `.grad`; None if nothing was.
        after: what is there now, after the hooks that run when a gradient has accumulated.
    """

    arrived: Gradient | None
    before: Gradient | None
    after: Gradient | None

    def __str__(self) -> str:
        if self.arrived is None:
            return "nothing arrives"
        if self.before is None:
            return f"accumulates: {or_nothing(self.after)}"
        if not self._adds_up():
            return f"accumulates: .grad was {self.before}, is {or_nothing(self.after)}"
        return f"accumulates: {self.before} + {self.arrived} = {self.after}"

    def _adds_up(self) -> bool:
        """Return whether the values are there, and no hook has changed them afterwards."""
        values = [one.value for one in (self.before, self.arrived, self.after) if one is not None]
        if len(values) < 3 or any(value is None for value in values):
            return False
        before, arrived, after = values
        return torch.equal(before + arrived, after)  # type: ignore[operator, arg-type]


@dataclass(frozen=True, eq=False)
class Step:
    """A node that autograd ran: an operation, or a leaf.

    Attributes:
        label: the operation, numbered in the order of computation if it occurs more than once, or the leaf's name.
        upstream: the gradient of each result, summed over its uses, after the hooks on the result; None where autograd
            leaves out zeros.
        flows: what an operation sends on, one for each input that requires a gradient; empty for a leaf.
        leaf: what became of a leaf; None for an operation.
    """

    label: str
    upstream: tuple[Gradient | None, ...]
    flows: tuple[Flow, ...]
    leaf: Leaf | None


@dataclass(frozen=True, eq=False)
class Trace:
    """A backward pass. `str` gives it as a table.

    Attributes:
        output: what the output is called.
        result: the position of the output among the results of the operation that made it.
        steps: in the order in which autograd ran them.
    """

    output: str
    result: int
    steps: tuple[Step, ...]

    columns = ("step", "node", "upstream gradient", "local derivative", "sends on", "to")

    @property
    def leaves(self) -> dict[str, Leaf]:
        """Return what became of each leaf, by its name."""
        return {step.label: step.leaf for step in self.steps if step.leaf is not None}

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells of the table: a row for each flow, and one for each leaf."""
        rows: list[tuple[str, ...]] = []
        for number, step in enumerate(self.steps, 1):
            upstream = ", ".join(map(or_nothing, step.upstream))
            if step.leaf is not None:
                rows.append((str(number), step.label, upstream, "", str(step.leaf), ".grad"))
            head = (str(number), step.label, upstream)
            for flow in step.flows:
                local = ", ".join("none" if each is None else shown(each) for each in flow.locals)
                rows.append((*head, local, or_nothing(flow.gradient), flow.to))
                head = ("", "", "")
        return rows

    def table(self) -> str:
        """Return the pass as a table of text with aligned columns."""
        return plain(self.columns, self.rows)

    __str__ = table

    def chain_rule(self) -> str:
        """Return the gradient of each leaf as the sum over its paths of products of local derivatives.

        `d output / d w = 1 * 0.25 [minigrad.sigmoid] * 1 [add] * 0.5 [mul] = 0.125`: first what the pass started with,
        then the local derivative of each operation on the way. Where there is no such formula (an operation on the way
        has no local derivative, what it sent is not the product, or there are more than 8 paths or more than 12
        factors), it says why, and the table follows.
        """
        paths, lines, complete = _paths(self), [], True
        for name, leaf in self.leaves.items():
            head, found = f"d {self.output} / d {name}", paths.get((name, 0), "no gradient arrives")
            if isinstance(found, str):
                lines.append(f"{head}: {found}")
                complete = False
                continue
            indent = "\n" + " " * len(head)
            products = f"{indent} + ".join(map(" * ".join, found))
            lines.append(f"{head} = {products}{indent if len(found) > 1 else ''} = {or_nothing(leaf.arrived)}")
        return "\n".join(lines if complete else [*lines, "", "What each node made of what came:", self.table()])


_Place = tuple[str, int]  # a step's label, and a result of its operation
_Paths = list[tuple[str, ...]]  # from the output, each as its factors


def _paths(trace: Trace) -> dict[_Place, _Paths | str]:
    """Return the paths to every place that a gradient comes to; or why their products are not that gradient.

    Every node runs after all that it gets gradients from, so one look at each step finds all paths. At each it is
    checked that the next factor belongs there, so that what comes is the sum of the products but for rounding.
    """
    first = trace.steps[0]
    start, gradient = (first.label, trace.result), first.upstream[trace.result]
    paths: dict[_Place, _Paths | str] = {start: f"not written out, {trace.output} has too many elements to print"}
    sent: dict[_Place, list[Tensor]] = {}
    if gradient is not None and gradient.value is not None:
        paths[start], sent[start] = [(shown(gradient.value),)], [gradient.value]
    for step in trace.steps:
        for result, came in enumerate(step.upstream):
            place = (step.label, result)
            if came is not None and not isinstance(paths.get(place), str):
                paths[place] = _arriving(paths.get(place, []), step.label, came, sent.get(place, []))
        for flow in step.flows:
            if flow.gradient is not None:
                place = (flow.to, flow.result)
                paths[place] = _together(paths.get(place, []), _through(step, flow, flow.gradient, paths))
                if flow.gradient.value is not None:
                    sent.setdefault(place, []).append(flow.gradient.value)
    return paths


def _arriving(paths: _Paths | str, label: str, came: Gradient, sent: list[Tensor]) -> _Paths | str:
    """Return the paths to a place if what came there is the sum of what was sent there."""
    if came.value is not None and _is_sum(came.value, [(each, torch.ones_like(each)) for each in sent]):
        return paths
    expected = " + ".join(map(shown, sent)) or "nothing"
    return f"the product is not what arrives: at {label}, {came} came, not {expected} (a hook, or an overflow)"


def _through(step: Step, flow: Flow, gradient: Gradient, paths: dict[_Place, _Paths | str]) -> _Paths | str:
    """Return the paths through an operation to one of its inputs."""
    found: _Paths = []
    products = []
    for result, (came, local) in enumerate(zip(step.upstream, flow.locals, strict=True)):
        if came is None:
            continue
        before = paths[step.label, result]
        if isinstance(before, str):
            return before
        if local is None:
            return f"no product, {step.label} has no local derivative to multiply by"
        if any(len(path) > _MOST_FACTORS for path in before):
            return f"not written out, it has paths of more than {_MOST_FACTORS} operations"
        assert came.value is not None
        products.append((came.value, local))
        found += [(*path, f"{shown(local)} [{step.label}]") for path in before]
    if gradient.value is not None and _is_sum(gradient.value, products):
        return found
    expected = " + ".join(f"{shown(came)} * {shown(local)}" for came, local in products) or "nothing"
    return (
        f"the product is not what arrives: at {step.label}, {gradient} was sent, not {expected} "
        "(rounded to 0, an overflow, a hook, or a backward pass that is not linear)"
    )


def _together(paths: _Paths | str, others: _Paths | str) -> _Paths | str:
    if isinstance(paths, str):
        return paths
    if isinstance(others, str):
        return others
    several = paths + others
    return several if len(several) <= _MOST_PATHS else f"not written out, it has more than {_MOST_PATHS} paths"


def _is_sum(found: Tensor, products: list[tuple[Tensor, Tensor]]) -> bool:
    """Return whether `found` is the sum of products but for rounding, of which none is out of its dtype's range."""
    if not products:
        return False
    left, right = (torch.stack([_wide(pair[i]) for pair in products]) for i in (0, 1))
    terms, exact = left * right, _wide(found)
    # Float64 has a range too, so what is out of range is told by the factors.
    vanished = (terms.to(found.dtype) == 0) & (left != 0) & (right != 0)
    overflowed = exact.isinf() & (left.isfinite() & right.isfinite()).all(0)
    limits = max((torch.finfo(each.dtype) for pair in products for each in (found, *pair)), key=lambda each: each.eps)
    allowed = 8 * limits.eps * (terms.abs().sum(0) + limits.smallest_normal)
    expected = terms.sum(0)
    same = (exact == expected) | (exact.isnan() & expected.isnan()) | ((exact - expected).abs() <= allowed)
    return bool((same & ~overflowed & ~vanished.any(0)).all())


def _wide(values: Tensor) -> Tensor:
    return values.cpu().to(torch.complex128 if values.is_complex() else torch.float64)
