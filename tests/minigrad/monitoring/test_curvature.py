import gc
import math
import weakref

import pytest
import torch
from torch.autograd.function import once_differentiable
from torch.func import functional_call

import minigrad
from cases import DTYPES
from minigrad.monitoring.curvature import largest_hessian_eigenvalue


def quadratic(eigenvalues, device="cpu", dtype=torch.float64):
    """Return x'Hx / 2 of these eigenvalues, in a basis of random directions, and x."""
    numbers = torch.Generator().manual_seed(4)
    n = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(n, n, generator=numbers, dtype=torch.float64)).Q
    matrix = (basis * torch.tensor(eigenvalues, dtype=torch.float64) @ basis.T).to(device, dtype)
    x = torch.randn(n, generator=numbers, dtype=torch.float64).to(device, dtype).requires_grad_()
    return (lambda: x @ matrix @ x / 2), x


@pytest.mark.parametrize(
    ("eigenvalues", "largest"),
    [
        ([5.0, 2.0, 1.0, 0.1, 0.0], 5.0),
        ([3.0, 1.0, -7.0, 0.5], -7.0),
        ([4.0, 4.0, 4.0, 1.0, -1.0], 4.0),
        ([-1e-9, 2e-10, 1e-12], -1e-9),
        ([1e9, -2e8], 1e9),
    ],
    ids=["positive", "the negative one dominates", "degenerate", "tiny", "huge"],
)
def test_it_is_the_eigenvalue_of_largest_magnitude_of_a_quadratic(eigenvalues, largest, device):
    loss, x = quadratic(eigenvalues, device)
    found = largest_hessian_eigenvalue(loss, [x], tolerance=1e-10)
    assert found.converged
    assert found.eigenvalue == pytest.approx(largest, rel=1e-9)  # of second order in sqrt(tolerance), over the gap


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_multiple_of_the_identity_takes_one_iteration(dtype, device):
    x = torch.ones(5, dtype=dtype, device=device, requires_grad=True)
    found = largest_hessian_eigenvalue(lambda: x.square().sum(), [x], tolerance=1e-10)
    assert (found.iterations, found.converged) == (1, True)
    # The product is exact in every dtype; that the vector's length was rounded does not matter.
    assert found.eigenvalue == pytest.approx(2, rel=1e-12)


def test_close_eigenvalues_of_one_sign_give_one_between_them():
    loss, x = quadratic([1.0, 0.99, 0.98, 0.1])
    found = largest_hessian_eigenvalue(loss, [x], tolerance=1e-3)
    assert found.converged
    assert 0.98 <= found.eigenvalue <= 1


def test_a_saddle_whose_two_sides_bend_alike_is_not_taken_for_converged():
    loss, x = quadratic([1.0, -1.0])
    found = largest_hessian_eigenvalue(loss, [x], iterations=50)
    assert (found.iterations, found.converged) == (50, False)


def test_it_stops_after_the_iterations_it_is_given():
    loss, x = quadratic([1.0, 0.8])
    few, many = (largest_hessian_eigenvalue(loss, [x], iterations=n, tolerance=1e-12) for n in (3, 200))
    assert (few.iterations, few.converged) == (3, False)
    # What is across shrinks 0.8-fold from about 1 to 1e-6.
    assert 55 < many.iterations < 70
    assert many.converged


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_it_is_that_of_a_network_s_whole_hessian(activation, device):
    numbers = torch.Generator().manual_seed(5)
    model = minigrad.nn.MLP([3, 6, 5, 1], activation=activation).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=numbers, dtype=torch.float64))
    model.to(device)
    inputs, target = (torch.randn(20, n, generator=numbers, dtype=torch.float64).to(device) for n in (3, 1))
    parameters = dict(model.named_parameters())
    names = list(parameters)

    def loss_at(vector):
        parts = vector.split([p.numel() for p in parameters.values()])
        values = {name: part.view_as(parameters[name]) for name, part in zip(names, parts, strict=True)}
        return (functional_call(model, values, (inputs,)) - target).square().mean()

    hessian = torch.func.hessian(loss_at)(torch.cat([p.detach().flatten() for p in parameters.values()]))
    spectrum = torch.linalg.eigvalsh(hessian)
    expected = float(spectrum[spectrum.abs().argmax()])
    found = largest_hessian_eigenvalue(
        lambda: (model(inputs) - target).square().mean(), list(parameters.values()), iterations=1000, tolerance=1e-12
    )
    assert found.converged
    assert found.eigenvalue == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-8), (torch.float16, 1e-5), (torch.bfloat16, 1e-3)])
def test_it_is_found_in_every_dtype(dtype, tolerance, device):
    loss, x = quadratic([5.0, 2.0, -1.0], device, dtype)
    found = largest_hessian_eigenvalue(loss, [x], tolerance=tolerance)
    assert found.converged
    # The matrix and the products are rounded: by half a unit in the last place each.
    assert found.eigenvalue == pytest.approx(5, rel=2 * torch.finfo(dtype).eps)


def test_parameters_may_differ_in_dtype():
    x = torch.ones(3, requires_grad=True)
    y = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    found = largest_hessian_eigenvalue(
        lambda: x.square().sum() + 4 * y.square().sum() + x.sum() * y.sum(), [x, y], tolerance=1e-8
    )
    assert found.converged
    # On vectors (a, a, a, b, b, b, b), H is [[2, 4], [3, 8]]; products in x are rounded to float32.
    assert found.eigenvalue == pytest.approx(5 + math.sqrt(21), rel=1e-6)


def test_a_parameter_that_the_loss_ignores_or_is_linear_in_adds_no_curvature():
    loss, x = quadratic([5.0, 2.0])
    ignored, linear = torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)
    found = largest_hessian_eigenvalue(lambda: loss() + linear.sum(), [ignored, x, linear], tolerance=1e-10)
    assert found.converged
    assert found.eigenvalue == pytest.approx(5, rel=1e-9)


def test_a_hessian_of_zeros_has_eigenvalue_zero():
    x = torch.ones(3, requires_grad=True)
    elsewhere = torch.ones(3, requires_grad=True)
    assert largest_hessian_eigenvalue(lambda: x.sum(), [x]) == (0, 1, True)
    assert largest_hessian_eigenvalue(lambda: x.pow(3).sum() * 0, [x]) == (0, 1, True)
    assert largest_hessian_eigenvalue(lambda: elsewhere.square().sum(), [x]) == (0, 0, True)


def test_a_product_that_is_not_finite_gives_nan():
    x = torch.zeros(2, requires_grad=True)
    found = largest_hessian_eigenvalue(lambda: x.sqrt().sum(), [x])
    assert math.isnan(found.eigenvalue)
    assert (found.iterations, found.converged) == (1, False)


def test_it_leaves_gradients_parameters_and_random_numbers_as_they_were(device):
    loss, x = quadratic([5.0, 2.0, 1.0], device)
    y = torch.ones(2, requires_grad=True, device=device)
    x.grad = torch.full_like(x, 7.0)
    before, generator = x.detach().clone(), torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else generator
    first = largest_hessian_eigenvalue(loss, [x, y])
    assert first == largest_hessian_eigenvalue(loss, [x, y])
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state(), on_device)
    assert x.grad.eq(7).all()
    assert y.grad is None
    assert torch.equal(x, before)


def test_no_graph_is_left():
    x = torch.ones(3, requires_grad=True)
    seen = []

    def loss():
        kept = x.exp()  # its result is what the graph keeps
        seen.append(weakref.ref(kept))
        return kept.sum()

    gc.disable()  # so that it is freed at once, and not when the collector comes
    try:
        largest_hessian_eigenvalue(loss, [x])
        assert seen[0]() is None
    finally:
        gc.enable()


def test_it_works_where_gradients_are_off():
    loss, x = quadratic([5.0, 2.0])
    with torch.no_grad():
        assert largest_hessian_eigenvalue(loss, [x], tolerance=1e-10).eigenvalue == pytest.approx(5, rel=1e-9)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        return 2 * ctx.saved_tensors[0] * upstream


def test_a_function_that_can_be_differentiated_once_is_an_error_and_no_zero():
    x = torch.ones(3, requires_grad=True)
    for loss in (lambda: Once.apply(x).sum(), lambda: Once.apply(x.exp()).sum() + x.square().sum()):
        with pytest.raises(ValueError, match=r"^a Function in the loss is once_differentiable"):
            largest_hessian_eigenvalue(loss, [x])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": []}, "there are no parameters: pass at least one"),
        ({"iterations": 0}, "`iterations` is 0: pass at least 1"),
        ({"tolerance": 0.0}, "`tolerance` is 0.0: pass a number above 0"),
        ({"loss": lambda: torch.ones(())}, "the loss depends on nothing that requires a gradient"),
        ({"loss": lambda: torch.ones(3, requires_grad=True)}, r"the loss is \(3,\): expected one number"),
    ],
)
def test_a_mistake_is_a_clear_error(changes, message):
    loss, x = quadratic([1.0])
    with pytest.raises(ValueError, match=f"^{message}"):
        largest_hessian_eigenvalue(**{"loss": loss, "parameters": [x], **changes})
