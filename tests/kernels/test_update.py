"""The fused update: every rule within 1 ULP, whatever tensors look like, and nothing of a step that is not finite."""

import itertools
import math

import mpmath
import pytest
import torch

import cases
import minigrad_kernels as kernels
import reference

if not cases.INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs Triton's kernels: a GPU, or the interpreter", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("poisoned")

OPTIONS = {
    "gradient_descent": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9},
    "rmsprop": {"decay": 0.99, "epsilon": 1e-8},
    "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
    "adamw": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
}
N_STATES = {"gradient_descent": 0, "momentum": 1, "nesterov": 1, "rmsprop": 1, "adam": 2, "adamw": 2}
COUNTS = ("adam", "adamw")
EVERY_RULE = pytest.mark.parametrize("rule", OPTIONS)
RATE = 0.037


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu)] if not cases.INTERPRETED else ["cpu"])
def device(request):
    return torch.device(request.param)


def number(value: float, device) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, device=device)


def new_state(rule: str, parameters, updates: float = 0.0):
    """Return the state of a rule at its start: zeros, and how many updates there were."""
    state = {f"state {i}": [torch.zeros_like(p) for p in parameters] for i in range(N_STATES[rule])}
    return state | ({"updates": number(updates, parameters[0].device)} if rule in COUNTS else {})


def new_update(rule: str, parameters, state=None, decay: float = 0.0, **arguments):
    options = OPTIONS[rule] | {"weight_decay": decay}
    state = new_state(rule, parameters) if state is None else state
    return kernels.new_fused_update(rule, options, parameters, state, **arguments)


def exact_step(rule: str, decay: float, updates: int, p: float, g: float, *state: float) -> list[mpmath.mpf]:
    """Return what a parameter and its state become, in fifty digits."""
    p, g, rate, decay, *state = map(mpmath.mpf, (p, g, RATE, decay, *state))
    options = {name: mpmath.mpf(value) for name, value in OPTIONS[rule].items()}
    if rule == "adamw":
        p = p * (1 - rate * decay)
    else:
        g = g + decay * p
    if rule == "gradient_descent":
        return [p - rate * g]
    if rule in ("momentum", "nesterov"):
        velocity = options["momentum"] * state[0] + g
        ahead = g + options["momentum"] * velocity
        return [p - rate * (ahead if rule == "nesterov" else velocity), velocity]
    kept = options.get("decay", options.get("beta2"))
    square = kept * state[-1] + (1 - kept) * g * g
    if rule == "rmsprop":
        return [p - rate * g / (mpmath.sqrt(square) + options["epsilon"]), square]
    mean = options["beta1"] * state[0] + (1 - options["beta1"]) * g
    mean_hat = mean / (1 - options["beta1"] ** updates)
    square_hat = square / (1 - options["beta2"] ** updates)
    return [p - rate * mean_hat / (mpmath.sqrt(square_hat) + options["epsilon"]), mean, square]


def numbers_of(rule: str, dtype: torch.dtype, n: int) -> list[torch.Tensor]:
    """Return parameters, gradients and state: of all sizes, zeros, and means that the gradient cancels."""
    generator = torch.Generator().manual_seed(n)

    def drawn(low: float) -> torch.Tensor:
        sign = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0).double()
        return sign * torch.exp2(torch.rand(n, generator=generator, dtype=torch.float64) * low)

    p, g, state = drawn(-20), drawn(-12), [drawn(-12) for _ in range(N_STATES[rule])]
    p[::5] = 0
    g[1::7] = 0
    if rule in ("rmsprop", *COUNTS):
        state[-1] = state[-1].square()
    if rule in COUNTS:
        state[0][::3] = -g[::3] / 9 * (1 + 2.0**-12)  # 0.9 of it and 0.1 of the gradient nearly cancel
    return [tensor.to(dtype) for tensor in (p, g, *state)]


@EVERY_RULE
@pytest.mark.parametrize(("updates", "decay"), [(1, 0.0), (1000, 0.1)])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_a_step_is_rounded_once(rule, updates, decay, dtype, device):
    """So it is within 1 ULP of the larger of the old parameter and its change, whose sum may be one binade above."""
    p, g, *state = numbers_of(rule, dtype, 80)
    before = [tensor.double().tolist() for tensor in (p, g, *state)]
    p, g, *state = (tensor.to(device) for tensor in (p, g, *state))
    given = {f"state {i}": [tensor] for i, tensor in enumerate(state)}
    if rule in COUNTS:
        given["updates"] = number(updates - 1, device)
    new_update(rule, [p], given, decay).apply([g], number(RATE, device))
    with mpmath.workdps(50):
        for i, numbers in enumerate(zip(*before, strict=True)):
            expected = exact_step(rule, decay, updates, *numbers)
            old = [numbers[0], *numbers[2:]]
            for was, new, exact in zip(old, [p, *state], expected, strict=True):
                larger = torch.tensor([max(abs(was), abs(float(exact)))], dtype=torch.float64)
                error = abs(mpmath.mpf(new[i].item()) - exact) / reference.ulp(larger, dtype).item()
                assert error <= (0.51 if dtype in cases.HALVES else 0.5001), (numbers, new[i].item(), float(exact))
    if rule in COUNTS:
        assert given["updates"].item() == updates


TENSORS = {
    name: layout
    for name, layout in cases.LAYOUTS.items()
    if "expanded" not in name  # whose elements share memory: no parameter
}


@pytest.mark.parametrize("rule", ["gradient_descent", "adam"])
def test_every_layout_dtype_and_size_comes_out_as_a_tensor_of_its_own(rule, device):
    """All at once, in one model, against one tensor after the other, dense and aligned."""
    kinds = list(itertools.product(TENSORS, (torch.bfloat16, torch.float32, torch.float64)))
    parameters = [TENSORS[name](dtype, device) for name, dtype in kinds]
    gradients = [0.1 * TENSORS[name](dtype, device) for name, dtype in kinds]
    bases = [p._base.clone() if p._is_view() else None for p in parameters]
    alone = [p.clone(memory_format=torch.contiguous_format) for p in parameters]
    together = new_update(rule, parameters)
    numbers = together.apply(gradients, number(RATE, device)).numbers
    for kind, p, g, base, norm, expected in zip(
        kinds, parameters, gradients, bases, numbers[3:].tolist(), alone, strict=True
    ):
        outcome = new_update(rule, [expected]).apply([g.contiguous()], number(RATE, device))
        assert torch.equal(p, expected), kind
        assert norm == pytest.approx(outcome.numbers[3].item(), rel=1e-6), kind
        assert norm == pytest.approx(g.double().norm().item(), rel=1e-5), kind
        if base is not None:  # what lies between and around the elements is as it was
            untouched = torch.ones_like(base, dtype=torch.bool)
            untouched.as_strided(p.shape, p.stride(), p.storage_offset()).fill_(False)
            assert torch.equal(p._base[untouched], base[untouched]), kind


@pytest.mark.parametrize("name", ["transposed", "sliced", "expanded", "expanded scalar", "misaligned"])
def test_a_gradient_may_lie_otherwise_than_its_parameter(name, device):
    g = cases.LAYOUTS[name](torch.float32, device)
    p, expected = torch.ones(g.shape, device=device), torch.ones(g.shape, device=device)
    update = new_update("momentum", [p])
    for scale in (1.0, -3.0):  # other numbers at the same place
        update.apply([g], number(RATE, device))
        if scale == 1.0:
            first = p.clone()
            g = g.clone() if name.startswith("expanded") else g.mul_(-3.0)
    other = new_update("momentum", [expected])
    other.apply([cases.LAYOUTS[name](torch.float32, device).contiguous()], number(RATE, device))
    assert torch.equal(first, expected)
    other.apply([g.contiguous()], number(RATE, device))
    assert torch.equal(p, expected)


@EVERY_RULE
def test_a_parameter_without_a_gradient_is_left_alone(rule, device):
    parameters = [torch.ones(5, device=device), torch.ones(3, device=device)]
    state = new_state(rule, parameters)
    outcome = new_update(rule, parameters, state, decay=0.1).apply([None, parameters[1].clone()], number(RATE, device))
    assert parameters[0].tolist() == [1] * 5
    assert 1 not in parameters[1].tolist()
    assert not any(tensors[0].any() for tensors in state.values() if isinstance(tensors, list))
    assert outcome.numbers[1:].tolist() == pytest.approx([math.sqrt(3), 1, 0, math.sqrt(3)])


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_norms_are_right_where_squares_are_no_float32(scale, device):
    parameters = [torch.zeros(n, device=device) for n in (5000, 3, 0)]
    gradients = [
        scale * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(device) for p in parameters
    ]
    numbers = new_update("gradient_descent", parameters).apply(gradients, number(0.1, device)).numbers
    norms = [g.double().norm().item() for g in gradients]
    assert numbers[3:].tolist() == pytest.approx(norms, rel=1e-6)
    assert numbers[1].item() == pytest.approx(math.hypot(*norms), rel=1e-6)


def test_many_tiles_are_added_up_to_the_same_norm(device, change_blocks):
    parameters = [torch.zeros(9000, device=device), torch.zeros(700, dtype=torch.float64, device=device)]
    gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p) for p in parameters]
    norms = []
    for many in (1000, 8):
        change_blocks(norms=4, many_tiles=many)
        numbers = new_update("gradient_descent", parameters).apply(gradients, number(0.1, device)).numbers
        norms.append(numbers[1].item())
    assert norms[0] == pytest.approx(math.hypot(*(g.double().norm().item() for g in gradients)), rel=1e-6)
    assert norms[1] == pytest.approx(norms[0], rel=1e-14)


@pytest.mark.parametrize("clip_norm", [0.5, 1e3])
def test_a_longer_gradient_is_scaled_to_the_norm(clip_norm, device):
    parameters = [torch.zeros(40, 30, device=device), torch.zeros(7, device=device)]
    gradients = [torch.ones_like(p) for p in parameters]
    outcome = new_update("gradient_descent", parameters, clip_norm=clip_norm).apply(gradients, number(1.0, device))
    norm = math.sqrt(1207)
    assert outcome.numbers[1].item() == pytest.approx(norm)
    expected = -min(clip_norm / norm, 1)
    assert all(value == pytest.approx(expected, rel=1e-6) for p in parameters for value in p.view(-1).tolist())
    assert all((g == 1).all() for g in gradients)


@pytest.mark.parametrize("n", [1, 3, 1024, 3000])
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_a_clipped_step_is_rounded_once_too(n, dtype, device):
    generator = torch.Generator().manual_seed(n)
    g = (torch.randn(n, generator=generator) * torch.rand(n, generator=generator).exp()).to(dtype)
    p = torch.zeros(n, dtype=dtype, device=device)
    new_update("gradient_descent", [p], clip_norm=0.3).apply([g.to(device)], number(RATE, device))
    with mpmath.workdps(50):
        elements = [mpmath.mpf(value) for value in g.double().tolist()]
        norm = mpmath.sqrt(sum(value * value for value in elements))
        exact = [-mpmath.mpf(RATE) * value * min(mpmath.mpf(0.3) / norm, 1) for value in elements]
        ulps = reference.ulp(torch.tensor([float(value) for value in exact], dtype=torch.float64), dtype).tolist()
        errors = [abs(new - value) / ulp for new, value, ulp in zip(p.double().tolist(), exact, ulps, strict=True)]
    assert max(errors) <= {torch.float32: 0.501, torch.float64: 2}.get(dtype, 0.51)


BAD = {
    "NaN in a gradient": (math.nan, 1.0),
    "an infinite gradient": (-math.inf, 1.0),
    "NaN for a loss": (1.0, math.nan),
    "an infinite loss": (1.0, math.inf),
}


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_a_step_that_is_not_finite_changes_nothing(bad, stops, device):
    parameters = [torch.ones(2000, device=device), torch.ones(3, device=device, dtype=torch.float64)]
    state = new_state("adam", parameters)
    update = new_update("adam", parameters, state, stops=stops)
    good = [torch.ones_like(p) for p in parameters]

    def everything():
        return [t.clone() for t in (*parameters, *state["state 0"], *state["state 1"], state["updates"])]

    def applied(gradients, loss=1.0):
        loss = torch.tensor(loss, device=device)
        return update.apply(gradients, number(RATE, device), loss).numbers[2].item()

    assert applied(good) == 1
    before = everything()
    element, loss = BAD[bad]
    gradients = [g.clone() for g in good]
    gradients[0][1999] = element
    assert applied(gradients, loss) == 0
    assert all(map(torch.equal, everything(), before))
    assert applied(good) == (0 if stops else 1)
    assert all(map(torch.equal, everything(), before)) == stops
    update.release()
    assert applied(good) == 1
    assert state["updates"].item() == (2 if stops else 3)


def test_a_square_that_overflows_is_infinite_and_no_nan(device):
    p = torch.ones(3, device=device)
    state = new_state("adam", [p])
    new_update("adam", [p], state).apply([torch.full_like(p, 1e25)], number(RATE, device))
    assert state["state 1"][0].tolist() == [math.inf] * 3
    assert p.tolist() == [1] * 3


@EVERY_RULE
def test_what_is_measured_is_what_happened(rule, device):
    parameters = [
        t(torch.float32, device) for t in (cases.LAYOUTS["several blocks and a rest"], cases.LAYOUTS["transposed"])
    ]
    parameters.append(cases.LAYOUTS["63"](torch.bfloat16, device))
    parameters.append(cases.LAYOUTS["63"](torch.float64, device))
    directions = [
        torch.full((p.numel(),), math.nan, device=device).to(torch.promote_types(p.dtype, torch.float32))
        for p in parameters
    ]
    update = new_update(rule, parameters, directions=directions, clip_norm=1.0)
    bits = [p.clone() for p in parameters]
    plain = new_update(rule, bits, clip_norm=1.0)
    generator = torch.Generator().manual_seed(0)
    last = None
    for _ in range(2):
        before = [p.double() if p.dtype != torch.float64 else p.clone() for p in parameters]
        gradients = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]
        measured = update.apply(gradients, number(RATE, device)).measured
        plain.apply(gradients, number(RATE, device))
        changes = [p.double() - b for p, b in zip(parameters, before, strict=True)]
        for i, row in enumerate([gradients, before, changes]):
            assert measured[i].tolist() == pytest.approx([t.double().norm().item() for t in row], rel=1e-5)
        if last is not None:
            cosines = [
                torch.cosine_similarity(a.double().reshape(-1), b.double().reshape(-1), dim=0)
                for a, b in zip(gradients, last, strict=True)
            ]
            assert measured[3].tolist() == pytest.approx([c.item() for c in cosines], abs=1e-6)
        else:
            assert measured[3].isnan().all()
        last = gradients
    assert all(map(torch.equal, parameters, bits))


def test_of_a_parameter_without_a_gradient_nothing_is_measured(device):
    parameters = [torch.ones(n, device=device) for n in (5, 0, 3)]
    directions = [torch.full_like(p, math.nan) for p in parameters]
    update = new_update("gradient_descent", parameters, directions=directions)
    update.apply([torch.ones_like(p) for p in parameters], number(0.5, device))
    measured = update.apply([None, *map(torch.ones_like, parameters[1:])], number(0.5, device)).measured
    assert measured[:, 0].isnan().all()
    assert measured[:3, 1].tolist() == [0, 0, 0]
    assert measured[:, 2].tolist() == pytest.approx([math.sqrt(3), 0.5 * math.sqrt(3), 0.5 * math.sqrt(3), 1])


def test_a_row_is_put_where_the_device_says(device):
    table = torch.zeros(3, 1030, dtype=torch.float64, device=device)
    values = torch.arange(1030, dtype=torch.float64, device=device)
    kernels.put_row(table, torch.tensor([1], device=device), values)
    kernels.put_row(table[:, :0], torch.tensor([1], device=device), values[:0])
    assert torch.equal(table, torch.stack([torch.zeros_like(values), values, torch.zeros_like(values)]))


def test_parameters_and_gradients_may_move(device):
    p = torch.nn.Parameter(torch.zeros(3, device=device))
    update = new_update("gradient_descent", [p])
    for i in range(3):
        g = [torch.full((3,), float(i), device=device) for _ in range(i + 1)][-1]
        if i == 2:
            p.data = torch.full((3,), 5.0, device=device)
        update.apply([g], number(1.0, device))
    assert p.tolist() == [3.0] * 3


def test_without_a_guard_the_bits_are_the_same(device):
    parameters, others = ([torch.ones(1500, device=device), torch.ones(3, device=device)] for _ in range(2))
    gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(device) for p in parameters]
    new_update("adam", parameters).apply(gradients, number(RATE, device))
    new_update("adam", others).apply_unguarded(gradients, number(RATE, device))
    assert all(map(torch.equal, parameters, others))
    with pytest.raises(ValueError, match="need the norms of the gradients: call apply"):
        new_update("adam", parameters, clip_norm=1.0).apply_unguarded(gradients, number(RATE, device))


def test_a_backward_pass_over_a_changed_parameter_is_refused(device):
    p = torch.ones(3, device=device, requires_grad=True)
    loss = (p * p).sum()
    new_update("gradient_descent", [p]).apply([torch.ones(3, device=device)], number(0.1, device))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_does_not_fit_is_refused(device):
    p = torch.zeros(3, device=device)
    with pytest.raises(ValueError, match="unknown rule 'sgd'; there are: gradient_descent, momentum"):
        kernels.new_fused_update("sgd", {}, [p], {})
    with pytest.raises(ValueError, match="0 lists of tensors and 0 counts of updates: adam needs 2 and 1"):
        new_update("adam", [p], {})
    with pytest.raises(ValueError, match="no parameters"):
        new_update("momentum", [], {"velocity": []})
    with pytest.raises(TypeError, match=r"parameter 0 is of torch\.int64"):
        new_update("gradient_descent", [p.long()])
    with pytest.raises(ValueError, match="state of parameter 0 does not lie as it does"):
        new_update("momentum", [p], {"velocity": [torch.zeros(4, device=device)]})
    with pytest.raises(ValueError, match=r"direction 0 is \(4,\) of torch.float32: pass \(3,\)"):
        new_update("gradient_descent", [p], directions=[torch.zeros(4, device=device)])
    with pytest.raises(ValueError, match=r"a gradient is \(4,\) of torch.float32 .* pass one alike"):
        new_update("gradient_descent", [p]).apply([torch.zeros(4, device=device)], number(0.1, device))
    with pytest.raises(ValueError, match="parameters 0 and 2 are the same memory: pass it once"):
        new_update("gradient_descent", [p, torch.zeros(2, device=device), p.view(3, 1)])
    with pytest.raises(ValueError, match="parameter 0 is expanded"):
        new_update("gradient_descent", [p[:1].expand(4)])
    with pytest.raises(ValueError, match="1 gradients came for 2 parameters"):
        new_update("gradient_descent", [p, p.clone()]).apply([p], number(0.1, device))


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    device = torch.device("cuda")
    parameters = [torch.ones(5000, device=device), torch.ones(3, device=device)]
    update = new_update("adam", parameters, clip_norm=1.0, stops=True)
    rate, loss = number(RATE, device), torch.ones((), device=device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            update.apply([torch.ones_like(p) for p in parameters], rate, loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
