import pytest
import torch

from minigrad.objectives.order import Order


def test_an_epoch_takes_every_sample_at_most_once_and_each_has_another_order():
    order = Order(10, 3, seed=0, device="cpu")
    assert order.batches_per_epoch == 3
    first, second = order.places(0, 3), order.places(3, 3)
    for epoch in (first, second):
        assert epoch.shape == (3, 3)
        assert len(set(epoch.view(-1).tolist())) == 9
        assert set(epoch.view(-1).tolist()) < set(range(10))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("first", "count"), [(0, 1), (2, 1), (1, 3), (2, 8), (7, 9), (4, 0)])
def test_batches_are_a_function_of_their_index_alone(first, count):
    expected = [Order(7, 2, seed=5, device="cpu").places(first + i, 1) for i in range(count)]
    places = Order(7, 2, seed=5, device="cpu").places(first, count)
    assert torch.equal(places, torch.cat([torch.empty(0, 2, dtype=torch.int64), *expected]))


def test_another_seed_gives_another_order():
    a, b = (Order(100, 100, seed, "cpu").places(0, 1) for seed in (0, 1))
    assert not torch.equal(a, b)
    assert torch.equal(a, Order(100, 100, 0, "cpu").places(0, 1))
