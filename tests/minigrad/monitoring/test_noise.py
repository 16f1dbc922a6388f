import math

import pytest
import torch

from minigrad.monitoring.noise import gradient_noise_scale


def losses_of(gradients, parameters):
    """Yield losses that are linear in the parameters and have these gradients, (batches, elements)."""
    for gradient in gradients:
        parts = gradient.split([p.numel() for p in parameters])
        yield lambda parts=parts: sum((p.flatten() * part).sum() for p, part in zip(parameters, parts, strict=True))


@pytest.fixture
def parameters(device):
    return [torch.ones(*shape, dtype=torch.float64, device=device, requires_grad=True) for shape in ((3, 4), (5,))]


def test_it_is_the_formula_of_appendix_a_1(parameters, device):
    numbers = torch.Generator().manual_seed(0)
    gradients = (1 + torch.randn(6, 17, generator=numbers, dtype=torch.float64)).to(device)
    found = gradient_noise_scale(losses_of(gradients, parameters), parameters, batch_size=10)
    b_small, b_big = 10, 60
    small, big = float(gradients.square().sum(1).mean()), float(gradients.mean(0).square().sum())
    squared_gradient = (b_big * big - b_small * small) / (b_big - b_small)
    trace = (small - big) / (1 / b_small - 1 / b_big)
    # Both are float64; the formula subtracts numbers of the size of its result.
    assert found == pytest.approx((squared_gradient, trace, trace / squared_gradient), rel=1e-12)


def test_samples_around_a_mean_give_their_variance_over_the_distance(device):
    # Of |x - sample|^2 / 2, the gradient is x - sample: Sigma is the samples' covariance, G the way from their mean.
    numbers = torch.Generator().manual_seed(1)
    deviations = torch.linspace(0.5, 2, 40, dtype=torch.float64)
    mean = torch.full((40,), 0.3, dtype=torch.float64)
    x = torch.zeros(40, dtype=torch.float64, device=device, requires_grad=True)

    def loss():
        samples = mean + deviations * torch.randn(8, 40, generator=numbers, dtype=torch.float64)
        return (x - samples.to(device)).square().sum(1).mean() / 2

    found = gradient_noise_scale([loss] * 500, [x], batch_size=8)
    variances = deviations.square()
    trace, squared_gradient = float(variances.sum()), float(mean.square().sum())
    # Four standard deviations of the two estimates, by the moments of normal numbers; there are 4000 samples.
    trace_error = 4 * math.sqrt(2 * float(variances.square().sum()) / 499)
    error = 4 * math.sqrt(4 * float((mean.square() * variances).sum()) / 4000)
    assert found.trace == pytest.approx(trace, abs=trace_error)
    assert found.squared_gradient == pytest.approx(squared_gradient, abs=error)
    assert found.scale == pytest.approx(trace / squared_gradient, rel=trace_error / trace + error / squared_gradient)
    assert trace_error / trace + error / squared_gradient < 0.2


def test_linear_regression_has_the_noise_of_its_residuals(device):
    # y = 2 x1 + e with normal x1, x2 of variance 1 and e of variance 1/4. At w = (3, 0) a sample's gradient is
    # (x1 - e) (x1, x2): G = (1, 0) and tr(Sigma) = E x1^4 + E x1^2 x2^2 + E e^2 (x1^2 + x2^2) - |G|^2 = 3.5.
    numbers = torch.Generator().manual_seed(2)
    w = torch.tensor([3.0, 0.0], dtype=torch.float64, device=device, requires_grad=True)

    def loss():
        x = torch.randn(16, 2, generator=numbers, dtype=torch.float64)
        y = 2 * x[:, 0] + 0.5 * torch.randn(16, generator=numbers, dtype=torch.float64)
        return (x.to(device) @ w - y.to(device)).square().mean() / 2

    found = gradient_noise_scale([loss] * 1000, [w], batch_size=16)
    # Over 30 other seeds these have relative standard deviations of 3.2 %, 2.2 % and 2.9 %: four times that.
    assert found.trace == pytest.approx(3.5, rel=0.13)
    assert found.squared_gradient == pytest.approx(1, rel=0.09)
    assert found.scale == pytest.approx(3.5, rel=0.12)


def test_batches_that_agree_have_no_noise(parameters, device):
    gradient = torch.randn(17, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(device)
    found = gradient_noise_scale(losses_of([gradient] * 7, parameters), parameters, batch_size=4)
    assert (found.trace, found.scale) == (0, 0)
    assert found.squared_gradient == pytest.approx(float(gradient.square().sum()), rel=1e-14)


def test_little_noise_on_a_large_gradient_keeps_its_digits(device):
    x = torch.ones(2, device=device, requires_grad=True)
    noise = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], device=device)
    found = gradient_noise_scale(losses_of(4096 + noise / 8, [x]), [x], batch_size=1)
    # The mean is rounded to 2^-12, 0.2 % of a deviation; the difference of its square and theirs would be off by 2.
    assert found.trace == pytest.approx(4 / 64 / 3, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_half_types_are_kept_in_float32(dtype, device):
    x = torch.ones(1, dtype=dtype, device=device, requires_grad=True)
    gradients = torch.tensor([[1.0], [1.0], [2.0]], dtype=dtype, device=device)
    found = gradient_noise_scale(losses_of(gradients, [x]), [x], batch_size=1)
    assert found == pytest.approx((16 / 9 - 1 / 9, 1 / 3, 1 / 5), rel=1e-6)


def test_a_squared_gradient_below_zero_has_no_scale(parameters, device):
    gradient = torch.ones(17, dtype=torch.float64, device=device)
    found = gradient_noise_scale(losses_of([gradient, -gradient], parameters), parameters, batch_size=1)
    assert found.trace == pytest.approx(34)
    assert found.squared_gradient == pytest.approx(-17)
    assert math.isnan(found.scale)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_has_no_scale(value, parameters, device):
    gradients = torch.ones(3, 17, dtype=torch.float64, device=device)
    gradients[1, 2] = value
    found = gradient_noise_scale(losses_of(gradients, parameters), parameters, batch_size=1)
    assert math.isnan(found.scale)
    assert not math.isfinite(found.trace)


def test_it_leaves_gradients_and_parameters_as_they_were(parameters, device):
    first, second = parameters
    first.grad = torch.full_like(first, 7.0)
    gradients = torch.ones(2, 17, dtype=torch.float64, device=device)
    gradient_noise_scale(losses_of(gradients, parameters), parameters, batch_size=1)
    assert first.grad.eq(7).all()
    assert second.grad is None
    assert all(p.eq(1).all() for p in parameters)


def test_a_parameter_that_the_losses_ignore_adds_nothing(parameters, device):
    gradients = torch.arange(34, dtype=torch.float64, device=device).view(2, 17)
    ignored = torch.ones(3, device=device, requires_grad=True)
    alone, beside = (
        gradient_noise_scale(losses_of(gradients, parameters), tensors, batch_size=2)
        for tensors in (parameters, [ignored, *parameters])
    )
    assert beside == pytest.approx(alone, rel=1e-14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": []}, "`losses` gives 0: pass at least 2"),
        ({"losses": [lambda: torch.ones((), requires_grad=True)]}, "`losses` gives 1: pass at least 2"),
        ({"losses": [lambda: torch.ones(())]}, "a loss depends on nothing that requires a gradient"),
        ({"parameters": []}, "there are no parameters: pass at least one"),
        ({"batch_size": 0}, "`batch_size` is 0: pass the number of samples"),
    ],
)
def test_a_mistake_is_a_clear_error(changes, message):
    given = {"losses": [], "parameters": [torch.ones(1, requires_grad=True)], "batch_size": 1}
    with pytest.raises(ValueError, match=f"^{message}"):
        gradient_noise_scale(**{**given, **changes})
