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

from minigrad.autodiff.graph import in_order, leaf_of, next_of

Gradients = Sequence[Tensor | None]
Call = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Point:
    """A function of tensors, differentiable by all of them, and where it is looked at.

    Attributes:
        order: 1 for a function, n + 1 for the gradient of one of order n.
        call: from one tensor for each of `inputs`, each requiring a gradient, to the outputs.
        inputs: contiguous, without a gradient.
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

    def gradient(self) -> "Point":
        """Return the function from these inputs and upstream gradients to the gradients, at upstreams around 1."""
        count = len(self.inputs)

        def call(leaves: Sequence[Tensor]) -> list[Tensor]:
            gradients = _gradients(self.call(leaves[:count]), leaves[:count], leaves[count:], create_graph=True)
            return [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=False)]

        inputs = [*self.inputs, *upstream_gradients(self.outputs)]
        prefix = "gradient" if self.order == 1 else f"order-{self.order} gradient"
        return Point(
            order=self.order + 1,
            call=call,
            inputs=inputs,
            outputs=[output.detach() for output in call(fresh_leaves(inputs))],
            upstream_from=self.upstream_from,
            input_names=[*self.input_names, *(f"upstream of {name}" for name in self.output_names)],
            output_names=[f"{prefix} for {name}" for name in self.input_names],
        )


def point_of(function: Callable[..., Tensor | Sequence[Tensor]], given: Sequence[Tensor]) -> Point:
    """Return a function of its floating-point inputs, at the ones given, to its floating-point outputs.

    Raises:
        TypeError: an output is no tensor, or of a dtype that cannot be checked.
        ValueError: there is nothing to differentiate, or two calls differ.
    """
    inputs = [x for x in given if x.is_floating_point()]
    if not inputs:
        raise ValueError("`inputs` holds no floating-point tensor: pass what to differentiate by in float64")

    def call_all(leaves: Sequence[Tensor]) -> list[Tensor]:
        differentiable = iter(leaves)
        arguments = [next(differentiable) if x.is_floating_point() else x.clone() for x in given]
        return tensors_of(function(*arguments), "the function")

    first, second = call_all(fresh_leaves(inputs)), call_all(fresh_leaves(inputs))
    for name, output in zip(names_of("output", first), first, strict=True):
        check_dtype(name, output)
    if len(first) != len(second) or not all(map(same, first, second)):
        raise ValueError(
            "two calls of the function differ: make it deterministic, such as by a fixed seed or no dropout"
        )
    if not any(output.requires_grad for output in first):
        raise ValueError("no output depends on a floating-point input as autograd sees it: is there a detach?")
    return Point(
        order=1,
        call=lambda leaves: [output for output in call_all(leaves) if output.is_floating_point()],
        inputs=inputs,
        outputs=[output.detach() for output in first if output.is_floating_point()],
        upstream_from=len(inputs),
        input_names=_floating(names_of("input", given), given),
        output_names=_floating(names_of("output", first), first),
    )


def tensors_of(found: Tensor | Sequence[Tensor], what: str) -> list[Tensor]:
    """Return one tensor or several as a list."""
    found = [found] if isinstance(found, Tensor) else found
    if not isinstance(found, list | tuple):
        raise TypeError(f"{what} returned a {type(found).__name__}: return a tensor, or a tuple of tensors")
    for tensor in found:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{what} returned a {type(tensor).__name__} in a tuple: return tensors alone")
    return list(found)


def names_of(kind: str, tensors: Sequence[Tensor]) -> list[str]:
    """Return what several tensors of a kind are called, by number, or the only one, by its kind alone."""
    return [kind] if len(tensors) == 1 else [f"{kind} {i}" for i in range(len(tensors))]


def _floating(names: Sequence[str], tensors: Sequence[Tensor]) -> list[str]:
    return [name for name, tensor in zip(names, tensors, strict=True) if tensor.is_floating_point()]


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same shape and values, NaN included."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def upstream_gradients(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return contiguous numbers between 1/2 and 3/2 in the outputs' shapes, all different, always the same."""
    numbers = torch.Generator().manual_seed(0)  # one of its own: the global one belongs to the user
    return [torch.rand(y.shape, generator=numbers, dtype=torch.float64).add(0.5).to(y.device, y.dtype) for y in outputs]


def fresh_leaves(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return contiguous copies that require a gradient."""
    return [x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for x in inputs]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return all elements as one vector."""
    return torch.cat([torch.empty(0, dtype=torch.float64), *(t.detach().cpu().double().flatten() for t in tensors)])


def by_reverse_mode(point: Point) -> tuple[Tensor, Tensor]:
    """Return the Jacobian, (elements of outputs, of inputs), and where autograd has a record of the dependence."""
    leaves = fresh_leaves(point.inputs)
    rows = [
        _filled(_gradients([output], leaves, [unit], retain_graph=True), leaves)
        for output in point.call(leaves)
        for unit in _units(output)
    ]
    return _matrix(rows, point, 0)


def by_forward_mode(point: Point) -> tuple[Tensor, Tensor]:
    """Return the same as `by_reverse_mode` does, found with dual numbers."""
    columns = []
    for i, x in enumerate(point.inputs):
        for unit in _units(x):
            leaves = fresh_leaves(point.inputs)
            with forward_ad.dual_level():
                leaves[i] = forward_ad.make_dual(leaves[i], unit)
                outputs = point.call(leaves)
                tangents = [forward_ad.unpack_dual(output).tangent for output in outputs]
                columns.append(_filled(tangents, outputs))
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
    return torch.stack(columns, 1) if columns else torch.empty(len(flat(point.outputs)), 0, dtype=torch.float64)


def pulled_back(point: Point, leaves: Sequence[Tensor], upstreams: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs, the gradient for all leaves, and where autograd has a record of the dependence.

    The leaves and the upstream gradients are passed on as they lie in memory.
    """
    outputs = point.call(leaves)
    return flat(outputs), *_filled(_gradients(outputs, leaves, upstreams), leaves)


def derivatives_of_sum(point: Point) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the gradient of the sum of all outputs, then of the sum of all of that, and so on without end.

    Each comes with where autograd has a record of the dependence.
    """
    leaves = fresh_leaves(point.inputs)
    values: Gradients = point.call(leaves)
    while True:
        known = [value for value in values if value is not None]
        # That they require a gradient is how once_differentiable knows that it will be differentiated.
        ones = [torch.ones_like(value, requires_grad=True) for value in known]
        values = _gradients(known, leaves, ones, create_graph=True)
        yield _filled(values, leaves)


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


def _filled(found: Gradients, like: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return all elements as one vector, 0 for a tensor that is None, and (elements,) bool: whether it was there."""
    values = [torch.zeros_like(x) if g is None else g for g, x in zip(found, like, strict=True)]
    there = [torch.full((x.numel(),), g is not None) for g, x in zip(found, like, strict=True)]
    return flat(values), torch.cat([torch.empty(0, dtype=torch.bool), *there])


def _matrix(lines: list[tuple[Tensor, Tensor]], point: Point, dim: int) -> tuple[Tensor, Tensor]:
    """Return the lines' values and their marks, each as one matrix."""
    if not lines:
        shape = len(flat(point.outputs)), len(flat(point.inputs))
        return torch.empty(shape, dtype=torch.float64), torch.empty(shape, dtype=torch.bool)
    values, marks = zip(*lines, strict=True)
    return torch.stack(values, dim), torch.stack(marks, dim)


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raise a TypeError unless a tensor can be checked, or is passed on."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise TypeError(f"{name} has layout {tensor.layout} or is nested: pass dense tensors")
    if tensor.is_complex():
        raise TypeError(f"{name} is {tensor.dtype}: check the real and the imaginary part apart, as real tensors")
    if tensor.is_floating_point() and tensor.dtype not in (torch.float64, torch.float32):
        raise TypeError(f"{name} is {tensor.dtype}, too coarse for differences: pass float64, or float32")
