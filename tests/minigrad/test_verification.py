import math

import pytest
import torch

from minigrad.errors import RunFailed
from minigrad.verification import verify, verify_that


@pytest.mark.parametrize(
    ("found", "expected", "within"),
    [
        (4, 4.0, 0),
        (torch.tensor(4.0), 4, 0),
        (torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([1.0, 2.0]), 0),
        (torch.tensor([1.0, 1.1]), 1, 0.2),
        (math.nan, math.nan, 0),
        (torch.tensor([-math.inf, 1.0]), torch.tensor([-math.inf, 1.0]), 0),
        (torch.tensor(2.0, requires_grad=True), 2, 0),
    ],
)
def test_what_is_as_expected_passes(found, expected, within):
    verify("it", found, expected, within)


@pytest.mark.parametrize(
    ("found", "expected", "within", "message"),
    [
        (8.0, 4, 0, "it is 8, expected 4"),
        (0.1 + 0.2, 0.3, 1e-17, "it is 0.30000000000000004, expected 0.29999999999999999 within 1e-17"),
        (torch.tensor([1.0, 5.0, 3.0]), torch.tensor([1.0, 2.0, 2.0]), 0.5, "it[1] is 5, expected 2 within 0.5"),
        (torch.zeros(2, 3).index_fill(1, torch.tensor(2), 1), 0, 0, "it[0, 2] is 1, expected 0"),
        (math.nan, 4, math.inf, "it is nan, expected 4 within inf"),
        (4, math.nan, 1, "it is 4, expected nan within 1"),
        (math.inf, -math.inf, 1, "it is inf, expected -inf within 1"),
        (torch.zeros(2), torch.zeros(3), 0, "it is (2,), expected (3,)"),
        (1.0, torch.zeros(2), 0, "it is (), expected (2,)"),
        (None, 4, 0, "it is missing, expected 4"),
        (torch.empty(0), 4, 0, "it is missing, expected 4"),
    ],
)
def test_what_is_off_fails_with_the_worst_element(found, expected, within, message):
    with pytest.raises(RunFailed) as error:
        verify("it", found, expected, within)
    assert str(error.value) == message


def test_a_statement_holds_or_fails():
    verify_that("1 is 1", True)
    with pytest.raises(RunFailed, match=r"^1 is 2: this does not hold$"):
        verify_that("1 is 2", False)
