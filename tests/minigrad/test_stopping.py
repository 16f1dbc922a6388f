import math

import pytest

from minigrad.stopping import Stopping


def judged(stopping: Stopping, *losses: float) -> list[bool]:
    return [stopping.judged(loss) for loss in losses]


def test_without_patience_and_target_there_is_never_a_reason():
    stopping = Stopping(patience=None, target=None)
    judged(stopping, 1.0, *[2.0] * 1000, math.nan, -math.inf)
    assert stopping.reason == ""


def test_it_says_which_loss_is_the_lowest_so_far():
    stopping = Stopping(None, None)
    assert judged(stopping, 3.0, 2.0, 2.0, 5.0, 1.0, -1.0) == [True, True, False, False, True, True]
    assert stopping.lowest == -1


def test_nan_is_never_the_lowest_and_hides_none():
    stopping = Stopping(patience=None, target=0.0)
    assert judged(stopping, math.nan, 3.0, math.nan, math.inf, 2.0) == [False, True, False, False, True]
    assert stopping.lowest == 2
    assert stopping.reason == ""


@pytest.mark.parametrize("worse", [1.0, 2.0, math.inf, math.nan])
def test_patience_ends_after_so_many_judgements_in_a_row_without_a_lower_loss(worse):
    stopping = Stopping(patience=3, target=None)
    judged(stopping, 3.0, 4.0, 4.0, 1.0, worse, worse)
    assert stopping.reason == ""
    judged(stopping, worse)
    assert stopping.reason == "no lower test/loss than 1 in 3 judgements"


def test_a_patience_of_one_ends_at_the_first_judgement_that_is_not_lower():
    stopping = Stopping(patience=1, target=None)
    judged(stopping, 2.0, 1.0)
    assert stopping.reason == ""
    judged(stopping, 1.0)
    assert stopping.reason == "no lower test/loss than 1 in 1 judgements"


def test_nan_from_the_first_judgement_on_ends_too():
    stopping = Stopping(patience=2, target=None)
    judged(stopping, math.nan, math.nan)
    assert stopping.reason == "no lower test/loss than inf in 2 judgements"


@pytest.mark.parametrize("loss", [0.5, 0.25, -math.inf])
def test_a_target_ends_at_or_below_it(loss):
    stopping = Stopping(patience=None, target=0.5)
    judged(stopping, 0.75, math.nan)
    assert stopping.reason == ""
    judged(stopping, loss)
    assert stopping.reason == "target_loss=0.5 is reached"


def test_a_target_of_zero_is_a_target():
    stopping = Stopping(patience=None, target=0.0)
    judged(stopping, 1e-300)
    assert stopping.reason == ""
    judged(stopping, 0.0)
    assert stopping.reason == "target_loss=0 is reached"


@pytest.mark.parametrize("cut", range(6))
def test_it_goes_on_where_it_was(cut):
    losses = [3.0, 2.0, 4.0, math.nan, 2.5, 2.0]
    whole, first, second = (Stopping(patience=4, target=None) for _ in range(3))
    expected = judged(whole, *losses)
    assert whole.reason
    found = judged(first, *losses[:cut])
    second.load_state_dict(first.state_dict())
    found += judged(second, *losses[cut:])
    assert found == expected
    assert (second.lowest, second.reason) == (whole.lowest, whole.reason)
    assert second.state_dict() == whole.state_dict()
