import contextlib
import gc
import random
import time
import warnings
import weakref

import numpy
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

import minigrad
from minigrad import generators
from minigrad.autodiff.allocation import LiveStorages
from minigrad.autodiff.nodes import in_order, next_of, node_of
from minigrad.autodiff.recording import record


def leaf(values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def operations(trace):
    return {step.label: step for step in trace.steps if step.leaf is None}


def value(gradient):
    return gradient.value.tolist()


class Cube(Function):
    """A user's Function: x^3."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return upstream * 3 * x**2


# What it records.


def test_the_neuron_of_the_chapter():
    w, x, b = leaf(2.0), leaf(0.5), leaf(-1.0)
    w.grad = torch.tensor(2.0)
    trace = minigrad.trace_backward(minigrad.sigmoid(w * x + b), names={"w": w, "x": x, "b": b})
    assert [step.label for step in trace.steps] == ["minigrad.sigmoid", "add", "b", "mul", "w", "x"]
    sigmoid, add, mul = operations(trace).values()
    assert [value(step.upstream[0]) for step in (sigmoid, add, mul)] == [1, 0.25, 0.25]
    assert [(flow.to, flow.local.item(), value(flow.gradient)) for flow in mul.flows] == [
        ("w", 0.5, 0.125),
        ("x", 2, 0.5),
    ]
    assert sigmoid.flows[0].local.item() == 0.25
    after = trace.leaves["w"]
    assert (value(after.before), value(after.arrived), value(after.after)) == (2, 0.125, 2.125)
    assert trace.leaves["x"].before is None
    assert (w.grad.item(), x.grad.item(), b.grad.item()) == (2.125, 0.5, 0.25)
    assert (
        str(trace)
        == trace.table()
        == """\
step  node              upstream gradient  local derivative  sends on                        to
----  ----------------  -----------------  ----------------  ------------------------------  -----
1     minigrad.sigmoid  1                  0.25              0.25                            add
2     add               0.25               1                 0.25                            mul
                                           1                 0.25                            b
3     b                 0.25                                 accumulates: 0.25               .grad
4     mul               0.25               0.5               0.125                           w
                                           2                 0.5                             x
5     w                 0.125                                accumulates: 2 + 0.125 = 2.125  .grad
6     x                 0.5                                  accumulates: 0.5                .grad"""
    )
    assert (
        trace.chain_rule()
        == """\
d output / d b = 1 * 0.25 [minigrad.sigmoid] * 1 [add] = 0.25
d output / d w = 1 * 0.25 [minigrad.sigmoid] * 1 [add] * 0.5 [mul] = 0.125
d output / d x = 1 * 0.25 [minigrad.sigmoid] * 1 [add] * 2 [mul] = 0.5"""
    )


def test_a_leaf_used_twice_is_a_sum_over_paths():
    x = leaf(3.0)
    y = x * x + Cube.apply(x)
    trace = minigrad.trace_backward(y, names={"x": x, "y": y})
    assert value(trace.leaves["x"].arrived) == 33
    assert (
        trace.chain_rule()
        == """\
d y / d x = 1 * 1 [add] * 27 [Cube]
          + 1 * 1 [add] * 3 [mul]
          + 1 * 1 [add] * 3 [mul]
          = 33"""
    )


def test_a_tensor_has_its_local_derivatives_element_by_element():
    x = leaf([1.0, 2.0, 3.0])
    trace = minigrad.trace_backward(x**2, torch.tensor([1.0, 10.0, 100.0]), names={"x": x})
    assert operations(trace)["pow"].flows[0].local.tolist() == [2, 4, 6]
    assert trace.chain_rule() == "d output / d x = [1, 10, 100] * [2, 4, 6] [pow] = [2, 40, 600]"


def test_like_operations_are_numbered_as_they_were_computed_and_names_are_left_alone():
    x, named = leaf(1.0), leaf(1.0)
    trace = minigrad.trace_backward((x * named) * x * x, names={"mul 2": named})
    assert [step.label for step in trace.steps] == ["mul 4", "mul 3", "mul 1", "leaf", "mul 2"]
    one, other = leaf(1.0), leaf(1.0)
    trace = minigrad.trace_backward(one.exp() * other, names={"exp": one, "leaf": other})
    assert [step.label for step in trace.steps] == ["mul", "leaf", "exp 1", "exp"]
    trace = minigrad.trace_backward(one * other, names={"leaf": other})
    assert [step.label for step in trace.steps] == ["mul", "leaf 1", "leaf"]
    assert trace.output == "output"


def test_the_order_is_autograd_s():
    torch.manual_seed(0)
    model = minigrad.nn.MLP([3, 5, 4, 2], activation="tanh")
    loss = (model(torch.randn(6, 3)).square().sum() + sum(p.abs().sum() for p in model.parameters())).log()
    order = []
    nodes = list(in_order([node_of(loss)], next_of))
    for number, node in enumerate(nodes):
        node.register_prehook(lambda _, number=number: order.append(number))
    trace = minigrad.trace_backward(loss, retain_graph=True)
    traced = list(order)
    order.clear()
    loss.backward()
    assert traced == order
    names = {number: step.label for number, step in zip(traced, trace.steps, strict=True)}
    for number, node in enumerate(nodes):  # and every flow goes where autograd says
        step = trace.steps[traced.index(number)]
        assert [flow.to for flow in step.flows] == [names[nodes.index(other)] for other in next_of(node)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu"])
def test_minigrad_s_functions_have_the_derivative_that_their_kernel_gives(name, dtype):
    x = leaf([-3.0, -0.1, 0.0, 0.7, 9.0], dtype)
    trace = minigrad.trace_backward(getattr(minigrad, name)(x).sum())
    local = operations(trace)[f"minigrad.{name}"].flows[0].local
    assert torch.equal(local, minigrad.derivative(name, x.detach(), 1))


@pytest.mark.parametrize(
    "function", ["exp", "sin", "sqrt", "log", "tanh", "sigmoid", "neg", "clone", "abs", "reciprocal"]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_torch_s_elementwise_operations_have_local_derivatives(function, dtype):
    x = leaf([0.3, 1.0, 1.7], dtype)
    y = getattr(torch, function)(x)
    expected = torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)[0]
    (flow,) = minigrad.trace_backward(y, torch.full_like(y, 0.5)).steps[0].flows
    assert torch.equal(flow.local, expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum(),
        lambda x: x.sum(0),
        lambda x: x[0].expand(3, 2),
        lambda x: x @ torch.ones(2, 2),
        lambda x: torch.ones(2, 2) @ x,
        lambda x: x.t(),
        lambda x: x.flip(0),
        lambda x: x.cumsum(0),
        lambda x: x.softmax(0),
        lambda x: x.roll(1),
        lambda x: x.reshape(4),
        lambda x: x[[1, 0]],
        lambda x: x.sort(0, descending=True).values,
    ],
)
def test_what_mixes_elements_has_no_local_derivative(function):
    y = function(leaf([[0.1, 1.3], [2.0, 0.7]]))
    trace = minigrad.trace_backward(y, torch.ones_like(y))
    assert trace.steps[0].flows[0].local is None
    assert "local derivative to multiply by" in trace.chain_rule()


def local_of(backward, x, keeps=None):
    """Return the local derivative of a Function with this backward pass, and the gradient that arrives."""

    class Given(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.kept = keeps
            return x * 1

        @staticmethod
        def backward(ctx, upstream):
            return backward(upstream) if keeps is None else backward(upstream, ctx.kept)

    y = Given.apply(x)
    trace = minigrad.trace_backward(y, torch.ones_like(y), names={"x": x})
    return trace.steps[0].flows[0].local, trace.leaves["x"].arrived.value


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize(
    "backward",
    [
        lambda g: g.clamp(-1, 1),
        lambda g: g.clamp(-10, 10),
        lambda g: g.clamp(min=0),
        lambda g: g.clamp(max=1),
        lambda g: g.clamp(min=-2),
        lambda g: g.abs(),
        lambda g: g.sign(),
        lambda g: torch.where(g.abs() < 0.1, 0, g),
        lambda g: g + 1e-4,
        lambda g: g * (1 + 0.01 * (g != 1)),
        lambda g: g**1.01,
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_what_is_not_linear_in_the_upstream_gradient_has_no_local_derivative(backward, size, dtype):
    local, arrived = local_of(backward, torch.ones(size, dtype=dtype, requires_grad=True))
    assert local is None
    assert torch.equal(arrived, backward(torch.ones(size, dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [0.0, 1e-7, 0.1, 3.0, 300.0, torch.inf, torch.nan])
def test_what_is_has_one_wherever_it_lies_in_the_range_of_numbers(value, dtype):
    local, _ = local_of(lambda g: g * value, torch.ones(5, dtype=dtype, requires_grad=True))
    assert local is not None
    torch.testing.assert_close(local, torch.full((5,), value, dtype=dtype), equal_nan=True, rtol=0, atol=0)


def test_a_backward_pass_that_is_linear_in_small_gradients_alone_is_named():
    x = leaf(1.0)
    y = (Clips.apply(x)) * 1000
    assert "at Clips, 100 was sent, not 1000 * 1 (rounded to 0, " in reason(minigrad.trace_backward(y, names={"x": x}))


class Clips(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, upstream):
        return upstream.clamp(-100, 100)


def test_a_function_may_work_in_place_on_its_upstream_gradient_and_on_what_it_keeps():
    local, arrived = local_of(lambda g: g.mul_(3), leaf([1.0, 2.0]))
    assert (local.tolist(), arrived.tolist()) == ([3, 3], [3, 3])
    local, arrived = local_of(lambda g, kept: kept.mul_(g).clone(), leaf([1.0, 2.0]), torch.tensor([5.0, 7.0]))
    assert (local.tolist(), arrived.tolist()) == ([5, 7], [5, 7])


def test_memory_that_is_read_only_is_left_alone(tmp_path):
    numpy.array([3.0, numpy.nan], dtype=numpy.float32).tofile(tmp_path / "values")
    array = numpy.memmap(tmp_path / "values", dtype=numpy.float32, mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is read-only
        kept = torch.from_numpy(array)
    local, _ = local_of(lambda g, kept: g * kept, leaf([1.0, 2.0]), kept)  # dies of a signal where it is written to
    assert local[0] == 3


@pytest.mark.parametrize("shape", [(2, 3), (1, 6), (3, 0)])
def test_a_tensor_that_repeats_its_elements_has_local_derivatives(shape):
    x = leaf(0.5).expand(shape)
    (flow,) = minigrad.trace_backward(minigrad.tanh(x), torch.ones(shape)).steps[0].flows
    assert torch.equal(flow.local, minigrad.derivative("tanh", torch.full(shape, 0.5), 1))


def test_what_a_function_overwrites_is_put_back_also_where_it_repeats_or_is_an_inference_tensor():
    with torch.inference_mode():
        inference = torch.tensor([2.0, 2.0])
    for kept in (torch.tensor([2.0]).expand(2), inference, torch.tensor([2j, 2]).conj().imag + 4):

        def backward(g, kept):
            found = g * kept
            with torch.inference_mode():
                kept[:1].mul_(5)
            return found

        before = kept.clone()
        local, arrived = local_of(backward, leaf([1.0, 2.0]), kept)
        assert torch.equal(local, before)
        assert torch.equal(arrived, before)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_changes_nothing(device):
    w, x = leaf([2.0, 1.0]), leaf([3.0, 4.0])
    y = minigrad.tanh(w * x)
    torch.set_default_device(device)
    try:
        trace = minigrad.trace_backward(y, torch.ones(2, device="cpu"), names={"w": w, "x": x})
        text = trace.chain_rule()
        assert record(torch.full((8,), 3.0, device="cpu")).statistics.mean == 3
    finally:
        torch.set_default_device(None)
    assert [flow.local.tolist() for flow in operations(trace)["mul"].flows] == [[3, 4], [2, 1]]
    assert "nothing" not in text
    assert ":" not in text


def test_a_broadcast_input_has_none_and_the_other_one_has():
    x, bias = leaf([[1.0, 2.0], [3.0, 4.0]]), leaf([10.0, 100.0])
    trace = minigrad.trace_backward((x * bias).sum(), names={"x": x, "bias": bias})
    to_x, to_bias = operations(trace)["mul"].flows
    assert to_x.local.tolist() == [[10, 100], [10, 100]]
    assert to_bias.local is None
    assert value(to_bias.gradient) == [4, 6]


def test_a_sum_is_explained_by_the_table():
    x = leaf([1.0, 2.0])
    trace = minigrad.trace_backward((x**2).sum(), names={"x": x})
    assert (
        trace.chain_rule()
        == """\
d output / d x: no product, sum has no local derivative to multiply by

What each node made of what came:
step  node  upstream gradient  local derivative  sends on             to
----  ----  -----------------  ----------------  -------------------  -----
1     sum   1                  none              [1, 1]               pow
2     pow   [1, 1]             [2, 4]            [2, 4]               x
3     x     [2, 4]                               accumulates: [2, 4]  .grad"""
    )


def test_a_graph_of_a_double_backward_is_traced():
    x = leaf(0.5, torch.float64)
    (slope,) = torch.autograd.grad(minigrad.tanh(x) ** 2, x, create_graph=True)
    trace = minigrad.trace_backward(slope, names={"x": x})
    t = torch.tanh(x.detach())
    assert x.grad.item() == pytest.approx((2 * (1 - t**2) * (1 - 3 * t**2)).item(), rel=1e-13)
    step = operations(trace)["minigrad.derivative(tanh, 1)"]
    assert [flow.local.item() for flow in step.flows] == pytest.approx(
        [(-4 * t**2 * (1 - t**2)).item(), (1 - t**2).item()], rel=1e-13
    )
    assert trace.chain_rule().endswith(f"= {x.grad.item():.6g}")


class SineAndCosine(Function):
    @staticmethod
    def forward(ctx, text, x):
        ctx.save_for_backward(x)
        return x.sin(), x.cos(), x.argsort()

    @staticmethod
    def backward(ctx, for_sine, for_cosine, _):
        (x,) = ctx.saved_tensors
        return None, for_sine * x.cos() - for_cosine * x.sin()


def test_an_operation_with_several_results_has_a_local_derivative_for_each():
    x = leaf([0.5, 0.25])
    sine, cosine, _ = SineAndCosine.apply("text", x)
    trace = minigrad.trace_backward(sine * cosine**2, torch.ones(2), names={"x": x})
    (flow,) = operations(trace)["SineAndCosine"].flows
    assert flow.local is None
    torch.testing.assert_close(flow.locals[0], x.detach().cos())
    torch.testing.assert_close(flow.locals[1], -x.detach().sin())
    assert "[SineAndCosine]\n               + " in trace.chain_rule()


def test_a_result_that_is_not_used_has_no_upstream_gradient():
    x = leaf([1.0, 2.0, 3.0, 4.0])
    first, _ = (2 * x).split(2)
    trace = minigrad.trace_backward(first.sum(), names={"x": x})
    split = operations(trace)["split"]
    assert (value(split.upstream[0]), split.upstream[1]) == ([1, 1], None)
    assert value(trace.leaves["x"].arrived) == [2, 2, 0, 0]
    assert "[1, 1], nothing" in str(trace)


def test_a_gradient_that_is_left_out_reaches_no_leaf():
    class Nothing(Function):
        @staticmethod
        def forward(ctx, x, y):
            return x + y

        @staticmethod
        def backward(ctx, upstream):
            return upstream, None

    x, y = leaf(1.0), leaf(2.0)
    trace = minigrad.trace_backward(Nothing.apply(x, 2 * y), names={"x": x, "y": y})
    assert y.grad is None
    assert trace.leaves["y"].arrived is None
    assert "d output / d y: no gradient arrives" in trace.chain_rule()
    assert "nothing arrives" in str(trace)


def test_an_output_that_is_a_leaf():
    x = leaf(2.0)
    trace = minigrad.trace_backward(x, names={"x": x})
    assert (trace.chain_rule(), x.grad.item()) == ("d x / d x = 1 = 1", 1)


def test_too_many_paths_and_too_long_ones_are_not_written_out():
    x = leaf(1.0)
    y = x
    for _ in range(4):
        y = y * y
    assert "d output / d leaf: not written out, it has more than 8 paths\n" in minigrad.trace_backward(y).chain_rule()
    y = x
    for _ in range(20):
        y = y.sin()
    assert "it has paths of more than 12 operations" in minigrad.trace_backward(y).chain_rule()


def reason(trace, name="x"):
    """Return what the chain rule says of a leaf that it has no product for."""
    return next(line for line in trace.chain_rule().splitlines() if f"/ d {name}:" in line).partition(": ")[2]


def test_a_hook_that_changes_a_gradient_is_named_where_it_does():
    x = leaf(3.0)
    y = 2 * x
    y.register_hook(lambda gradient: 10 * gradient)
    trace = minigrad.trace_backward(y.sin(), names={"x": x})
    assert reason(trace) == "the product is not what arrives: at mul, 9.6017 came, not 0.96017 (a hook, or an overflow)"
    assert value(operations(trace)["mul"].upstream[0]) == pytest.approx(10 * torch.tensor(6.0).cos().item())
    x, y = leaf(3.0), leaf(1.0)
    z = x * y
    z.grad_fn.register_hook(lambda sent, came: (sent[0] * 1.01, sent[1]))
    trace = minigrad.trace_backward(z.neg(), names={"x": x, "y": y})
    assert "at mul, -1.01 was sent, not -1 * 1 (rounded to 0, an overflow, a hook, or" in reason(trace)
    assert "d output / d y = 1 * -1 [neg] * 3 [mul] = -3" in trace.chain_rule()


@pytest.mark.parametrize(
    ("dtype", "factors", "said"),
    [
        (torch.float16, (1000, 1000), "at mul 1, inf was sent, not 1000 * 1000 ("),
        (torch.float32, (1e-30, 1e-30, 1e30), "at mul 2, 0 was sent, not 1e-30 * 1e-30 ("),
        (torch.float64, (1e-200, 1e200, 1e200, 1e200), "at mul 1, inf was sent, not 1e+200 * 1e+200 ("),
        (torch.float64, (1e-200, 1e-200, 1e200), "at mul 2, 0 was sent, not 1e-200 * 1e-200 ("),
    ],
)
def test_what_leaves_the_range_of_numbers_is_named_where_it_does(dtype, factors, said):
    x = leaf(1.0, dtype)
    y = x
    for factor in reversed(factors):
        y = y * torch.tensor(factor, dtype=dtype)
    assert said in reason(minigrad.trace_backward(y, names={"x": x}))


def test_a_sum_that_overflows_is_named_where_it_does():
    x = leaf(1.0, torch.float16)
    y = 1 * x
    trace = minigrad.trace_backward((60000 * y) + (60000 * y), names={"x": x})
    assert "at mul 1, inf came, not 60000 + 60000 (a hook, or an overflow)" in reason(trace)


def test_what_is_not_a_number_or_infinite_of_itself_is_a_product():
    x = leaf([0.0, 4.0, -1.0])
    trace = minigrad.trace_backward(x.sqrt() * 2, torch.ones(3), names={"x": x})
    assert operations(trace)["sqrt"].flows[0].local.tolist() == [torch.inf, 0.25, pytest.approx(torch.nan, nan_ok=True)]
    assert (
        trace.chain_rule() == "d output / d x = [1, 1, 1] * [2, 2, 2] [mul] * [inf, 0.25, nan] [sqrt] = [inf, 0.5, nan]"
    )


def test_products_that_are_rounded_are_products():
    x = leaf(2.0)
    trace = minigrad.trace_backward(minigrad.relu(x - 5) * 3, names={"x": x})
    assert trace.chain_rule() == "d output / d x = 1 * 3 [mul] * 0 [minigrad.relu] * 1 [sub] = 0"
    x = leaf(2.0, torch.float16)
    trace = minigrad.trace_backward(x.float() * 0.1, names={"x": x})
    assert trace.chain_rule().startswith("d output / d x = 1 * 0.1 [mul] * 1 [")
    assert trace.chain_rule().endswith("] = 0.0999756")
    x = leaf(2.0)  # and below the smallest normal number to few digits
    trace = minigrad.trace_backward(x * 1e-42 * 0.3, names={"x": x})
    assert trace.chain_rule() == "d output / d x = 1 * 0.3 [mul 2] * 1.00053e-42 [mul 1] = 2.99878e-43"


def test_a_gradient_sent_where_none_came_is_no_product():
    class Replaces(Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, upstream):
            return None

    x = leaf(1.0)
    trace = minigrad.trace_backward(Replaces.apply(Cube.apply(x)), names={"x": x})
    assert trace.leaves["x"].arrived.value == 0
    assert "at Cube, 0 was sent, not nothing" in reason(trace)


def test_a_hook_that_takes_the_gradient_away_is_seen():
    x, y = leaf(3.0), leaf(1.0)

    def halve(y):
        y.grad /= 2

    x.register_post_accumulate_grad_hook(lambda x: setattr(x, "grad", None))
    y.register_post_accumulate_grad_hook(halve)
    y.grad = torch.tensor(5.0)
    trace = minigrad.trace_backward(2 * x * y, names={"x": x, "y": y})
    assert trace.leaves["x"].after is None
    assert "accumulates: nothing" in str(trace)
    assert "accumulates: .grad was 5, is 5.5" in str(trace)


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


def test_a_chain_of_5000_needs_no_recursion_and_little_time():
    x = leaf(1.0, torch.float64)
    y = x
    for _ in range(5000):
        y = y * 1.0001
    start = time.process_time()
    trace = minigrad.trace_backward(y, names={"x": x})
    assert len(trace.steps) == 5001
    assert trace.steps[0].label == "mul 5000"
    assert trace.leaves["x"].arrived.value.item() == pytest.approx(1.0001**5000, rel=1e-12)
    assert trace.table().count("\n") == trace.chain_rule().count("\n") - 3 == 5002
    assert time.process_time() - start < 20  # 3 s alone


# What it leaves as it was.


def _mlp(dtype, device):
    model = minigrad.nn.MLP([5, 7, 3], activation="tanh").to(device, dtype)
    loss = torch.nn.functional.cross_entropy(model(torch.randn(9, 5, device=device, dtype=dtype)), torch.arange(9) % 3)
    return loss, list(model.parameters())


def _small_mlp(dtype, device):
    model = minigrad.nn.MLP([2, 3, 1], activation="sigmoid").to(dtype)
    return model(torch.randn(2, 2, dtype=dtype)).square().mean(), list(model.parameters())


def _dropout(dtype, device):
    x = torch.randn(4, 3, dtype=dtype, requires_grad=True)
    return torch.nn.functional.dropout(x * 2, 0.5).sum(), [x]


def _max_cat_index(dtype, device):
    x, y = (torch.randn(1, 2, dtype=dtype, requires_grad=True) for _ in range(2))
    z = torch.cat((x, y, x))[[0, 1, 1]]
    return z.max() + z.max(1).values.sum() + z.amax(0).prod() + torch.where(z > 0, z, z.exp()).sum(), [x, y]


def _views_in_place(dtype, device):
    x = torch.randn(3, 2, dtype=dtype, requires_grad=True)
    y = x * 1
    y[1].mul_(3)
    y.t()[0].sin_()
    y.add_(x).relu_()
    return (y.view(1, 6)[:, ::2] * y.flatten()[:3].view(1, 3)).sum(), [x]


def _shared(dtype, device):
    w = torch.nn.Parameter(torch.randn(2, 2, dtype=dtype))
    x = torch.randn(2, 2, dtype=dtype)
    for _ in range(3):
        x = minigrad.tanh(x @ w) + w
    return x.var() + x.std(), [w]


def _retained_and_hooked(dtype, device):
    x = torch.randn(3, dtype=dtype, requires_grad=True)
    y = x.sin()
    y.retain_grad()
    y.register_hook(lambda gradient: gradient * 3)
    x.register_hook(lambda gradient: gradient + 1)
    y.grad_fn.register_hook(lambda sent, came: (sent[0] * 2,))
    y.grad_fn.register_prehook(lambda came: (came[0] * 5,))
    return (y**2).sum(), [x, y]


def _users_function(dtype, device):
    x = torch.randn(3, dtype=dtype, requires_grad=True)
    return Cube.apply(Cube.apply(x) * x).sum(), [x]


class ScalesWhatItKept(Function):
    """Overwrites what it saved, as memory-saving kernels do: right once, wrong in every further pass."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(2 * x)
        ctx.factor = torch.full_like(x, 3)
        return x**2

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        gradient.mul_(upstream)
        return gradient.mul_(ctx.factor.mul_(2))


def _overwriting(dtype, device):
    x = torch.randn(4, dtype=dtype, requires_grad=True)
    return (ScalesWhatItKept.apply(x) * 5).sum(), [x]


class Noisy(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, upstream):
        return upstream * torch.rand_like(upstream)


def _random(dtype, device):
    x = torch.randn(3, dtype=dtype, requires_grad=True)
    return (Noisy.apply(x) * 2).sum(), [x]


class DrawsElsewhere(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, upstream):
        return upstream * random.random() * numpy.random.rand()


def _random_elsewhere(dtype, device):
    x = torch.randn(3, dtype=dtype, requires_grad=True)
    return (DrawsElsewhere.apply(x) * 2).sum(), [x]


class OverwritesInPlace(Function):
    """Works in place, so that autograd wraps it up where its input is a part of a tensor."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        ctx.save_for_backward(torch.full_like(x, 2))
        return x.mul_(2)

    @staticmethod
    def backward(ctx, upstream):
        return ctx.saved_tensors[0].mul_(upstream)


def _overwriting_a_part(dtype, device):
    x = torch.randn(4, dtype=dtype, requires_grad=True)
    y = x * 1
    OverwritesInPlace.apply(y[1:])
    return (y * y).sum(), [x]


def _checkpointed(dtype, device, reentrant=False):
    w = torch.nn.Parameter(torch.randn(2, 2, dtype=dtype))
    x = torch.randn(2, 2, dtype=dtype, requires_grad=True)
    norm = torch.nn.BatchNorm1d(2, dtype=dtype)
    y = checkpoint(lambda x: norm(torch.nn.functional.dropout((x @ w).sin())), x, use_reentrant=reentrant)
    return (y * y).sum(), [w, x, norm.weight]


def _reentrant(dtype, device):
    return _checkpointed(dtype, device, reentrant=True)


class DifferentiatesItself(Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x)
        ctx.hidden = [w]
        return x * w.detach()

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            again = x.detach().requires_grad_()
            torch.autograd.backward(again * ctx.hidden[0], upstream)
        return again.grad, None


def _nested(dtype, device):
    x = torch.randn(3, dtype=dtype, requires_grad=True)
    w = torch.nn.Parameter(torch.randn(3, dtype=dtype))
    return DifferentiatesItself.apply(x, w).sum(), [x, w]


def _sparse(dtype, device):
    table = torch.nn.Embedding(5, 3, sparse=True, dtype=dtype)
    return table(torch.tensor([1, 1, 4])).square().sum(), list(table.parameters())


def _scalar_view_and_norms(dtype, device):
    x = torch.randn(2, 3, dtype=dtype, requires_grad=True)
    y = x.unbind(0)
    z = torch.nn.functional.layer_norm(y[0] * y[1], (3,))
    return (z.cumsum(0) + y[0].softmax(0) + x.expand(2, 2, 3).sum((0, 1)) + torch.var_mean(x, 0)[0]).sum(), [x]


NETWORKS = [
    _mlp,
    _small_mlp,
    _dropout,
    _max_cat_index,
    _views_in_place,
    _shared,
    _retained_and_hooked,
    _users_function,
    _overwriting,
    _random,
    _random_elsewhere,
    _overwriting_a_part,
    _checkpointed,
    _reentrant,
    _nested,
    _sparse,
    _scalar_view_and_norms,
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.filterwarnings("ignore:.*use_reentrant")
def test_the_gradients_are_those_of_a_plain_backward_to_the_bit(network, dtype):
    found = []
    for backward in (torch.Tensor.backward, minigrad.trace_backward):
        generators.seed_all(3)
        output, tensors = network(dtype, "cpu")
        tensors[0].grad = torch.ones_like(tensors[0]) if tensors[0].is_leaf and network is not _sparse else None
        backward(output)
        gradients = [tensor.grad.to_dense() for tensor in tensors]
        found.append((gradients, generators.state_dict()))
    (plain, state), (traced, traced_state) = found
    for expected, gradient in zip(plain, traced, strict=True):
        assert gradient.dtype == expected.dtype
        assert gradient.stride() == expected.stride()
        assert torch.equal(gradient.view(torch.uint8), expected.view(torch.uint8))
        assert gradient.isfinite().all()
        assert gradient.any()
    assert torch.equal(state.pop("torch"), traced_state.pop("torch"))
    assert state == traced_state


def test_statistics_of_batch_normalisation_are_updated_as_in_a_plain_backward():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(2)
    x = torch.randn(2, 2, requires_grad=True)
    y = checkpoint(lambda x: norm(x.sin()), x, use_reentrant=False)
    minigrad.trace_backward((y * y).sum())
    assert norm.num_batches_tracked == 2  # forward, and the recomputation in backward


def test_a_graph_that_is_retained_is_traced_twice_alike_and_without_a_trace_of_the_first():
    x = leaf([0.5, -1.0])
    y = (minigrad.tanh(x) * Cube.apply(x)).sum()
    first = minigrad.trace_backward(y, names={"x": x}, retain_graph=True)
    once = x.grad.clone()
    second = minigrad.trace_backward(y, names={"x": x}, retain_graph=True)
    assert torch.equal(x.grad, 2 * once)
    assert [row[:-2] for row in first.rows[:-1]] == [row[:-2] for row in second.rows[:-1]]
    assert value(second.leaves["x"].before) == value(first.leaves["x"].after)
    steps = len(second.steps)
    y.backward()
    assert len(second.steps) == steps


class Fails(Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, upstream):
        raise ArithmeticError("on purpose")


@pytest.mark.parametrize("function", [Cube.apply, Fails.apply])
def test_the_hooks_are_gone_afterwards_also_after_an_error(function, monkeypatch):
    y = function(leaf(2.0).sin() * 1)
    nodes = list(in_order([node_of(y)], next_of))
    removed = []
    remove = torch.utils.hooks.RemovableHandle.remove
    monkeypatch.setattr(
        torch.utils.hooks.RemovableHandle, "remove", lambda handle: (removed.append(handle.id), remove(handle))
    )
    with contextlib.suppress(ArithmeticError):
        minigrad.trace_backward(y, retain_graph=True)
    assert len(removed) == len(set(removed)) == 2 * len(nodes)


def test_nothing_of_the_graph_is_kept_alive():
    x = leaf([1.0, 2.0])
    hidden = x.exp()
    trace = minigrad.trace_backward((hidden * hidden).sum())
    gone = weakref.ref(hidden)
    del hidden
    gc.collect()
    assert gone() is None
    assert len(trace.steps) == 4


def test_a_function_that_raises_raises_its_own_error_and_only_in_the_pass():
    with pytest.raises(ArithmeticError, match="on purpose"):
        minigrad.trace_backward(Fails.apply(leaf(1.0)))


@pytest.mark.parametrize(
    ("returned", "said"),
    [(lambda g: g, "incorrect number of gradients"), (lambda g: (g, 3.0), r"expected Variable or None \(got float\)")],
)
def test_a_function_that_returns_what_it_must_not_raises_torch_s_own_error(returned, said):
    class Wrong(Function):
        @staticmethod
        def forward(ctx, x, y):
            return x + y

        @staticmethod
        def backward(ctx, upstream):
            return returned(upstream)

    with pytest.raises(RuntimeError, match=said):
        minigrad.trace_backward(Wrong.apply(leaf(1.0), leaf(2.0)))


def test_gradients_that_are_sparse_or_complex_have_no_local_derivative():
    local, arrived = local_of(lambda g: (2 * g).to_sparse(), leaf([[1.0, 2.0]]))
    assert (local, arrived.tolist()) == (None, [[2, 2]])
    z = torch.tensor([3 + 4j], requires_grad=True)
    trace = minigrad.trace_backward(z.abs(), torch.ones(1), names={"z": z})
    assert trace.steps[0].flows[0].local is None
    torch.testing.assert_close(trace.leaves["z"].arrived.value, torch.tensor([0.6 + 0.8j]))
    x = leaf([1.0])
    trace = minigrad.trace_backward(torch.complex(x, x.detach()), torch.tensor([2 + 5j]), names={"x": x})
    assert trace.steps[0].flows[0].local is None
    assert trace.leaves["x"].arrived.value == 2


@pytest.mark.parametrize("make", [lambda: torch.ones(7), lambda: torch.ones(2).to_sparse()])
def test_a_function_that_keeps_many_elements_or_sparse_ones_is_not_evaluated_more_often(make):
    calls = []
    local, _ = local_of(lambda g, kept: (calls.append(1), g * 2)[1], leaf([1.0]), make())
    assert (local, len(calls)) == (None, 1)


def test_a_function_that_can_only_be_called_in_the_pass_has_no_local_derivative():
    class Once(Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, upstream):
            assert torch._C._current_graph_task_id() != -1
            return upstream * 2

    trace = minigrad.trace_backward(Once.apply(leaf(1.0)))
    assert trace.steps[0].flows[0].local is None
    assert value(trace.leaves["leaf"].arrived) == 2


def test_the_backward_of_small_functions_is_evaluated_four_times_more_and_of_large_ones_not():
    calls = []

    class Counts(Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, upstream):
            calls.append(1)
            return upstream * 2

    minigrad.trace_backward(Counts.apply(leaf([1.0] * 6)).sum())
    assert len(calls) == 5
    calls.clear()
    minigrad.trace_backward(Counts.apply(leaf([1.0] * 7)).sum())
    assert len(calls) == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_is_not_computed_once_more(reentrant):
    calls = []

    def counted(x):
        calls.append(1)
        return x.sin()

    x = leaf([1.0])
    minigrad.trace_backward(checkpoint(counted, x, use_reentrant=reentrant) * 2)
    assert len(calls) == 2
    assert x.grad.item() == pytest.approx(2 * torch.tensor(1.0).cos().item())


def test_compiled_code_which_frees_what_it_keeps_is_evaluated_in_the_pass_alone():
    x = leaf([1.0, 2.0])
    trace = minigrad.trace_backward(torch.compile(lambda x: x.sin() * x, backend="aot_eager")(x).sum())
    assert trace.steps[1].flows[0].local is None
    expected = x.detach().sin() + x.detach() * x.detach().cos()
    torch.testing.assert_close(x.grad, expected)


# Errors.


def test_an_output_without_gradient_says_why_there_is_nothing_to_trace():
    with pytest.raises(ValueError, match=r"requires no gradient, so there is nothing to trace.*no_grad.*detach"):
        minigrad.trace_backward(torch.ones(()))


def test_several_numbers_need_a_gradient():
    with pytest.raises(ValueError, match=r"`output` is \(2,\).*pass `gradient` of that shape, such as torch.ones_like"):
        minigrad.trace_backward(2 * leaf([1.0, 2.0]))


def test_a_gradient_of_another_shape_or_kind_is_refused():
    x = leaf([1.0, 2.0])
    with pytest.raises(ValueError, match=r"`gradient` is \(3,\) but `output` is \(2,\)"):
        minigrad.trace_backward(2 * x, torch.ones(3))
    with pytest.raises(TypeError, match=r"`gradient` is a int: pass a tensor of \(2,\)"):
        minigrad.trace_backward(2 * x, 1)
    with pytest.raises(TypeError, match="`output` is a list"):
        minigrad.trace_backward([x])
    assert x.grad is None


def test_names_that_are_no_mapping_are_refused_before_anything_runs():
    x = leaf([1.0, 2.0])
    with pytest.raises(TypeError, match="`names` is no mapping from names to tensors"):
        minigrad.trace_backward(2 * x, torch.ones(2), names=[("x", x)])
    assert x.grad is None


def _nested_inside():
    x = torch.ones(3, requires_grad=True)
    lengths = [x[:1], x[1:] * 2]
    return torch.nested.as_nested_tensor(lengths, layout=torch.jagged).sin().values().sum(), x


def _nested_output():
    x = torch.ones(3, requires_grad=True)
    return torch.nested.as_nested_tensor([x[:1], x[1:]]), x


def _on_meta():
    x = torch.ones(3, requires_grad=True, device="meta")
    return x.sin().sum(), x


def _fake():
    with FakeTensorMode():
        x = torch.ones(3, requires_grad=True)
        return x.sin().sum(), x


@pytest.mark.parametrize("make", [_nested_inside, _nested_output, _on_meta, _fake])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_has_no_plain_elements_is_refused_in_one_line_before_anything_runs(make):
    output, x = make()
    with pytest.raises(TypeError, match=r'is nested, fake or on the device "meta": .*; compute with plain tensors'):
        minigrad.trace_backward(output)
    assert x.grad is None


@pytest.mark.parametrize("function", [torch.sin, Cube.apply, minigrad.tanh])
def test_a_graph_that_was_freed_raises_torch_s_own_error(function):
    y = function(leaf(1.0))
    minigrad.trace_backward(y)
    with pytest.raises(RuntimeError, match=r"backward through the graph a second time"):
        minigrad.trace_backward(y)
