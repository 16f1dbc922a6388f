import pytest
import torch

import minigrad
from minigrad.autodiff import graph
from minigrad.autodiff.graph import read


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
    assert "data" in labels(data * x, {"data": data})


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_tensor_without_a_record_is_a_graph_of_one_node(requires_grad):
    found = read(torch.rand(3, requires_grad=requires_grad))
    assert [node.kind for node in found.nodes] == ["leaf" if requires_grad else "constant"]
    assert (found.edges, found.outputs, found.saved_bytes) == ([], (0,), 0)


def test_what_a_backward_pass_has_freed_is_none():
    x = leaf(3)
    y = x.exp() + minigrad.tanh(x)
    y.sum().backward()
    freed = {node.label: node.saved is None for node in read(y).nodes}
    assert freed == {"add": False, "exp": True, "minigrad.tanh": True, "leaf": False}


def test_a_saved_tensor_that_was_changed_in_place_is_torch_s_error():
    x = leaf(3)
    y = x.exp()
    z = y * y
    y.data.add_(1)
    read(z)  # unnoticed by autograd
    y.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        read(z)


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


@pytest.mark.parametrize("output", [3, [torch.rand(2), 3]])
def test_an_output_that_is_no_tensor_is_an_error(output):
    with pytest.raises(TypeError, match=r"`output` is or holds a int: pass a tensor, or a list of tensors"):
        read(output)


def test_in_order_visits_each_once_and_keeps_the_order_of_the_inputs():
    inputs = {"d": ["b", "c"], "b": ["a"], "c": ["a"], "a": []}
    assert list(graph.in_order(["d"], inputs.__getitem__)) == ["d", "b", "c", "a"]
