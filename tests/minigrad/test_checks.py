"""Bad input is a TypeError or a ValueError that says what was expected, what came and what to do."""

import pytest
import torch

import minigrad


def matrix(device):
    return torch.linspace(-2, 2, 12, device=device).reshape(3, 4)


DTYPE_ADVICE = "convert it to one of float16, bfloat16, float32, float64"
REFUSED_TENSORS = {
    "integers": (lambda x: x.long(), ["is torch.int64", DTYPE_ADVICE]),
    "booleans": (lambda x: x > 0, ["is torch.bool", DTYPE_ADVICE]),
    "complex": (lambda x: x.to(torch.complex64), ["is torch.complex64", "are real", "pass .real and .imag apart"]),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), ["is torch.float8_e4m3fn", DTYPE_ADVICE]),
    "sparse COO": (lambda x: x.to_sparse(), ["layout torch.sparse_coo", "convert it with .to_dense()"]),
    "sparse CSR": (lambda x: x.to_sparse_csr(), ["layout torch.sparse_csr", "convert it with .to_dense()"]),
    "nested": (lambda x: torch.nested.nested_tensor([x, x[:1]]), ["a nested tensor", "to_padded_tensor"]),
    "a list": (lambda x: x.tolist(), ["is list", "pass a torch.Tensor"]),
    "a number": (lambda _: 1.0, ["is float", "pass a torch.Tensor"]),
    "None": (lambda _: None, ["is NoneType", "pass a torch.Tensor"]),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("case", REFUSED_TENSORS)
def test_refused_tensor_is_named_with_what_to_do(case, device):
    make, parts = REFUSED_TENSORS[case]
    bad, good = make(matrix(device)), matrix(device)
    calls = {
        "`x`": [
            lambda: minigrad.sigmoid(bad),
            lambda: minigrad.tanh(bad),
            lambda: minigrad.relu(bad),
            lambda: minigrad.tanh(bad, save="output"),
            lambda: minigrad.derivative("tanh", bad, 2),
            lambda: minigrad.bias_activation(bad, good[0], "tanh"),
        ],
        "`bias`": [lambda: minigrad.bias_activation(good, bad, "tanh")],
    }
    for argument, argument_calls in calls.items():
        for call in argument_calls:
            with pytest.raises(TypeError) as error:
                call()
            assert all(part in str(error.value) for part in (argument, *parts))


def bias_call(change, activation="tanh", save="input"):
    return lambda x: minigrad.bias_activation(*change(x), activation, save)


REFUSED_ARGUMENTS = {
    "bias of another length": (bias_call(lambda x: (x, x[0, :3])), ValueError, ["(3,)", "(3, 4)", "bias of (4,)"]),
    "bias of length one": (bias_call(lambda x: (x, x[0, :1])), ValueError, ["(1,)", "(3, 4)", "bias of (4,)"]),
    "bias with two dimensions": (bias_call(lambda x: (x, x[:1])), ValueError, ["(1, 4)", "(3, 4)", "bias of (4,)"]),
    "0-d bias": (bias_call(lambda x: (x, x[0, 0])), ValueError, ["()", "(3, 4)", "bias of (4,)"]),
    "0-d x": (bias_call(lambda x: (x[0, 0], x[0, :1])), ValueError, ["(1,)", "()", "at least one dimension"]),
    "wider bias": (bias_call(lambda x: (x, x[0].double())), TypeError, ["float64", "float32", ".to(...)"]),
    "narrower bias": (bias_call(lambda x: (x, x[0].half())), TypeError, ["float16", "float32", ".to(...)"]),
    "bias elsewhere": (bias_call(lambda x: (x, x[0].to("meta"))), ValueError, ["meta", "`x`", ".to(...)"]),
    "activation": (bias_call(lambda x: (x, x[0]), "gelu"), ValueError, ["'gelu'", "sigmoid, tanh, relu"]),
    "activation of derivative": (lambda x: minigrad.derivative("Tanh", x, 1), ValueError, ["'Tanh'", "tanh, relu"]),
    "no activation": (bias_call(lambda x: (x, x[0]), None), TypeError, ["NoneType", "sigmoid, tanh, relu"]),
    "activation last": (lambda x: minigrad.derivative(x, "tanh", 2), TypeError, ["is Tensor", "sigmoid, tanh, relu"]),
    "save of tanh": (lambda x: minigrad.tanh(x, "both"), ValueError, ["`save`", "'both'", '"input"', '"output"']),
    "save of sigmoid": (lambda x: minigrad.sigmoid(x, None), ValueError, ["`save`", "None", '"input"', '"output"']),
    "save of bias": (bias_call(lambda x: (x, x[0]), save=True), ValueError, ["`save`", "True", '"input"']),
    **{
        f"order {order!r}": (
            lambda x, o=order: minigrad.derivative("tanh", x, o),
            TypeError,
            ["`order`", repr(order), "0"],
        )
        for order in (True, 1.0, "2", None)
    },
    "order -1": (lambda x: minigrad.derivative("tanh", x, -1), ValueError, ["`order`", "-1", "0 to 10"]),
    "order 11": (lambda x: minigrad.derivative("relu", x, 11), ValueError, ["`order`", "11", "0 to 10"]),
}


@pytest.mark.parametrize("case", REFUSED_ARGUMENTS)
def test_refused_argument_is_named_with_what_to_do(case, device):
    call, kind, parts = REFUSED_ARGUMENTS[case]
    with pytest.raises(kind) as error:
        call(matrix(device))
    assert type(error.value) is kind
    assert all(part in str(error.value) for part in parts)
