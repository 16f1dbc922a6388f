"""A launch goes to just the kernel that Triton's own launch would go to, with the same arguments, and only faster."""

import random
from contextlib import contextmanager

import pytest
import torch

from cases import INTERPRETED

if INTERPRETED:
    pytest.skip("Triton compiles nothing in a process whose kernels it interprets", allow_module_level=True)
pytest.importorskip("triton", reason="needs Triton, which is on Linux only")

from triton import knobs

from bench.stand_in import DEVICE, STREAM, without_a_gpu
from minigrad_kernels import bias, elementwise, fused_update, launch, rows
from minigrad_kernels.tally import Tally
from minigrad_kernels.watch import Fired, Layer


@pytest.fixture
def started():
    """What has been started, on a GPU that is not there."""
    starts = []
    with without_a_gpu(starts.append):
        yield starts


@pytest.fixture
def anew(monkeypatch):
    """The kernels that Triton launched itself."""
    launched = []
    launch_anew = launch._launch_anew

    def note(kernel, *arguments):
        launched.append(kernel)
        return launch_anew(kernel, *arguments)

    monkeypatch.setattr(launch, "_launch_anew", note)
    return launched


def arguments_of_a_backward(x, g, n_elements, low=None):
    """Return tensors, integers, numbers and constants, watched if there is a limit."""
    statistics = None if low is None else torch.empty(8)
    return {
        "dx_ptr": torch.empty(40, dtype=x.dtype),
        "g_ptr": g,
        "y_ptr": x,
        "statistics_ptr": statistics,
        "n_elements": n_elements,
        "low": low,
        "high": low,
        "ACTIVATION": "relu",
        "G_EXPANDED": False,
        "BLOCK": 64,
        "num_warps": 1,
    }


def test_every_kind_of_arguments_goes_where_tritons_own_launch_does(started):
    kernel = elementwise._backward_from_output_kernel
    cases = []
    for dtype in (torch.float32, torch.bfloat16):
        aligned, shifted = torch.zeros(40, dtype=dtype)[:32], torch.zeros(40, dtype=dtype)[1:33]
        for x, g in ((aligned, aligned), (shifted, aligned), (aligned, shifted)):
            sizes = (1, 16, 17, 2**31 - 16, 2**31 - 1, 2**31, 2**31 + 1, 2**32)
            cases += [arguments_of_a_backward(x, g, n_elements) for n_elements in sizes]
        cases += [arguments_of_a_backward(aligned, aligned, 17, low) for low in (0.5, 1.0)]
    without_options = cases[0]
    del without_options["num_warps"]
    for changes in (
        {"ACTIVATION": "tanh"},
        {"BLOCK": 128},
        {"num_warps": 2},
        {"num_stages": 2},
        {"enable_fp_fusion": False},
    ):
        cases.append(without_options | changes)
    expected = []
    for case in cases:
        kernel[(3,)](**case)
        expected.append(started.pop())
    assert len({start.kernel for start in expected}) > 20  # they are of many kinds
    order = [*range(len(cases))] * 3
    random.Random(0).shuffle(order)
    for i in order:
        launch.launch(kernel, 3, torch.zeros(1), **cases[i])
        assert started.pop() == expected[i], cases[i]


def watched():
    tally, x = Tally(), torch.zeros(6, 8)
    layer = Layer(number=0, activation="relu", biased=False, from_output=True, share=0.1)
    tally.forward(layer, x, None, Fired.none(x))
    tally.backward(layer, x, x, None)
    return tally.take()


def update():
    parameters = [torch.zeros(40), torch.zeros(7, dtype=torch.bfloat16), torch.zeros(300)]
    directions = [parameter.float() for parameter in parameters]
    state = {"velocity": [parameter.clone() for parameter in parameters]}
    updated = fused_update.FusedUpdate("momentum", {"momentum": 0.9}, parameters, state, directions=directions)
    updated.apply(parameters, torch.zeros((), dtype=torch.float64), torch.zeros(()))


OPERATIONS = {
    "derivative": lambda: elementwise.derivative(torch.zeros(20), None, "tanh", 0),
    "backward": lambda: elementwise.derivative(torch.zeros(20), torch.ones(()).expand(20), "tanh", 1),
    "double backward": lambda: elementwise.double_backward(*(torch.zeros(20) for _ in range(3)), "tanh", 1),
    "backward from the output": lambda: elementwise.backward_from_output(torch.zeros(20), torch.zeros(20), "relu"),
    "bias": lambda: bias.bias_activation(torch.zeros(5, 8), torch.zeros(8), "relu"),
    "bias, backward": lambda: bias.bias_activation_backward(torch.zeros(5, 8), torch.zeros(5, 8), None, "relu"),
    "watched": watched,
    "row": lambda: rows.put_row(torch.zeros(3, 4), torch.zeros((), dtype=torch.int64), torch.zeros(4)),
    "update": update,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_starts_the_second_time_what_triton_started_the_first(name, started, anew, monkeypatch):
    operation = OPERATIONS[name]
    monkeypatch.setattr(launch, "_is_hooked", lambda kernel: True)
    operation()  # by Triton alone
    own, n_kernels = list(started), len(anew)
    assert len(own) == n_kernels > 0
    monkeypatch.setattr(launch, "_is_hooked", lambda kernel: False)
    operation()
    anew.clear()
    started.clear()
    operation()
    assert anew == []
    assert [alike(start) for start in started] == [alike(start) for start in own]


def alike(start):
    """What two runs of an operation have in common, whose tensors lie elsewhere."""
    arguments = [
        (argument.dtype, argument.shape) if isinstance(argument, torch.Tensor) else argument
        for argument in start.arguments
    ]
    return start._replace(arguments=arguments)


def test_launch_is_in_the_current_stream(started):
    elementwise.derivative(torch.zeros(20), None, "tanh", 0)
    elementwise.derivative(torch.zeros(20), None, "tanh", 0)
    assert [start.stream for start in started] == [STREAM + DEVICE] * 2
    assert [start.grid for start in started] == [(1, 1, 1), (1, 1, 1)]


def test_tensors_device_is_entered_and_left(monkeypatch):
    where = []
    with without_a_gpu(lambda start: where.append(driver.device)) as driver:
        x, driver.device = torch.zeros(20), 3

        @contextmanager
        def device_of(tensor):
            driver.device = tensor.get_device()
            yield
            driver.device = 3

        monkeypatch.setattr(torch.cuda, "device_of", device_of)
        for _ in range(2):
            elementwise.derivative(x, None, "tanh", 0)
        assert driver.device == 3
    assert where == [DEVICE, DEVICE]


def test_every_device_has_kernels_of_its_own(monkeypatch):
    starts = []
    with without_a_gpu(starts.append) as driver:
        for driver.device in (-2, -3, -2, -3):  # those of no GPU, since Triton remembers them
            monkeypatch.setattr(torch.Tensor, "get_device", lambda tensor: driver.device)
            elementwise.derivative(torch.zeros(20), None, "tanh", 0)
    first, second, *again = starts
    assert first.kernel != second.kernel
    assert [start.kernel for start in again] == [first.kernel, second.kernel]
    assert [start.stream for start in starts] == [STREAM - 2, STREAM - 3] * 2


def test_who_listens_to_launches_hears_each(started):
    heard = []
    x = torch.zeros(20)
    for _ in range(2):
        elementwise.derivative(x, None, "tanh", 0)
    knobs.runtime.launch_enter_hook.add(heard.append)
    try:
        for _ in range(2):
            elementwise.derivative(x, None, "tanh", 0)
    finally:
        knobs.runtime.launch_enter_hook.remove(heard.append)
    assert [metadata.get()["name"] for metadata in heard] == 2 * ["_derivative_kernel"]
    elementwise.derivative(x, None, "tanh", 0)
    assert len(heard) == 2
    assert len(started) == 5


def test_what_is_hooked_into_a_kernel_is_called(started):
    kernel, seen = rows._put_row_kernel, []
    kernel.add_pre_run_hook(lambda *arguments, **named: seen.append(named["n_columns"]))
    try:
        for _ in range(3):
            rows.put_row(torch.zeros(3, 4), torch.zeros((), dtype=torch.int64), torch.zeros(4))
    finally:
        kernel.pre_run_hooks.clear()
    assert seen == [4, 4, 4]


def test_kernels_for_debugging_are_others(started, monkeypatch):
    for debug in (False, True, False, True):
        monkeypatch.setattr(knobs.runtime, "debug", debug)
        elementwise.derivative(torch.zeros(20), None, "tanh", 0)
    assert started[0].kernel == started[2].kernel != started[1].kernel == started[3].kernel


def test_a_launch_that_triton_is_kept_from_is_none(started, monkeypatch):
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", lambda **_: True)
    elementwise.derivative(torch.zeros(20), None, "tanh", 9)
    assert started == []
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", None)
    elementwise.derivative(torch.zeros(20), None, "tanh", 9)
    assert len(started) == 1


def test_another_version_of_triton_launches_by_itself(started, anew, monkeypatch):
    monkeypatch.setattr(launch, "_IS_KNOWN", False)
    for _ in range(3):
        elementwise.derivative(torch.zeros(20), None, "tanh", 0)
    assert len(anew) == len(started) == 3


def test_arguments_in_another_order_are_refused(started):
    right = {"table_ptr": torch.zeros(4), "values_ptr": torch.zeros(4), "row_ptr": torch.zeros(1), "n_columns": 4}
    launch.launch(rows._put_row_kernel, 1, torch.zeros(1), **right, BLOCK=16)
    swapped = {name: right[name] for name in ("values_ptr", "table_ptr", "row_ptr", "n_columns")}
    with pytest.raises(TypeError, match="pass table_ptr, values_ptr, row_ptr, n_columns, BLOCK, in this order"):
        launch.launch(rows._put_row_kernel, 1, torch.zeros(1), **swapped, BLOCK=16)
    assert len(started) == 1
