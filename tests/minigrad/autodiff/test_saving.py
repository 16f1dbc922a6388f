import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import dropout, layer_norm
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import minigrad
from minigrad import saved_for_backward
from minigrad.autodiff import graph
from minigrad.autodiff.saving import SavedForBackward

N = 12  # elements of `leaf`, 4 bytes each


def leaf() -> Tensor:
    return torch.linspace(0.1, 1.2, N).view(3, 4).clone().requires_grad_()


def pairs(saved: SavedForBackward) -> list[tuple[str, tuple[int, ...]]]:
    return [(storage.kind, storage.shape) for storage in saved.tensors]


FUNCTIONS = {
    "minigrad's tanh": minigrad.tanh,
    "minigrad's sigmoid, its output": lambda x: minigrad.sigmoid(x, save="output"),
    "minigrad's relu": minigrad.relu,
    "minigrad's bias and activation": lambda x: minigrad.bias_activation(x, x[0], "tanh"),
    "exp": torch.exp,
    "exp in place": lambda x: (x * x).exp_(),
    "exp of a view in place": lambda x: (x * x).view(-1)[:5].exp_(),
    "product": lambda x: x @ x.t(),
    "maximum": lambda x: x.max(dim=0).values,
    "deviation": torch.std,
    "cumulative product": lambda x: x.cumprod(0),
    "layer norm": lambda x: layer_norm(x * x, (4,)),
    "chain": lambda x: minigrad.tanh(minigrad.relu(x).exp() @ x.t()).sum(),
    "half": lambda x: minigrad.tanh(x.to(torch.bfloat16)),
}


@pytest.fixture(params=FUNCTIONS.values(), ids=FUNCTIONS)
def function(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    return request.param


@pytest.fixture(params=["input", "output"])
def network(request: pytest.FixtureRequest, activation: str) -> torch.nn.Module:
    return minigrad.nn.MLP([5, 7, 6, 2], activation=activation, save=request.param)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_a_network_saves_what_the_graph_that_exists_keeps(network):
    with saved_for_backward() as saved:
        output = network(torch.rand(3, 5))
    assert saved.bytes == graph.read(output).saved_bytes > 0


def test_a_function_saves_what_the_graph_that_exists_keeps(function):
    with saved_for_backward() as saved:
        output = function(leaf())
    if function is FUNCTIONS["exp of a view in place"]:
        pytest.skip("autograd does not show what an operation on a view in place keeps")
    assert saved.bytes == graph.read(output).saved_bytes > 0


def test_every_tensor_is_told_with_kind_shape_dtype_and_bytes():
    layer = minigrad.nn.Linear(4, 2, activation="tanh", dtype=torch.float64)
    with saved_for_backward() as saved:
        layer(torch.rand(3, 4, dtype=torch.float64))
    # x for the gradient of W; x W^T and the bias for tanh'. W is not needed, for x takes no gradient.
    assert pairs(saved) == [("constant", (3, 4)), ("result", (3, 2)), ("leaf", (2,))]
    assert [storage.bytes for storage in saved.tensors] == [96, 48, 16]
    assert {storage.dtype for storage in saved.tensors} == {torch.float64}
    assert (saved.bytes, saved.constant_bytes, saved.result_bytes, saved.leaf_bytes) == (160, 96, 48, 16)


def test_a_storage_counts_once_and_whole_however_many_views_of_it_are_saved():
    x = leaf()
    with saved_for_backward() as saved:
        z = (x * x).view(-1)[:2]
        (z * z.exp()).sum() + (x.t() @ x).sum()
    assert pairs(saved) == [("leaf", (3, 4)), ("result", (2,)), ("result", (2,))]
    assert [storage.bytes for storage in saved.tensors] == [4 * N, 8, 4 * N]


def test_what_shares_a_leaf_s_storage_is_a_leaf_s():
    x = leaf()
    with saved_for_backward() as saved:
        x.detach() * x  # saved as a constant alone
        assert [storage.kind for storage in saved.tensors] == ["constant"]
        x.square()
    assert pairs(saved) == [("leaf", (3, 4))]
    with saved_for_backward() as saved:
        torch.rand(2, 3, requires_grad=True) @ x[:, :2]
    assert sorted(pairs(saved)) == [("leaf", (2, 3)), ("leaf", (3, 2))]


def test_a_mask_is_a_constant():
    with saved_for_backward() as saved:
        dropout(leaf(), 0.5)
    assert [storage.kind for storage in saved.tensors] == ["constant"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_saved_without_gradients(mode):
    x = leaf()
    with saved_for_backward() as saved, mode():
        minigrad.tanh(x) * x
    assert saved.tensors == ()
    with saved_for_backward() as saved:
        minigrad.tanh(x.detach())
    assert (saved.bytes, saved.tensors) == (0, ())


def test_enable_grad_within_no_grad_saves():
    x = leaf()
    with saved_for_backward() as saved, torch.no_grad(), torch.enable_grad():
        x.exp()
    assert saved.result_bytes == 4 * N


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")  # of 2.11
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_allocator_has_given_the_results_and_the_output(device, network, activation):
    network = minigrad.nn.MLP([64, 128, 128, 32], activation=activation, save=network[0].save, device=device)
    x = torch.rand(64, 64, device=device)  # all sizes are multiples of 512 bytes, the unit of CUDA's allocator
    network(x)  # libraries take their own memory the first time
    held: list[Tensor] = []
    with saved_for_backward() as saved:
        allocated = allocated_by(lambda: held.append(network(x)), device)
    assert allocated == saved.result_bytes + held[0].nbytes
    held.clear()
    assert saved.freed_bytes == saved.result_bytes


def allocated_by(function: Callable[[], object], device: torch.device) -> int:
    """Return the bytes allocated by the function and not freed in it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    return sum(event.self_cpu_memory_usage for event in profiled.events())


def test_gradients_of_first_and_second_order_are_the_same_bits(function):
    def gradients(x: Tensor) -> list[Tensor]:
        output = function(x)
        (first,) = torch.autograd.grad(output.double().square().sum(), x, create_graph=True)
        return [first, *torch.autograd.grad(first.sum(), x)]

    expected = gradients(leaf())
    with saved_for_backward() as saved:
        found = gradients(leaf())
    assert saved.bytes > 0
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_a_backward_pass_after_the_context_is_the_same_and_can_be_repeated(function):
    x, y = leaf(), leaf()
    with saved_for_backward():
        ours = function(x).sum()
    theirs = function(y).sum()
    for output in (ours, theirs):
        output.backward(retain_graph=True)
        output.backward()
    assert torch.equal(x.grad, y.grad)
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        ours.backward()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("of", ["leaf", "constant", "result", "output"])
def test_a_change_in_place_of_what_is_saved_is_noticed_as_without_the_context(of, nested):
    x, constant = leaf(), torch.ones(3, 4)
    with saved_for_backward() as saved:
        if nested:
            with saved_for_backward():
                tensors = changed_later(x, constant)
        else:
            tensors = changed_later(x, constant)
    assert len(saved.tensors) == 4
    for output, tensor in (tensors[of], changed_later(leaf(), torch.ones(3, 4))[of]):
        with torch.no_grad():
            tensor.mul_(2)
        with pytest.raises(RuntimeError, match=r"has been modified by an inplace operation: \[torch.FloatTensor"):
            output.sum().backward()


def changed_later(x: Tensor, constant: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return pairs of an output and a tensor that its backward pass needs."""
    result = x + 1
    output = x.exp()
    return {
        "leaf": (x.square(), x),
        "constant": (x * constant, constant),
        "result": (result.sin(), result),
        "output": (output, output),
    }


def test_contexts_nest_and_the_outer_one_has_what_the_inner_one_has():
    x = leaf()
    with saved_for_backward() as outer:
        x.exp()
        with saved_for_backward() as inner:
            x.sigmoid()
        x.tanh()
    assert len(inner.tensors) == 1
    assert len(outer.tensors) == 3
    x.exp()
    assert len(outer.tensors) == 3


def test_hooks_outside_stay_in_force():
    packed, unpacked = [], []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: packed.append(tensor.detach()) or len(packed) - 1,
        lambda number: unpacked.append(number) or packed[number],
    ):
        with saved_for_backward() as saved:
            output = leaf().exp()
        output.sum().backward()
    assert (len(saved.tensors), len(packed), unpacked) == (1, 1, [0])


def test_an_exception_ends_the_context():
    with pytest.raises(ZeroDivisionError), saved_for_backward() as saved:
        _ = 1 / 0
    leaf().exp()
    assert saved.tensors == ()


def test_the_memory_is_freed_with_the_output_and_without_the_garbage_collector(function):
    gc.disable()
    try:
        with saved_for_backward() as saved:
            x = leaf()
            output = function(x)
        references = [weakref.ref(x), weakref.ref(output)]
        assert saved.freed_bytes < saved.bytes
        del x, output
        assert [reference() for reference in references] == [None] * 2
        assert saved.freed_bytes == saved.bytes
    finally:
        gc.enable()


def test_a_backward_pass_frees_what_was_kept_for_it_alone():
    x = leaf()
    with saved_for_backward() as saved:
        total = (x * x).exp().sum()
    total.backward()
    assert saved.freed_bytes == saved.result_bytes == 4 * N
    assert saved.bytes == 8 * N


def test_memory_that_is_used_again_counts_again():
    x = leaf()
    with saved_for_backward() as saved:
        for _ in range(20):
            (x * x).exp()  # freed at once, and the next one takes its place
    assert saved.result_bytes == 20 * 4 * N
    assert len(saved.tensors) == 21


EMPTY = ("leaf", (0,))  # what PyTorch 2.11 hangs a checkpoint on


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_saves_the_inputs_alone(use_reentrant):
    network, x = minigrad.nn.MLP([4, 64, 1]), leaf()
    with saved_for_backward() as saved:
        output = checkpoint(network, x, use_reentrant=use_reentrant)
    assert [pair for pair in pairs(saved) if pair != EMPTY] == [("leaf", (3, 4))]
    output.sum().backward()
    ours, x.grad = x.grad, None
    network(x).sum().backward()
    assert torch.equal(ours, x.grad)


def test_inside_a_checkpointed_function_it_leaves_the_checkpoint_as_it_is():
    seen = []

    def function(x: Tensor) -> Tensor:
        with saved_for_backward() as saved:
            y = (x * x).exp()
        seen.append(saved.bytes)
        return y

    x, y = leaf(), leaf()
    with saved_for_backward() as outside:
        output = checkpoint(function, x, use_reentrant=False)
    assert [pair for pair in pairs(outside) if pair != EMPTY] == [("leaf", (3, 4))]
    output.sum().backward()
    function(y).sum().backward()
    assert torch.equal(x.grad, y.grad)
    assert seen == [8 * N] * 2  # the checkpoint's second pass ends with the last tensor that it looks for


def test_what_a_backward_pass_saves_for_the_next_is_measured_too():
    x = leaf()
    y = minigrad.tanh(x)
    with saved_for_backward() as saved:
        (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
    assert pairs(saved) == [("leaf", (3, 4)), ("constant", (3, 4))]
    assert saved.bytes == 8 * N
    assert gradient.requires_grad


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_around_a_compiled_function_it_measures_what_that_saves():
    network, x = minigrad.nn.MLP([4, 8, 1]), torch.rand(3, 4)
    with saved_for_backward() as saved:
        output = torch.compile(network, backend="aot_eager")(x)
    assert saved.bytes == graph.read(output).saved_bytes > 0
    ours = torch.autograd.grad(output.sum(), network[0].weight)
    assert torch.equal(ours[0], torch.autograd.grad(network(x).sum(), network[0].weight)[0])


def test_a_number_of_python_s_is_not_measured():
    with saved_for_backward() as saved:
        output = 2 * leaf()
    assert saved.bytes == 0
    assert graph.read(output).saved_bytes > 0


def test_it_measures_without_memory_on_the_meta_device():
    network = minigrad.nn.MLP([1000, 4000, 10], device="meta")
    with saved_for_backward() as saved:
        network(torch.empty(100_000, 1000, device="meta"))
    assert saved.result_bytes == 4 * 2 * 100_000 * 4000


def test_a_sparse_tensor_is_refused_by_name():
    weight = torch.rand(3, 2, requires_grad=True)
    with saved_for_backward(), pytest.raises(TypeError, match=r"layout torch.sparse_coo; .* counts strided ones alone"):
        torch.sparse.mm(torch.eye(3).to_sparse(), weight)


def test_transforms_of_torch_func_are_refused_by_pytorch():
    with saved_for_backward(), pytest.raises(RuntimeError, match="don't yet support saved tensor hooks"):
        torch.func.grad(lambda x: minigrad.tanh(x).sum())(torch.rand(3))
