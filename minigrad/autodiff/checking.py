"""Gradients checked: reverse mode against central differences, closed forms, forward mode and other memory layouts.

A function of order 1 is the one given. That of order n + 1 is the gradient of that of order n: it takes the inputs and
the upstream gradients, and is checked in the same way. So a second derivative is a first one, of the gradient.

The error of a central difference of step h is h^2 |f'''| / 6 by truncation and about eps |f| / h by rounding; both
are of the order of eps^(2/3) at h = eps^(1/3), the default. Hence the default tolerance, 100 max(h^2, eps / h): 3.7e-9
in float64 and 2.4e-3 in float32, with room for third derivatives and internal rounding some hundred times as large as
1. What two ways of autograd's give differs by rounding alone, and gets 1000 eps: 2.2e-13 and 1.2e-4.
Source: Press et al., Numerical Recipes (3rd ed.), section 5.7.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from minigrad.autodiff.comparison import Comparisons, GradientError, Report, Where, places
from minigrad.autodiff.jacobians import (
    Point,
    by_differences,
    by_forward_mode,
    by_reverse_mode,
    check_dtype,
    contiguous,
    copied,
    derivatives_of_sum,
    flat,
    names_of,
    point_of,
    pulled_back,
    same,
    upstream_gradients,
)
from minigrad.autodiff.layouts import layouts
from minigrad.autodiff.nodes import as_tensors

_NOT_DIFFERENTIABLE = "the gradient cannot be differentiated"
_LAYOUT = "refused, though contiguous ones are taken (call .contiguous() or .reshape() in the function)"
_ALONE = "refused, though all together are taken (differentiate inside the function by torch.func)"


def check_gradients(
    function: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Tensor | Sequence[Tensor],
    *,
    closed_forms: Sequence[Callable[..., Tensor | Sequence[Tensor]]] = (),
    order: int = 2,
    step: float | None = None,
    relative: float | None = None,
    absolute: float | None = None,
    rounding: float | None = None,
    forward_mode: bool = True,
) -> Report:
    """Check all derivatives of a function up to an order, at a point where it is differentiable.

    At each order the Jacobian by reverse mode is compared with central differences and with forward mode, beyond the
    first order forward over reverse. Then reverse mode is compared with itself: in a second pass over the same graph,
    while it is recorded, for each input alone (to the second order), and for upstream gradients and inputs that lie in
    memory as given, transposed, as a slice or with padding or an offset between NaN, or expanded with stride 0, as what
    `.sum()` sends does. An input is expanded along dimensions in which its values are all the same: give one such to
    check that. At last come the closed forms.

    What lies below `absolute` counts as 0, and is not checked: a gradient in deep saturation, or that of a loss scaled
    by 1e-10. Scale the function so that its derivatives are around 1, or pass `absolute=0` and what `relative` allows.

    Every element of every input costs three calls and every element of an output a backward pass, at each order: meant
    for inputs of up to some hundred elements. Neither the inputs nor the global random generators are touched.

    Args:
        function: from tensors to a tensor or a sequence of tensors, any shapes; the same result at every call.
        inputs: its arguments, float64 or float32, any shapes and strides; tensors that are not floating-point are
            passed on and not differentiated.
        closed_forms: the n-th takes the inputs and returns, with the shape of each floating-point one, the n-th
            derivative: the gradient of the sum of all outputs, then of the sum of all of that, and so on. All of them
            are compared, also beyond `order`.
        order: how often to differentiate, at least 1.
        step: of the differences, in units of max(1, |x|); by default eps^(1/3).
        relative: allowed between reverse mode and differences, relative to the derivative; by default
            100 max(step^2, eps / step).
        absolute: allowed besides, in units of max(1, |output|); the same by default.
        rounding: allowed, in both units, where only rounding differs: in all other comparisons; by default 1000 eps.
        forward_mode: whether to check it.
    Returns: the worst element of each comparison.

    Raises:
        GradientError: the first comparison that is off; or the backward pass fails or changes what it is given, the
            gradient cannot be differentiated, forward mode is not there, or some layout is refused. NaN and infinities
            are always off.
        TypeError: an input, an output or a closed form's result is no real tensor of float64 or float32, or an option
            is of a wrong type.
        ValueError: two calls differ, the function changes an input, no output depends on one, a closed form's shapes
            are not the inputs', an option is out of range, or the default tolerance for `step` would be above 1e-2.
    """
    given = as_tensors(inputs, "inputs")
    for name, tensor in zip(names_of("input", given), given, strict=True):
        check_dtype(name, tensor)
    _check_options(closed_forms, order, step=step, relative=relative, absolute=absolute, rounding=rounding)
    with torch.inference_mode(False), torch.enable_grad():
        given = tuple(map(copied, given))
        first = point_of(function, given)
        eps = max(torch.finfo(tensor.dtype).eps for tensor in (*first.inputs, *first.outputs))
        check = _Check(eps, step, relative, absolute, rounding)
        point = first
        for n in range(1, order + 1):
            check.second_pass(point)
            jacobian = check.reverse_mode(point)
            if forward_mode:
                check.forward_mode(point, jacobian)
            check.upstream_layouts(point, jacobian)
            check.input_layouts(point)
            if n <= 2:  # beyond, the Jacobian has terms that only the other inputs' gradients give
                check.inputs_alone(point, jacobian)
            if n < order:
                point = check.gradient(point, jacobian)
        derivatives = derivatives_of_sum(first)
        for n, closed_form in enumerate(closed_forms, 1):
            expected = as_tensors(closed_form(*map(copied, given)), f"closed_forms[{n - 1}](*inputs)")
            check.closed_form(first, n, derivatives, expected)
    return check.kept.report


class _Check:
    """What is compared with what, and how far apart it may be."""

    def __init__(
        self, eps: float, step: float | None, relative: float | None, absolute: float | None, rounding: float | None
    ) -> None:
        self.eps, self.step = eps, eps ** (1 / 3) if step is None else step
        allowed = 100 * max(self.step**2, eps / self.step)
        if self.step < eps:
            raise ValueError(
                f"`step` is {step}, too small to move x: pass at least {eps:.1e}, better {eps ** (1 / 3):.1e}"
            )
        if allowed > 1e-2 and (relative is None or absolute is None):
            raise ValueError(
                f"`step` is {step}, which makes the default tolerance {allowed:.2g} and the check void: pass one from "
                f"{1e4 * eps:.1e} to 1e-2, or both `relative` and `absolute`"
            )
        self.relative = allowed if relative is None else relative
        self.absolute = allowed if absolute is None else absolute
        self.rounding = 1000 * eps if rounding is None else rounding
        self.kept = Comparisons()

    def gradient(self, point: Point, jacobian: Tensor) -> Point:
        """Return the gradient as a function; compare its value, of which a graph is recorded, with the Jacobian's."""
        with self.kept.refusal(point.order + 1, "reverse mode", _NOT_DIFFERENTIABLE):
            gradient = point.gradient()
        upstreams = upstream_gradients(point.outputs)
        self._compare_gradient(point, "gradient while it is recorded", flat(gradient.outputs), upstreams, jacobian)
        return gradient

    def second_pass(self, point: Point) -> None:
        """Compare the gradient by a second pass over a graph with that by the first, which may have spoilt it."""
        inputs, upstreams = list(map(contiguous, point.inputs)), upstream_gradients(point.outputs)
        _, first, second = self._pulled_back(point, "reverse mode", _failure(point), inputs, upstreams, passes=2)
        tolerance = self._for_rounding(first, point)
        name = "second backward pass against first"

        def remark(worst: int) -> str:
            spoilt = "; does a backward pass change what was saved for it, or what it returned?"
            return spoilt if first[worst].isfinite() else ""

        self.kept.compare(point.order, name, second, first, tolerance, _by_inputs(point), remark)

    def reverse_mode(self, point: Point) -> Tensor:
        """Compare the Jacobian by reverse mode with differences; return it."""
        with self.kept.refusal(point.order, "reverse mode", _failure(point)):
            found = by_reverse_mode(point)
        expected = by_differences(point, self.step)
        tolerance = self.relative * expected.abs() + self.absolute * _scale(point)

        def remark(worst: int) -> str:
            return self._remark_on_step(point, float(found.flatten()[worst]), float(expected.flatten()[worst]), worst)

        name = "reverse mode against differences"
        self.kept.compare(point.order, name, found, expected, tolerance, _by_both(point), remark)
        return found

    def forward_mode(self, point: Point, jacobian: Tensor) -> None:
        """Compare the Jacobian by forward mode with that by reverse mode."""
        name = "forward mode against reverse mode"
        with self.kept.refusal(point.order, name, "not available, and forward_mode=False leaves it out"):
            found = by_forward_mode(point)
        tolerance = self.rounding * (jacobian.abs() + _scale(point))
        self.kept.compare(point.order, name, found, jacobian, tolerance, _by_both(point))

    def upstream_layouts(self, point: Point, jacobian: Tensor) -> None:
        """Compare the gradient for upstream gradients in several layouts with what the Jacobian makes of them."""
        upstreams = upstream_gradients(point.outputs)
        contiguous_one = ("upstream gradient contiguous", upstreams)
        for name, laid in [contiguous_one, *layouts("upstream gradient", upstreams, point.upstream_names)]:
            _, found = self._pulled_back(point, name, _LAYOUT, list(map(contiguous, point.inputs)), laid)
            self._compare_gradient(point, name, found, laid, jacobian)

    def input_layouts(self, point: Point) -> None:
        """Compare the outputs and the gradient for inputs in several layouts with those for contiguous copies."""
        upstreams = upstream_gradients(point.outputs)
        where = [*((output, None) for output in places(point.output_names, point.outputs)), *_by_inputs(point)]
        for name, laid in layouts("inputs", point.inputs, point.input_names, free_from=point.upstream_from):
            expected = torch.cat(pulled_back(point, list(map(contiguous, laid)), upstreams))
            found = torch.cat(self._pulled_back(point, name, _LAYOUT, laid, upstreams))
            self.kept.compare(point.order, name, found, expected, self._for_rounding(expected, point), where)

    def inputs_alone(self, point: Point, jacobian: Tensor) -> None:
        """Compare the gradient for one input while no other requires one with what the Jacobian tells."""
        upstreams, columns = upstream_gradients(point.outputs), jacobian.split([x.numel() for x in point.inputs], 1)
        for i in range(point.upstream_from if len(point.inputs) > 1 else 0):
            # Of a gradient there is only the part for this input.
            sent = [v if point.order == 1 or j == i else torch.zeros_like(v) for j, v in enumerate(upstreams)]
            name, inputs = f"{point.input_names[i]} alone differentiated", list(map(contiguous, point.inputs))
            _, found = self._pulled_back(point, name, _ALONE, inputs, sent, alone=i)
            where: list[Where] = [(None, x) for x in places([point.input_names[i]], [point.inputs[i]])]
            self._compare_gradient(point, name, found, sent, columns[i], where)

    def closed_form(self, point: Point, order: int, derivatives: Iterator[Tensor], expected: Sequence[Tensor]) -> None:
        """Compare the next derivative of the sum of the outputs with the closed form's values."""
        for tensor in expected:
            check_dtype(f"closed form {order}", tensor)
        if [x.shape for x in expected] != [x.shape for x in point.inputs]:
            found, wanted = ([tuple(x.shape) for x in each] for each in (expected, point.inputs))
            raise ValueError(f"closed form {order} gives shapes {found}: return those of the inputs, {wanted}")
        name = "reverse mode against closed form"
        with self.kept.refusal(order, name, _NOT_DIFFERENTIABLE):
            gradient = next(derivatives)
        tolerance = self._for_rounding(flat(expected), point)
        self.kept.compare(order, name, gradient, flat(expected), tolerance, _by_inputs(point))

    def _pulled_back(
        self, point: Point, name: str, meaning: str, inputs: Sequence[Tensor], upstreams: Sequence[Tensor], **how: int
    ) -> tuple[Tensor, ...]:
        """Do as the function of that name; raise if that changes the inputs or the upstream gradients."""
        given = [*inputs, *upstreams]
        before = list(map(contiguous, given))
        with self.kept.refusal(point.order, name, meaning):
            found = pulled_back(point, inputs, upstreams, **how)
        for tensor, x, copy in zip([*point.input_names, *point.upstream_names], given, before, strict=True):
            if not same(x, copy):
                message = f"the function or its backward pass changes {tensor} in place: let it work on a copy"
                raise GradientError(f"{name}, order {point.order}: {message}", self.kept.report)
        return found

    def _for_rounding(self, gradient: Tensor, point: Point) -> Tensor:
        """Return the tolerance of gradients that all outputs have a part in."""
        largest = flat(point.outputs).abs().max().clamp(min=1) if any(map(Tensor.numel, point.outputs)) else 1
        return self.rounding * (gradient.abs() + largest)

    def _compare_gradient(
        self,
        point: Point,
        name: str,
        found: Tensor,
        upstreams: Sequence[Tensor],
        jacobian: Tensor,
        where: Sequence[Where] | None = None,
    ) -> None:
        """Compare a gradient, of all inputs or those named, with what the Jacobian makes of upstream gradients."""
        sent = flat(upstreams)
        tolerance = self._for_rounding(sent.abs() @ jacobian.abs(), point)
        self.kept.compare(point.order, name, found, sent @ jacobian, tolerance, where or _by_inputs(point))

    def _remark_on_step(self, point: Point, found: float, expected: float, place: int) -> str:
        """Say whether another step brings differences nearer to an element by reverse mode that is off."""
        if not math.isfinite(expected):
            return "; the function has no finite values on both sides: take another point, or a smaller step"
        far = float(flat(point.inputs).abs().clamp(min=1)[place % len(flat(point.inputs))])
        # No steps much smaller than that: there rounding brings differences anywhere, sometimes near.
        steps = [max(self.eps, factor * self.step) for factor in (1 / far, 0.1, 0.5, 2, 100) if factor != 1]
        errors = {step: abs(float(by_differences(point, step).flatten()[place]) - found) for step in steps}
        best = min(errors, key=lambda step: errors[step] if math.isfinite(errors[step]) else math.inf)
        if not errors[best] <= abs(expected - found) / 2:
            return ""
        size = "long" if best < self.step else "short"
        return f"; the step, {self.step:.1e}, seems too {size}: with {best:.1e} they differ by {errors[best]:.3g}"


def _failure(point: Point) -> str:
    """Return what it means that reverse mode fails."""
    return "the backward pass fails" if point.order == 1 else _NOT_DIFFERENTIABLE


def _scale(point: Point) -> Tensor:
    """Return max(1, |output|) for each output, (outputs, 1)."""
    return flat(point.outputs).abs().clamp(min=1).unsqueeze(1)


def _by_inputs(point: Point) -> list[Where]:
    """Return what the elements of a gradient are."""
    return [(None, x) for x in places(point.input_names, point.inputs)]


def _by_both(point: Point) -> list[Where]:
    """Return what the elements of a Jacobian are, row by row."""
    rows, columns = places(point.output_names, point.outputs), places(point.input_names, point.inputs)
    return list(itertools.product(rows, columns))


def _check_options(closed_forms: object, order: int, **numbers: float | None) -> None:
    """Raise a TypeError or ValueError unless the options are in their range."""
    if not isinstance(closed_forms, list | tuple) or not all(map(callable, closed_forms)):
        raise TypeError("`closed_forms` is no list of functions: pass the first derivative, the second, and so on")
    if not isinstance(order, int) or isinstance(order, bool):
        raise TypeError(f"`order` is {order!r}: pass an int, at least 1")
    if order < 1:
        raise ValueError(f"`order` is {order}: pass at least 1")
    for name, number in numbers.items():
        if number is None:
            continue
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise TypeError(f"`{name}` is {number!r}: pass a number")
        if not (0 <= number < math.inf and (number > 0 or name != "step")):
            raise ValueError(
                f"`{name}` is {number}: pass a finite number {'above 0' if name == 'step' else 'from 0 on'}"
            )
