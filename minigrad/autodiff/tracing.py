"""A backward pass recorded node by node, in the order in which autograd runs it."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from minigrad.autodiff.local_derivatives import Locals, local_derivatives
from minigrad.autodiff.nodes import Names, Operation, in_order, label_of, leaf_of, next_of
from minigrad.autodiff.recording import Gradient, record
from minigrad.autodiff.trace import Flow, Leaf, Step, Trace

Gradients = tuple[Gradient | None, ...]


def trace_backward(
    output: Tensor,
    gradient: Tensor | None = None,
    *,
    names: Mapping[str, Tensor] | None = None,
    retain_graph: bool = False,
) -> Trace:
    """Run the backward pass and record what every node receives, what it multiplies by, and what it sends on.

    Gradients accumulate in the leaves' `.grad`, and the graph is freed, as by `output.backward(gradient)`: to the bit,
    unless a Function's backward pass changes something besides what it returns, what it keeps and the random generators
    (as `w.main_grad.add_(...)` does). For the local derivatives are found before the pass, by evaluating the backward
    passes of operations on at most 6 elements, up to four times for each result; `minigrad.autodiff.local_derivatives`
    says which are left out. Of gradients of more than 6 elements only statistics are recorded.

    Args:
        output: what to differentiate, any shape.
        gradient: where the pass starts, shaped as `output`; may be left out for a single number, and is 1 then.
        names: the leaves by what they are to be called, such as `dict(model.named_parameters())`; `output` too.
        retain_graph: whether to keep the graph for another pass.
    Returns: the pass; its `table()` and `chain_rule()` are texts.

    Raises:
        TypeError: `output` or `gradient` is no tensor; `names` is no mapping to tensors; or a tensor in the graph is
            nested, on the device "meta", or fake, and so has no elements to record.
        ValueError: `output` requires no gradient; `gradient` is missing, or shaped otherwise.
        RuntimeError: PyTorch's own, such as for a graph that was freed.
    """
    _check(output, gradient)
    called = Names(names)
    named = {id(tensor) for tensor in (names or {}).values()}
    edge = torch.autograd.graph.get_gradient_edge(output)
    nodes = list(in_order([edge.node], next_of))
    _check_elements(nodes)
    locals_of = local_derivatives(nodes)
    recorder = _Recorder()
    with recorder.hooked(nodes):
        output.backward(gradient, retain_graph=retain_graph)
    ran = dict.fromkeys(event.node for event in recorder.events)
    labels = _labels(list(reversed(ran)), called, named)
    steps = tuple(_step(event, labels, locals_of.get(event.node, {})) for event in recorder.events)
    return Trace(called(output) if id(output) in named else "output", edge.output_nr, steps)


def _check(output: Tensor, gradient: Tensor | None) -> None:
    if not isinstance(output, Tensor):
        raise TypeError(f"`output` is a {type(output).__name__}: pass the tensor to differentiate")
    if output.is_nested or output.device.type == "meta" or isinstance(output, FakeTensor):
        raise TypeError(_without_elements("`output`"))
    if not output.requires_grad:
        raise ValueError(
            "`output` requires no gradient, so there is nothing to trace: none of the tensors it was computed from has "
            "requires_grad=True, or it was computed under torch.no_grad(), or .detach() cut it off. Set "
            "requires_grad=True on what to differentiate by, and compute `output` again"
        )
    shape = tuple(output.shape)
    if gradient is None and output.numel() != 1:
        raise ValueError(
            f"`output` is {shape}, and only a single number can be differentiated as it is: pass `gradient` of that "
            "shape, such as torch.ones_like(output) for the gradient of its sum"
        )
    if gradient is None:
        return
    if not isinstance(gradient, Tensor):
        raise TypeError(f"`gradient` is a {type(gradient).__name__}: pass a tensor of {shape}, as `output` is")
    if gradient.shape != output.shape:
        raise ValueError(f"`gradient` is {tuple(gradient.shape)} but `output` is {shape}: pass one of the same shape")


def _check_elements(nodes: Iterable[Operation]) -> None:
    """Refuse a graph before anything runs that the hooks could record nothing of."""
    for node in nodes:
        if any(metadata.is_nested_tensor or metadata.device.type == "meta" for metadata in node._input_metadata):
            raise TypeError(_without_elements(f"what {label_of(node)} computed"))


def _without_elements(what: str) -> str:
    return (
        f'{what} is nested, fake or on the device "meta": it has no plain elements to record, and what is computed '
        "from it can't be traced; compute with plain tensors"
    )


class _Event:
    """A node that runs: what came, and then what it sent, or what is in its leaf's `.grad`."""

    def __init__(self, node: Operation, upstream: Gradients, before: Gradient | None) -> None:
        self.node = node
        self.upstream = upstream
        self.before = before
        self.sent: Gradients = ()
        self.after: Gradient | None = None


class _Recorder:
    """What hooks on the nodes see, in the order in which they are called."""

    def __init__(self) -> None:
        self.events: list[_Event] = []
        self._running: dict[Operation, _Event] = {}

    @contextmanager
    def hooked(self, nodes: Iterable[Operation]) -> Iterator[None]:
        """Hook the nodes for a while."""
        with ExitStack() as stack:
            for node in nodes:
                for handle in (
                    node.register_prehook(partial(self._before, node)),
                    node.register_hook(partial(self._after, node)),
                ):
                    stack.callback(handle.remove)
            yield

    def _before(self, node: Operation, upstream: tuple[Tensor | None, ...]) -> None:
        leaf = leaf_of(node)
        event = _Event(node, tuple(map(record, upstream)), None if leaf is None else record(leaf.grad))
        self._running[node] = event
        self.events.append(event)

    def _after(self, node: Operation, sent: tuple[Tensor | None, ...], _: object) -> None:
        event, leaf = self._running.pop(node), leaf_of(node)
        event.sent = tuple(map(record, sent))
        event.after = None if leaf is None else record(leaf.grad)


def _labels(nodes: Iterable[Operation], called: Names, named: Collection[int]) -> dict[Operation, str]:
    """Return what each node is called: a leaf by its name, an operation by what it does; the like are numbered.

    Args:
        nodes: in the order in which like ones are to be numbered.
        called: what leaves are called.
        named: the ids of those that were given a name, and keep it as it is.
    """
    leaves = {node: leaf_of(node) for node in nodes}
    labels = {node: label_of(node) if leaf is None else called(leaf) for node, leaf in leaves.items()}
    times = Counter(labels.values())
    numbers = {label: count(1) for label in times}

    def numbered(label: str) -> str:
        return next(name for i in numbers[label] if (name := f"{label} {i}") not in times)

    return {
        node: label if times[label] == 1 or id(leaves[node]) in named else numbered(label)
        for node, label in labels.items()
    }


def _step(event: _Event, labels: Mapping[Operation, str], local: Locals) -> Step:
    flows = tuple(
        Flow(labels[other], result, event.sent[i], tuple(local.get((i, n)) for n in range(len(event.upstream))))
        for i, (other, result) in enumerate(event.node.next_functions)
        if other is not None
    )
    leaf = None
    if leaf_of(event.node) is not None:
        leaf = Leaf(event.upstream[0], event.before, event.after)
    return Step(labels[event.node], event.upstream, flows, leaf)
