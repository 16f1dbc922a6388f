"""The choice of a path, and the operators that tracers see."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

import minigrad  # noqa: F401  (makes the operators differentiable)
import minigrad_kernels as kernels
from cases import INTERPRETED
from minigrad_kernels import operators


def test_cpu_is_plain_unless_interpreted():
    assert kernels.path_for("cpu") == ("triton" if INTERPRETED else "plain")
    assert kernels.path_for(torch.device("mps")) == "plain"


@pytest.mark.gpu
def test_gpu_runs_triton():
    assert kernels.path_for("cuda:0") == "triton"


@pytest.mark.skipif(INTERPRETED, reason="without Triton nothing is interpreted: the process is the same")
def test_everything_works_where_triton_is_absent():
    program = """
import sys
sys.modules["triton"] = None  # an import of it fails, and finding it says that it is not there
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
import torch, minigrad
x = torch.randn(5, requires_grad=True)
minigrad.nn.MLP([5, 4, 2])(x).sum().backward()
assert x.grad is not None
from minigrad_kernels import path_for
assert path_for("cuda") == "plain"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_fake_tensors_get_shapes_and_strides_without_memory():
    with FakeTensorMode():
        x = torch.empty(6, 4, dtype=torch.bfloat16).t()
        for result in (
            kernels.derivative(x, None, "tanh", 0),
            kernels.derivative(x, x, "tanh", 1),
            *kernels.double_backward(x, x, x, "tanh", 1),
            kernels.backward_from_output(x, x, "tanh"),
            kernels.bias_activation(x, x[0], "tanh"),
            kernels.bias_activation_backward(x, x, x[0], "tanh")[0],
        ):
            assert (result.shape, result.stride(), result.dtype) == (x.shape, x.stride(), x.dtype)
        assert kernels.bias_activation_backward(x, x, x[0], "tanh")[1].shape == (6,)


@pytest.mark.parametrize(
    "arguments",
    [
        ("derivative", lambda x: (x, None, "tanh", 0)),
        ("derivative", lambda x: (x, x, "sigmoid", 3)),
        ("double_backward", lambda x: (x, x, x, "tanh", 2)),
        ("backward_from_output", lambda x: (x, x, "tanh")),
        ("activation_saving_output", lambda x: (x, "sigmoid")),
        ("bias_activation", lambda x: (x, x[0].clone(), "relu")),
        ("bias_activation_saving_output", lambda x: (x, x[0].clone(), "tanh")),
        ("bias_activation_backward", lambda x: (x, x, x[0].clone(), "tanh")),
        ("bias_activation_backward", lambda x: (x, x, None, "relu")),
        ("bias_activation_backward", lambda x: (x[0], x[0], x[0].clone(), "tanh")),
    ],
    ids=lambda a: a[0],
)
def test_operator_passes_torchs_own_checks(arguments, device):
    name, make = arguments
    x = torch.randn(4, 6, device=device)
    operator = getattr(torch.ops.minigrad, name).default
    torch.library.opcheck(operator, make(x), test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


def test_operator_is_exact_in_reverse_mode_once_minigrad_is_there_and_refuses_the_rest():
    x = torch.full((3,), 20.0, requires_grad=True)  # where torch's gradient is 0
    (dx,) = torch.autograd.grad(torch.ops.minigrad.derivative(x, None, "tanh", 0).sum(), x)
    torch.testing.assert_close(dx, 4 * torch.exp(-2 * x.detach()))
    with pytest.raises(RuntimeError, match="cannot be differentiated this way"):
        torch.ops.minigrad.backward_from_output(x, x, "tanh")
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="cannot be differentiated this way"):
        torch.ops.minigrad.derivative(forward_ad.make_dual(x.detach(), x.detach()), None, "tanh", 0)
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda x: torch.ops.minigrad.derivative(x, None, "tanh", 0).sum())(x.detach())
    with pytest.raises(RuntimeError):
        torch.func.jvp(lambda x: torch.ops.minigrad.derivative(x, None, "tanh", 0), (x.detach(),), (x.detach(),))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: kernels.derivative(x, None, "gelu", 0),
        lambda x: kernels.derivative(x, None, "tanh", 11),
        lambda x: kernels.derivative(x, None, "tanh", -1),
        lambda x: kernels.derivative(x, x, "tanh", 0),
        lambda x: kernels.derivative(x, x[:1], "tanh", 1),
        lambda x: kernels.derivative(x, x.double(), "tanh", 1),
        lambda x: kernels.derivative(x, x.to("meta"), "tanh", 1),
        lambda x: kernels.derivative(x.to_sparse(), None, "tanh", 0),
        lambda x: kernels.double_backward(x, x, x, "tanh", 10),
        lambda x: kernels.double_backward(x, x, x, "relu", 1),
        lambda x: kernels.double_backward(x[:1], x, x, "tanh", 1),
        lambda x: kernels.double_backward(x, x[:1], x, "tanh", 1),
        lambda x: kernels.backward_from_output(x[:1], x, "tanh"),
        lambda x: kernels.bias_activation_backward(x[:1], x, x[0], "tanh"),
        lambda x: kernels.bias_activation(x, x[0, :2], "tanh"),
        lambda x: kernels.bias_activation_backward(x, x, x[0, :2], "tanh"),
        lambda x: kernels.derivative(x.long(), None, "tanh", 0),
    ],
)
def test_kernels_refuse_what_they_do_not_compute(call, device):
    with pytest.raises((TypeError, ValueError), match=r"pass|there are"):
        call(torch.randn(4, 6, device=device))


@pytest.mark.parametrize("make", [lambda x: x.requires_grad_(), torch.nn.Parameter], ids=["leaf", "parameter"])
def test_kernel_called_where_autograd_records_gives_the_exact_gradient(make, device):
    x = make(torch.full((3,), 20.0, device=device))  # where torch's gradient is 0
    (dx,) = torch.autograd.grad(kernels.derivative(x, None, "tanh", 0).sum(), x)
    torch.testing.assert_close(dx, 4 * torch.exp(-2 * x.detach()))


def test_a_gpu_that_is_too_old_for_triton_is_said_to_be(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    with pytest.raises(RuntimeError, match=r"Tesla T4 has compute capability 7\.5, and Triton needs 8\.0 at least: "):
        operators._triton_path(99)
