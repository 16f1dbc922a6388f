"""What is known of a backward pass that has run: its steps, as a table, and as the chain rule with numbers in it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minigrad.autodiff.recording import Gradient, or_nothing, shown
from minigrad.tables import plain

_MOST_WAYS, _MOST_FACTORS = 8, 12  # of the formula for one leaf; a longer one is not read


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
        has no local derivative, there are more than 8 paths or more than 12 factors, or a hook changed a gradient), it
        says why, and what each node made of what came follows, line by line.
        """
        formulas = _formulas(self)
        lines, complete = [], True
        for name, leaf in self.leaves.items():
            ways = formulas.get((name, 0), "no gradient arrives")
            problem = ways if isinstance(ways, str) else _objection(ways, leaf)
            head = f"d {self.output} / d {name}"
            if isinstance(ways, str) or problem is not None:
                lines.append(f"{head}: {problem}")
                complete = False
                continue
            indent = "\n" + " " * len(head)
            products = f"{indent} + ".join(" * ".join(way.factors) for way in ways)
            lines.append(f"{head} = {products}{indent if len(ways) > 1 else ''} = {or_nothing(leaf.arrived)}")
        if not complete:
            lines += ["", "What each node made of what came:", *_line_by_line(self.steps)]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class _Way:
    """A path from the output to a node: its factors as text, their product in float64, its relative rounding error."""

    factors: tuple[str, ...]
    product: Tensor
    rounding: float

    def through(self, local: Tensor, label: str) -> "_Way":
        """Return the path with one more operation."""
        factors = (*self.factors, f"{shown(local)} [{label}]")
        return _Way(factors, self.product * _wide(local), self.rounding + _rounding(local))


def _formulas(trace: Trace) -> dict[tuple[str, int], list[_Way] | str]:
    """Return the paths from the output to every node, by its label and the result reached; or why they aren't written.

    Every node runs after all that it gets gradients from, so one look at each step finds all paths.
    """
    first = trace.steps[0]
    start = first.upstream[trace.result]
    ways: dict[tuple[str, int], list[_Way] | str] = {}
    if start is not None and start.value is not None:
        ways[first.label, trace.result] = [_Way((shown(start.value),), _wide(start.value), _rounding(start.value))]
    else:
        ways[first.label, trace.result] = f"not written out, {trace.output} has too many elements to print"
    for step in trace.steps:
        for flow in step.flows:
            if flow.gradient is None:
                continue
            for result, local in enumerate(flow.locals):
                if (step.label, result) in ways:
                    further = _further(ways[step.label, result], step.label, local)
                    ways[flow.to, flow.result] = _together(ways.get((flow.to, flow.result)), further)
    return ways


def _further(ways: list[_Way] | str, label: str, local: Tensor | None) -> list[_Way] | str:
    if isinstance(ways, str):
        return ways
    if local is None:
        return f"no product, {label} has no local derivative to multiply by"
    if any(len(way.factors) > _MOST_FACTORS for way in ways):
        return f"not written out, it has paths of more than {_MOST_FACTORS} operations"
    return [way.through(local, label) for way in ways]


def _together(ways: list[_Way] | str | None, others: list[_Way] | str) -> list[_Way] | str:
    if ways is None or isinstance(others, str):
        return others
    if isinstance(ways, str):
        return ways
    return (
        ways + others
        if len(ways) + len(others) <= _MOST_WAYS
        else f"not written out, it has more than {_MOST_WAYS} paths"
    )


def _objection(ways: list[_Way], leaf: Leaf) -> str | None:
    """Return why the sum of the products is not what arrived, or None where it is but for rounding."""
    assert leaf.arrived is not None
    assert leaf.arrived.value is not None
    found, terms = _wide(leaf.arrived.value), torch.stack([way.product for way in ways])
    rounding = len(ways) * (_rounding(leaf.arrived.value) + sum(way.rounding for way in ways))
    smallest = torch.finfo(leaf.arrived.dtype).smallest_normal
    expected, allowed = terms.sum(0), rounding * (terms.abs().sum(0) + smallest)
    same = (found == expected) | (found.isnan() & expected.isnan()) | ((found - expected).abs() <= allowed)
    return None if bool(same.all()) else "no product of local derivatives, a hook changed a gradient on the way"


def _line_by_line(steps: tuple[Step, ...]) -> Iterator[str]:
    for number, step in enumerate(steps, 1):
        came = ", ".join(map(or_nothing, step.upstream))
        went = ", ".join(f"{or_nothing(flow.gradient)} to {flow.to}" for flow in step.flows)
        yield f"{number}. {step.label}: {came} -> {went if step.leaf is None else step.leaf}"


def _wide(values: Tensor) -> Tensor:
    return values.cpu().double()


def _rounding(values: Tensor) -> float:
    """Return the relative error that a few roundings in the values' dtype make."""
    return 4 * torch.finfo(values.dtype).eps
