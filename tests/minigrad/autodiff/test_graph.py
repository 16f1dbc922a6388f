import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import minigrad
from minigrad.autodiff.graph import read

INDEX = torch.tensor([0, 2, 1])


def leaf(*shape, **options):
    return torch.rand(*shape, requires_grad=True, **options)


def labels(output, names=None):
    found = read(output, names)
    return {node.label: [found.nodes[i].label for i in node.inputs] for node in found.nodes}


def test_operations_leaves_and_constants_are_read_in_the_order_of_the_arguments():
    x, w, b = torch.rand(3), leaf(3), leaf(3)
    found = labels(minigrad.sigmoid(w * x + b), {"x": x, "w": w, "b": b})
    assert found == {"minigrad.sigmoid": ["add"], "add": ["mul", "b"], "mul": ["w", "x"], "w": [], "x": [], "b": []}


def test_every_node_comes_before_what_it_takes():
    x = leaf(4)
    shared = x.exp()
    found = read((shared * x + shared.sin()).sum())
    assert all(source > target for source, target in found.edges)


def test_a_shared_node_is_there_once():
    x = leaf(2)
    shared = x.exp()
    found = read(shared * shared + x)
    assert sorted(node.label for node in found.nodes) == ["add", "exp", "leaf", "mul"]
    assert len(found.edges) == 5


def test_several_outputs_share_a_graph():
    x = leaf(2)
    y = x.exp()
    found = read([y.sum(), y.mean(), y])
    assert [found.nodes[i].label for i in found.outputs] == ["sum", "mean", "exp"]
    assert sum(node.label == "exp" for node in found.nodes) == 1


@pytest.mark.parametrize(
    ("function", "label"),
    [
        (minigrad.tanh, "minigrad.tanh"),
        (lambda x: minigrad.tanh(x, save="output"), "minigrad.tanh"),
        (lambda x: minigrad.derivative("sigmoid", x, 3), "minigrad.derivative(sigmoid, 3)"),
        (lambda x: minigrad.bias_activation(x, torch.zeros(3), "relu"), "minigrad.bias_activation(relu)"),
        (torch.tanh, "tanh"),
        (lambda x: torch.nn.functional.log_softmax(x, -1), "log_softmax"),
        (lambda x: x.t(), "t"),
        (lambda x: torch.nn.functional.max_pool2d(x.expand(1, 4, 3), 2), "max_pool2d_with_indices"),
        (torch.log1p, "log1p"),
        (torch.fft.rfft, "fft_r2c"),
    ],
)
def test_an_operation_is_called_as_its_user_calls_it(function, label):
    found = read(function(leaf(3)))
    assert found.nodes[found.outputs[0]].label == label


def test_a_double_backward_is_named():
    x = leaf(3)
    (gradient,) = torch.autograd.grad(minigrad.tanh(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((gradient**2).sum(), x, create_graph=True)
    assert {"minigrad.derivative(tanh, 1)", "minigrad.double_backward(tanh, 1)"} <= labels(second).keys()


def test_a_function_of_the_user_s_is_called_by_its_class():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, v):
            return 3 * ctx.saved_tensors[0] ** 2 * v

    assert labels(Cube.apply(leaf(3))) == {"Cube": ["leaf"], "leaf": []}


def test_what_is_saved_is_listed_with_its_bytes_and_every_storage_counted_once():
    x, w = torch.rand(8, 5), leaf(5, 4)
    product = x @ w
    found = read(minigrad.tanh(product) + torch.tanh(product))
    saved = {node.label: [(s.name, s.shape, s.bytes) for s in node.saved] for node in found.nodes}
    assert saved["mm"] == [("self", (8, 5), 160)]
    assert saved["minigrad.tanh"] == [("tensor 0", (8, 4), 128)]
    assert saved["tanh"] == [("result", (8, 4), 128)]
    assert saved["add"] == []
    assert found.saved_bytes == 160 + 128 + 128
    view = product[:4]
    assert read(view * view + product.sin().sum()).saved_bytes == 160 + 128, "a view keeps its base's storage, once"


def test_what_a_function_returns_and_saves_is_its_result():
    found = read(minigrad.relu(leaf(3)))
    assert [s.name for s in found.nodes[0].saved] == ["result"]


def test_shapes_and_dtypes_are_those_of_the_results():
    x = leaf(6, 2, dtype=torch.float64)
    values, _ = x.max(dim=0)
    found = read(x.float().split(2)[1] * values.float())
    node = {node.label: node for node in found.nodes}
    assert (node["split"].shapes, node["split"].dtype) == (((2, 2),) * 3, torch.float32)
    assert (node["leaf"].shapes, node["leaf"].dtype) == (((6, 2),), torch.float64)
    assert node["max"].inputs == (len(found.nodes) - 1,), "its indices are no input"


def test_a_number_is_called_by_its_value_and_other_constants_by_what_they_are():
    x, data = leaf(3), torch.rand(3)
    assert "2.5" in labels(2.5 * x)
    assert "constant" in labels(data * x)
    assert "constant" in labels(torch.rand(1) * x)
    assert "data" in labels(data * x, {"data": data})


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_tensor_without_a_record_is_a_graph_of_one_node(requires_grad):
    found = read(torch.rand(3, requires_grad=requires_grad))
    assert [node.kind for node in found.nodes] == ["leaf" if requires_grad else "constant"]
    assert (found.edges, found.outputs, found.saved_bytes) == ([], (0,), 0)


def hidden(output):
    return {node.label: node.hidden for node in read(output).nodes}


def test_what_a_backward_pass_has_freed_is_hidden():
    x = leaf(3)
    y = x.exp() + minigrad.tanh(x)
    y.sum().backward()
    assert hidden(y) == {"add": None, "exp": "freed", "minigrad.tanh": "freed", "leaf": None}


def test_what_was_changed_in_place_is_hidden():
    x = leaf(3)
    y = x.exp()
    z = y * y
    y.data.add_(1)  # unnoticed by autograd
    assert hidden(z) == {"mul": None, "exp": None, "leaf": None}
    y.detach().add_(1)
    assert hidden(z) == {"mul": "changed in place", "exp": "changed in place", "leaf": None}


def test_what_hooks_keep_is_not_unpacked():
    calls = []

    def block(x):
        calls.append(x)
        return x.sin().exp()

    y = checkpoint(block, leaf(3), use_reentrant=False)
    assert hidden(y) == {"exp": "kept by hooks", "sin": "kept by hooks", "leaf": None}
    assert len(calls) == 1


def test_what_was_measured_is_read_as_if_it_had_not_been():
    x, data = leaf(3), torch.rand(3)

    def computed():
        return minigrad.tanh(data * x).sin() * data

    with minigrad.saved_for_backward():
        measured = computed()
    names = {"x": x, "data": data}
    ours, theirs = read(measured, names), read(computed(), names)
    assert [(n.label, n.hidden, n.inputs) for n in ours.nodes] == [(n.label, n.hidden, n.inputs) for n in theirs.nodes]
    assert ours.saved_bytes == theirs.saved_bytes > 0


def test_a_function_may_keep_what_it_likes():
    class Odd(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, data):
            ctx.variable = 2
            ctx.kept = torch.zeros(5)
            ctx.save_for_backward(x, None, data)
            return 2 * x

        @staticmethod
        def backward(ctx, v):
            return 2 * v, None

    x, data = leaf(3), torch.rand(4)
    found = read(Odd.apply(x, data), {"x": x, "data": data})
    assert [node.label for node in found.nodes] == ["Odd", "x", "data"]
    assert [(s.name, s.bytes) for s in found.nodes[0].saved] == [("tensor 0", 12), ("tensor 2", 16), ("ctx.kept", 20)]


SPARSE = torch.eye(4).to_sparse()
ODD = {
    "sparse": (lambda x: torch.sparse.mm(SPARSE, x[:, None]), 4 * (4 + 2 * 8)),
    "sparse gradient": (lambda x: torch.nn.functional.embedding(torch.tensor([0, 2]), x[:, None], sparse=True), 2 * 8),
    "meta": (lambda x: x.to("meta") * torch.tensor(2.0, device="meta"), 4),
    "mkldnn": (lambda x: (x[:, None] * 1).to_mkldnn().relu(), 2 * 16 + 8),
    "nested": (lambda x: torch.nested.as_nested_tensor([x, x]) * 2, 3 * 8),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize(("function", "n_bytes"), ODD.values(), ids=ODD)
def test_tensors_of_other_layouts_are_read(function, n_bytes):
    assert read(function(leaf(4))).saved_bytes == n_bytes


def test_fake_tensors_are_read():
    with FakeTensorMode():
        output = torch.rand(3, requires_grad=True) * torch.tensor(2.0)
    assert labels(output) == {"mul": ["leaf", "constant"], "leaf": [], "constant": []}


def test_leaves_that_share_memory_are_not_taken_for_one_another():
    a = leaf(3)
    b = a.detach().requires_grad_()
    assert labels(a * b, {"a": a, "b": b}) == {"mul": ["a", "b"], "a": [], "b": []}
    assert labels(a * b, {"a": a}) == {"mul": ["a", "leaf"], "a": [], "leaf": []}


def test_a_graph_inside_a_transform_is_read():
    found = []

    def square(x):
        y = x * x
        found.append(read(y))
        return y.sum()

    torch.func.grad(square)(torch.ones(2))
    torch.func.vmap(torch.func.grad(square))(torch.ones(3, 2))
    assert all("mul" in [node.label for node in graph.nodes] for graph in found)


def test_a_shared_constant_is_there_once():
    x, data = leaf(3), torch.rand(3)
    found = read((data * x).sin() * data, {"data": data})
    assert sum(node.label == "data" for node in found.nodes) == 1


@pytest.mark.parametrize(
    ("function", "taken"),
    [
        (lambda x: torch.nn.functional.cross_entropy(x, INDEX), {"index"}),
        (lambda x: torch.nn.functional.embedding(INDEX, x), {"index"}),
        (lambda x: x[INDEX], {"index"}),
        (lambda x: x.max(dim=1).values, set()),
        (lambda x: torch.linalg.solve(x[:, :3], x), set()),
    ],
)
def test_constants_are_what_was_given(function, taken):
    found = read(function(leaf(3, 3)), {"index": INDEX})
    assert {node.label for node in found.nodes if node.kind == "constant"} == taken


def test_reading_changes_nothing():
    x = leaf(3)
    y = minigrad.tanh(x * x).sum()
    before = torch.get_rng_state()
    read(y)
    y.backward()
    expected = 2 * x.detach() * minigrad.derivative("tanh", x.detach() ** 2, 1)
    torch.testing.assert_close(x.grad, expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_thousands_of_nodes_take_no_recursion():
    x = w = leaf(1)
    for _ in range(5000):
        x = x * w
    found = read(x)
    assert len(found.nodes) == 5001
    assert len(found.edges) == 10_000


@pytest.mark.parametrize("names", [{"a": 3}, {3: torch.rand(2)}, [("a", torch.rand(2))]])
def test_names_that_are_none_are_an_error(names):
    with pytest.raises(TypeError, match=r"`names` is no mapping from names to tensors: pass one"):
        read(torch.rand(2), names)


def test_no_output_is_an_error():
    with pytest.raises(ValueError, match=r"`output` is empty: pass a tensor, or a list of tensors"):
        read([])


@pytest.mark.parametrize("output", [3, [torch.rand(2), 3]])
def test_an_output_that_is_no_tensor_is_an_error(output):
    with pytest.raises(TypeError, match=r"`output` is or holds a int: expected a tensor, or a list of tensors"):
        read(output)
