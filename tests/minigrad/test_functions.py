"""The Functions are differentiated every way PyTorch knows, to the tenth order, with the values of the closed forms."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import cases
import minigrad
import reference
from cases import INTERPRETED


def with_bias(function):
    """Return a function of one vector: `function` of a matrix made of it and of a bias made of it."""
    return lambda x: function(torch.stack([x, 3 * x]), 2 * x.flip(-1)).sum(0)


def fused(activation, save="input"):
    return lambda x, bias: minigrad.bias_activation(x, bias, activation, save)


def composite(activation):
    return lambda x, bias: getattr(torch, activation)(x + bias)


# what minigrad computes, and the same from torch's own functions, which float64 makes a reference
FUNCTIONS = {
    "sigmoid": (minigrad.sigmoid, torch.sigmoid),
    "tanh": (minigrad.tanh, torch.tanh),
    "relu": (minigrad.relu, torch.relu),
    "sigmoid saving output": (lambda x: minigrad.sigmoid(x, save="output"), torch.sigmoid),
    "tanh saving output": (lambda x: minigrad.tanh(x, save="output"), torch.tanh),
    "derivative 1 of tanh": (lambda x: minigrad.derivative("tanh", x, 1), lambda x: 1 - torch.tanh(x) ** 2),
    "derivative 2 of sigmoid": (
        lambda x: minigrad.derivative("sigmoid", x, 2),
        lambda x: torch.sigmoid(x) * torch.sigmoid(-x) * (1 - 2 * torch.sigmoid(x)),
    ),
    "derivative 1 of relu": (lambda x: minigrad.derivative("relu", x, 1), lambda x: (x > 0) + 0 * x**4),
    **{f"bias {a}": (with_bias(fused(a)), with_bias(composite(a))) for a in cases.ACTIVATIONS},
    **{f"bias {a} saving output": (with_bias(fused(a, "output")), with_bias(composite(a))) for a in cases.SMOOTH},
}
EVERY_FUNCTION = pytest.mark.parametrize("name", FUNCTIONS)
GRADCHECK_FLAGS = {
    "check_undefined_grad": True,
    "check_batched_grad": True,
    "check_backward_ad": True,
    "check_forward_ad": True,
    "check_batched_forward_grad": True,
}
GRADGRADCHECK_FLAGS = {
    "check_undefined_grad": True,
    "check_batched_grad": True,
    "check_fwd_over_rev": True,
    "check_rev_over_rev": True,
}


def vector(device):
    """Return a vector that keeps every pre-activation of FUNCTIONS 0.1 and more away from ReLU's corner at 0."""
    return torch.tensor([-2.1, -0.4, 0.9, 1.7], dtype=torch.float64, device=device)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)  # float64; torch's own rounding, a few times


def every_order(function, x, highest):
    """Yield the function and its derivatives by nested autograd, each from the one before."""
    x = x.detach().requires_grad_()
    y = function(x)
    yield y.detach()
    for _ in range(highest):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        yield y.detach()


def nested(function, x, order):
    """Differentiate `order` times by nested autograd."""
    *_, y = every_order(function, x, order)
    return y


def nested_forward(function, x, order):
    """Differentiate `order` times by nested forward mode."""
    if order == 0:
        return function(x)
    return jvp(lambda x: nested_forward(function, x, order - 1), (x,), (torch.ones_like(x),))[1]


# These show how the Functions call the kernels, which is the same for every path. That the kernels' values are right
# wherever they are called so, and to 1e-12, the comparisons with torch below show.
MANY_LAUNCHES = pytest.mark.skipif(INTERPRETED, reason="thousands of launches: the plain path shows it")


@MANY_LAUNCHES
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith("bias")])
def test_gradcheck_and_gradgradcheck_with_every_flag(name, device):
    x = vector(device)[1:3].requires_grad_()
    assert gradcheck(FUNCTIONS[name][0], (x,), **GRADCHECK_FLAGS)
    assert gradgradcheck(FUNCTIONS[name][0], (x,), **GRADGRADCHECK_FLAGS)


@MANY_LAUNCHES
@pytest.mark.parametrize("save", ["input", "output"])
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_bias_passes_gradcheck_and_gradgradcheck_with_every_flag(activation, save, device):
    x = torch.tensor([[-1.5], [0.75]], dtype=torch.float64, device=device, requires_grad=True)
    bias = torch.tensor([0.5], dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(fused(activation, save), (x, bias), **GRADCHECK_FLAGS)
    assert gradgradcheck(fused(activation, save), (x, bias), **GRADGRADCHECK_FLAGS)


CLOSED_FORMS = {  # (third, fourth derivative)
    "tanh": (
        lambda x: (1 - x.tanh() ** 2) * (6 * x.tanh() ** 2 - 2),
        lambda x: (1 - x.tanh() ** 2) * (16 * x.tanh() - 24 * x.tanh() ** 3),
    ),
    "sigmoid": (
        lambda x: x.sigmoid() * (-x).sigmoid() * (1 - 6 * x.sigmoid() * (-x).sigmoid()),
        lambda x: x.sigmoid() * (-x).sigmoid() * (1 - 2 * x.sigmoid()) * (1 - 12 * x.sigmoid() * (-x).sigmoid()),
    ),
    "relu": (torch.zeros_like, torch.zeros_like),
}


@pytest.mark.parametrize("order", [3, 4])
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_third_and_fourth_order_are_the_closed_forms(activation, order, device):
    x = torch.linspace(-4, 4, 17, dtype=torch.float64, device=device)
    expected = CLOSED_FORMS[activation][order - 3](x)
    function = getattr(minigrad, activation)
    biased = lambda x: minigrad.bias_activation(x - 0.5, torch.full_like(x, 0.5), activation)  # noqa: E731
    close(nested(function, x, order), expected)
    close(nested(biased, x, order), expected)
    close(nested(lambda x: minigrad.derivative(activation, x, 2), x, order - 2), expected)
    close(minigrad.derivative(activation, x, order), expected)
    if activation != "relu":
        close(nested(lambda x: function(x, save="output"), x, order), expected)


@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_nested_autograd_equals_the_closed_derivative_to_order_ten(activation, device):
    x = torch.tensor([-6.0, -2.5, -0.75, 0.1, 1.25, 3.0, 8.0], dtype=torch.float64, device=device)
    for order, actual in enumerate(every_order(getattr(minigrad, activation), x, 10)):
        expected = minigrad.derivative(activation, x, order)
        # Each term of the nested sum has the error of the contract, 1e-13 of the derivative's scale.
        scale = reference.scale(activation, x.cpu(), order).to(device) if activation in cases.SMOOTH and order else 1.0
        assert ((actual - expected).abs() <= 1e-12 * scale).all(), f"order {order}"


@pytest.mark.parametrize("activation", cases.SMOOTH)
def test_eleventh_derivative_is_refused(activation, device):
    x = torch.tensor([0.5], dtype=torch.float64, device=device, requires_grad=True)
    tenth = minigrad.derivative(activation, x, 10)
    with pytest.raises(ValueError, match=f"derivatives of {activation} go to order 10.*order 11"):
        tenth.backward()
    with pytest.raises(ValueError, match=f"derivatives of {activation} go to order 10.*order 11"):
        nested(getattr(minigrad, activation), x, 11)


@MANY_LAUNCHES
def test_relu_needs_no_limit_because_its_derivatives_are_zero(device):
    x = torch.tensor([-0.5, 0.5], dtype=torch.float64, device=device)
    assert nested(minigrad.relu, x, 11).tolist() == [0, 0]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("dtype", cases.HALVES, ids=str)
@pytest.mark.parametrize("activation", cases.SMOOTH)
def test_nested_autograd_keeps_half_precision_exact(activation, dtype, order, device):
    x = torch.linspace(-9, 9, 301).to(dtype)
    expected = reference.derivative(activation, x, order)
    # 1 ULP of the result, and the contract's float32 bound where the result vanishes between its extremes
    bound = reference.ulp(expected, dtype) + 4e-6 * reference.scale(activation, x, order)
    biased = lambda x: minigrad.bias_activation(x, torch.zeros_like(x), activation)  # noqa: E731
    for differentiate in (nested, nested_forward):
        for function in (getattr(minigrad, activation), biased):
            actual = differentiate(function, x.to(device), order).cpu()
            assert actual.dtype == dtype
            assert ((actual.double() - expected).abs() <= bound).all()


def test_tanh_gradient_survives_saturation_in_bfloat16(device):
    x = torch.tensor([3.5, 5.0, -7.0, 20.0], dtype=torch.bfloat16, device=device, requires_grad=True)
    torch.tanh(x).sum().backward()
    assert x.grad.tolist() == [0, 0, 0, 0]
    x.grad = None
    minigrad.tanh(x).sum().backward()
    assert reference.half_distance(x.grad.cpu(), reference.derivative("tanh", x.detach().cpu(), 1)).max() <= 1


def total(function):
    return lambda x: function(x).sum()


def batch(x):
    return torch.stack([x, 0.5 * x, 2 * x])


def call_vjp(function):
    def call(x):
        y, pull_back = vjp(function, x)
        return pull_back(torch.cos(y.detach()))[0], vmap(pull_back)(torch.diag(torch.ones_like(x)))[0]

    return call


def along(function):
    return lambda x: jvp(function, (x,), (torch.cos(x),))[1]


def grad_through_vjp(function):
    def call(x):
        x = x.detach().requires_grad_()
        (gradient,) = vjp(function, x)[1](torch.cos(x))
        return torch.autograd.grad((gradient * x).sum(), x)[0]

    return call


TRANSFORMS = {
    "grad": lambda f: grad(total(f)),
    "vjp, called after vjp returned": call_vjp,
    "jvp": lambda f: lambda x: jvp(f, (x,), (torch.cos(x),)),
    "jacfwd": jacfwd,
    "jacrev": jacrev,
    "hessian": lambda f: hessian(total(f)),
    "vmap": lambda f: lambda x: vmap(f)(batch(x)),
    "vmap over the last dimension": lambda f: lambda x: vmap(f, in_dims=1, out_dims=1)(batch(x).t()),
    "vmap of grad": lambda f: lambda x: vmap(grad(total(f)))(batch(x)),
    "vmap of jvp": lambda f: lambda x: vmap(lambda v: jvp(f, (x,), (v,))[1])(batch(x)),
    "vmap of hessian": lambda f: lambda x: vmap(hessian(total(f)))(batch(x)),
    "grad of a vmap": lambda f: grad(lambda x: vmap(f)(batch(x)).sum()),
    "jvp of grad": lambda f: lambda x: jvp(grad(total(f)), (x,), (torch.cos(x),)),
    "jacfwd of jacrev": lambda f: jacfwd(jacrev(f)),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f)),
    "jvp of jvp": lambda f: along(along(f)),
    "three nested jvps": lambda f: along(along(along(f))),
    "jacfwd of jacfwd of jacrev": lambda f: jacfwd(jacfwd(jacrev(f))),
    "jacrev of jacfwd of jacfwd": lambda f: jacrev(jacfwd(jacfwd(f))),
    "grad through the function that vjp returned": grad_through_vjp,
    "three nested grads": lambda f: grad(total(grad(total(grad(total(f)))))),
}


@EVERY_FUNCTION
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func_gives_torchs_values(transform, name, device):
    ours, torchs = (TRANSFORMS[transform](function) for function in FUNCTIONS[name])
    close(ours(vector(device)), torchs(vector(device)))


@pytest.mark.parametrize("in_dims", [(None, 0), (0, None), (1, 0)])
@pytest.mark.parametrize("activation", cases.ACTIVATIONS)
def test_vmap_batches_bias_and_input_alone(activation, in_dims, device):
    x, bias = vector(device).expand(3, 4) + 0.03, batch(vector(device))
    arguments = (x if in_dims != (1, 0) else x[:, None].expand(3, 3, 4), bias if in_dims[1] == 0 else bias[0])
    for differentiate in (lambda f: f, lambda f: grad(lambda x, b: f(x, b).sum(), (0, 1))):
        ours = vmap(differentiate(fused(activation)), in_dims)(*arguments)
        close(ours, vmap(differentiate(composite(activation)), in_dims)(*arguments))


@EVERY_FUNCTION
def test_dual_numbers_carry_the_tangent(name, device):
    def tangent(function):
        x = vector(device)
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.cos(x)))).tangent

    close(tangent(FUNCTIONS[name][0]), tangent(FUNCTIONS[name][1]))


@EVERY_FUNCTION
def test_dual_numbers_compose_with_reverse_mode(name, device):
    def products(function):
        x = vector(device).requires_grad_()
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.cos(x.detach()))
            y = function(dual)
            (gradient,) = torch.autograd.grad(y.sum(), dual, create_graph=True)
            forward_over_reverse = forward_ad.unpack_dual(gradient).tangent
            (reverse_over_forward,) = torch.autograd.grad(forward_ad.unpack_dual(y).tangent.sum(), x)
        return forward_over_reverse.detach(), reverse_over_forward

    close(products(FUNCTIONS[name][0]), products(FUNCTIONS[name][1]))


@EVERY_FUNCTION
def test_batched_upstream_gradients_give_jacobian_and_hessian(name, device):
    def matrices(function):
        x, identity = vector(device).requires_grad_(), torch.eye(4, dtype=torch.float64, device=device)
        y = function(x)
        (jacobian,) = torch.autograd.grad(y, x, identity, is_grads_batched=True, retain_graph=True)
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return jacobian, torch.autograd.grad(gradient, x, identity, is_grads_batched=True)[0]

    close(matrices(FUNCTIONS[name][0]), matrices(FUNCTIONS[name][1]))


@EVERY_FUNCTION
def test_batched_upstream_gradients_are_differentiated_again(name, device):
    def second_and_third(function):
        x, identity = vector(device).requires_grad_(), torch.eye(4, dtype=torch.float64, device=device)
        (jacobian,) = torch.autograd.grad(function(x), x, identity, is_grads_batched=True, create_graph=True)
        (second,) = torch.autograd.grad((jacobian.diagonal() * x).sum(), x, create_graph=True)
        (gradient,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
        (batched,) = torch.autograd.grad(gradient, x, identity, is_grads_batched=True, create_graph=True)
        (third,) = torch.autograd.grad((batched.sum(0) * x).sum(), x)
        return second.detach(), third

    close(second_and_third(FUNCTIONS[name][0]), second_and_third(FUNCTIONS[name][1]))


def test_forward_over_reverse_does_not_overflow_in_half_precision(device):
    x = torch.full((1,), 4.0, dtype=torch.float16, device=device)
    large = torch.full_like(x, 300.0)
    _, tangent = torch.func.jvp(lambda x: torch.func.vjp(minigrad.tanh, x)[1](large)[0], (x,), (large,))
    expected = 300.0 * 300.0 * reference.derivative("tanh", x.cpu(), 2)
    torch.testing.assert_close(tangent.cpu().double(), expected, rtol=1e-3, atol=0)


def test_relus_highest_derivative_has_a_forward_mode(device):
    x = torch.tensor([-1.0, 2.0], device=device)
    value, tangent = torch.func.jvp(lambda x: minigrad.derivative("relu", x, 10), (x,), (x,))
    assert not value.any()
    assert not tangent.any()
