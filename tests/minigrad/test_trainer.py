import math

import pytest
import torch
from torch import Tensor

import minigrad
from minigrad.rules import gradient_descent
from minigrad.trainer import NonFiniteError, Trainer


class Parabola:
    """(x - 3)^2 + 1 from 0; a batch is the step's number, and the loss of the step `bad` is not finite."""

    def __init__(self, bad: int | None = None) -> None:
        self.x = torch.zeros((), requires_grad=True)
        self.bad = bad
        self.batches: list[int] = []

    def parameters(self) -> list[Tensor]:
        return [self.x]

    def batch(self, step: int) -> int:
        self.batches.append(step)
        return step

    def loss(self, batch: int) -> Tensor:
        loss = (self.x - 3) ** 2 + 1
        return loss * math.inf if batch == self.bad else loss


def test_trainer_is_a_public_name():
    assert minigrad.Trainer is Trainer


def test_advance_takes_the_textbook_steps():
    objective = Parabola()
    record = Trainer(objective, gradient_descent, learning_rate=0.1).advance(20)
    distances = 3 * 0.8 ** torch.arange(21)
    torch.testing.assert_close(objective.x.detach(), 3 - distances[20])
    torch.testing.assert_close(record.loss, distances[:20] ** 2 + 1)
    torch.testing.assert_close(record.gradient_norm, 2 * distances[:20])


def test_steps_are_counted_on_across_calls():
    objective = Parabola()
    trainer = Trainer(objective, gradient_descent, learning_rate=0.1)
    records = [trainer.advance(3), trainer.advance(4)]
    assert [record.first_step for record in records] == [0, 3]
    assert objective.batches == list(range(7))
    assert trainer.steps == 7


def test_one_call_and_many_take_the_same_steps():
    whole, parts = Parabola(), Parabola()
    Trainer(whole, gradient_descent, 0.1).advance(10)
    trainer = Trainer(parts, gradient_descent, 0.1)
    for _ in range(10):
        trainer.advance(1)
    assert torch.equal(whole.x, parts.x)


def test_gradient_norm_is_that_of_all_parameters_together():
    class Sum:
        def __init__(self) -> None:
            self.tensors = [torch.zeros(3, requires_grad=True), torch.zeros(1, requires_grad=True)]

        def parameters(self) -> list[Tensor]:
            return self.tensors

        def batch(self, step: int) -> None:
            return None

        def loss(self, batch: None) -> Tensor:
            return self.tensors[0].sum() + 4 * self.tensors[1].sum()

    record = Trainer(Sum(), gradient_descent, 0.1).advance(1)
    assert record.gradient_norm.item() == pytest.approx(math.sqrt(3 + 16))


def test_a_step_records_no_graph_on_the_parameters():
    objective = Parabola()
    Trainer(objective, gradient_descent, 0.1).advance(2)
    assert objective.x.is_leaf
    assert objective.x.requires_grad
    assert objective.x.grad is None


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_step():
    trainer = Trainer(Parabola(bad=7), gradient_descent, 0.1)
    trainer.advance(5)
    with pytest.raises(NonFiniteError, match=r"^step 7: the loss is inf") as caught:
        trainer.advance(5)
    assert caught.value.record.first_step == 5
    assert len(caught.value.record.loss) == 2
    assert caught.value.record.loss.isfinite().all()
