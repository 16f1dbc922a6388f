"""What runs on the CPU in the suite, on a GPU: every experiment, with its verification."""

import pytest
import torch

import minigrad
from minigrad import catalog
from runs import run

NEEDS = {"training": ["steps=50"], "learning_rate_range": ["steps=100"]}


@pytest.mark.gpu
@pytest.mark.parametrize("stem", catalog.groups()["experiment"])
def test_an_experiment_verifies_on_a_gpu(stem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("here", f"experiment={stem}", "device=cuda", *NEEDS.get(stem, []))["status"] == "finished"


def test_a_network_is_drawn_traced_and_checked_on_any_device(device):
    x = torch.randn(3, 4, dtype=torch.float64, device=device)
    model = minigrad.nn.MLP([4, 3, 1], "tanh", device=device, dtype=torch.float64)
    names = dict(model.named_parameters())
    loss = model(x).square().mean()
    drawing = minigrad.draw_graph(loss, names)
    assert {node.label for node in drawing.graph.nodes if node.kind == "leaf"} == names.keys()
    assert "<svg" in drawing.to_svg()
    trace = minigrad.trace_backward(loss, names=names)
    for name, parameter in names.items():
        arrived = trace.leaves[name].arrived
        assert arrived.statistics.root_mean_square == pytest.approx(float(parameter.grad.square().mean().sqrt()))
    minigrad.check_gradients(lambda x: model(x).square(), x)
