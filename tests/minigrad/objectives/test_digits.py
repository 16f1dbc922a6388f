import pytest
import torch

from minigrad.errors import UserError
from minigrad.objectives import Digits


def digits(**changes) -> Digits:
    arguments = {"activation": "tanh", "batch_size": 100, "seed": 0, "device": "cpu", "hidden": [8], **changes}
    return Digits(**arguments)


def test_a_third_of_every_class_is_held_out():
    objective = digits()
    trained, held_out = (labels.bincount(minlength=10) for labels in (objective._train_labels, objective._test_labels))
    assert (int(trained.sum()), int(held_out.sum())) == (1198, 599)
    assert ((held_out / (trained + held_out) - 1 / 3).abs() < 0.01).all()


def test_the_scale_comes_from_the_training_images_alone():
    objective = digits()
    assert objective._train_images.mean().item() == pytest.approx(0, abs=1e-6)
    assert objective._train_images.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert objective._test_images.mean().item() != pytest.approx(0, abs=1e-6)


def test_an_epoch_gives_every_sample_at_most_once_and_each_its_own_order():
    objective = digits()
    assert objective.steps_per_epoch == 11
    epochs = [
        torch.cat([objective.batch(step)[0] for step in range(first, first + objective.steps_per_epoch)])
        for first in (0, objective.steps_per_epoch)
    ]
    # No two images of the data set are equal.
    assert all(len(epoch.unique(dim=0)) == len(epoch) == 1100 for epoch in epochs)
    assert not torch.equal(*epochs)


def test_a_batch_depends_on_the_seed_and_the_step_alone():
    first, second, other = digits(), digits(), digits(seed=1)
    for step in (0, 5, 25):
        second.batch(step + 1)
        assert torch.equal(first.batch(step)[0], second.batch(step)[0])
        assert not torch.equal(first.batch(step)[0], other.batch(step)[0])


def test_the_initial_parameters_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    first = digits().parameters()
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    second, other = digits().parameters(), digits(seed=1).parameters()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])


def test_the_network_has_the_widths_that_were_asked_for():
    shapes = [tuple(parameter.shape) for parameter in digits(hidden=[5, 7]).parameters()]
    assert shapes == [(5, 64), (5,), (7, 5), (7,), (10, 7), (10,)]
    assert [tuple(parameter.shape) for parameter in digits(hidden=[]).parameters()] == [(10, 64), (10,)]


def test_judging_records_no_graph():
    judged = digits().judge()
    assert set(judged) == {"test/loss", "test/accuracy"}
    assert not any(value.requires_grad for value in judged.values())
    assert 0 <= judged["test/accuracy"] <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": [8, 0]}, r"^objective.hidden=\[8, 0\]: expected widths of at least 1$"),
        ({"batch_size": 1199}, r"^batch_size=1199: expected 1 to 1198, the training samples$"),
        ({"batch_size": 0}, r"^batch_size=0: expected 1 to 1198"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        digits(**change)
