import numpy
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from cases import DTYPES, HALVES, LAYOUTS, all_halves, special_floats
from minigrad.monitoring.histogram import BUCKETS, EDGES, HIGHEST, LOWEST, count_magnitudes, raw_histogram


def expected(tensor: torch.Tensor) -> list[int]:
    """Return the counts by NumPy's frexp, in float64, which holds every number of the other dtypes."""
    values = numpy.abs(tensor.detach().cpu().double().numpy().ravel())
    finite = values[numpy.isfinite(values)]
    exponents = numpy.frexp(finite[finite > 0])[1] - 1  # frexp's fractions are from 1/2 to below 1
    binades = [int((exponents == e).sum()) for e in range(LOWEST, HIGHEST)]
    below, above = int((exponents < LOWEST).sum()), int((exponents >= HIGHEST).sum())
    return [int((finite == 0).sum()), below, *binades, above, len(values) - len(finite)]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_all_numbers_of_a_half_type_are_in_their_buckets(dtype, device):
    x = all_halves(dtype).to(device)
    counts = count_magnitudes(x)
    assert (counts.dtype, counts.shape, counts.device) == (torch.int64, (BUCKETS,), x.device)
    assert counts.tolist() == expected(x)


def test_only_zeros_and_what_is_not_finite_of_float16_have_no_binade():
    counts = count_magnitudes(all_halves(torch.float16))
    assert (counts[0], counts[1], counts[-2], counts[-1]) == (2, 0, 0, 2 * 1024)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_powers_of_two_begin_a_bucket_and_what_is_just_below_ends_one(dtype, device):
    lowest = -149 if dtype == torch.float32 else -1074
    highest = 128 if dtype == torch.float32 else 1024
    powers = torch.tensor([2.0**e for e in range(lowest, highest)], dtype=torch.float64).to(dtype)
    below, above = (torch.nextafter(powers, torch.tensor(end, dtype=dtype)) for end in (0.0, torch.inf))
    x = torch.cat([powers, -powers, below, -above, special_floats(dtype)]).to(device)
    assert count_magnitudes(x).tolist() == expected(x)
    (place,) = count_magnitudes(torch.tensor(1.0, dtype=dtype, device=device)).nonzero()
    assert EDGES[int(place) - 1] == 0  # 1 is 2^0


def test_both_zeros_are_zeros_and_the_smallest_numbers_are_not(device):
    x = torch.tensor([0.0, -0.0, 1e-45, -1e-45, torch.inf, -torch.inf, torch.nan, -torch.nan], device=device)
    counts = count_magnitudes(x)
    assert (counts[0], counts[1], counts[-1], counts.sum()) == (2, 2, 4, 8)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("poisoned")
def test_every_layout_is_counted_once(name, dtype, device):
    x = LAYOUTS[name](dtype, device)
    before = x.clone()
    assert count_magnitudes(x).tolist() == expected(x)
    assert torch.equal(x, before)


def test_several_tensors_are_counted_together(device):
    tensors = [LAYOUTS["1000"](dtype, device).requires_grad_() for dtype in DTYPES]
    counts = count_magnitudes(*tensors)
    assert counts.tolist() == [sum(each) for each in zip(*map(expected, tensors), strict=True)]
    assert not counts.requires_grad


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool, torch.float8_e5m2], ids=str)
def test_another_dtype_is_an_error_that_names_it(dtype):
    with pytest.raises(TypeError, match=f"^a tensor is {dtype}: expected float16, bfloat16, float32 or float64$"):
        count_magnitudes(torch.zeros(2, dtype=dtype))


def test_no_tensor_is_an_error():
    with pytest.raises(ValueError, match=r"^there is no tensor to count: pass at least one$"):
        count_magnitudes()


def test_the_edges_are_those_of_the_buckets_between_zeros_and_what_is_not_finite():
    x = torch.tensor([2.0**LOWEST / 2, 2.0**LOWEST, 2.0**HIGHEST / 2, 2.0**HIGHEST])
    found = count_magnitudes(x)[1:-1].nonzero().flatten().tolist()
    assert [EDGES[place] for place in found] == [LOWEST - 1, LOWEST, HIGHEST - 1, HIGHEST]
    assert len(EDGES) == BUCKETS - 1


def test_a_raw_histogram_spans_the_buckets_that_are_not_empty():
    raw = raw_histogram([0, 3, 0, 1, 0, 0], [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
    assert raw == {
        "min": -2.0,
        "max": 1.0,
        "num": 4,
        "sum": 3 * -1.5 + 0.5,
        "sum_squares": 3 * 1.5**2 + 0.5**2,
        "bucket_limits": [-2.0, -1.0, 0.0, 1.0, 2.0, 3.0],
        "bucket_counts": [0, 3, 0, 1, 0, 0],
    }


def test_a_raw_histogram_of_nothing_spans_all_buckets():
    raw = raw_histogram([0, 0], [0.0, 1.0, 2.0])
    assert (raw["min"], raw["max"], raw["num"], raw["sum"]) == (0, 2, 0, 0)


def test_edges_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"^there are 2 edges for 2 buckets: pass one edge more than buckets$"):
        raw_histogram([1, 1], [0.0, 1.0])


def test_a_summary_writer_takes_it(tmp_path):
    counts = count_magnitudes(torch.tensor([0.0, 0.5, 0.75, 3.0]))
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_histogram_raw("log2_gradient", **raw_histogram(counts[1:-1].tolist(), EDGES), global_step=3)
    (event,) = EventAccumulator(str(tmp_path)).Reload().Histograms("log2_gradient")
    histogram = event.histogram_value
    assert (event.step, histogram.min, histogram.max, histogram.num) == (3, -1, 2, 3)
    shown = zip(histogram.bucket_limit, histogram.bucket, strict=True)
    assert {limit: count for limit, count in shown if count} == {0: 2, 2: 1}
