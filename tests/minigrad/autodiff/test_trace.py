import pytest
import torch
from torch.autograd import Function

import minigrad
from traced import Cube, leaf, operations, reason, value


def test_leaves_that_share_memory_are_two():
    a = leaf(2.0)
    b = a.detach().requires_grad_()
    trace = minigrad.trace_backward(a * b * b, names={"a": a, "b": b})
    assert {name: value(each.arrived) for name, each in trace.leaves.items()} == {"a": 4, "b": 8}


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
