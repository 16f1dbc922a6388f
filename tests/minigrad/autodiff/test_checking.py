import math
import re

import pytest
import torch
from torch.autograd import Function, gradcheck
from torch.autograd.function import once_differentiable
from torch.func import functional_call

import minigrad
from minigrad import check_gradients
from minigrad.autodiff.comparison import GradientError
from minigrad.errors import RunFailed

# Away from 0, where relu has no derivative.
X = torch.tensor([[0.3, -1.2, 2.0], [0.9, -0.4, 1.1]], dtype=torch.float64)
ALL_ORDERS = {1, 2}


class Cube(Function):
    """x^3, right in all ways: what the planted mistakes below change one method of."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, v):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * v

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


def cube(**methods):
    return type("Planted", (Cube,), {name: staticmethod(method) for name, method in methods.items()}).apply


def as_if_contiguous(x):
    strides = torch.empty(x.shape, device="meta").stride()
    return x.as_strided(x.shape, strides)


def failure(function, inputs=X, **options):
    with pytest.raises(GradientError) as caught:
        check_gradients(function, inputs, **options)
    return caught.value


# What is right passes.


@pytest.mark.parametrize(
    "function",
    [
        Cube.apply,
        minigrad.sigmoid,
        minigrad.tanh,
        minigrad.relu,
        lambda x: minigrad.tanh(x, save="output"),
        lambda x: minigrad.bias_activation(x, x[0] / 2, "sigmoid"),
        lambda x: minigrad.derivative("tanh", x, 2),
        lambda x: torch.cat([x.t(), x.t().exp()]).softmax(0),
        lambda x: 2 * x,
        lambda x: x,
        lambda x: x.sum(),
        lambda x: (x.sin().sum(), x.t(), x[:, 1].expand(4, 2)),
        lambda x: x.sort(),
    ],
)
def test_right_gradients_pass(function):
    report = check_gradients(function, X)
    assert {c.order for c in report.comparisons} == ALL_ORDERS
    assert all(c.passes for c in report.comparisons)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_float32_passes(activation):
    check_gradients(getattr(minigrad, activation), X.float())
    bias = torch.tensor([0.1, 0.3, 0.2])
    check_gradients(lambda x, b: minigrad.bias_activation(x, b, activation), [X.float(), bias])


def test_a_network_passes_for_its_input_and_all_parameters():
    model = minigrad.nn.MLP([3, 2, 1], activation="tanh").double()
    names = [name for name, _ in model.named_parameters()]
    numbers = torch.Generator().manual_seed(0)
    values = [torch.randn(p.shape, generator=numbers, dtype=torch.float64) for p in model.parameters()]
    report = check_gradients(lambda x, *p: functional_call(model, dict(zip(names, p, strict=True)), (x,)), [X, *values])
    assert {c.order for c in report.comparisons} == ALL_ORDERS
    with pytest.raises(GradientError, match="/ d input 3"):
        check_gradients(
            lambda x, w, *p: functional_call(
                model, dict(zip(names, (w, *p[:1], p[1].detach(), p[2]), strict=True)), (x,)
            ),
            [X, *values],
        )


def test_closed_forms_are_compared_to_their_own_order():
    forms = [torch.cos, lambda x: -x.sin(), lambda x: -x.cos()]
    report = check_gradients(torch.sin, X, closed_forms=forms)
    assert [c.order for c in report.comparisons if "closed form" in c.name] == [1, 2, 3]
    assert max(c.order for c in report.comparisons if "closed form" not in c.name) == 2


def test_closed_forms_differentiate_by_every_input():
    first = [lambda x, y: (y * x.cos(), x.sin())]
    second = [lambda x, y: (-y * x.sin() + x.cos(), x.cos())]
    check_gradients(lambda x, y: y * x.sin(), [X, X + 1], closed_forms=first + second)


def test_the_third_order_is_checked_by_differences_too():
    report = check_gradients(minigrad.sigmoid, X[0], order=3)
    assert [c.order for c in report.comparisons if "differences" in c.name] == [1, 2, 3]


def test_what_is_not_floating_point_is_passed_on():
    index = torch.tensor([[2, 0, 1], [1, 1, 0]])
    report = check_gradients(lambda i, x: (x.gather(1, i) ** 2, i + 1), [index, X])
    tensors = {place.tensor for c in report.comparisons for place in (c.input, c.output) if place}
    assert {"input 1", "output 0"} <= tensors <= {"input 1", "output 0", "upstream of output 0", "gradient for input 1"}


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1,), (1, 1, 2)])
def test_every_shape_works(shape):
    report = check_gradients(minigrad.tanh, torch.full(shape, 0.7, dtype=torch.float64))
    assert {c.order for c in report.comparisons} == ALL_ORDERS


@pytest.mark.parametrize("lay", [torch.t, lambda x: x[:1].expand(3, 3), lambda x: x[:, ::2]])
def test_inputs_of_any_stride_are_taken_and_left_alone(lay):
    x = lay(X.clone())
    before, state = x.clone(), torch.get_rng_state()
    check_gradients(minigrad.tanh, x)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not x.requires_grad


def test_a_leaf_keeps_no_gradient_and_grad_mode_does_not_matter():
    leaf = X.clone().requires_grad_()
    with torch.no_grad():
        check_gradients(minigrad.tanh, leaf)
    with torch.inference_mode():
        check_gradients(minigrad.tanh, X.clone())
    assert leaf.grad is None
    assert leaf.requires_grad


def test_the_report_is_a_table_with_a_row_for_each_comparison():
    report = check_gradients(minigrad.tanh, X, order=1)
    lines = str(report).splitlines()
    assert lines[0].split() == ["order", "comparison", "found", "expected", "worst", "error", "tolerance", "where"]
    assert len(lines) == 2 + len(report.comparisons)
    number = r"-?[\d.e-]+"
    assert re.match(
        rf" +1  reverse mode against differences +({number}) +\1  {number} +{number} "
        r" +d output\[\d, \d\] / d input\[\d, \d\]$",
        lines[3],
    )


@pytest.mark.parametrize(
    ("shape", "layouts"),
    [
        ((), ["shifted"]),
        ((3,), ["sliced", "shifted", "expanded"]),
        (
            (2, 3),
            [
                *("transposed", "sliced", "padded", "shifted"),
                *("expanded", "expanded along dim 0", "expanded along dim -1"),
            ],
        ),
    ],
)
def test_every_layout_is_tried_once(shape, layouts):
    report = check_gradients(torch.sin, X.flatten()[: math.prod(shape)].view(shape), order=1)
    names = [c.name for c in report.comparisons]
    assert [name for name in names if "upstream" in name] == [
        f"upstream gradient {x}" for x in ["contiguous", *layouts]
    ]
    assert [name for name in names if "inputs" in name] == [f"inputs {x}" for x in layouts if "expanded" not in x]
    same = check_gradients(torch.sin, torch.ones(2, 3, dtype=torch.float64).t(), order=1)
    names = [c.name for c in same.comparisons]
    assert {"inputs as given", "inputs expanded", "inputs expanded along dim 0"} <= set(names)


def test_functions_of_several_inputs_with_fused_backwards_pass():
    check_gradients(torch.nn.functional.mse_loss, [X, X + 1])
    check_gradients(lambda x: torch.view_as_real(torch.fft.fft(x)), X, order=1)


def test_the_default_device_does_not_matter():
    with torch.device("meta"):
        check_gradients(minigrad.tanh, X)
        check_gradients(torch.sin, torch.empty(0, dtype=torch.float64, device="cpu"))


# What is wrong is caught, and the worst element named.


def test_a_gradient_two_per_cent_off_is_named_with_its_numbers():
    error = failure(cube(backward=lambda ctx, v: 1.02 * Cube.backward(ctx, v)))
    worst = error.report.comparisons[-1]
    assert isinstance(error, RunFailed)
    assert (worst.order, worst.output.index, worst.input.index) == (1, (1, 2), (1, 2))
    assert worst.found == pytest.approx(3.7026, rel=1e-14)
    assert worst.expected == pytest.approx(3.63, rel=1e-8)
    assert worst.error == pytest.approx(0.0726, rel=1e-6)
    assert str(error).startswith(
        "reverse mode against differences, order 1: d output[1, 2] / d input[1, 2] is 3.7026, expected 3.63"
    )
    assert "off by 0.0726, tolerance " in str(error)


def test_it_is_noticed_in_float32_too():
    failure(cube(backward=lambda ctx, v: 1.02 * Cube.backward(ctx, v)), X.float())


def test_a_wrong_sign_is_caught():
    worst = failure(cube(backward=lambda ctx, v: -Cube.backward(ctx, v))).report.comparisons[-1]
    assert worst.found == pytest.approx(-worst.expected)


def test_one_wrong_element_is_found_among_several_inputs_and_outputs():
    def backward(ctx, v):
        gradient = Cube.backward(ctx, v).clone()
        gradient[1, 0] += 0.001 * v[1, 0]
        return gradient

    worst = failure(lambda x, y: (x + y, cube(backward=backward)(y)), [X, X + 1]).report.comparisons[-1]
    assert (str(worst.output), str(worst.input)) == ("output 1[1, 0]", "input 1[1, 0]")
    assert worst.error == pytest.approx(0.001, rel=1e-4)


def test_a_gradient_that_ignores_the_upstream_one_is_caught_at_a_single_element():
    error = failure(cube(backward=lambda ctx, v: Cube.backward(ctx, torch.ones_like(v))), X[0, 0])
    assert error.report.comparisons[-1].name == "upstream gradient contiguous"


def test_an_upstream_gradient_read_as_if_contiguous_is_caught_though_gradcheck_misses_it():
    function = cube(backward=lambda ctx, v: Cube.backward(ctx, as_if_contiguous(v)))
    assert gradcheck(function, X.clone().requires_grad_())
    assert str(failure(function)).startswith("upstream gradient transposed, order 1: gradient for input[")
    assert str(failure(function, X[0])).startswith("upstream gradient sliced, order 1: gradient for input[")


def guarded(condition, then):
    """A backward that is wrong in one layout of its upstream gradient alone."""
    return cube(backward=lambda ctx, v: Cube.backward(ctx, then(v) if condition(v) else v))


@pytest.mark.parametrize(
    ("condition", "then", "layout"),
    [
        (lambda v: v.stride(-1) == 1, as_if_contiguous, "padded"),
        (lambda v: v.is_contiguous(), lambda v: v.as_strided(v.shape, v.stride(), 0), "shifted"),
        (lambda v: v.stride() == (0, 0), lambda v: 2 * v, "expanded"),
        (lambda v: v.stride() == (0, 1), lambda v: 2 * v, "expanded along dim 0"),
        (lambda v: v.stride() == (1, 0), lambda v: 2 * v, "expanded along dim -1"),
    ],
)
def test_a_mistake_in_one_layout_of_the_upstream_gradient_is_caught(condition, then, layout):
    assert failure(guarded(condition, then), order=1).report.comparisons[-1].name == f"upstream gradient {layout}"


def test_an_offset_that_is_ignored_is_caught_in_one_dimension_too():
    function = guarded(lambda v: v.is_contiguous(), lambda v: v.as_strided(v.shape, v.stride(), 0))
    assert failure(function, X[0]).report.comparisons[-1].name == "upstream gradient shifted"


@pytest.mark.parametrize("spoil", [torch.abs, torch.relu, lambda v: v.clamp(min=-1)])
def test_a_backward_that_spoils_negative_upstream_gradients_is_caught(spoil):
    function = cube(backward=lambda ctx, v: Cube.backward(ctx, spoil(v)))
    for inputs in (X, X[0, 0]):
        assert failure(function, inputs).report.comparisons[-1].name == "upstream gradient contiguous"


def test_padded_rows_of_an_input_read_as_if_contiguous_are_caught():
    function = cube(forward=lambda x: (as_if_contiguous(x) if x.stride(-1) == 1 else x) ** 3)
    assert failure(function).report.comparisons[-1].name == "inputs padded"


def test_the_layout_that_was_given_is_tried():
    def backward(ctx, v):
        (x,) = ctx.saved_tensors
        return Cube.backward(ctx, v) * (2 if x.is_contiguous(memory_format=torch.channels_last) else 1)

    images = torch.rand(2, 3, 2, 2, dtype=torch.float64).add(0.5)
    check_gradients(cube(backward=backward), images, order=1)
    error = failure(cube(backward=backward), images.to(memory_format=torch.channels_last), order=1)
    assert error.report.comparisons[-1].name == "inputs as given"


class Product(Function):
    """x y, right in all ways."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, v):
        x, y = ctx.saved_tensors
        return v * y, v * x


def product(**methods):
    return type("Planted", (Product,), {name: staticmethod(method) for name, method in methods.items()}).apply


@pytest.mark.parametrize(("inputs", "layout"), [([X, X + 1], "transposed"), ([X[0], X[1]], "sliced")])
def test_an_input_read_with_the_strides_of_another_is_caught(inputs, layout):
    def backward(ctx, v):
        x, y = ctx.saved_tensors
        strides = y.stride() if layout == "sliced" and x.stride() != (2,) else x.stride()
        beside = y if y.stride() == strides else torch.zeros_like(y)
        return v * beside, v * x

    worst = failure(product(backward=backward), inputs, forward_mode=False).report.comparisons[-1]
    assert worst.name == f"input 0 alone {layout}"


def test_a_gradient_that_differs_if_another_input_needs_none_is_caught():
    def backward(ctx, v):
        x, y = ctx.saved_tensors
        return (v * y, v * x) if all(ctx.needs_input_grad) else (v * x, v * y)

    worst = failure(product(backward=backward), [X, X + 1], forward_mode=False).report.comparisons[-1]
    assert (worst.order, worst.name) == (1, "input 0 alone differentiated")


def test_a_second_derivative_that_differs_if_the_upstream_gradient_needs_none_is_caught():
    class Slope(Cube):
        @staticmethod
        def forward(x, v):
            return 3 * x**2 * v

        @staticmethod
        def backward(ctx, w):
            x, v = ctx.saved_tensors
            return (6 if ctx.needs_input_grad[1] else 3) * x * v * w, 3 * x**2 * w

    function = cube(backward=lambda ctx, v: Slope.apply(ctx.saved_tensors[0], v))
    worst = failure(function, forward_mode=False).report.comparisons[-1]
    assert (worst.order, worst.name) == (2, "input alone differentiated")


def test_a_gradient_that_differs_while_it_is_recorded_is_caught():
    function = cube(backward=lambda ctx, v: (1.5 if torch.is_grad_enabled() else 1) * Cube.backward(ctx, v))
    worst = failure(function).report.comparisons[-1]
    assert (worst.order, worst.name) == (1, "gradient while it is recorded")
    assert worst.found == pytest.approx(1.5 * worst.expected)


def test_a_backward_that_spoils_what_it_saved_is_caught_at_a_single_output():
    def backward(ctx, v):
        gradient = Cube.backward(ctx, v)
        ctx.factor = 2 * getattr(ctx, "factor", 1)
        return gradient * ctx.factor / 2

    error = failure(lambda x: cube(backward=backward)(x).sum(), order=1)
    assert str(error).startswith("second backward pass against first, order 1: ")
    assert str(error).endswith("; does a backward pass change what was saved for it, or what it returned?")

    def returned(ctx, v):
        (x,) = ctx.saved_tensors
        ctx.buffer = getattr(ctx, "buffer", 3 * x**2)
        return ctx.buffer.mul_(v)

    assert "second backward pass" in str(failure(cube(backward=returned), X[0, 0], order=1))


@pytest.mark.parametrize("what", ["input", "upstream of output"])
def test_a_backward_that_changes_what_it_is_given_is_caught(what):
    def backward(ctx, v):
        gradient = Cube.backward(ctx, v)
        if not torch.is_grad_enabled():
            (v if "upstream" in what else ctx.saved_tensors[0].data).mul_(2)
        return gradient

    error = failure(lambda x: cube(backward=backward)(x).sum() if what == "input" else cube(backward=backward)(x))
    assert str(error) == (
        f"reverse mode, order 1: the function or its backward pass changes {what} in place: let it work on a copy"
    )


@pytest.mark.parametrize("kind", [AssertionError, ValueError, TypeError, RuntimeError])
def test_whatever_is_raised_is_named(kind):
    def refuse(condition):
        def backward(ctx, v):
            if condition(v):
                raise kind("not that")
            return Cube.backward(ctx, v)

        return cube(backward=backward)

    assert str(failure(refuse(lambda v: True))) == "reverse mode, order 1: the backward pass fails: not that"
    assert "upstream gradient transposed, order 1: refused, " in str(failure(refuse(lambda v: not v.is_contiguous())))
    assert str(failure(refuse(lambda v: v.requires_grad))) == (
        "reverse mode, order 2: the gradient cannot be differentiated: not that"
    )


def test_running_out_of_memory_is_no_wrong_gradient():
    def backward(ctx, v):
        raise torch.OutOfMemoryError("all used up")

    with pytest.raises(torch.OutOfMemoryError):
        check_gradients(cube(backward=backward), X)


def test_what_the_function_raises_is_its_own():
    def function(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        check_gradients(function, X)


def test_a_function_that_takes_contiguous_inputs_alone_is_told_the_way_out():
    function = lambda x: x.view(-1) ** 2  # noqa: E731
    assert "(call .contiguous() or .reshape() in the function): view size" in str(failure(function))
    check_gradients(lambda x: function(x.contiguous()), X)


def test_a_refused_upstream_gradient_is_named():
    error = failure(cube(backward=lambda ctx, v: Cube.backward(ctx, v.view(-1).view(v.shape))))
    assert str(error).startswith(
        "upstream gradient transposed, order 1: refused, though contiguous ones are taken (call .contiguous() or "
        ".reshape() in the function): view size"
    )


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_an_input_read_as_if_contiguous_is_caught(method):
    def backward(ctx, v):
        (x,) = ctx.saved_tensors
        return 3 * as_if_contiguous(x) ** 2 * v

    wrong = {"forward": lambda x: as_if_contiguous(x) ** 3, "backward": backward}
    error = failure(cube(**{method: wrong[method]}), order=1)
    worst = error.report.comparisons[-1]
    assert worst.name == "inputs transposed"
    assert (worst.input is None) == (method == "forward")


def test_memory_made_like_an_expanded_input_is_caught():
    def forward(x):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x) ** 3

    function = cube(forward=forward)
    check_gradients(function, X, order=1)
    assert str(failure(function, X[:1].expand(2, 3), order=1)).startswith("inputs as given, order 1: refused")
    assert str(failure(function, X[:1].repeat(2, 1), order=1)).startswith("inputs expanded, order 1: refused")


def test_a_stride_bug_in_the_double_backward_alone_is_caught():
    class Slope(Cube):
        @staticmethod
        def forward(x, v):
            return 3 * x**2 * v

        @staticmethod
        def backward(ctx, w):
            x, v = ctx.saved_tensors
            return 6 * x * as_if_contiguous(v.clone(memory_format=torch.preserve_format)) * w, 3 * x**2 * w

    function = cube(backward=lambda ctx, v: Slope.apply(ctx.saved_tensors[0], v))
    error = failure(function, forward_mode=False)
    assert (error.report.comparisons[-1].order, error.report.comparisons[-1].name) == (2, "inputs transposed")


def test_reading_beside_the_elements_is_caught_even_if_it_counts_for_nothing():
    def backward(ctx, v):
        beside = v.as_strided(v.shape, v.stride(), max(0, v.storage_offset() - 1))
        return Cube.backward(ctx, v) + 0 * beside

    worst = failure(cube(backward=backward)).report.comparisons[-1]
    assert (worst.name, worst.found != worst.found) == ("upstream gradient sliced", True)


def test_memory_made_like_an_expanded_upstream_gradient_is_caught_at_second_order():
    class Slope(Cube):
        @staticmethod
        def forward(x, v):
            return torch.empty_strided(v.shape, v.stride(), dtype=v.dtype).copy_(3 * x**2 * v)

        @staticmethod
        def backward(ctx, w):
            x, v = ctx.saved_tensors
            copy = torch.empty_strided(v.shape, v.stride(), dtype=v.dtype).copy_(v)
            return 6 * x * copy * w, 3 * x**2 * w

    def backward(ctx, v):
        if 0 in v.stride() and not v.requires_grad:
            v = v.contiguous()
        return Slope.apply(ctx.saved_tensors[0], v)

    error = failure(cube(backward=backward), forward_mode=False)
    assert str(error).startswith("inputs expanded, order 2: refused, though contiguous ones are taken")


def test_a_backward_that_is_only_once_differentiable_is_said_to_be():
    function = cube(backward=once_differentiable(Cube.backward))
    check_gradients(function, X, order=1)
    assert str(failure(function)).startswith(
        "reverse mode, order 2: the gradient cannot be differentiated: trying to differentiate"
    )
    error = failure(function, order=1, closed_forms=[lambda x: 3 * x**2, lambda x: 6 * x])
    assert str(error).startswith("reverse mode against closed form, order 2: the gradient cannot be differentiated: ")


def test_a_backward_that_leaves_torch_is_said_to_be_not_differentiable():
    error = failure(cube(backward=lambda ctx, v: v * torch.from_numpy(3 * ctx.saved_tensors[0].numpy() ** 2)), order=2)
    assert "order 2: the gradient cannot be differentiated: Can't call numpy()" in str(error)


@pytest.mark.parametrize(
    "backward",
    [lambda ctx, v: Cube.backward(ctx, v).detach(), lambda ctx, v: 3 * ctx.saved_tensors[0].detach() ** 2 * v],
)
def test_a_backward_that_is_detached_is_said_to_be(backward):
    error = failure(cube(backward=backward))
    assert error.report.comparisons[-1].order == 2
    assert str(error).endswith("; is it detached, or forgotten?")


def test_a_wrong_second_order_behind_a_right_first_one_is_caught():
    def right_at_first(ctx, v):
        (x,) = ctx.saved_tensors
        return 3 * cube(backward=lambda ctx, v: 1.02 * Cube.backward(ctx, v))(x) * v / x.detach()

    error = failure(cube(backward=right_at_first), forward_mode=False)
    assert error.report.comparisons[-1].order == 2
    assert str(error.report.comparisons[-1].output).startswith("gradient for input")


def test_forward_mode_that_disagrees_is_caught():
    error = failure(cube(jvp=lambda ctx, tangent: 1.001 * Cube.jvp(ctx, tangent)))
    worst = error.report.comparisons[-1]
    assert (worst.name, worst.output.index) == ("forward mode against reverse mode", (1, 2))
    assert (worst.found, worst.expected) == (pytest.approx(3.63363, rel=1e-14), pytest.approx(3.63, rel=1e-14))


def test_forward_mode_has_to_agree_far_beyond_what_differences_tell():
    failure(cube(jvp=lambda ctx, tangent: (1 + 1e-11) * Cube.jvp(ctx, tangent)))


def test_steps_grow_with_the_input():
    far = torch.tensor(1e6, dtype=torch.float64)
    assert check_gradients(torch.log, far, order=1).comparisons[0].error < 1e-14


def test_missing_forward_mode_is_named_and_can_be_left_out():
    function = cube(jvp=Function.jvp)
    assert "forward mode against reverse mode, order 1: not available, and forward_mode=False leaves it out: " in str(
        failure(function)
    )
    report = check_gradients(function, X, forward_mode=False)
    assert not any("forward" in c.name for c in report.comparisons)


@pytest.mark.parametrize(("order", "forms"), [(1, [torch.sin]), (2, [torch.cos, torch.sin])])
def test_a_wrong_closed_form_is_caught(order, forms):
    worst = failure(torch.sin, closed_forms=forms).report.comparisons[-1]
    assert (worst.order, worst.name) == (order, "reverse mode against closed form")
    assert worst.expected == pytest.approx(float(X[worst.input.index].sin()))


def test_nan_in_the_gradient_never_passes():
    def backward(ctx, v):
        return Cube.backward(ctx, v).index_put((torch.tensor(1), torch.tensor(1)), torch.tensor(torch.nan).double())

    worst = failure(cube(backward=backward), relative=1e300, absolute=1e300).report.comparisons[-1]
    assert worst.found != worst.found
    assert worst.input.index == (1, 1) or worst.output.index == (1, 1)


def test_a_point_beside_which_the_function_is_not_finite_is_named():
    error = failure(torch.log, torch.tensor([1.0, 1e-9], dtype=torch.float64))
    assert error.report.comparisons[-1].input.index == (1,)
    assert str(error).endswith("the function has no finite values on both sides: take another point, or a smaller step")


@pytest.mark.parametrize(
    ("function", "x", "step", "length"),
    [
        (torch.log, 0.01, None, "long"),
        (lambda x: (100 * x).sin(), 0.5, None, "long"),
        (torch.sin, 1e6, None, "long"),
        (lambda x: x.sin() + 1e8, 0.3, 1e-9, "short"),
    ],
)
def test_a_step_that_does_not_suit_the_function_is_told_from_a_wrong_gradient(function, x, step, length):
    x = torch.tensor(x, dtype=torch.float64)
    options = {} if step is None else {"step": step, "relative": 1e-9, "absolute": 1e-12}
    error = failure(function, x, **options)
    found = re.search(rf"; the step, \S+, seems too {length}: with (\S+) they differ by (\S+)$", str(error))
    assert float(found[2]) <= (1e-6 if length == "long" else error.report.comparisons[-1].error / 2)
    assert (float(found[1]) < (step or 6e-6)) == (length == "long")
    assert "seems too" not in str(failure(lambda x: 1e8 + cube(backward=lambda ctx, v: v)(x), X))


def test_relu_at_zero_is_caught_as_not_differentiable():
    assert failure(minigrad.relu, torch.zeros((), dtype=torch.float64)).report.comparisons[-1].expected == 0.5


def test_tolerances_are_those_given():
    check_gradients(cube(backward=lambda ctx, v: 1.02 * Cube.backward(ctx, v)), X, relative=0.03, order=1, rounding=0.1)
    failure(cube(backward=lambda ctx, v: 1.02 * Cube.backward(ctx, v)), relative=0.01, order=1, rounding=0.1)
    failure(torch.sin, step=0.5, relative=1e-9, absolute=1e-9)
    check_gradients(torch.sin, X, step=0.01)


# What cannot be checked is a mistake that is named.


@pytest.mark.parametrize(
    ("function", "inputs", "options", "error", "message"),
    [
        (torch.sin, X.bfloat16(), {}, TypeError, "input is torch.bfloat16, too coarse for differences: pass float64"),
        (torch.sin, X + 0j, {}, TypeError, "input is torch.complex128: check the real and the imaginary part apart"),
        (torch.complex, [X, X], {}, TypeError, "output is torch.complex128: check the real"),
        (torch.Tensor.half, X, {}, TypeError, "output is torch.float16, too coarse"),
        (torch.sin, X.to_sparse(), {}, TypeError, "input has layout torch.sparse_coo"),
        (torch.sin, [X, 3.0], {}, TypeError, "`inputs` is or holds a float"),
        (torch.sin, X.long(), {}, ValueError, "`inputs` holds no floating-point tensor"),
        (lambda x: {"y": x}, X, {}, TypeError, r"`function\(\*inputs\)` is or holds a dict: expected a tensor"),
        (lambda x: (x, 3.0), X, {}, TypeError, r"`function\(\*inputs\)` is or holds a float"),
        (lambda x: x.detach(), X, {}, ValueError, "no output depends on a floating-point input"),
        (lambda x: x + torch.rand(3), X, {}, ValueError, "two calls of the function differ"),
        (torch.sin, X, {"order": 0}, ValueError, "`order` is 0: pass at least 1"),
        (torch.sin, X, {"order": 1.5}, TypeError, "`order` is 1.5: pass an int"),
        (torch.sin, X, {"step": 0}, ValueError, "`step` is 0: pass a finite number above 0"),
        (torch.sin, X, {"absolute": -1}, ValueError, "`absolute` is -1: pass a finite number from 0 on"),
        (torch.sin, X, {"step": "a"}, TypeError, "`step` is 'a': pass a number"),
        (torch.sin, X, {"relative": True}, TypeError, "`relative` is True: pass a number"),
        (
            torch.sin,
            X,
            {"step": 0.1},
            ValueError,
            "`step` is 0.1, which makes the default tolerance 1 and the check void",
        ),
        (torch.sin, X, {"step": 0.1, "relative": 0.1}, ValueError, "or both `relative` and `absolute`"),
        (torch.sin, X.float(), {"step": 1e-3}, ValueError, "default tolerance 0.012 .* from 1.2e-03 to 1e-2"),
        (
            torch.sin,
            X,
            {"step": 1e-17, "relative": 1, "absolute": 1},
            ValueError,
            "`step` is 1e-17, too small to move x",
        ),
        (torch.sin, X, {"closed_forms": [lambda x: x.cos() + 0j]}, TypeError, "closed form 1 is torch.complex128"),
        (torch.sin, X, {"closed_forms": [lambda x: x.cos().bfloat16()]}, TypeError, "closed form 1 is torch.bfloat16"),
        (cube(forward=lambda x: x.mul_(2) ** 3), X, {}, ValueError, "the function changes input in place: let it work"),
        (lambda i, x: x * i.add_(1), [X.long(), X], {}, ValueError, "the function changes input 0 in place"),
        (torch.sin, X, {"closed_forms": torch.cos}, TypeError, "`closed_forms` is no list of functions"),
        (torch.sin, X, {"closed_forms": [torch.sum]}, ValueError, r"closed form 1 gives shapes \[\(\)\]: return those"),
        (
            torch.sin,
            X,
            {"closed_forms": [lambda x: 1.0]},
            TypeError,
            r"`closed_forms\[0\]\(\*inputs\)` is or holds a float",
        ),
    ],
)
def test_a_mistake_is_named(function, inputs, options, error, message):
    with pytest.raises(error, match=message):
        check_gradients(function, inputs, **options)


@pytest.mark.parametrize("function", [lambda x, y: x.sin() * y.exp(), torch.atan2, torch.div])
def test_a_right_function_of_two_inputs_passes_at_third_order(function):
    check_gradients(function, [X, X.flip(0) + 2], order=3)
