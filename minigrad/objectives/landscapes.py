"""Functions of one or two variables whose minima are known, for looking at how descent moves."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Landscape:
    """A function to minimise, and what is known of it.

    Args:
        name: what it is called.
        value: the function itself. A point is () where there is one variable and (D,) where there are D; a grid of
            points, (...) or (..., D), gives its values (...) in one call.
        start: where descent starts, a number per variable.
        bounds: the part worth drawing, (low, high) per variable; empty where it is unknown.
        minima: every global minimum, a number per variable; empty where they are unknown.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    start: tuple[float, ...]
    bounds: tuple[tuple[float, float], ...] = ()
    minima: tuple[tuple[float, ...], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a point: () for one variable, (D,) for more."""
        return () if len(self.start) == 1 else (len(self.start),)


def parabola(x: Tensor) -> Tensor:
    """Return (x - 3)^2 + 1, elementwise: the minimum is 1 at 3."""
    return (x - 3) ** 2 + 1


def rosenbrock(point: Tensor) -> Tensor:
    """Return (1 - x)^2 + 100 (y - x^2)^2: the minimum is 0 at (1, 1), in a narrow curved valley.

    Source: H. H. Rosenbrock, "An Automatic Method for Finding the Greatest or Least Value of a Function", 1960.
    """
    x, y = point.unbind(-1)
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def beale(point: Tensor) -> Tensor:
    """Return (1.5 - x + x y)^2 + (2.25 - x + x y^2)^2 + (2.625 - x + x y^3)^2: the minimum is 0 at (3, 0.5).

    Source: E. M. L. Beale, "On an Iterative Method for Finding a Local Minimum of a Function of More than One
    Variable", 1958.
    """
    x, y = point.unbind(-1)
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def booth(point: Tensor) -> Tensor:
    """Return (x + 2 y - 7)^2 + (2 x + y - 5)^2: the minimum is 0 at (1, 3), of a bowl whose condition is 9.

    Source: M. Jamil and X.-S. Yang, "A Literature Survey of Benchmark Functions for Global Optimization Problems",
    2013, function 17.
    """
    x, y = point.unbind(-1)
    return (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2


def branin(point: Tensor) -> Tensor:
    """Return (y - 5.1 x^2 / (4 pi^2) + 5 x / pi - 6)^2 + 10 (1 - 1 / (8 pi)) cos(x) + 10, which has equal minima.

    There are three of them in the bounds, each 10 / (8 pi): at (-pi, 12.275), (pi, 2.275) and (3 pi, 2.475).

    Source: F. H. Branin, "Widely Convergent Method for Finding Multiple Solutions of Simultaneous Nonlinear
    Equations", 1972; the bounds from L. C. W. Dixon and G. P. Szegö, "The Global Optimisation Problem: An
    Introduction", 1978.
    """
    x, y = point.unbind(-1)
    ravine = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return ravine**2 + 10 * (1 - 1 / (8 * math.pi)) * x.cos() + 10


def himmelblau(point: Tensor) -> Tensor:
    """Return (x^2 + y - 11)^2 + (x + y^2 - 7)^2: the minimum is 0 at four points, of which (3, 2) is one.

    Source: D. M. Himmelblau, "Applied Nonlinear Programming", 1972.
    """
    x, y = point.unbind(-1)
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def rastrigin(point: Tensor) -> Tensor:
    """Return 20 + x^2 - 10 cos(2 pi x) + y^2 - 10 cos(2 pi y): the minimum is 0 at (0, 0), one dip of very many.

    Source: L. A. Rastrigin, "Systems of Extremal Control", 1974.
    """
    # 1 - cos(2 a) = 2 sin^2(a): nothing cancels near the minimum.
    return (point**2 + 20 * (math.pi * point).sin() ** 2).sum(-1)


def ackley(point: Tensor) -> Tensor:
    """Return -20 exp(-r / 5) - exp((cos(2 pi x) + cos(2 pi y)) / 2) + e + 20, where r^2 = (x^2 + y^2) / 2.

    The minimum is 0 at (0, 0), the tip of a cone in a rippled plain; the gradient there is defined as 0.

    Source: D. H. Ackley, "A Connectionist Machine for Genetic Hillclimbing", 1987.
    """
    # The norm's gradient at 0 is 0, where that of a square root is infinite. 1 - cos(2 a) = 2 sin^2(a), and expm1:
    # nothing cancels near the minimum.
    distance = torch.linalg.vector_norm(point, dim=-1) / math.sqrt(2)
    ripple = (math.pi * point).sin().square().sum(-1)
    return -20 * torch.expm1(-distance / 5) - math.e * torch.expm1(-ripple)


def saddle(point: Tensor) -> Tensor:
    """Return x^2 - y^2 + y^4 / 2: a saddle at (0, 0) between two minima of -1/2 at (0, 1) and (0, -1).

    Source: twice the example of Y. Nesterov, "Introductory Lectures on Convex Optimization", 2004, Section 1.2.3.
    """
    x, y = point.unbind(-1)
    return x**2 - y**2 + y**4 / 2


LANDSCAPES: dict[str, Landscape] = {
    landscape.name: landscape
    for landscape in (
        Landscape("parabola", parabola, start=(0,), bounds=((-1, 7),), minima=((3,),)),
        Landscape("rosenbrock", rosenbrock, start=(-1.2, 1), bounds=((-2, 2), (-1, 3)), minima=((1, 1),)),
        Landscape("beale", beale, start=(1, 1), bounds=((-4.5, 4.5), (-4.5, 4.5)), minima=((3, 0.5),)),
        Landscape("booth", booth, start=(-8, 8), bounds=((-10, 10), (-10, 10)), minima=((1, 3),)),
        Landscape(
            "branin",
            branin,
            start=(6, 12),
            bounds=((-5, 10), (0, 15)),
            minima=((-math.pi, 12.275), (math.pi, 2.275), (3 * math.pi, 2.475)),
        ),
        Landscape(
            "himmelblau",
            himmelblau,
            start=(0, 0),
            bounds=((-5, 5), (-5, 5)),
            minima=(
                (3, 2),
                (-2.805118086952745, 3.131312518250573),
                (-3.779310253377747, -3.2831859912861696),
                (3.5844283403304917, -1.8481265269644036),
            ),
        ),
        Landscape("rastrigin", rastrigin, start=(3.3, -2.4), bounds=((-5.12, 5.12), (-5.12, 5.12)), minima=((0, 0),)),
        Landscape("ackley", ackley, start=(2.4, 1.7), bounds=((-5, 5), (-5, 5)), minima=((0, 0),)),
        Landscape("saddle", saddle, start=(1, 0.001), bounds=((-1.5, 1.5), (-1.5, 1.5)), minima=((0, 1), (0, -1))),
    )
}
