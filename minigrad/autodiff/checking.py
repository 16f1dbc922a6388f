"""Gradients checked: reverse mode against central differences, closed forms, forward mode and other memory layouts.

A function of order 1 is the one given. That of order n + 1 is the gradient of that of order n: it takes the inputs and
the upstream gradients, and is checked in the same way. So a second derivative is a first one, of the gradient.

The error of a central difference of step h is h^2 |f'''| / 6 by truncation and about eps |f| / h by rounding; both
are of the order of eps^(2/3) at h = eps^(1/3), the default. Hence the default tolerance, 100 max(h^2, eps / h): 3.7e-9
in float64 and 2.4e-3 in float32, with room for third derivatives and internal rounding some hundred times as large as
1. What two ways of autograd's give differs by rounding alone, and gets 1000 eps: 2.2e-13 and 1.2e-4.
Source: Press et al., Numerical Recipes (3rd ed.), section 5.7.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from minigrad.autodiff.comparison import (
    Comparison,
    Locate,
    Report,
    in_gradient,
    in_jacobian,
    in_outputs_and_gradient,
)
from minigrad.autodiff.graph import as_tensors
from minigrad.autodiff.jacobians import (
    Point,
    by_differences,
    by_forward_mode,
    by_reverse_mode,
    check_dtype,
    derivatives_of_sum,
    flat,
    fresh_leaves,
    names_of,
    point_of,
    pulled_back,
    tensors_of,
    upstream_gradients,
)
from minigrad.autodiff.layouts import LAYOUTS, all_contiguous, constant, expanded
from minigrad.errors import RunFailed

_DIFFERENCES = "reverse mode against differences"
_CLOSED_FORM = "reverse mode against closed form"
_FORWARD = "forward mode against reverse mode"
_NOT_DIFFERENTIABLE = "the gradient cannot be differentiated"
_LAYOUT = "refused, though a contiguous one is taken"


class GradientError(RunFailed):
    """A gradient that is off, or that is not there; the message has the worst element and its numbers.

    Attributes:
        report: what was compared until then; where a comparison is off, it is the last.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


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

    At each order the Jacobian by reverse mode is compared with central differences, with the closed form and with
    forward mode. Then reverse mode is compared with itself, for upstream gradients and for inputs that lie in memory
    transposed, as a slice between NaN, or expanded with stride 0, as what `.sum()` sends does. An input is expanded
    along dimensions in which its values are all the same: give one such to check that.

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
        GradientError: the first comparison that is off; or the gradient cannot be differentiated, forward mode is not
            there, or some layout is refused. NaN and infinities are always off.
        TypeError: an input, an output or a closed form's result is no real tensor of float64 or float32.
        ValueError: two calls differ, no output depends on an input, a closed form's shapes are not the inputs', or an
            option is out of range.
    """
    given = as_tensors(inputs, "inputs")
    for name, tensor in zip(names_of("input", given), given, strict=True):
        check_dtype(name, tensor)
    _check_options(closed_forms, order, step=step, relative=relative, absolute=absolute, rounding=rounding)
    with torch.inference_mode(False), torch.enable_grad():
        given = tuple(x.detach().clone(memory_format=torch.contiguous_format) for x in given)
        point = first = point_of(function, given)
        eps = max(torch.finfo(tensor.dtype).eps for tensor in (*first.inputs, *first.outputs))
        step = eps ** (1 / 3) if step is None else step
        allowed = 100 * max(step**2, eps / step)
        check = _Check(
            step=step,
            relative=allowed if relative is None else relative,
            absolute=allowed if absolute is None else absolute,
            rounding=1000 * eps if rounding is None else rounding,
        )
        derivatives = derivatives_of_sum(first)
        for n in range(1, max(order, len(closed_forms)) + 1):
            if n <= order:
                point = first if n == 1 else check.gradient(point)
                jacobian = check.reverse_mode(point)
            if n <= len(closed_forms):
                check.closed_form(
                    first,
                    n,
                    derivatives,
                    tensors_of(closed_forms[n - 1](*(x.clone() for x in given)), f"closed form {n}"),
                )
            if n <= order:
                if forward_mode:
                    check.forward_mode(point, jacobian)
                check.upstream_layouts(point, jacobian)
                check.input_layouts(point)
    return check.report


class _Check:
    """Compares, keeps what passes, and raises at what does not."""

    def __init__(self, step: float, relative: float, absolute: float, rounding: float) -> None:
        self.step, self.relative, self.absolute, self.rounding = step, relative, absolute, rounding
        self._comparisons: list[Comparison] = []

    @property
    def report(self) -> Report:
        return Report(tuple(self._comparisons))

    def gradient(self, point: Point) -> Point:
        """Return the gradient of a function as a function."""
        with self._refusal(point.order + 1, _DIFFERENCES, _NOT_DIFFERENTIABLE):
            return point.gradient()

    def reverse_mode(self, point: Point) -> Tensor:
        """Compare the Jacobian by reverse mode with differences; return it."""
        if point.order == 1:  # what the function raises here is its own matter
            found, recorded = by_reverse_mode(point)
        else:
            with self._refusal(point.order, _DIFFERENCES, _NOT_DIFFERENTIABLE):
                found, recorded = by_reverse_mode(point)
        expected = by_differences(point, self.step)
        scale = flat(point.outputs).abs().clamp(min=1).unsqueeze(1)
        tolerance = self.relative * expected.abs() + self.absolute * scale
        self._compare(point.order, _DIFFERENCES, found, expected, tolerance, recorded, in_jacobian(point))
        return found

    def closed_form(
        self, point: Point, order: int, derivatives: Iterator[tuple[Tensor, Tensor]], expected: Sequence[Tensor]
    ) -> None:
        """Compare the next derivative of the sum of the outputs with the closed form's values."""
        if [x.shape for x in expected] != [x.shape for x in point.inputs]:
            found, wanted = ([tuple(x.shape) for x in each] for each in (expected, point.inputs))
            raise ValueError(f"closed form {order} gives shapes {found}: return those of the inputs, {wanted}")
        with self._refusal(order, _CLOSED_FORM, _NOT_DIFFERENTIABLE):
            gradient, recorded = next(derivatives)
        tolerance = self._for_rounding(flat(expected), point)
        self._compare(order, _CLOSED_FORM, gradient, flat(expected), tolerance, recorded, in_gradient(point))

    def forward_mode(self, point: Point, jacobian: Tensor) -> None:
        """Compare the Jacobian by forward mode with that by reverse mode."""
        with self._refusal(point.order, _FORWARD, "not available, and forward_mode=False leaves it out"):
            found, recorded = by_forward_mode(point)
        tolerance = self.rounding * (jacobian.abs() + flat(point.outputs).abs().clamp(min=1).unsqueeze(1))
        self._compare(point.order, _FORWARD, found, jacobian, tolerance, recorded, in_jacobian(point))

    def upstream_layouts(self, point: Point, jacobian: Tensor) -> None:
        """Compare the gradient for upstream gradients in several layouts with what the Jacobian makes of them."""
        upstreams = upstream_gradients(point.outputs)
        for layout, lay in {"contiguous": torch.clone, **LAYOUTS, "expanded": constant}.items():
            laid = [lay(upstream) for upstream in upstreams]
            if layout != "contiguous" and all_contiguous(laid):
                continue
            name = f"{layout} upstream gradient"
            with self._refusal(point.order, name, _LAYOUT):
                _, found, recorded = pulled_back(point, fresh_leaves(point.inputs), laid)
            expected = flat(laid) @ jacobian
            tolerance = self._for_rounding(flat(laid).abs() @ jacobian.abs(), point)
            self._compare(point.order, name, found, expected, tolerance, recorded, in_gradient(point))

    def input_layouts(self, point: Point) -> None:
        """Compare the outputs and the gradient for inputs in several layouts with those for contiguous copies."""
        upstreams = upstream_gradients(point.outputs)
        for layout, lay in {**LAYOUTS, "expanded": expanded}.items():
            laid = [lay(x) for x in point.inputs]
            if layout == "expanded":  # upstream gradients may have any values, and all the same are what .sum() sends
                laid[point.upstream_from :] = map(constant, point.inputs[point.upstream_from :])
            if all_contiguous(laid):
                continue
            name = f"{layout} inputs"
            outputs, gradient, _ = pulled_back(point, fresh_leaves(laid), upstreams)
            with self._refusal(point.order, name, _LAYOUT):
                found, ours, recorded = pulled_back(point, [x.requires_grad_() for x in laid], upstreams)
            here, there = torch.cat([found, ours]), torch.cat([outputs, gradient])
            known = torch.cat([torch.ones(len(found), dtype=torch.bool), recorded])
            tolerance = self._for_rounding(there, point)
            self._compare(point.order, name, here, there, tolerance, known, in_outputs_and_gradient(point))

    def _for_rounding(self, gradient: Tensor, point: Point) -> Tensor:
        """Return the tolerance of gradients that all outputs have a part in."""
        return self.rounding * (gradient.abs() + flat([*point.outputs, torch.ones(1)]).abs().max())

    def _compare(
        self,
        order: int,
        name: str,
        found: Tensor,
        expected: Tensor,
        tolerance: Tensor,
        recorded: Tensor,
        place: Locate,
    ) -> None:
        """Keep the worst element of a comparison; raise if it is off."""
        if found.numel() == 0:
            self._comparisons.append(Comparison(order, name, None, None, 0.0, 0.0, 0.0))
            return
        error = (found - expected).abs()
        in_tolerances = (error / tolerance).masked_fill(error == 0, 0.0).nan_to_num(torch.inf, torch.inf)
        worst = int(in_tolerances.argmax())
        ours, theirs, allowed = (float(each.flatten()[worst]) for each in (found, expected, tolerance))
        comparison = Comparison(order, name, *place(worst), ours, theirs, allowed)
        self._comparisons.append(comparison)
        if not comparison.passes:
            raise GradientError(f"{comparison}{_remark(comparison, bool(recorded.flatten()[worst]))}", self.report)

    @contextmanager
    def _refusal(self, order: int, name: str, meaning: str) -> Iterator[None]:
        """Say of what PyTorch refuses to compute what that means."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise GradientError(f"{name}, order {order}: {meaning}: {reason}", self.report) from error


def _remark(comparison: Comparison, recorded: bool) -> str:
    """Say what a comparison that is off suggests."""
    if comparison.name == _DIFFERENCES and not math.isfinite(comparison.expected):
        return "; the function has no finite values on both sides: take another point, or a smaller step"
    if not recorded and comparison.name == _FORWARD:
        return "; forward mode gives no tangent there"
    if not recorded:
        return "; autograd has no record of this dependence: it was detached"
    return ""


def _check_options(closed_forms: object, order: int, **numbers: float | None) -> None:
    """Raise a TypeError or ValueError unless the options are in their range."""
    if not isinstance(closed_forms, list | tuple) or not all(map(callable, closed_forms)):
        raise TypeError("`closed_forms` is no list of functions: pass the first derivative, the second, and so on")
    if not isinstance(order, int) or isinstance(order, bool):
        raise TypeError(f"`order` is {order!r}: pass an int, at least 1")
    if order < 1:
        raise ValueError(f"`order` is {order}: pass at least 1")
    for name, number in numbers.items():
        if number is not None and not (0 <= number < math.inf and (number > 0 or name != "step")):
            raise ValueError(
                f"`{name}` is {number}: pass a finite number {'above 0' if name == 'step' else 'from 0 on'}"
            )
