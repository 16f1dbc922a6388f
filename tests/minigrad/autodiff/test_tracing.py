import contextlib
import gc
import random
import time
import weakref

import numpy
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

import minigrad
from minigrad import generators
from minigrad.autodiff.nodes import in_order, next_of, node_of
from traced import Cube, Fails, leaf, operations, value


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
