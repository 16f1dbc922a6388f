import warnings

import numpy
import pytest
import torch
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

import minigrad
from minigrad.autodiff.recording import record
from traced import Fails, leaf, operations, value


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
