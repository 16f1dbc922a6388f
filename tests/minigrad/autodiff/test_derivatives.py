import pytest
import torch
from torch.func import functional_call, vmap

import minigrad
from minigrad import gradient, hessian, hessian_vector_product, jacobian

X = torch.tensor([[0.3, -1.2, 2.0], [0.9, -0.4, 1.1]], dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def quadratic(size=4):
    numbers = torch.Generator().manual_seed(1)
    a = torch.randn(size, size, generator=numbers, dtype=torch.float64)
    x, v = torch.randn(2, size, generator=numbers, dtype=torch.float64)
    return a, x, v, lambda x: x @ a @ x / 2


@pytest.fixture
def network():
    """A loss of the parameters by name, the parameters, and other tensors shaped like them."""
    numbers = torch.Generator().manual_seed(2)
    model = minigrad.nn.MLP([3, 4, 1], activation="tanh").double()
    parameters = {
        name: torch.randn(p.shape, generator=numbers, dtype=torch.float64) for name, p in model.named_parameters()
    }
    vector = {name: torch.randn(p.shape, generator=numbers, dtype=torch.float64) for name, p in parameters.items()}
    return (lambda p: functional_call(model, p, (X,)).square().mean()), parameters, vector


def test_a_quadratic_form_has_its_matrix_as_hessian():
    a, x, v, function = quadratic()
    symmetric = (a + a.T) / 2
    close(gradient(function, x), symmetric @ x)
    close(hessian(function, x), symmetric)
    close(hessian_vector_product(function, x, v), symmetric @ v)


def test_a_linear_map_has_its_matrix_as_jacobian():
    a, x, _, _ = quadratic()
    close(jacobian(lambda x: a @ x, x), a)
    assert jacobian(lambda x: (x.sum(), x.outer(x)), x)[1].shape == (4, 4, 4)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_they_give_the_exact_derivatives_of_the_activations(activation):
    function = getattr(minigrad, activation)
    first, second = (minigrad.derivative(activation, X, n) for n in (1, 2))
    identity = torch.eye(X.numel(), dtype=torch.float64)
    close(gradient(lambda x: function(x).sum(), X), first)
    close(jacobian(function, X), (identity * first.flatten()).view(*X.shape, *X.shape))
    close(hessian(lambda x: function(x).sum(), X), (identity * second.flatten()).view(*X.shape, *X.shape))
    close(hessian_vector_product(lambda x: function(x).sum(), X, X), second * X)


def test_parameters_by_name_give_what_nested_autograd_gives(network):
    loss, parameters, vector = network
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    first = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True)
    along = sum((g * vector[name]).sum() for g, name in zip(first, leaves, strict=True))
    second = torch.autograd.grad(along, list(leaves.values()))
    close(gradient(loss, parameters), dict(zip(leaves, [g.detach() for g in first], strict=True)))
    close(hessian_vector_product(loss, parameters, vector), dict(zip(leaves, second, strict=True)))


def test_the_product_is_the_hessian_times_the_vector_also_for_a_dict(network):
    loss, parameters, vector = network
    whole = hessian(loss, parameters)
    product = hessian_vector_product(loss, parameters, vector)
    for row, found in product.items():
        close(found, sum(torch.tensordot(whole[row][name], v, v.dim()) for name, v in vector.items()))


def test_they_agree_with_torch_autograd_functional():
    def function(x):
        return minigrad.sigmoid(x @ x.T).sum()

    close(hessian(function, X), torch.autograd.functional.hessian(function, X))
    close(jacobian(minigrad.tanh, X), torch.autograd.functional.jacobian(torch.tanh, X))


def test_they_nest_and_batch():
    def function(x):
        return minigrad.tanh(x).prod()

    close(jacobian(lambda x: gradient(function, x), X[0]), hessian(function, X[0]))
    for derivative in (gradient, hessian):
        batch = vmap(lambda x, derivative=derivative: derivative(function, x))(X)
        close(batch, torch.stack([derivative(function, x) for x in X]))
    batch = vmap(lambda x, v: hessian_vector_product(function, x, v))(X, X.flip(0))
    close(batch, torch.stack([hessian(function, x) @ v for x, v in zip(X, X.flip(0), strict=True)]))


def test_the_gradient_of_a_leaf_leaves_it_alone_and_is_differentiable_in_turn():
    x = X.clone().requires_grad_()
    found = gradient(lambda x: minigrad.sigmoid(x).sum(), x)
    assert x.grad is None
    close(torch.autograd.grad(found.sum(), x)[0], minigrad.derivative("sigmoid", X, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradient(torch.sin, X), ValueError, r"the function's value is \(2, 3\): return a \(\) tensor"),
        (lambda: hessian(lambda x: x.sum(0), X), ValueError, r"the function's value is \(3,\): return a \(\) tensor"),
        (lambda: gradient(lambda x: 3.0, X), TypeError, r"value is a float: return a \(\) tensor"),
        (lambda: gradient(lambda x: x.argmax(), X), TypeError, "value is torch.int64: return a floating-point tensor"),
        (lambda: gradient(torch.sum, X.long()), TypeError, "`x` is torch.int64: convert it"),
        (lambda: jacobian(torch.sin, X + 0j), TypeError, "`x` is torch.complex128: convert it"),
        (lambda: jacobian(torch.sin, 3.0), TypeError, "`x` is a float: pass a floating-point tensor"),
        (lambda: gradient(sum, {"a": [X, X.long()]}), TypeError, r"`x\['a'\]\[1\]` is torch.int64"),
        (lambda: hessian(torch.sum, {}), TypeError, "`x` holds no tensor"),
        (
            lambda: hessian_vector_product(torch.sum, X, X[0]),
            ValueError,
            r"`vector` is \(3,\) and `x` is \(2, 3\): pass the same shapes",
        ),
        (lambda: hessian_vector_product(torch.sum, X, X.float()), TypeError, "`vector` is torch.float32 and `x` is"),
        (lambda: hessian_vector_product(torch.sum, {"a": X}, {"b": X}), ValueError, "`vector` is no tree like `x`"),
    ],
)
def test_a_mistake_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
