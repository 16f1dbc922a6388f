import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minigrad.guard import DeviceGuard, HostGuard, guard_of

KINDS = pytest.mark.parametrize("kind", [HostGuard, DeviceGuard])
BAD = [(math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0), (-math.inf, 1.0), (1.0, math.inf), (math.nan, math.inf)]


class Ones:
    """Tensors that every update counts up by one, under a guard."""

    def __init__(self, kind: type, stops: bool) -> None:
        self.tensors = [torch.zeros(3), torch.zeros((), dtype=torch.float64), torch.zeros(0), torch.zeros(2, 4).t()]
        self.guard = kind(self.tensors, stops)

    def apply(self, loss: float, gradient_norm: float, dtype=torch.float32, value: float = 1.0) -> bool:
        def update() -> None:
            for tensor in self.tensors:
                tensor.add_(value)

        applied = self.guard.apply(update, torch.tensor(loss, dtype=dtype), torch.tensor(gradient_norm, dtype=dtype))
        assert (applied.shape, applied.dtype) == ((), torch.bool)
        return bool(applied)

    def values(self) -> set[float]:
        return {value for tensor in self.tensors for value in tensor.reshape(-1).tolist()}


@KINDS
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_update_of_finite_numbers_is_applied(kind, stops, dtype):
    ones = Ones(kind, stops)
    largest = torch.finfo(dtype).max
    for numbers in [(1.0, 2.0), (-largest, largest), (0.0, 0.0), (-1.0, 0.0)]:
        assert ones.apply(*numbers, dtype)
    assert ones.values() == {4.0}


@KINDS
@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("numbers", BAD)
def test_an_update_of_anything_else_is_not(kind, stops, dtype, numbers):
    ones = Ones(kind, stops)
    assert ones.apply(1.0, 1.0, dtype)
    places = [tensor.data_ptr() for tensor in ones.tensors]
    assert not ones.apply(*numbers, dtype)
    assert ones.values() == {1.0}
    assert [tensor.data_ptr() for tensor in ones.tensors] == places


@KINDS
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nothing_of_an_update_to_nan_or_infinity_remains(kind, value):
    ones = Ones(kind, stops=False)
    ones.apply(1.0, 1.0)
    assert not ones.apply(math.nan, 1.0, value=value)
    assert ones.values() == {1.0}


@KINDS
def test_a_guard_that_stops_holds_all_back_until_it_is_released(kind):
    ones = Ones(kind, stops=True)
    assert [ones.apply(loss, 1.0) for loss in (1.0, math.nan, 1.0, math.inf, 1.0)] == [True, False, False, False, False]
    assert ones.values() == {1.0}
    ones.guard.release()
    assert [ones.apply(loss, 1.0) for loss in (1.0, 1.0, math.nan, 1.0)] == [True, True, False, False]
    assert ones.values() == {3.0}


@KINDS
def test_a_guard_that_does_not_stop_holds_back_the_bad_ones_alone(kind):
    ones = Ones(kind, stops=False)
    assert [ones.apply(loss, 1.0) for loss in (math.nan, 1.0, math.inf, math.nan, 1.0)] == [
        False,
        True,
        False,
        False,
        True,
    ]
    assert ones.values() == {2.0}


@KINDS
def test_loss_and_norm_may_differ_in_dtype(kind):
    tensor = torch.zeros(2)
    guard = kind([tensor], stops=False)
    double = torch.tensor(1e300, dtype=torch.float64)  # infinite in float32
    assert guard.apply(lambda: tensor.add_(1), double, torch.tensor(1.0))
    assert guard.apply(lambda: tensor.add_(1), torch.tensor(1.0, dtype=torch.bfloat16), double)
    assert not guard.apply(lambda: tensor.add_(1), double, torch.tensor(math.nan))
    assert tensor.tolist() == [2, 2]


@KINDS
def test_what_was_reported_does_not_change_later(kind):
    ones = Ones(kind, stops=True)
    tensor = torch.tensor(1.0)
    reports = [ones.guard.apply(lambda: None, torch.tensor(loss), tensor) for loss in (1.0, math.nan)]
    ones.guard.release()
    reports.append(ones.guard.apply(lambda: None, tensor, tensor))
    assert [bool(report) for report in reports] == [True, False, True]


def test_the_device_guard_reads_nothing_on_the_host():
    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
            return function(*args, **kwargs or {})

    one = torch.tensor(1.0)
    ones = Ones(DeviceGuard, stops=True)
    with Reads():
        ones.guard.apply(lambda: None, one, one)
        ones.guard.release()
    with Reads(), pytest.raises(AssertionError):
        HostGuard([one], stops=True).apply(lambda: None, one, one)  # that it would be seen


def test_the_guard_suits_the_device():
    assert isinstance(guard_of([torch.zeros(1)], stops=True), HostGuard)
    assert isinstance(guard_of([torch.zeros(1, device="meta")], stops=True), DeviceGuard)


def test_parameters_that_require_a_gradient_are_guarded_in_place(device):
    parameter = torch.zeros(3, device=device, requires_grad=True)
    guard = guard_of([parameter], stops=False)

    def update() -> None:
        with torch.no_grad():
            parameter.add_(1)

    def number(value: float) -> Tensor:
        return torch.tensor(value, device=device)

    with torch.no_grad():
        guard.apply(update, number(1.0), number(1.0))
        guard.apply(update, number(math.nan), number(1.0))
    assert parameter.tolist() == [1, 1, 1]
    assert parameter.is_leaf
    assert parameter.requires_grad
