import math

import pytest
import torch

from minigrad.errors import UserError
from minigrad.tensors import flatten, on_host, overwrite, total_norm


def test_flatten_opens_lists_and_keeps_the_order():
    tensors = [torch.tensor(float(i)) for i in range(4)]
    assert flatten({"mean": tensors[:2], "updates": tensors[2], "none": [], "square": tensors[3:]}) == tensors
    assert flatten({}) == []


def test_numbers_on_the_host_are_what_stacking_them_gives(device):
    numbers = [
        torch.tensor(0.1),
        torch.tensor(math.pi, dtype=torch.float64),
        torch.tensor(True),
        torch.tensor(math.inf),
    ]
    numbers = [number.to(device) for number in numbers]
    expected = torch.stack(numbers).cpu()
    assert expected.dtype == torch.float64
    torch.testing.assert_close(on_host(numbers), expected, rtol=0, atol=0)
    assert on_host(numbers[:1]).dtype == torch.float32


@pytest.mark.parametrize("sizes", [[3], [3, 4], [1, 0, 5]])
def test_the_total_norm_is_that_of_all_elements_together(sizes):
    tensors = [torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size)) for size in sizes]
    total = total_norm([tensor.norm() for tensor in tensors])
    assert total.shape == ()
    assert total.item() == pytest.approx(torch.cat(tensors).norm().item(), rel=1e-14)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_total_norm_hides_nothing(value):
    norms = [torch.tensor(1.0), torch.tensor(value), torch.tensor(2.0)]
    assert not total_norm(norms).isfinite()
    assert not total_norm(norms[1:2]).isfinite()


def test_overwriting_keeps_place_dtype_and_leaf():
    x = torch.zeros(2, 3, requires_grad=True)
    updates, means = torch.zeros((), dtype=torch.float64), [torch.zeros(1), torch.zeros(2)]
    saved = {
        "means": [torch.tensor([1.0]), torch.tensor([2.0, 3.0])],
        "x": torch.full((2, 3), 0.1, dtype=torch.float64),
        "updates": torch.tensor(5),
    }
    places = [tensor.data_ptr() for tensor in (x, updates, *means)]
    overwrite({"x": x, "updates": updates, "means": means}, saved, "things")
    assert [tensor.data_ptr() for tensor in (x, updates, *means)] == places
    assert torch.equal(x, torch.full((2, 3), 0.1))
    assert (updates.dtype, updates.item()) == (torch.float64, 5)
    assert [mean.tolist() for mean in means] == [[1], [2, 3]]
    assert x.is_leaf
    assert x.requires_grad


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"x": torch.ones(2)}, "the saved things are x, and here they are x, y: they do not fit"),
        ({"x": torch.ones(2), "z": []}, "the saved things are x, z, and here they are x, y: they do not fit"),
        ({}, "the saved things are nothing, and here they are x, y: they do not fit"),
        (None, "the saved things are a NoneType, and here they are x, y: they do not fit"),
        ([torch.ones(2)], "the saved things are a list, and here they are x, y: they do not fit"),
        (
            {"x": torch.ones(3), "y": [torch.ones(())]},
            "the saved things do not fit: x is (3,), and here (2,)",
        ),
        (
            {"x": torch.ones(2), "y": []},
            "the saved things do not fit: y is nothing, and here ()",
        ),
        (
            {"x": torch.ones(2), "y": [torch.ones(()), torch.ones(4)]},
            "the saved things do not fit: y is (), (4,), and here ()",
        ),
        ({"x": torch.ones(2), "y": 5}, "the saved things do not fit: y is of type int, and here ()"),
        ({"x": "ab", "y": [torch.ones(())]}, "the saved things do not fit: x is of type str, and here (2,)"),
        ({"x": torch.ones(2), "y": [None]}, "the saved things do not fit: y is a NoneType, and here ()"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(saved, message):
    named = {"x": torch.zeros(2), "y": [torch.zeros(())]}
    with pytest.raises(UserError) as caught:
        overwrite(named, saved, "things")
    assert str(caught.value) == message
    assert not any(tensor.any() for tensor in flatten(named))
