import math

import pytest
import torch

from minigrad.errors import RunFailed
from minigrad.record import NonFiniteError, Record


def record(steps: int = 4) -> Record:
    """Steps 10, 11 and so on of two parameters."""
    count = torch.arange(float(steps))
    return Record(
        first_step=10,
        names=("weight", "bias"),
        loss=count + 1,
        gradient_norm=5 * (count + 1),
        gradient_norms=torch.stack([3 * (count + 1), 4 * (count + 1)], dim=1),
        learning_rate=count / 10,
        applied=torch.ones(steps, dtype=torch.bool),
    )


def test_its_length_is_the_number_of_steps():
    assert len(record(4)) == 4
    assert len(record(0)) == 0


@pytest.mark.parametrize("steps", [0, 2, 4])
def test_until_cuts_every_column(steps):
    whole = record()
    part = whole.until(steps)
    assert (part.first_step, part.names, len(part)) == (10, whole.names, steps)
    for name in ("loss", "gradient_norm", "gradient_norms", "learning_rate", "applied"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[:steps])
    assert len(whole) == 4


def test_a_complaint_names_the_step_and_the_loss():
    steps = record()
    steps.loss[2] = math.nan
    assert steps.complaint(2) == "step 12: the loss is nan, the norm of the gradient 15"


@pytest.mark.parametrize(
    ("norms", "found"),
    [
        ([math.inf, math.nan], "of weight inf"),
        ([math.nan, math.inf], "of weight nan"),
        ([1.0, math.nan], "of bias nan"),
    ],
)
def test_a_complaint_names_the_first_parameter_whose_gradient_is_not_finite(norms, found):
    steps = record()
    steps.gradient_norms[1] = torch.tensor(norms)
    assert steps.complaint(1) == f"step 11: the loss is 2, the norm of the gradient {found}"


def test_a_complaint_of_a_total_that_overflows_names_the_total():
    steps = record()
    steps.gradient_norm[0] = math.inf  # of norms that are finite, each by itself
    assert steps.complaint(0) == "step 10: the loss is 1, the norm of the gradient inf"


def test_the_error_carries_the_steps_before_and_is_a_failed_run():
    error = NonFiniteError("step 12: the loss is nan", record().until(2))
    assert isinstance(error, RunFailed)
    assert str(error) == "step 12: the loss is nan"
    assert len(error.record) == 2
