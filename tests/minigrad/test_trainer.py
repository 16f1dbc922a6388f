import functools
import math
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import minigrad
from minigrad.errors import RunFailed, UserError
from minigrad.guard import DeviceGuard, HostGuard
from minigrad.nn import MLP
from minigrad.objectives import data
from minigrad.objectives.data import Data
from minigrad.objectives.function import Function
from minigrad.objectives.landscapes import LANDSCAPES
from minigrad.objectives.network import Network
from minigrad.record import NonFiniteError, Record
from minigrad.rules import RULES, adam, gradient_descent, momentum
from minigrad.tensors import flatten
from minigrad.trainer import Trainer

GUARDS = {"host": HostGuard, "device": DeviceGuard}


def guard_with(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainers use a guard of this kind, on the CPU too."""
    monkeypatch.setattr(
        "minigrad.trainer.guard_of", lambda tensors, stops: kind([tensor.detach() for tensor in tensors], stops)
    )


@pytest.fixture(params=GUARDS)
def guard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each guard in turn."""
    guard_with(GUARDS[request.param], monkeypatch)


class Made:
    """An objective made of tensors and a function; it keeps the indices of the batches that it was asked for."""

    def __init__(self, loss: Callable[[dict[str, Tensor], int], Tensor], **parameters: Tensor) -> None:
        self.given = {name: tensor.requires_grad_() for name, tensor in parameters.items()}
        self.loss_of = loss
        self.indices: list[int] = []

    def parameters(self) -> dict[str, Tensor]:
        return self.given

    def batch(self, index: int) -> int:
        self.indices.append(index)
        return index

    def loss(self, batch: int) -> Tensor:
        return self.loss_of(self.given, batch)


def parabola(spoil: Callable[[Tensor, int], Tensor] = lambda loss, batch: loss) -> Made:
    """(x - 3)^2 + 1 from 2, beside |y + 1|^2 from (1, -1); `spoil` is given the loss and the index of the batch."""
    return Made(
        lambda p, batch: spoil((p["x"] - 3) ** 2 + 1 + ((p["y"] + 1) ** 2).sum(), batch),
        x=torch.tensor(2.0, dtype=torch.float64),
        y=torch.tensor([1.0, -1.0], dtype=torch.float64),
    )


class Fit:
    """A network on 40 made-up samples in batches of `batch_size`; NaN in the inputs of the batches `bad`."""

    def __init__(self, dtype=torch.float64, batch_size: int = 8, bad: tuple[int, ...] = ()) -> None:
        generator = torch.Generator().manual_seed(0)
        self.network = MLP([3, 6, 2], "tanh", dtype=dtype)
        with torch.no_grad():
            for tensor in self.network.parameters():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        self.inputs, self.targets = (
            torch.randn((40, width), generator=generator, dtype=torch.float64).to(dtype) for width in (3, 2)
        )
        self.batch_size, self.bad = batch_size, bad

    def parameters(self) -> dict[str, Tensor]:
        return dict(self.network.named_parameters())

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        rows = (torch.arange(self.batch_size) + index * self.batch_size) % len(self.inputs)
        return self.inputs[rows] * (math.nan if index in self.bad else 1), self.targets[rows]

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.mse_loss(self.network(batch[0]), batch[1])


def everything(trainer: Trainer) -> list[Tensor]:
    """Copies of all that a trainer changes."""
    return [tensor.detach().clone() for tensor in [*trainer.parameters.values(), *flatten(trainer.state)]]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def columns(record: Record) -> list[Tensor]:
    return [record.loss, record.gradient_norm, record.gradient_norms, record.learning_rate, record.applied]


# What a step is


def test_trainer_is_a_public_name():
    assert minigrad.Trainer is Trainer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_advance_takes_the_textbook_steps(dtype):
    # f(x) = (x - 3)^2 + 1 from 0 at rate 0.1: the distance to 3 shrinks by 1 - 2 * 0.1 at every step.
    objective = Function(LANDSCAPES["parabola"], "cpu", dtype)
    trainer = Trainer(objective, gradient_descent, learning_rate=0.1)
    record = trainer.advance(20)
    distances = 3 * 0.8 ** torch.arange(21, dtype=dtype)
    torch.testing.assert_close(objective.x.detach(), 3 - distances[20])
    torch.testing.assert_close(record.loss, distances[:20] ** 2 + 1)
    torch.testing.assert_close(record.gradient_norm, 2 * distances[:20])
    assert record.names == ("x",)
    assert torch.equal(record.gradient_norms, record.gradient_norm.unsqueeze(1))
    assert record.learning_rate.tolist() == [0.1] * 20
    assert record.applied.dtype == torch.bool
    assert record.applied.all()
    assert objective.x.dtype == record.loss.dtype == dtype


def test_the_reported_loss_is_the_one_before_the_update():
    record = Trainer(parabola(), gradient_descent, 0.1).advance(1)
    assert record.loss.tolist() == [1 + 1 + 4]


def test_steps_are_counted_on_across_calls():
    objective = parabola()
    trainer = Trainer(objective, gradient_descent, learning_rate=0.1)
    records = [trainer.advance(3), trainer.advance(4)]
    assert [(record.first_step, len(record)) for record in records] == [(0, 3), (3, 4)]
    assert objective.indices == list(range(7))
    assert trainer.steps == 7


def test_one_call_and_many_give_the_same_bits(guard):
    whole, parts = Trainer(Fit(), adam, 0.01), Trainer(Fit(), adam, 0.01)
    record = whole.advance(12)
    records = [parts.advance(steps) for steps in (1, 4, 1, 6)]
    assert same(everything(whole), everything(parts))
    for i, column in enumerate(columns(record)):
        assert torch.equal(column, torch.cat([columns(part)[i] for part in records]))


def test_advance_and_as_many_steps_give_the_same_bits():
    whole, parts = Trainer(Fit(), momentum, 0.01), Trainer(Fit(), momentum, 0.01)
    record = whole.advance(5)
    reports = [parts.step() for _ in range(5)]
    assert same(everything(whole), everything(parts))
    assert torch.equal(record.loss, torch.stack([report.loss for report in reports]))
    assert torch.equal(record.gradient_norms, torch.stack([torch.stack(report.gradient_norms) for report in reports]))


def test_stop_ends_after_the_step():
    trainer, asked = Trainer(parabola(), gradient_descent, 0.1), []

    def stop() -> bool:
        asked.append(trainer.steps)
        return trainer.steps == 3

    assert len(trainer.advance(10, stop)) == 3
    assert (trainer.steps, asked) == (3, [1, 2, 3])
    assert len(trainer.advance(10, lambda: True)) == 1


def test_the_learning_rate_is_a_function_of_the_step_in_the_run():
    asked = []
    trainer = Trainer(parabola(), gradient_descent, lambda step: asked.append(step) or 0.1 / (step + 1))
    rates = torch.cat([trainer.advance(steps).learning_rate for steps in (2, 3)])
    assert asked == [0, 1, 2, 3, 4]
    assert rates.tolist() == [0.1 / (step + 1) for step in range(5)]
    distance = math.prod(1 - 0.2 / (step + 1) for step in range(5))
    assert trainer.parameters["x"].item() == pytest.approx(3 - distance, rel=1e-14)


def test_gradient_norm_is_that_of_all_parameters_together():
    objective = Made(lambda p, _: p["a"].sum() + 4 * p["b"].sum(), a=torch.zeros(3), b=torch.zeros(1))
    record = Trainer(objective, gradient_descent, 0.1).advance(1)
    assert record.gradient_norm.item() == pytest.approx(math.sqrt(3 + 16))
    assert record.gradient_norms.tolist() == [pytest.approx([math.sqrt(3), 4])]
    assert record.names == ("a", "b")


def test_a_step_records_no_graph_on_parameters_or_state():
    trainer = Trainer(Fit(), momentum, 0.1)
    reports = [trainer.step() for _ in range(2)]
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in trainer.parameters.values())
    assert not any(tensor.requires_grad for tensor in flatten(trainer.state))
    assert not any(tensor.requires_grad for report in reports for tensor in (report.loss, report.gradient_norm))


def test_a_gradient_that_lay_there_before_does_not_count():
    objective, clean = parabola(), parabola()
    objective.given["x"].grad = torch.tensor(math.nan, dtype=torch.float64)
    Trainer(objective, gradient_descent, 0.1).advance(1)
    Trainer(clean, gradient_descent, 0.1).advance(1)
    assert torch.equal(objective.given["x"], clean.given["x"])


def test_parameters_of_several_dtypes_train_each_in_its_own():
    single, double = torch.ones(2), torch.ones(2, dtype=torch.float64)
    objective = Made(lambda p, _: (p["a"] ** 2).sum() + (p["b"] ** 2).sum(), a=single, b=double)
    record = Trainer(objective, adam, 0.1, clip_norm=1.0).advance(3)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)
    assert record.gradient_norm[0].item() == pytest.approx(4, rel=1e-7)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loss_wider_than_the_first_parameter_loses_nothing(accumulate):
    narrow, wide = torch.ones(1, dtype=torch.bfloat16), torch.ones((), dtype=torch.float64)
    objective = Made(lambda p, _: p["narrow"].double().sum() + p["wide"], narrow=narrow, wide=wide)
    record = Trainer(objective, gradient_descent, 0.1, accumulate=accumulate).advance(2)
    assert record.gradient_norms[:, 1].tolist() == pytest.approx([1, 1], rel=1e-15)


def test_a_loss_that_is_no_single_number_is_refused():
    objective = Made(lambda p, _: (p["x"] - 3) ** 2, x=torch.zeros(1))
    with pytest.raises(UserError, match=r"^the loss is \(1,\): expected one number, \(\)$"):
        Trainer(objective, gradient_descent, 0.1).advance(2)


@pytest.mark.parametrize("rate", [-0.1, 0.0, math.nan, math.inf])
def test_a_learning_rate_that_is_none_is_refused(rate):
    with pytest.raises(
        UserError, match=r"^learning_rate=.*: expected a finite number above 0, or a function of the step$"
    ):
        Trainer(Made(lambda p, _: p["x"] ** 2, x=torch.tensor(1.0)), gradient_descent, rate)


@pytest.mark.parametrize("steps", [0, -5])
def test_advance_makes_at_least_one_step(steps):
    trainer = Trainer(Made(lambda p, _: p["x"] ** 2, x=torch.tensor(1.0)), gradient_descent, 0.1)
    with pytest.raises(ValueError, match=f"^`steps` is {steps}: pass at least 1$"):
        trainer.advance(steps)
    assert trainer.steps == 0


def test_loading_a_state_opens_the_guard_again():
    trainer = Trainer(
        Made(lambda p, i: p["x"] ** 2 * (math.inf if i == 0 else 1), x=torch.tensor(1.0)), gradient_descent, 0.1
    )
    state = trainer.state_dict()
    trainer.step()
    trainer.load_state_dict({**state, "steps": 1})
    assert trainer.advance(2).applied.all()


@pytest.mark.parametrize("name", RULES)
def test_every_rule_descends(name, guard):
    record = Trainer(Fit(), RULES[name], 0.01).advance(60)
    assert record.loss[-5:].mean() < record.loss[:5].mean() / 1.5


# Batches


def test_every_step_takes_as_many_batches_as_it_accumulates():
    objective = parabola()
    trainer = Trainer(objective, gradient_descent, 0.1, accumulate=3)
    trainer.advance(2)
    trainer.advance(1)
    assert objective.indices == list(range(9))


@pytest.mark.parametrize("accumulate", [2, 5, 8])
def test_accumulated_parts_are_the_whole_batch(accumulate):
    whole = Trainer(Fit(batch_size=40), momentum, 0.05, clip_norm=0.5)
    parts = Trainer(Fit(batch_size=40 // accumulate), momentum, 0.05, clip_norm=0.5, accumulate=accumulate)
    records = whole.advance(30), parts.advance(30)
    for one, other in zip(everything(whole), everything(parts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for one, other in zip(columns(records[0]), columns(records[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_one_bad_part_spoils_its_step_alone():
    trainer = Trainer(Fit(bad=(5,)), adam, 0.01, accumulate=2, on_nonfinite="skip")
    assert trainer.advance(5).applied.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_shared_by_two_parameters_is_scaled_once_for_each(accumulate):
    # The derivative of a sum hands one tensor to both.
    objective = Made(lambda p, _: 3 * (p["a"] + p["b"]).sum(), a=torch.zeros(2), b=torch.zeros(2))
    Trainer(objective, gradient_descent, 1.0, clip_norm=2.0, accumulate=accumulate).advance(1)
    for tensor in objective.given.values():
        assert tensor.tolist() == pytest.approx([-1.0, -1.0])


# Clipping


@pytest.mark.parametrize("clip_norm", [1e-3, 0.1])
def test_a_longer_gradient_is_scaled_to_the_norm(clip_norm):
    clipped, free = Trainer(Fit(), gradient_descent, 1.0, clip_norm=clip_norm), Trainer(Fit(), gradient_descent, 1.0)
    start = everything(clipped)
    records = clipped.advance(1), free.advance(1)
    assert records[0].gradient_norm[0] > clip_norm
    assert torch.equal(records[0].gradient_norm, records[1].gradient_norm)
    assert torch.equal(records[0].gradient_norms, records[1].gradient_norms)
    steps = [[a - b for a, b in zip(start, everything(trainer), strict=True)] for trainer in (clipped, free)]
    lengths = [torch.cat([step.view(-1) for step in each]).norm().item() for each in steps]
    assert lengths == pytest.approx([clip_norm, records[1].gradient_norm.item()], rel=1e-12)
    for short, long in zip(*steps, strict=True):
        torch.testing.assert_close(short, long * clip_norm / lengths[1], rtol=1e-10, atol=1e-15)


def test_a_shorter_gradient_is_left_as_it_is():
    clipped, free = Trainer(Fit(), adam, 0.01, clip_norm=1e6), Trainer(Fit(), adam, 0.01)
    clipped.advance(10)
    free.advance(10)
    assert same(everything(clipped), everything(free))


def test_a_gradient_of_zero_is_not_clipped_to_nan():
    objective = Made(lambda p, _: (p["x"] ** 2).sum(), x=torch.zeros(3))
    record = Trainer(objective, adam, 0.1, clip_norm=1.0).advance(3)
    assert objective.given["x"].tolist() == [0, 0, 0]
    assert record.applied.all()


def test_a_run_is_that_of_torch(guard):
    # Momentum, clipping and a schedule, all written by torch. Its clip_grad_norm_ divides by norm + 1e-6.
    ours, theirs = Fit(), Fit()
    trainer = Trainer(ours, momentum, lambda step: 0.05 * 0.99**step, clip_norm=0.3)
    record = trainer.advance(200)
    tensors = list(theirs.parameters().values())
    optimizer = torch.optim.SGD(tensors, lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    for step in range(200):
        optimizer.zero_grad()
        loss = theirs.loss(theirs.batch(step))
        loss.backward()
        norm = torch.nn.utils.get_total_norm([tensor.grad for tensor in tensors])
        assert record.loss[step].item() == pytest.approx(loss.item(), rel=1e-12)
        assert record.gradient_norm[step].item() == pytest.approx(norm.item(), rel=1e-12)
        torch.nn.utils.clip_grads_with_norm_(tensors, 0.3 + 0.3e-6 / norm.item(), norm)
        optimizer.step()
        scheduler.step()
    assert (record.gradient_norm > 0.3).any()
    assert (record.gradient_norm < 0.3).any()
    for mine, other in zip(ours.parameters().values(), tensors, strict=True):
        assert torch.linalg.vector_norm(mine - other) <= 1e-12 * torch.linalg.vector_norm(other)


# Precision


def test_autocast_computes_matrix_products_in_bfloat16():
    class Seen(TorchDispatchMode):
        dtypes: set[torch.dtype] = set()  # noqa: RUF012 - one test's

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.mm):
                self.dtypes |= {argument.dtype for argument in args if isinstance(argument, Tensor)}
            return function(*args, **kwargs or {})

    objective = Fit(dtype=torch.float32)
    trainer = Trainer(objective, gradient_descent, 0.01, autocast=torch.bfloat16)
    with Seen() as seen:
        trainer.advance(2)
    assert seen.dtypes == {torch.bfloat16}  # the backward pass, which is outside of autocast, included
    assert {tensor.dtype for tensor in everything(trainer)} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_rounds_and_still_trains():
    mixed = Trainer(Fit(dtype=torch.float32), momentum, 0.01, autocast=torch.bfloat16).advance(100)
    single = Trainer(Fit(dtype=torch.float32), momentum, 0.01).advance(100)
    assert not torch.equal(mixed.loss, single.loss)
    # Two matrix products of inputs with 8 bits: a few times 2^-8.
    torch.testing.assert_close(mixed.loss.float(), single.loss, rtol=0.05, atol=0)


# Resumption


def network(activation: str = "tanh", dtype=torch.float32) -> Network:
    """A network whose epochs are 4 batches, each epoch in an order of its own."""
    drawn = numpy.random.default_rng(0).normal(size=(24, 3))
    data = Data(drawn, (drawn.sum(axis=1) > 0).astype(numpy.int64), classes=["no", "yes"])
    return Network(lambda: data, activation, 4, 0, "cpu", dtype, hidden=[5])


@pytest.mark.parametrize("cut", [0, 1, 4, 6, 9])
@pytest.mark.parametrize("name", RULES)
def test_a_run_cut_anywhere_goes_on_to_the_same_bits(name, cut):
    def new() -> Trainer:
        return Trainer(network(), RULES[name], lambda step: 0.05 / (step + 1), clip_norm=0.5, accumulate=2)

    whole = new()  # 10 steps of 2 batches: five epochs
    losses = whole.advance(10).loss
    first, second = new(), new()
    if cut:
        first.advance(cut)
    saved = first.state_dict()
    second.load_state_dict(saved)
    assert second.steps == cut
    assert torch.equal(second.advance(10 - cut).loss, losses[cut:])
    assert same(everything(whole), everything(second))


def test_what_was_saved_is_copied_not_shared():
    first, second = Trainer(Fit(), adam, 0.01), Trainer(Fit(), adam, 0.01)
    first.advance(3)
    before = everything(first)
    second.load_state_dict(first.state_dict())
    second.advance(3)
    assert same(everything(first), before)


def test_loading_writes_into_the_objective_s_own_tensors():
    objective = Fit()
    trainer, other = Trainer(objective, adam, 0.01), Trainer(Fit(), adam, 0.01)
    other.advance(5)
    trainer.load_state_dict(other.state_dict())
    assert same(list(objective.network.parameters()), list(other.parameters.values()))
    assert all(tensor.requires_grad and tensor.is_leaf for tensor in objective.network.parameters())


@pytest.mark.parametrize("name", RULES)
def test_the_state_of_another_rule_is_refused(name):
    other = "momentum" if name.startswith("adam") else "adam"
    trainer, saved = Trainer(Fit(), RULES[name], 0.1), Trainer(Fit(), RULES[other], 0.1).state_dict()
    here, there = (", ".join(state) or "nothing" for state in (trainer.state, saved["rule"]))
    with pytest.raises(UserError) as caught:
        trainer.load_state_dict(saved)
    assert str(caught.value) == f"the saved state of the rule are {there}, and here they are {here}: they do not fit"


def test_the_parameters_of_another_model_are_refused():
    trainer = Trainer(Fit(), momentum, 0.1)
    before = everything(trainer)
    with pytest.raises(UserError, match=r"^the saved parameters are x, y, and here they are 0\.weight, 0\.bias, "):
        trainer.load_state_dict(Trainer(parabola(), momentum, 0.1).state_dict())
    assert same(everything(trainer), before)


def test_the_guard_still_holds_after_loading(guard):
    trainer, fresh = Trainer(Fit(bad=(6,)), adam, 0.01), Trainer(Fit(bad=(6,)), adam, 0.01)
    trainer.advance(5)
    fresh.load_state_dict(trainer.state_dict())
    with pytest.raises(NonFiniteError, match=r"^step 6: "):
        fresh.advance(3)
    trainer.advance(1)
    assert same(everything(fresh), everything(trainer))


# What is not finite

# What spoils a loss, and what the message says of it at the start of the parabola, whose gradient is (-2, 4, 0).
SPOILS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NaN throughout": (lambda loss: loss * math.nan, "the loss is nan, the norm of the gradient of x nan"),
    "NaN in the loss alone": (lambda loss: loss + math.nan, "the loss is nan, the norm of the gradient 4.47214"),
    "infinity in the loss alone": (lambda loss: loss + math.inf, "the loss is inf, the norm of the gradient 4.47214"),
    "minus infinity": (lambda loss: loss - math.inf, "the loss is -inf, the norm of the gradient 4.47214"),
    "infinity in the gradient alone": (
        lambda loss: loss + (loss - loss.detach()).sqrt(),  # a root is infinitely steep at 0
        "the loss is 6, the norm of the gradient of x inf",
    ),
}


def spoiled(kind: str, at: int) -> Made:
    """The parabola, spoiled in one batch."""
    return parabola(lambda loss, batch: SPOILS[kind][0](loss) if batch == at else loss)


@pytest.mark.parametrize("kind", SPOILS)
@pytest.mark.parametrize("name", ["gradient_descent", "momentum", "adam", "adamw"])
def test_a_bad_step_changes_nothing_and_ends_the_run(kind, name, guard):
    rule = RULES[name]
    trainer, good = Trainer(spoiled(kind, at=4), rule, 0.1), Trainer(parabola(), rule, 0.1)
    good.advance(4)
    with pytest.raises(NonFiniteError) as caught:
        trainer.advance(10)
    assert same(everything(trainer), everything(good))
    assert trainer.steps == 4
    if "updates" in trainer.state:
        assert trainer.state["updates"].item() == 4
    assert str(caught.value).startswith("step 4: the loss is ")
    assert str(caught.value).endswith("; a smaller learning_rate than 0.1 may help")
    assert isinstance(caught.value, RunFailed)
    record = caught.value.record
    assert (record.first_step, len(record)) == (0, 4)
    assert record.loss.isfinite().all()
    assert record.applied.all()


@pytest.mark.parametrize("kind", SPOILS)
def test_the_message_says_what_was_not_finite(kind, guard):
    with pytest.raises(NonFiniteError) as caught:
        Trainer(spoiled(kind, at=0), adam, 0.25).advance(3)
    assert str(caught.value) == f"step 0: {SPOILS[kind][1]}; a smaller learning_rate than 0.25 may help"


def test_the_first_parameter_whose_gradient_is_not_finite_is_named(guard):
    def loss(p: dict[str, Tensor], batch: int) -> Tensor:
        b, c = ((tensor * 0).sqrt() if batch == 2 else tensor for tensor in (p["b"], p["c"]))  # 0 * infinity is NaN
        return p["a"] ** 2 + b + c

    objective = Made(loss, a=torch.ones(()), b=torch.zeros(()), c=torch.zeros(()))
    with pytest.raises(NonFiniteError, match=r"^step 2: the loss is 0\.4096, the norm of the gradient of b nan; "):
        Trainer(objective, gradient_descent, 0.1).advance(5)


def test_training_goes_on_after_a_bad_step_once_its_cause_is_gone(guard):
    objective = Fit(bad=(3,))
    trainer, good = Trainer(objective, adam, 0.01), Trainer(Fit(), adam, 0.01)
    for _ in range(2):
        with pytest.raises(NonFiniteError, match=r"^step 3: "):
            trainer.advance(7)
        assert trainer.steps == 3
    objective.bad = ()
    assert trainer.advance(4).applied.all()
    good.advance(7)
    assert same(everything(trainer), everything(good))


def test_the_first_bad_step_of_many_counts(guard):
    trainer, good = Trainer(Fit(bad=(2, 4, 5)), adam, 0.01), Trainer(Fit(), adam, 0.01)
    with pytest.raises(NonFiniteError, match=r"^step 2: "):
        trainer.advance(8)
    good.advance(2)
    assert same(everything(trainer), everything(good))


def test_a_bad_step_that_is_the_last_or_the_only_one_is_seen(guard):
    trainer = Trainer(Fit(bad=(3,)), adam, 0.01)
    with pytest.raises(NonFiniteError):
        trainer.advance(4)
    with pytest.raises(NonFiniteError) as caught:
        trainer.advance(1)
    assert len(caught.value.record) == 0
    assert trainer.steps == 3


@pytest.mark.parametrize("name", RULES)
def test_a_skipped_step_is_as_if_its_batch_were_left_out(name, guard):
    class Without(Fit):
        def batch(self, index: int) -> tuple[Tensor, Tensor]:
            return super().batch([0, 1, 3, 5, 6, 7][index])

    skipping = Trainer(Fit(bad=(2, 4)), RULES[name], 0.01, clip_norm=0.5, on_nonfinite="skip")
    record = skipping.advance(8)
    without = Trainer(Without(), RULES[name], 0.01, clip_norm=0.5)
    expected = without.advance(6)
    assert record.applied.tolist() == [True, True, False, True, False, True, True, True]
    assert (skipping.steps, len(record)) == (8, 8)
    assert same(everything(skipping), everything(without))
    assert torch.equal(record.loss[record.applied], expected.loss)
    assert torch.equal(record.gradient_norms[record.applied], expected.gradient_norms)


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
@pytest.mark.parametrize("name", RULES)
def test_both_guards_give_the_same_bits(name, on_nonfinite, monkeypatch):
    found = []
    for kind in GUARDS.values():
        guard_with(kind, monkeypatch)
        rule = functools.partial(RULES[name], weight_decay=0.01)
        trainer = Trainer(Fit(bad=(7,)), rule, 0.01, clip_norm=0.4, accumulate=2, on_nonfinite=on_nonfinite)
        record = trainer.advance(3)
        try:
            later = trainer.advance(9)
        except NonFiniteError as error:
            later = error.record
        found.append([*everything(trainer), *columns(record), *columns(later)])
    for host, device in zip(*found, strict=True):
        torch.testing.assert_close(host, device, rtol=0, atol=0, equal_nan=True)


# What a step costs


class Operations(TorchDispatchMode):
    """Keeps the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **kwargs or {})


READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal"}


@pytest.mark.parametrize("name", RULES)
def test_a_step_on_a_device_reads_nothing_on_the_host(name, monkeypatch):
    guard_with(DeviceGuard, monkeypatch)
    trainer = Trainer(Fit(bad=(1,)), RULES[name], 0.01, clip_norm=0.1, accumulate=2)
    with Operations() as operations:
        for _ in range(3):
            trainer.step()
    assert "where" in operations.names
    assert not READS & set(operations.names)


@pytest.mark.gpu
@pytest.mark.parametrize("name", RULES)
def test_a_step_never_waits_for_the_gpu_and_advance_reads_once(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA or ROCm device")
    objective = Made(lambda p, _: (p["x"] ** 2).sum(), x=torch.ones(5, device="cuda"))
    trainer = Trainer(objective, RULES[name], 0.01, clip_norm=0.5)
    trainer.advance(2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.advance(3).loss.device.type == "cpu"


# Mistakes


def test_an_objective_without_parameters_is_refused():
    with pytest.raises(UserError, match="no parameters: there is nothing to train"):
        Trainer(Made(lambda p, _: torch.zeros(())), gradient_descent, 0.1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"accumulate": 0}, "accumulate=0: expected an integer from 1 on"),
        ({"accumulate": -2}, "accumulate=-2: expected an integer from 1 on"),
        ({"clip_norm": 0.0}, "clip_norm=0: expected a finite number above 0"),
        ({"clip_norm": -1.0}, "clip_norm=-1: expected a finite number above 0"),
        ({"clip_norm": math.nan}, "clip_norm=nan: expected a finite number above 0"),
        ({"clip_norm": math.inf}, "clip_norm=inf: expected a finite number above 0"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite=ignore: expected one of stop, skip"),
    ],
)
def test_an_option_out_of_its_range_is_refused_by_name(options, expected):
    with pytest.raises(UserError) as caught:
        Trainer(parabola(), gradient_descent, 0.1, **options)
    assert str(caught.value) == expected


def test_an_option_of_the_rule_is_checked_too():
    with pytest.raises(UserError, match=r"^rule\.momentum=1\.5: "):
        Trainer(parabola(), functools.partial(momentum, momentum=1.5), 0.1)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (lambda p, batch: (p["x"] - 3) ** 2, "y"),
        (lambda p, batch: (p["y"] ** 2).sum(), "x"),
        (lambda p, batch: p["x"].detach() + 1, "x"),
    ],
    ids=["the second", "the first", "none"],
)
def test_a_parameter_on_which_the_loss_does_not_depend_is_named(loss, name):
    objective = parabola()
    objective.loss_of = loss
    with pytest.raises(UserError) as caught:
        Trainer(objective, gradient_descent, 0.1).advance(1)
    assert str(caught.value) == f"the loss does not depend on {name}: leave it out of the objective's parameters()"


def test_a_trainer_whose_monitor_is_not_attached_says_so_before_it_steps():
    objective = Network(data.wine, "tanh", 16, 0, "cpu", hidden=[4])
    monitor = minigrad.GradientMonitor(objective.network)
    trainer = Trainer(objective, gradient_descent, 0.1, monitor=monitor)
    before = [parameter.detach().clone() for parameter in objective.network.parameters()]
    with pytest.raises(RuntimeError, match=r"the monitor is not attached: call its attach\(\)"):
        trainer.step()
    assert all(map(torch.equal, before, objective.network.parameters()))
    with monitor:
        trainer.step()
    assert len(monitor.read()) == 1


def test_a_compiled_loss_trains_to_the_same_figures(monkeypatch):
    compiled = []
    compile_ = torch.compile

    def fast(function):  # the figures are the matter here, not the code generated for them
        compiled.append(function)
        return compile_(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", fast)
    objectives = [Fit() for _ in range(2)]
    made = [
        Trainer(objective, adam, 0.05, execution=execution)
        for objective, execution in zip(objectives, ("compile", "eager"), strict=True)
    ]
    records = [trainer.advance(5) for trainer in made]
    assert compiled == [objectives[0].loss]
    torch.testing.assert_close(records[0].loss, records[1].loss, rtol=1e-12, atol=0)
    # what is drawn and surveyed is not compiled
    assert made[0].loss(0).grad_fn.name() == made[1].loss(0).grad_fn.name()
