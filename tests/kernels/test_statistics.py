"""The statistics that the kernels write are those of the tensors as stored, and writing them changes nothing else."""

import math
from dataclasses import replace

import pytest
import torch

import cases
import minigrad_kernels as kernels
import reference
from minigrad_kernels import BACKWARD, FORWARD, Fired, Layer
from minigrad_kernels.watch import Watch, saturation_limits

pytestmark = pytest.mark.usefixtures("poisoned")
SHARE = 0.1
RELATIVE = 1e-5  # of the sums, which float32 partial sums of a tile leave room for; counts are exact
LAYERS = {
    **{f"{a}": Layer(0, a, False, False, SHARE) for a in cases.SMOOTH},
    **{f"{a} saving output": Layer(0, a, False, True, SHARE) for a in cases.SMOOTH},
    **{f"{a} with bias": Layer(0, a, True, False, SHARE) for a in cases.SMOOTH},
    **{f"{a} with bias, saving output": Layer(0, a, True, True, SHARE) for a in cases.SMOOTH},
    "relu": Layer(0, "relu", False, True, SHARE),
    "relu with bias": Layer(0, "relu", True, True, SHARE),
}
EVERY_LAYER = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
EVERY_DTYPE = pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)


def run(tally, layer, x, g, bias=None, fired=None):
    """Compute both passes of a watched layer; return output, input gradient and bias gradient."""
    y = tally.forward(layer, x, bias, fired)
    return y, *tally.backward(layer, g, *((y, None) if layer.from_output else (x, bias)))


def unwatched(layer, x, g, bias):
    if layer.biased:
        y = kernels.bias_activation(x, bias, layer.activation)
        saved = (y, None) if layer.from_output else (x, bias)
        return y, *kernels.bias_activation_backward(g, *saved, layer.activation)
    y = kernels.derivative(x, None, layer.activation, 0)
    if layer.from_output and layer.activation != "relu":
        return y, kernels.backward_from_output(g, y, layer.activation), None
    return y, kernels.derivative(y if layer.from_output else x, g, layer.activation, 1), None


def expected_rows(layer, x, g, bias, y, dx):
    """Return the rows of both passes in float64, from what is stored."""
    x, g, y, dx = (tensor.detach().cpu().double() for tensor in (x, g, y, dx))
    value = y if layer.from_output else x if bias is None else x + bias.cpu().double()
    defined = ~value.isnan() if layer.from_output else value.isfinite()
    if layer.activation == "relu":
        saturated, false_zeros = y <= 0, torch.zeros(())
    else:
        is_tanh = layer.activation == "tanh"
        if layer.from_output:
            slope = 1 - y * y if is_tanh else 4 * y * (1 - y)
        else:
            slope = reference.sech_squared(value if is_tanh else value / 2)
        saturated, false_zeros = slope < layer.share, (dx == 0) & (g != 0) & defined
    forward = [y.numel(), y.mean(), (y - y.mean()).square().sum(), 0, 0, 0, 0, 0]
    counts = [count.sum() for count in (dx == 0, saturated, ~dx.isfinite(), false_zeros)]
    backward = [dx.numel(), (g * g).sum(), (dx * dx).sum(), dx.abs().max(), *counts]
    return torch.tensor(forward, dtype=torch.float64), torch.tensor(backward, dtype=torch.float64)


def assert_rows_are(taken, forward, backward):
    """Compare what a tally gives, one row for each pass of layer 0, with what it should be."""
    keys, rows = taken
    assert sorted(keys) == [(0, FORWARD), (0, BACKWARD)]
    assert rows.dtype == torch.float64
    rows = dict(zip([direction for _, direction in keys], rows.cpu(), strict=True))
    close = torch.testing.assert_close
    deviation = (forward[2] / forward[0]).sqrt()
    root_mean_square = float(torch.hypot(forward[1], deviation).nan_to_num(nan=0, posinf=0))
    close(rows[FORWARD][1], forward[1], rtol=0, atol=RELATIVE * root_mean_square, equal_nan=True)
    close(rows[FORWARD][2], forward[2], rtol=RELATIVE, atol=0, equal_nan=True)
    assert torch.equal(rows[FORWARD][[0, 3, 4, 5, 6, 7]], forward[[0, 3, 4, 5, 6, 7]])
    close(rows[BACKWARD][1:3], backward[1:3], rtol=RELATIVE, atol=0, equal_nan=True)
    close(rows[BACKWARD][3], backward[3], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(rows[BACKWARD][[0, 4, 5, 6, 7]], backward[[0, 4, 5, 6, 7]])


def check(layer, x, g, bias=None):
    """Run a layer and compare its rows; return the backward pass's as it should be."""
    tally = kernels.new_tally(x.device)
    y, dx, _ = run(tally, layer, x, g, bias)
    forward, backward = expected_rows(layer, x, g, bias, y, dx)
    assert_rows_are(tally.take(), forward, backward)
    return backward


def bias_for(layer, x):
    """Return a bias for x, every second element of a longer tensor; None for a layer without."""
    return torch.linspace(-1, 1, 2 * x.shape[-1]).to(x.dtype).to(x.device)[::2] if layer.biased else None


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bits(tensor):
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8)


# Every layer with every layout; and with every dtype, each with a dense and with an expanded upstream gradient.
# A bias needs a dimension; and long vectors would be many tiles of one row, which take the interpreter long.
NO_BIAS = ("0-d", "1000", "several blocks and a rest", "misaligned")
LATIN = {
    f"{name}, {layout}": (layer, layout, cases.DTYPES[(i + j) % 4], (i + j) // 4 % 2 == 1)
    for i, (name, layer) in enumerate(LAYERS.items())
    for j, layout in enumerate(cases.LAYOUTS)
    if not (layer.biased and layout in NO_BIAS)
}


@pytest.mark.parametrize("case", LATIN)
def test_any_layout_has_float64s_statistics_and_the_unwatched_results(case, device):
    layer, layout, dtype, expanded = LATIN[case]
    x = cases.LAYOUTS[layout](dtype, device)
    bias, tally = bias_for(layer, x), kernels.new_tally(device)
    g = (normal() if expanded else normal(*x.shape)).to(dtype).to(device).expand(x.shape)
    results = run(tally, layer, x, g, bias)
    for actual, expected in zip(results, unwatched(layer, x, g, bias), strict=True):
        assert (actual is None) == (expected is None)
        if actual is not None:
            assert (actual.stride(), actual.dtype) == (expected.stride(), expected.dtype)
            assert torch.equal(bits(actual), bits(expected))
    if x.numel():
        assert_rows_are(tally.take(), *expected_rows(layer, x, g, bias, *results[:2]))
    assert tally.take() == ([], None)


@pytest.mark.parametrize(
    ("dtype", "magnitude"),
    [(torch.float16, 1e-7), (torch.float16, 1e4)]
    + [(dtype, magnitude) for dtype in cases.DTYPES[1:] for magnitude in (1e-40, 1e-25, 1e30)],
    ids=str,
)
@pytest.mark.parametrize("name", ["tanh with bias", "sigmoid saving output"])
def test_gradients_of_any_magnitude_are_squared_without_loss(name, dtype, magnitude, device):
    x, g = normal(3, 100).to(dtype).to(device), (normal(3, 100, seed=1) * magnitude).to(dtype).to(device)
    backward = check(LAYERS[name], x, g, bias_for(LAYERS[name], x))
    assert 0 < backward[2] < math.inf


# x, g, alone with ordinary numbers, so that none hides another; and all together
NONFINITE = {
    "inf": ([math.inf, 0.5], [1.0, 1.0]),
    "nan": ([math.nan, 0.5], [1.0, 1.0]),
    "upstream inf": ([0.5, 0.25], [-math.inf, 1.0]),
    "upstream nan": ([0.5, 0.25], [math.nan, 1.0]),
    "all": (
        [0.0, 1.0, -1.0, math.inf, -math.inf, math.nan] * 4,
        [g for g in (0, 1, math.inf, math.nan) for _ in "123456"],
    ),
}


@pytest.mark.parametrize("case", NONFINITE)
@pytest.mark.parametrize(
    ("name", "dtype"), [(name, (torch.bfloat16, torch.float64)[i // 2 % 2]) for i, name in enumerate(LAYERS)], ids=str
)
def test_nonfinite_numbers_are_counted_and_show_in_the_sums(name, dtype, case, device):
    layer = LAYERS[name]
    x, g = (torch.tensor(numbers, dtype=dtype, device=device) for numbers in NONFINITE[case])
    check(layer, x, g, torch.zeros_like(x) if layer.biased else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layer", [LAYERS[name] for name in ("sigmoid", "tanh with bias", "relu")], ids=str)
def test_deviation_of_a_nearly_constant_output_is_kept(layer, dtype, device):
    x = (1.5 + 4e-4 * normal(40, 150)).to(dtype).to(device)
    tally = kernels.new_tally(device)
    y = tally.forward(layer, x, torch.zeros_like(x[0]) if layer.biased else None)
    ((n, mean, squares, *_),) = tally.take()[1].tolist()
    expected = y.double().std(correction=0).item()
    assert 2e-5 < expected / y.double().mean().item() < 4e-4
    assert mean == pytest.approx(y.double().mean().item(), rel=1e-6)
    assert math.sqrt(squares / n) == pytest.approx(expected, rel=RELATIVE)


# More elements than the plain path takes at once; to a kernel they are just more tiles.
ONLY_ONE_TILE_DIFFERS = pytest.mark.skipif(cases.INTERPRETED, reason="a tile is a tile, and many take long here")


@ONLY_ONE_TILE_DIFFERS
@pytest.mark.parametrize("magnitude", [1, 1e-25, 1e-42, 1e30])
@pytest.mark.parametrize("name", ["tanh with bias", "sigmoid", "sigmoid saving output", "relu with bias"])
def test_many_elements_of_any_magnitude(name, magnitude, device):
    layer = LAYERS[name]
    x, g = 3 * normal(41, 1001), magnitude * normal(41, 1001, seed=1)
    x, g = x.float().to(device), g.float().to(device)
    backward = check(layer, x, g, bias_for(layer, x))
    assert backward[2] > 0 or magnitude == 1e-42
    check(layer, x.t(), g.t(), bias_for(layer, x.t()))


@ONLY_ONE_TILE_DIFFERS
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_many_elements_of_which_one_is_not_finite(bad, device):
    x, g = normal(41, 1001).float().to(device), normal(41, 1001, seed=1).float().to(device)
    x[3, 7], g[5, 9] = bad, bad
    for name in ("tanh with bias", "relu"):
        backward = check(LAYERS[name], x, g, bias_for(LAYERS[name], x))
        assert backward[6] >= 1


@ONLY_ONE_TILE_DIFFERS
def test_many_nearly_constant_outputs_keep_their_deviation(device):
    x = (8 + 0.1 * normal(41, 1001)).float().to(device)
    tally = kernels.new_tally(device)
    y = tally.forward(LAYERS["sigmoid"], x, None)
    ((n, mean, squares, *_),) = tally.take()[1].tolist()
    expected = y.double().std(correction=0).item()
    assert expected < 1e-4 * mean
    assert math.sqrt(squares / n) == pytest.approx(expected, rel=RELATIVE)


@ONLY_ONE_TILE_DIFFERS
@pytest.mark.parametrize("n", [1, 1023, 2**15 - 1, 2**15, 2**15 + 1, 100_000])
@pytest.mark.parametrize("magnitude", [1, 1e-30, 1e20])
def test_a_norm_is_that_of_float64(n, magnitude, device):
    values = (magnitude * normal(n)).float().to(device)
    for view in (values, values.expand(3, n), values[::2], torch.stack([values, values]).t()):
        assert float(kernels.norm(view)) == pytest.approx(view.double().norm().item(), rel=1e-6)
    assert float(kernels.norm(torch.zeros(n, device=device))) == 0


def test_second_stage_takes_any_number_of_rows(device):
    if kernels.path_for(device) == "plain":
        pytest.skip("the plain path has no tiles")
    from minigrad_kernels.blocks import BLOCKS
    from minigrad_kernels.statistics import second_stage

    n = 2 * BLOCKS.statistics + 77
    parts = normal(2 * n, kernels.COLUMNS).abs().float()
    parts[:, [1, 3]] += 1  # the largest magnitudes, by which the sums beside them were scaled
    parts[n:, 4] = 10  # elements of a tile of a forward pass
    segments = torch.tensor([[0, n, 1, BACKWARD], [n, n, 10 * n, FORWARD]], device=device)
    backward, forward = second_stage(parts.to(device), segments).cpu()
    wide = parts.double()
    scales = torch.exp2(wide.frexp().exponent.double() - 1)
    sums = wide[:n].sum(0)
    squares = [(wide[:n, i] * scales[:n, i + 1].square()).sum() for i in (0, 2)]
    expected = torch.stack([torch.ones(()).double(), *squares, wide[:n, 3].amax(), *sums[4:]])
    torch.testing.assert_close(backward, expected, rtol=1e-12, atol=0)
    pivot, scale, deviations, square = wide[n:, 0], scales[n:, 1], wide[n:, 2], wide[n:, 3]
    deviations, square = deviations * scale, square * scale.square()
    mean = (10 * pivot + deviations).sum() / (10 * n)
    about_mean = (square + 2 * deviations * (pivot - mean) + 10 * (pivot - mean).square()).sum()
    torch.testing.assert_close(forward[1:3], torch.stack([mean, about_mean]), rtol=1e-12, atol=0)


# Of bfloat16 and float16: x whose derivative is above 0 and g f'(x) below half the smallest number
UNDERFLOWS = {
    ("tanh", torch.bfloat16): (30.0, 1e-30),
    ("tanh", torch.float16): (4.0, 1e-6),
    ("sigmoid", torch.bfloat16): (-60.0, 1e-30),
    ("sigmoid", torch.float16): (8.0, 1e-6),
}


@pytest.mark.parametrize(("activation", "dtype"), UNDERFLOWS, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_zeros_that_are_only_rounding_are_false(biased, activation, dtype, device):
    layer = Layer(0, activation, biased, False, SHARE)
    saturated, small = UNDERFLOWS[activation, dtype]
    x = torch.tensor([saturated, saturated, 0.5, 0.5, math.inf, -math.inf], dtype=dtype, device=device)
    g = torch.tensor([small, 0.0, 1.0, 0.0, 1.0, -1.0], dtype=dtype, device=device)
    backward = check(layer, x, g, torch.zeros_like(x) if biased else None)
    assert backward[[4, 7]].tolist() == [5, 1]  # zeros, of which one is false


def test_output_that_has_rounded_to_1_makes_false_zeros(device):
    layer = LAYERS["tanh saving output"]
    x = torch.tensor([3.5, 0.5, 3.5], dtype=torch.bfloat16, device=device)
    assert check(layer, x, torch.tensor([1.0, 1.0, 0.0], dtype=x.dtype, device=device))[[4, 7]].tolist() == [2, 1]


@pytest.mark.parametrize("biased", [False, True])
def test_relu_has_no_false_zeros(biased, device):
    layer = Layer(0, "relu", biased, True, SHARE)
    x = torch.tensor([-1.0, 0.0, -0.0, 1e-45, 2.0], device=device)
    backward = check(layer, x, torch.ones_like(x), torch.zeros_like(x) if biased else None)
    assert backward[[4, 5, 7]].tolist() == [3, 3, 0]


def test_saturation_limits_are_where_the_derivative_crosses_the_share():
    for share in (0.01, 0.1, 0.5, 0.99):
        at = math.atanh(math.sqrt(1 - share))
        assert saturation_limits("tanh", share, False) == pytest.approx((-at, at), rel=1e-7)
        assert saturation_limits("sigmoid", share, False) == pytest.approx((-2 * at, 2 * at), rel=1e-7)
        low, high = saturation_limits("sigmoid", share, True)
        assert 4 * low * (1 - low) == pytest.approx(share, rel=1e-5)
        assert low + high == pytest.approx(1, rel=1e-7)
        low, high = saturation_limits("tanh", share, True)
        assert (1 - high**2, -low) == pytest.approx((share, high), rel=1e-5)
    assert saturation_limits("tanh", 0.1, False)[1] == pytest.approx(1.8184464592)  # arcosh(sqrt(10))
    assert saturation_limits("relu", 0.1, True) == (0, math.inf)


@EVERY_DTYPE
@pytest.mark.parametrize("layer", [layer for layer in LAYERS.values() if layer.activation != "relu"], ids=str)
def test_limit_itself_is_not_saturated_and_the_next_number_is(layer, dtype, device):
    limits = torch.tensor(layer.limits, dtype=torch.float32)
    outward = torch.tensor([-math.inf, math.inf])
    beyond, before = torch.nextafter(limits, outward), torch.nextafter(limits, -outward)
    values = torch.stack([before, limits, beyond]).to(dtype)  # half types round: then their own numbers are judged
    expected = torch.stack([values[:, 0].double() < layer.limits[0], values[:, 1].double() > layer.limits[1]], dim=1)
    if dtype.itemsize >= 4:
        assert expected.tolist() == [[False, False], [False, False], [True, True]]
    bias = torch.zeros(2, dtype=dtype, device=device) if layer.biased and not layer.from_output else None
    tally = kernels.new_tally(device)
    for value in values.to(device):
        tally.backward(layer, torch.ones_like(value), value, bias)
    assert torch.equal(tally.take()[1][:, 5].cpu(), expected.sum(1).double())


FIRING = {  # shape, dimension of the units
    "a number": ((), 0),
    "a vector": ((40,), 0),
    "columns": ((70, 33), 1),
    "columns of sequences": ((3, 5, 24), 2),
    "channels of images": ((3, 6, 5, 7), 1),
    "channels of volumes": ((2, 5, 3, 4, 3), 1),
}
ARRANGED = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.t().contiguous().t() if x.dim() < 3 else x.mT.contiguous().mT,
    "last dimension first": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1) if x.dim() else x,
}


@pytest.mark.parametrize("arranged", ARRANGED.values(), ids=ARRANGED)
@pytest.mark.parametrize(
    ("case", "biased"), [*((case, False) for case in FIRING), *((case, True) for case in FIRING if "column" in case)]
)
def test_units_that_fire_in_any_pass_are_marked(case, biased, arranged, device):
    shape, dimension = FIRING[case]
    layer, tally = Layer(0, "relu", biased, True, SHARE), kernels.new_tally(device)
    fired = Fired.none(torch.empty(shape, device=device))
    n_units = shape[dimension] if shape else 1
    assert (fired.dimension, len(fired.flags)) == (dimension, n_units)
    expected = [0] * n_units
    for unit, number, dtype in (
        (None, 0.0, torch.float64),
        (n_units - 1, math.nan, torch.float32),
        (n_units // 2, 2.0, torch.bfloat16),
    ):
        x = -normal(*shape).abs()
        if unit is not None:
            x[tuple(unit if i == dimension else -1 for i in range(len(shape)))] = number
            expected[unit] = 1
        x = arranged(x.to(dtype).to(device))
        tally.forward(layer, x, torch.zeros(n_units, dtype=dtype, device=device) if biased else None, fired)
        assert fired.fits(x)
        assert fired.flags.tolist() == expected


def test_empty_output_fires_no_unit(device):
    x = torch.empty(0, 5, device=device)
    fired = Fired.none(x)
    for layer, bias in ((LAYERS["relu"], None), (LAYERS["relu with bias"], x.new_zeros(5))):
        kernels.new_tally(device).forward(layer, x, bias, fired)
    assert fired.flags.tolist() == [0] * 5


@pytest.mark.parametrize("layer", [LAYERS["tanh"], LAYERS["sigmoid with bias"]], ids=str)
def test_same_inputs_give_the_same_bits(layer, device):
    x, g = normal(20, 113).float().to(device), normal(20, 113, seed=1).float().to(device)
    tally = kernels.new_tally(device)
    for _ in range(2):
        run(tally, layer, x, g, bias_for(layer, x))
    rows = tally.take()[1]
    run(tally, layer, x, g, bias_for(layer, x))
    assert torch.equal(torch.cat([rows[:2], tally.take()[1]]), torch.cat([rows[2:], rows[2:]]))


@pytest.mark.parametrize(("name", "dtype"), [(name, cases.DTYPES[i % 4]) for i, name in enumerate(LAYERS)], ids=str)
def test_parts_of_a_batch_add_up_to_the_whole(name, dtype, device):
    layer = LAYERS[name]
    x, g = normal(20, 31).to(dtype).to(device), normal(20, 31, seed=1).to(dtype).to(device)
    bias, tally = bias_for(layer, x), kernels.new_tally(device)
    y, dx, _ = run(tally, layer, x, g, bias)
    tally.take()
    for part in (slice(0, 1), slice(1, 8), slice(8, 8), slice(8, 20)):
        run(tally, layer, x[part], g[part], bias)
    keys, rows = tally.take()
    of = {d: rows[[direction == d for _, direction in keys]].cpu() for d in (FORWARD, BACKWARD)}
    assert [len(rows) for rows in of.values()] == [3, 3]  # nothing of the part without rows
    together = torch.stack([of[FORWARD].sum(0), of[BACKWARD].sum(0)])
    number, means, _ = of[FORWARD][:, :3].unbind(1)
    together[0, 1] = mean = (number * means).sum() / number.sum()
    together[0, 2] += (number * (means - mean).square()).sum()
    together[1, 3] = of[BACKWARD][:, 3].amax()
    assert_rows_are(([(0, FORWARD), (0, BACKWARD)], together), *expected_rows(layer, x, g, bias, y, dx))
    assert tally.take() == ([], None)


def test_layers_of_any_size_and_dtype_are_told_apart(device):
    """The room for rows has to grow between the passes, and is used again after they were taken."""
    layers = [replace(layer, number=i) for i, layer in enumerate(LAYERS.values())]
    tally = kernels.new_tally(device)
    for _ in range(2):
        expected = {}
        for i, layer in enumerate(layers):
            dtype = cases.DTYPES[i % 4]
            x, g = (normal(7 + 3 * i, 32, seed=s).to(dtype).to(device) for s in (i, i + 100))
            bias = bias_for(layer, x)
            y, dx, _ = run(tally, layer, x, g, bias)
            expected[i] = expected_rows(layer, x, g, bias, y, dx)
        keys, rows = tally.take()
        assert sorted(keys) == [(i, direction) for i in expected for direction in (FORWARD, BACKWARD)]
        for i in expected:
            mine = [j for j, (number, _) in enumerate(keys) if number == i]
            assert_rows_are(([(0, keys[j][1]) for j in mine], rows[mine]), *expected[i])


@pytest.mark.parametrize("name", ["tanh", "tanh with bias", "relu with bias"])
def test_more_tiles_than_fit_a_block_of_the_second_stage_are_added_up(name, device, change_blocks):
    if kernels.path_for(device) == "plain":
        pytest.skip("the plain path has no tiles")
    change_blocks(statistics=4, programs=3)  # the last program has tiles without rows
    x, g = normal(170, 48).float().to(device), normal(170, 48, seed=1).float().to(device)
    check(LAYERS[name], x, g, bias_for(LAYERS[name], x))


def test_backward_with_bias_fills_just_the_rows_that_it_is_said_to(device, change_blocks):
    if kernels.path_for(device) == "plain":
        pytest.skip("the plain path has no tiles")
    from minigrad_kernels import bias as biased

    change_blocks(programs=3)
    x, layer = normal(170, 48).float().to(device), LAYERS["tanh with bias"]
    n_rows = biased.backward_tiles(x)
    assert n_rows == 12 > biased.tiles(x)  # the last program has three tiles too, one of them without rows
    rows = torch.full((n_rows + 8, kernels.COLUMNS), math.nan, device=device)
    biased.bias_activation_backward(x, x, x[0], "tanh", Watch(rows, layer.limits))
    assert rows[:n_rows].isfinite().all()
    assert rows[n_rows:].isnan().all()
