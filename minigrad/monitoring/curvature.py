"""The curvature of a loss where the parameters are: the largest eigenvalue of its Hessian."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from minigrad.autodiff.nodes import in_order, next_of


class Curvature(NamedTuple):
    """What the power iteration found.

    Attributes:
        eigenvalue: the Rayleigh quotient of the last vector.
        iterations: Hessian-vector products made.
        converged: whether the last vector is an eigenvector, as far as the tolerance asks.
    """

    eigenvalue: float
    iterations: int
    converged: bool


def largest_hessian_eigenvalue(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], iterations: int = 100, tolerance: float = 1e-3
) -> Curvature:
    """Return the eigenvalue of largest magnitude, with its sign, of a loss's Hessian by its parameters.

    What it says: on a quadratic function plain gradient descent is stable for learning rates below 2 / eigenvalue, and
    above that it swings from side to side, further at each step. Full-batch training of networks tends to raise the
    eigenvalue until it hovers there (Cohen, Kaur, Li, Kolter and Talwalkar, Gradient descent on neural networks
    typically occurs at the edge of stability, ICLR 2021). A negative one means that the strongest bend is downwards.

    How: power iteration (Golub and Van Loan, Matrix computations, 4th edition, section 8.2.1) with the products of
    Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6(1), 1994. The loss and its gradient are
    computed once; each iteration is a backward pass through the gradient's graph. The first vector is always the same.

    It has converged when Hv is parallel to v: what lies across is at most sqrt(tolerance) times what lies along. Some
    eigenvalue is then within sqrt(tolerance) |eigenvalue|; and as the error of a Rayleigh quotient is of second order,
    it is about tolerance |eigenvalue| if the others are well apart. Every iteration shrinks the part across by the
    ratio of the second largest magnitude to the largest. If these two are close and of the same sign, the result lies
    between them, which is as good. If they are close and of opposite signs, as at the saddle x^2 - y^2, it may not
    converge, and the result is then no eigenvalue. (The usual test, that the quotient no longer changes, would take it
    for one.)

    Args:
        loss: gives the loss, one number, with the graph that its backward pass goes through. It is called once, with
            all that this entails, such as the draws of dropout.
        parameters: those to differentiate by, at least one, each once; of any floating-point dtypes and devices.
            Vectors have their dtypes, dot products are accumulated in float64 (on MPS, which has none, in float32).
            Their `.grad` stays as it is.
        iterations: at most so many, from 1 on. After each the host waits for three numbers.
        tolerance: above 0; see above.

    Returns: the eigenvalue; 0 if the Hessian is 0, as that of a linear loss is. A parameter that the loss does not
        depend on adds rows and columns of zeros. NaN, not converged, if a product with the Hessian is not finite.

    Raises:
        ValueError: an argument is out of its range; the loss is not one number or depends on nothing that requires a
            gradient; or a Function in it is once_differentiable.
    """
    if not parameters:
        raise ValueError("there are no parameters: pass at least one tensor that requires a gradient")
    if iterations < 1:
        raise ValueError(f"`iterations` is {iterations}: pass at least 1")
    if not tolerance > 0:
        raise ValueError(f"`tolerance` is {tolerance}: pass a number above 0, such as 1e-3")
    gradients = _gradients(loss, parameters)
    if not gradients:
        return Curvature(0.0, 0, converged=True)
    vectors = _first_vectors(parameters)
    for iteration in range(1, iterations + 1):
        along = [vectors[i] for i in gradients]
        products = torch.autograd.grad(
            list(gradients.values()), parameters, along, retain_graph=True, materialize_grads=True
        )
        vv, vw, ww = _dot_products([(vectors, vectors), (vectors, products), (products, products)])
        if not math.isfinite(ww):
            return Curvature(math.nan, iteration, converged=False)
        if vv * ww - vw**2 <= tolerance * vw**2:  # Pythagoras: across^2 <= tolerance along^2
            return Curvature(vw / vv, iteration, converged=True)
        vectors = [product / math.sqrt(ww) for product in products]
    return Curvature(vw / vv, iterations, converged=False)


def _gradients(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return the differentiable gradient for each parameter that the loss depends on, by the parameter's number."""
    with torch.enable_grad():
        value = loss()
        if value.shape != ():
            raise ValueError(f"the loss is {tuple(value.shape)}: expected one number, ()")
        if not value.requires_grad:
            raise ValueError("the loss depends on nothing that requires a gradient: is there a detach or a no_grad?")
        # That it requires a gradient is how once_differentiable knows that its result will be differentiated.
        one = torch.ones_like(value, requires_grad=True)
        gradients = torch.autograd.grad(value, parameters, one, create_graph=True, allow_unused=True)
    found = {i: gradient for i, gradient in enumerate(gradients) if gradient is not None}
    # The node by which it then raises leads to no parameter: it would be passed by, and count as 0.
    nodes = in_order([get_gradient_edge(gradient).node for gradient in found.values()], next_of)
    if any(node.name() == "torch::autograd::Error" for node in nodes):
        raise ValueError("a Function in the loss is once_differentiable: its part of the Hessian cannot be had")
    return found


def _first_vectors(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return vectors shaped like the parameters, of length 1 together, always the same."""
    numbers = torch.Generator("cpu").manual_seed(0)  # one of its own: the global one belongs to the user
    draws = [torch.randn(p.shape, generator=numbers, dtype=torch.float64, device="cpu") for p in parameters]
    length = math.sqrt(sum(float(draw.square().sum()) for draw in draws))
    return [(draw / length).to(p.device, p.dtype) for draw, p in zip(draws, parameters, strict=True)]


def _dot_products(pairs: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> list[float]:
    """Return the dot product of each pair of vectors, with one read from the device."""
    device = pairs[0][0][0].device
    totals = [torch.stack([_dot(a, b).to(device) for a, b in zip(*pair, strict=True)]).sum() for pair in pairs]
    numbers: list[float] = torch.stack(totals).tolist()
    return numbers


def _dot(a: Tensor, b: Tensor) -> Tensor:
    wide = torch.float32 if a.device.type == "mps" else torch.float64
    return (a.to(wide) * b.to(wide)).sum()
