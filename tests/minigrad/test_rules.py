import functools
import inspect
import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from minigrad import catalog
from minigrad.config import bind
from minigrad.errors import UserError
from minigrad.rules import RANGES, RULES, adam, adamw, check_rule, gradient_descent, momentum, new_state, rmsprop

# Every rule, and torch's optimizer of the same name for its options.
PEERS = {
    "gradient_descent": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": "momentum"}),
    "nesterov": (functools.partial(torch.optim.SGD, nesterov=True), {"momentum": "momentum"}),
    "rmsprop": (torch.optim.RMSprop, {"decay": "alpha", "epsilon": "eps"}),
    "adam": (torch.optim.Adam, {"epsilon": "eps"}),
    "adamw": (torch.optim.AdamW, {"epsilon": "eps"}),
}
# With a shorter memory and a smaller epsilon Adam dances around the minimum, and one unit in the last place grows to
# 5e-11 in 200 steps, in torch's own too.
UNUSUAL = {"momentum": 0.8, "decay": 0.7, "beta1": 0.6, "beta2": 0.99, "epsilon": 1e-2}


def _options(name: str) -> dict[str, float]:
    parameters = inspect.signature(RULES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _peer(name: str, parameters: list[Tensor], options: dict[str, float], foreach: bool) -> torch.optim.Optimizer:
    optimizer, names = PEERS[name]
    options = dict(options)
    if "beta1" in options:
        options["betas"] = options.pop("beta1"), options.pop("beta2")
    own = {names.get(option, option): value for option, value in options.items()}
    return optimizer(parameters, lr=1.0, foreach=foreach, **own)


def _start(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """A small network's parameters, among them a number and an empty tensor."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 3), (5,), (2, 5), (), (0, 4)]
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(device, dtype).requires_grad_() for tensor in drawn]


def _loss(parameters: list[Tensor]) -> Tensor:
    weight, bias, readout, offset, empty = parameters
    points = torch.linspace(-1, 1, 21, dtype=weight.dtype, device=weight.device).reshape(3, 7)
    hidden = torch.tanh(weight @ points + bias.unsqueeze(1))
    return (readout @ hidden + offset - points[:2].sin()).square().mean() + empty.sum()


def _learning_rate(step: int) -> float:
    return 0.01 * (1.5 + math.sin(step))


def test_gradient_descent_subtracts_the_scaled_gradient_in_place():
    parameters = [torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)]
    gradients = [torch.tensor([10.0, -10.0], dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)]
    places = [parameter.data_ptr() for parameter in parameters]
    gradient_descent(parameters, gradients, 0.1)
    assert parameters[0].tolist() == pytest.approx([0.0, 3.0], abs=1e-15)
    assert parameters[1].item() == pytest.approx(2.95, rel=1e-15)
    assert [parameter.data_ptr() for parameter in parameters] == places
    assert gradients[0].tolist() == [10.0, -10.0]


def test_gradient_descent_follows_the_closed_form_on_a_parabola():
    # f(x) = (x - 3)^2 from 0 at rate 0.1: the distance to 3 shrinks by 1 - 2 * 0.1 at every step.
    x = torch.zeros(1, dtype=torch.float64)
    for _ in range(20):
        gradient_descent([x], [2 * (x - 3)], 0.1)
    assert abs(x.item() - (3 - 3 * 0.8**20)) < 1e-14


def test_a_steady_gradient_gives_a_velocity_of_the_geometric_sum():
    x, velocity = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for _ in range(30):
        momentum([x], [torch.tensor(2.0, dtype=torch.float64)], 0.1, [velocity], momentum=0.5)
    assert velocity.item() == pytest.approx(2 * (1 - 0.5**30) / (1 - 0.5), rel=1e-14)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_first_adaptive_step_has_the_same_length_for_every_gradient(size):
    gradient = torch.tensor([size, -size], dtype=torch.float64)
    for rule, length in ((adam, 0.1), (rmsprop, 0.1 / math.sqrt(1 - 0.99))):
        x = torch.zeros(2, dtype=torch.float64)
        rule([x], [gradient], 0.1, **new_state(rule, [x]))
        assert x.tolist() == pytest.approx([-length, length], rel=2e-4)  # epsilon / (sqrt(1 - 0.99) * 1e-3) is 1e-4


def test_decoupled_decay_shrinks_by_the_same_fraction_whatever_the_gradient_did():
    x = torch.tensor([1.0, -100.0], dtype=torch.float64)
    state = new_state(adamw, [x])
    for _ in range(10):
        adamw([x], [torch.zeros_like(x)], 0.1, **state, weight_decay=0.5)
    assert x.tolist() == pytest.approx([0.95**10, -100 * 0.95**10], rel=1e-14)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
@pytest.mark.parametrize("unusual", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_two_hundred_steps_are_those_of_torch(name, unusual, weight_decay, foreach, device):
    options = {option: UNUSUAL.get(option, value) if unusual else value for option, value in _options(name).items()}
    options["weight_decay"] = weight_decay
    ours, theirs = _start(device), _start(device)
    rule = functools.partial(RULES[name], **options)
    state = new_state(rule, ours)
    optimizer = _peer(name, theirs, options, foreach)
    for step in range(200):
        gradients = list(torch.autograd.grad(_loss(ours), ours))
        with torch.no_grad():
            rule(ours, gradients, _learning_rate(step), **state)
        optimizer.zero_grad()
        _loss(theirs).backward()
        optimizer.param_groups[0]["lr"] = _learning_rate(step)
        optimizer.step()
    assert _loss(ours) < _loss(_start(device)) / 2
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.linalg.vector_norm(mine - other) <= 1e-12 * torch.linalg.vector_norm(other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", RULES)
def test_a_step_keeps_every_dtype_and_place_and_the_gradients(name, dtype, device):
    # float16 rounds an epsilon of 1e-8 to 0.
    options = {"weight_decay": 0.5, **({"epsilon": 1e-4} if "epsilon" in _options(name) else {})}
    rule = functools.partial(RULES[name], **options)
    parameters, exact = _start(device, dtype), _start(device)
    state = new_state(rule, parameters)
    for mine, other in zip(parameters, exact, strict=True):
        other.data.copy_(mine.data)
    gradients = [tensor.detach().sin() for tensor in parameters]
    before = [tensor.clone() for tensor in gradients]

    def tensors() -> list[Tensor]:
        states = [each if isinstance(each, list) else [each] for each in state.values()]
        return [*parameters, *gradients, *(tensor for each in states for tensor in each)]

    places = [(tensor.data_ptr(), tensor.dtype, tensor.shape) for tensor in tensors()]
    with torch.no_grad():
        rule(parameters, gradients, 0.1, **state)
        rule(exact, [tensor.double() for tensor in before], 0.1, **new_state(rule, exact))
    assert [(tensor.data_ptr(), tensor.dtype, tensor.shape) for tensor in tensors()] == places
    assert all(torch.equal(after, then) for after, then in zip(gradients, before, strict=True))
    for mine, other in zip(parameters, exact, strict=True):
        # Each of a rule's operations rounds; a step is at most 1 here, so that absolute errors count as of 1.
        error = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(mine.double(), other, rtol=error, atol=error)


def test_a_narrow_parameter_leaves_a_wide_one_exact():
    wide, alone = torch.tensor([0.3, -0.7]), torch.tensor([0.3, -0.7])
    narrow = torch.tensor([0.3], dtype=torch.bfloat16)
    state, state_alone = new_state(adam, [narrow, wide]), new_state(adam, [alone])
    for _ in range(3):
        adam([narrow, wide], [narrow.sin(), wide.sin()], 0.1, **state)
        adam([alone], [alone.sin()], 0.1, **state_alone)
    assert torch.equal(wide, alone)
    assert narrow.dtype == torch.bfloat16


@pytest.mark.parametrize("name", RULES)
def test_no_rule_reads_a_tensor_on_the_host(name):
    # A meta tensor has no values: whatever asks for one fails.
    parameters = [torch.empty(shape, device="meta") for shape in [(5, 3), ()]]
    rule = functools.partial(RULES[name], weight_decay=0.1)
    rule(parameters, [torch.empty_like(tensor) for tensor in parameters], 0.1, **new_state(rule, parameters))


@pytest.mark.gpu
@pytest.mark.parametrize("name", RULES)
def test_no_rule_waits_for_the_gpu(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA or ROCm device")
    parameters = [torch.ones(shape, device="cuda") for shape in [(5, 3), ()]]
    gradients = [torch.ones_like(tensor) for tensor in parameters]
    rule = functools.partial(RULES[name], weight_decay=0.1)
    state = new_state(rule, parameters)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rule(parameters, gradients, 0.1, **state)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_rules_are_found_by_their_own_names():
    assert all(rule.__name__ == name for name, rule in RULES.items())


@pytest.mark.parametrize("name", RULES)
def test_a_rule_s_defaults_are_those_of_its_config(name):
    node = OmegaConf.to_container(OmegaConf.load(catalog.CONFIGS / "rule" / f"{name}.yaml"))
    assert node == {"name": name, **_options(name)}
    assert "weight_decay" in node
    bound = bind(RULES, node, "rule")
    check_rule(bound)
    assert new_state(bound, _start()).keys() == new_state(RULES[name], _start()).keys()


def test_every_option_of_every_rule_has_a_range():
    assert {option for name in RULES for option in _options(name)} == RANGES.keys()


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("momentum", "momentum", 1.5, "rule.momentum=1.5: expected a number from 0 to below 1"),
        ("nesterov", "momentum", 1.0, "rule.momentum=1.0: expected a number from 0 to below 1"),
        ("rmsprop", "decay", -0.1, "rule.decay=-0.1: expected a number from 0 to below 1"),
        ("adam", "beta2", math.nan, "rule.beta2=nan: expected a number from 0 to below 1"),
        ("adam", "beta1", "most", "rule.beta1=most: expected a number from 0 to below 1"),
        ("adamw", "epsilon", 0.0, "rule.epsilon=0.0: expected a finite number above 0"),
        ("gradient_descent", "weight_decay", -1, "rule.weight_decay=-1: expected a number from 0 to 1e6"),
        ("adamw", "weight_decay", math.inf, "rule.weight_decay=inf: expected a number from 0 to 1e6"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(name, option, value, expected):
    with pytest.raises(UserError) as caught:
        check_rule(functools.partial(RULES[name], **{option: value}))
    assert str(caught.value) == expected


def test_state_follows_the_signature_and_starts_at_zero():
    parameters = _start(dtype=torch.float32)
    assert new_state(gradient_descent, parameters) == {}
    state = new_state(functools.partial(adam, beta1=0.5), parameters)
    assert list(state) == ["mean", "square", "updates"]
    for name in ("mean", "square"):
        for tensor, parameter in zip(state[name], parameters, strict=True):
            assert (tensor.shape, tensor.dtype, tensor.requires_grad) == (parameter.shape, torch.float32, False)
            assert not tensor.any()
    assert (state["updates"].shape, state["updates"].dtype, state["updates"].item()) == ((), torch.float64, 0)


def test_state_keeps_the_strides_of_its_parameter():
    parameter = torch.zeros(3, 4).t()
    assert new_state(momentum, [parameter])["velocity"][0].stride() == parameter.stride()


def test_state_of_another_kind_is_refused_by_name():
    def rule(parameters: list[Tensor], gradients: list[Tensor], learning_rate: float, count: int) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match=r"^the rule's state 'count' is annotated int: expected list\[Tensor\]"):
        new_state(rule, _start())
