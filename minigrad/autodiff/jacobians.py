"""The derivatives of a function of tensors at a point, found in several ways: what `check_gradients` compares.

Matrices and vectors are float64 on the host, over the elements of all outputs and of all inputs, one tensor after the
other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge

from minigrad.autodiff.nodes import as_tensors, in_order, leaf_of, next_of

Gradients = Sequence[Tensor | None]
Call = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Point:
    """A function of tensors, differentiable by all of them, and where it is looked at.

    Attributes:
        order: 1 for a function, n + 1 for the gradient of one of order n.
        call: from one tensor for each of `inputs`, some or all of them requiring a gradient, to the outputs. A gradient
            for an input that requires none comes out as 0.
        inputs: without a gradient, in the layout in which they were given.
        outputs: what the function gives for these, detached.
        upstream_from: the inputs from this number on are upstream gradients of lower orders.
        input_names: of each input.
        output_names: of each output.
    """

    order: int
    call: Call
    inputs: list[Tensor]
    outputs: list[Tensor]
    upstream_from: int
    input_names: list[str]
    output_names: list[str]

    @property
    def upstream_names(self) -> list[str]:
        """What the upstream gradient of each output is called."""
        return [f"upstream of {name}" for name in self.output_names]

    def gradient(self) -> "Point":
        """Return the function from these inputs and upstream gradients to the gradients, at `upstream_gradients`."""
        count = len(self.inputs)

        def call(leaves: Sequence[Tensor]) -> list[Tensor]:
            wanted = [x for x in leaves[:count] if x.requires_grad]
            gradients = iter(_gradients(self.call(leaves[:count]), wanted, leaves[count:], create_graph=True))
            return _filled([next(gradients) if x.requires_grad else None for x in leaves[:count]], leaves[:count])

        inputs = [*self.inputs, *upstream_gradients(self.outputs)]
        prefix = "gradient" if self.order == 1 else f"order-{self.order} gradient"
        return Point(
            order=self.order + 1,
            call=call,
            inputs=inputs,
            outputs=[output.detach() for output in call(fresh_leaves(inputs))],
            upstream_from=self.upstream_from,
            input_names=[*self.input_names, *self.upstream_names],
            output_names=[f"{prefix} for {name}" for name in self.input_names],
        )


def point_of(function: Callable[..., Tensor | Sequence[Tensor]], given: Sequence[Tensor]) -> Point:
    """Return a function of its floating-point inputs, at the ones given, to its floating-point outputs.

    Raises:
        TypeError: an output is no tensor, or of a dtype that cannot be checked.
        ValueError: there is nothing to differentiate, two calls differ, or the function changes an input.
    """
    inputs = [x for x in given if x.is_floating_point()]
    if not inputs:
        raise ValueError("`inputs` holds no floating-point tensor: pass what to differentiate by in float64")

    def arguments_for(leaves: Sequence[Tensor]) -> list[Tensor]:
        differentiable = iter(leaves)
        return [next(differentiable) if x.is_floating_point() else copied(x) for x in given]

    def call_all(arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return as_tensors(function(*arguments), "function(*inputs)")

    arguments = arguments_for(fresh_leaves(inputs))
    first, second = call_all(arguments), call_all(arguments_for(fresh_leaves(inputs)))
    input_names, output_names = names_of("input", given), names_of("output", first)
    for name, x, argument in zip(input_names, given, arguments, strict=True):
        if not same(x, argument):
            raise ValueError(f"the function changes {name} in place: let it work on a copy")
    for name, output in zip(output_names, first, strict=True):
        check_dtype(name, output)
    if len(first) != len(second) or not all(map(same, first, second)):
        raise ValueError("two calls of the function differ: make it deterministic, such as dropout by a fixed mask")
    if not any(output.requires_grad for output in first):
        raise ValueError("no output depends on a floating-point input as autograd sees it: is there a detach?")
    return Point(
        order=1,
        call=lambda leaves: [y for y in call_all(arguments_for(leaves)) if y.is_floating_point()],
        inputs=inputs,
        outputs=[output.detach() for output in first if output.is_floating_point()],
        upstream_from=len(inputs),
        input_names=_floating(input_names, given),
        output_names=_floating(output_names, first),
    )


def names_of(kind: str, tensors: Sequence[Tensor]) -> list[str]:
    """Return what several tensors of a kind are called, by number, or the only one, by its kind alone."""
    return [kind] if len(tensors) == 1 else [f"{kind} {i}" for i in range(len(tensors))]


def _floating(names: Sequence[str], tensors: Sequence[Tensor]) -> list[str]:
    return [name for name, tensor in zip(names, tensors, strict=True) if tensor.is_floating_point()]


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same shape and values, NaN included."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def upstream_gradients(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return contiguous numbers in the outputs' shapes, between 1 and 3/2 in size, always the same.

    Every other one is negative, from the first on: the Jacobian is found with positive ones.
    """
    numbers = torch.Generator("cpu").manual_seed(0)  # one of its own: the global one belongs to the user
    draws = [1 + torch.rand(y.numel(), generator=numbers, dtype=torch.float64, device="cpu") / 2 for y in outputs]
    for draw in draws:
        draw[::2] *= -1
    return [draw.view(y.shape).to(y.device, y.dtype) for draw, y in zip(draws, outputs, strict=True)]


def copied(x: Tensor) -> Tensor:
    """Return a copy with the same strides, in memory that is a copy of what x extends over."""
    extent = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    return x.detach().as_strided((extent,), (1,)).clone().as_strided(x.shape, x.stride())


def contiguous(x: Tensor) -> Tensor:
    """Return a contiguous copy."""
    return x.detach().clone(memory_format=torch.contiguous_format)


def fresh_leaves(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return contiguous copies that require a gradient."""
    return [contiguous(x).requires_grad_() for x in inputs]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return copies of all elements as one vector."""
    nothing = torch.empty(0, dtype=torch.float64, device="cpu")
    return torch.cat([nothing, *(t.detach().cpu().double().flatten() for t in tensors)])


def by_reverse_mode(point: Point) -> Tensor:
    """Return the Jacobian, (elements of outputs, of inputs)."""
    leaves = fresh_leaves(point.inputs)
    rows = [
        flat(_filled(_gradients([output], leaves, [unit], retain_graph=True), leaves))
        for output in point.call(leaves)
        for unit in _units(output)
    ]
    return _matrix(rows, point, 0)


def by_forward_mode(point: Point) -> Tensor:
    """Return the same as `by_reverse_mode` does, found with dual numbers."""
    columns = []
    for i, x in enumerate(point.inputs):
        for unit in _units(x):
            leaves = fresh_leaves(point.inputs)
            with forward_ad.dual_level():
                # All get a tangent: what torch makes up for one that is not there cannot always be computed with.
                tangents = [unit if j == i else torch.zeros_like(leaf) for j, leaf in enumerate(leaves)]
                outputs = point.call(list(map(forward_ad.make_dual, leaves, tangents)))
                found = [forward_ad.unpack_dual(output).tangent for output in outputs]
                columns.append(flat(_filled(found, outputs)))
    return _matrix(columns, point, 1)


def by_differences(point: Point, step: float) -> Tensor:
    """Return the Jacobian by central differences whose steps are `step` max(1, |x|)."""
    columns = []
    for i, x in enumerate(point.inputs):
        for unit in _units(x):
            h = step * x.abs().clamp(min=1) * unit
            up, down = x + h, x - h
            values = [
                flat(point.call(fresh_leaves([*point.inputs[:i], moved, *point.inputs[i + 1 :]])))
                for moved in (up, down)
            ]
            # What the two inputs, as rounded, are apart: so that rounding x + h costs nothing.
            columns.append((values[0] - values[1]) / (flat([up]) - flat([down])).sum())
    return _matrix(columns, point, 1)


def pulled_back(
    point: Point, inputs: Sequence[Tensor], upstreams: Sequence[Tensor], alone: int | None = None, passes: int = 1
) -> tuple[Tensor, ...]:
    """Return the outputs, and by each of some backward passes through one graph the gradient for all inputs.

    Args:
        point: the function.
        inputs: what it is called with, passed on as it lies in memory.
        upstreams: of the outputs, likewise.
        alone: the number of the one input that requires a gradient; by default all do.
        passes: how many.
    """
    leaves = [x.detach().requires_grad_(alone is None or i == alone) for i, x in enumerate(inputs)]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    outputs = point.call(leaves)
    return flat(outputs), *(
        flat(_filled(_gradients(outputs, wanted, upstreams, retain_graph=i < passes), wanted))
        for i in range(1, passes + 1)
    )


def derivatives_of_sum(point: Point) -> Iterator[Tensor]:
    """Yield the gradient of the sum of all outputs, then of the sum of all of that, and so on without end."""
    leaves = fresh_leaves(point.inputs)
    values: Gradients = point.call(leaves)
    while True:
        known = [value for value in values if value is not None]
        # That they require a gradient is how once_differentiable knows that it will be differentiated.
        ones = [torch.ones_like(value, requires_grad=True) for value in known]
        values = _gradients(known, leaves, ones, create_graph=True)
        yield flat(_filled(values, leaves))


def _gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], upstreams: Sequence[Tensor], **options: bool
) -> Gradients:
    """Return the gradient for each input, None where autograd has no record of any output's dependence on it."""
    pairs = [(output, upstream) for output, upstream in zip(outputs, upstreams, strict=True) if output.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    recorded, theirs = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(recorded, inputs, theirs, allow_unused=True, **options)
    if any(gradient is None for gradient in gradients):
        _raise_delayed_errors(recorded, theirs)
    return gradients


def _raise_delayed_errors(outputs: Sequence[Tensor], upstreams: Sequence[Tensor]) -> None:
    """Raise what a node that only raises would say, such as that of `once_differentiable`.

    It is tied to no input but to a leaf of its own, and so would never be visited.
    """
    for node in in_order([get_gradient_edge(output).node for output in outputs], next_of):
        if node.name() == "torch::autograd::Error":
            own = [leaf for leaf in map(leaf_of, next_of(node)) if leaf is not None]
            torch.autograd.grad(outputs, own, upstreams, allow_unused=True)


def _units(x: Tensor) -> Iterator[Tensor]:
    """Yield tensors of x's shape, contiguous, with a 1 in one element after the other and 0 elsewhere."""
    for i in range(x.numel()):
        unit = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        unit.view(-1)[i] = 1
        yield unit


def _filled(found: Gradients, like: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors, 0 for those that are None."""
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, like, strict=True)]


def _matrix(lines: list[Tensor], point: Point, dim: int) -> Tensor:
    """Return rows (dim 0) or columns (dim 1) as one matrix."""
    if not lines:
        return torch.empty(len(flat(point.outputs)), len(flat(point.inputs)), dtype=torch.float64, device="cpu")
    return torch.stack(lines, dim)


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raise a TypeError unless a tensor can be checked, or is passed on."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise TypeError(f"{name} has layout {tensor.layout} or is nested: pass dense tensors")
    if tensor.is_complex():
        raise TypeError(f"{name} is {tensor.dtype}: check the real and the imaginary part apart, as real tensors")
    if tensor.is_floating_point() and tensor.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"{name} is {tensor.dtype}, too coarse for differences: pass float64, or float32")
