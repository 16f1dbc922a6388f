import warnings

import pytest
import torch

import minigrad
from minigrad.autodiff.allocation import LiveStorages
from minigrad.autodiff.recording import record
from traced import leaf, reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_of_many_elements_there_are_statistics_and_no_copy(dtype):
    torch.manual_seed(0)
    x = torch.randn(300, 70).to(dtype).requires_grad_()
    upstream = torch.randn(300, 70).to(dtype)
    upstream[0, :5] = 0
    trace = minigrad.trace_backward(x * 3, upstream, names={"x": x})
    came, arrived = trace.steps[0].upstream[0], trace.leaves["x"].arrived
    assert came.value is None
    assert trace.steps[0].flows[0].local is None
    for found, tensor in ((came, upstream), (arrived, x.grad)):
        exact, statistics = tensor.double(), found.statistics
        assert (found.shape, found.dtype) == ((300, 70), dtype)
        assert (statistics.count, statistics.nonfinite) == (21000, 0)
        assert statistics.zeros == (exact == 0).sum() >= 5
        assert (statistics.smallest, statistics.largest) == (exact.min(), exact.max())
        assert statistics.mean == pytest.approx(exact.mean().item(), rel=1e-12)
        assert statistics.standard_deviation == pytest.approx(exact.std(correction=0).item(), rel=1e-12)
        assert statistics.root_mean_square == pytest.approx(exact.norm().item() / 21000**0.5, rel=1e-12)
    assert "d output / d x: not written out, output has too many elements to print" in trace.chain_rule()
    assert f"(300, 70): {upstream.min():.3g} to {upstream.max():.3g}, mean " in str(trace)


def test_statistics_count_what_is_not_finite_and_know_the_empty_and_the_small():
    x = torch.zeros(100, requires_grad=True)
    upstream = torch.ones(100)
    upstream[3], upstream[4] = torch.inf, torch.nan
    trace = minigrad.trace_backward(x * 1, upstream)
    assert trace.steps[0].upstream[0].statistics.nonfinite == 2
    assert ", 2 not finite" in str(trace)
    empty = torch.zeros(0, requires_grad=True)
    assert minigrad.trace_backward((empty * 2).sum()).leaves["leaf"].arrived.statistics.count == 0
    small = minigrad.trace_backward(leaf([1.0, 2.0]) * 1, torch.tensor([1.0, 3.0])).steps[0].upstream[0]
    assert (small.statistics.mean, small.statistics.standard_deviation, small.statistics.root_mean_square) == (
        2,
        1,
        pytest.approx(5**0.5),
    )


def exact_statistics(values):
    return [
        values.numel(),
        pytest.approx(values.mean().item(), rel=1e-12),
        pytest.approx(values.std(correction=0).item(), rel=1e-12),
        values.amin().item(),
        values.amax().item(),
        pytest.approx(values.square().mean().sqrt().item(), rel=1e-12),
        (values == 0).sum().item(),
        (~values.isfinite()).sum().item(),
    ]


def statistics(tensor):
    return list(vars(record(tensor).statistics).values())


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(2**20 + 5) + 100,
        lambda: torch.randn(3, 1500, 400).half().transpose(0, 2),
        lambda: torch.randn(1500, 1).expand(1500, 1000),
        lambda: torch.arange(7.0),
        lambda: torch.tensor(3.0).expand(1, 1, 8),
    ],
)
def test_statistics_of_large_tensors_of_any_layout_are_those_of_float64(make):
    torch.manual_seed(0)
    tensor = make()
    assert statistics(tensor) == exact_statistics(tensor.double())


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
@pytest.mark.parametrize("sign", [1, -1])
def test_statistics_of_a_sparse_gradient_count_the_zeros_that_it_does_not_hold(make, sign):
    dense = torch.zeros(20, 30, dtype=torch.float64)
    dense[3, 4], dense[3, 7], dense[19, 0] = 2.5 * sign, 1.5 * sign, 4.0 * sign
    assert statistics(make(dense)) == exact_statistics(dense)
    assert record(make(dense[3:5, 4:6])).value.tolist() == dense[3:5, 4:6].tolist()
    assert statistics(make(torch.zeros(20, 30))) == [600, 0, 0, 0, 0, 0, 600, 0]


@pytest.mark.filterwarnings("ignore:Sparse")
def test_statistics_of_a_sparse_gradient_add_up_what_it_holds_twice():
    twice = torch.sparse_coo_tensor([[1, 1, 2]], torch.ones(3, 4), (5, 4))
    assert statistics(twice) == exact_statistics(twice.to_dense().double())


def test_statistics_of_complex_gradients_are_of_magnitudes_and_their_values_are_complex():
    x = torch.ones(8, dtype=torch.complex64, requires_grad=True)
    upstream = torch.full((8,), 3 + 4j)
    upstream[0] = 5j
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace = minigrad.trace_backward(x * 1, upstream, names={"x": x})
        assert list(vars(trace.leaves["x"].arrived.statistics).values()) == [8, 5, 0, 5, 5, 5, 0, 0]
        z = torch.tensor([1 + 2j, 3j], requires_grad=True)
        trace = minigrad.trace_backward(z.conj() * z, torch.tensor([1j, 2 + 1j]), names={"z": z})
        assert reason(trace, "z") == "no product, mul has no local derivative to multiply by"
        z = torch.tensor([1 + 2j, 3j], requires_grad=True)
        trace = minigrad.trace_backward(z, torch.tensor([1j, 2 + 1j]), names={"z": z})
        assert trace.chain_rule() == "d z / d z = [0+1j, 2+1j] = [0+1j, 2+1j]"


@pytest.mark.filterwarnings("ignore:Sparse")
def test_to_record_a_large_gradient_takes_little_memory():
    sparse = torch.sparse_coo_tensor([[5, 2_000_000]], torch.ones(2, 64), (3_000_000, 64))
    with LiveStorages() as storages:
        record(sparse)
    assert storages.peak < 100_000
    for dense in (torch.ones(2**23, dtype=torch.float16), torch.ones(2**13, 1).expand(2**13, 2**10)):
        with LiveStorages() as storages:
            record(dense)
        assert storages.peak < 4 * 8 * 2**20 < dense.numel() * 8


def test_more_values_than_six_are_not_printed():
    trace = minigrad.trace_backward(leaf([[1.0]] * 7) * 2, torch.ones(7, 1))
    assert max(map(len, str(trace).splitlines())) < 200
    assert trace.steps[0].upstream[0].value is None
    assert minigrad.trace_backward(leaf([[1.0]] * 6) * 2, torch.ones(6, 1)).steps[0].flows[0].local.numel() == 6
