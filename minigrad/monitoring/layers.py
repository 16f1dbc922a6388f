"""The watched layers of a model: minigrad's modules, whose kernels write the statistics, and torch's, through hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import minigrad_kernels as kernels
from minigrad import nn
from minigrad.errors import UserError
from minigrad.functions import transforms_are_active
from minigrad.ranks import Ranks
from minigrad_kernels import Fired, Layer

_graph_is_kept = torch._C._autograd._get_current_graph_task_keep_graph
_is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_OF_CHANNELS = (torch.nn.modules.conv._ConvNd, torch.nn.modules.batchnorm._NormBase)  # in dimension 1 of what they make
_OF_TORCH = {torch.nn.Sigmoid: "sigmoid", torch.nn.Tanh: "tanh", torch.nn.ReLU: "relu"}


class Layers:
    """The activation layers of a model, in the order in which it registers them.

    Args:
        module: the model.
        share: the part of the derivative's maximum below which a unit is saturated.

    Attributes:
        names: of the layers; a model that is itself an activation is called by its class.
        activations: "sigmoid", "tanh" or "relu", of each.
        through_hooks: names of those that are torch's own.
        outputs: names of those after which the model registers no parameter.
        is_attached: whether they are watched.
        is_paused: whether passes are not to be seen; set by who pauses.
    """

    def __init__(self, module: torch.nn.Module, share: float) -> None:
        self._tallies: dict[torch.device, kernels.Tally] = {}
        self.is_attached = False
        self.is_paused = False
        self._stays = False  # whether flags stay where they are when a window begins
        self._probes: list[_Probe] = []
        self.names: list[str] = []
        self.through_hooks: list[str] = []
        self.outputs: tuple[str, ...] = ()
        has_channels = False
        for name, part in module.named_modules():
            probe = self._probe_of(part, share, has_channels)
            if any(True for _ in part.parameters(recurse=False)):
                self.outputs, has_channels = (), isinstance(part, _OF_CHANNELS)
            if probe is not None:
                self._probes.append(probe)
                self.names.append(name or type(part).__name__)
                self.outputs += (self.names[-1],)
                if isinstance(probe, _Hook):
                    self.through_hooks.append(self.names[-1])
        self.activations = [probe.layer.activation for probe in self._probes]

    def attach(self) -> None:
        """Have all layers watched.

        Raises:
            RuntimeError: another monitor watches one of them.
        """
        for name, probe in zip(self.names, self._probes, strict=True):
            if probe.is_taken:
                raise RuntimeError(f"layer {name} is watched by another monitor: detach that one first")
        for probe in self._probes:
            probe.attach()
        self.is_attached = True

    def detach(self) -> None:
        """Leave all layers as they were."""
        self.is_attached = False
        for probe in self._probes:
            probe.detach()

    def tally(self, device: torch.device) -> kernels.Tally:
        """Return what gathers the statistics of a device."""
        if device not in self._tallies:
            self._tallies[device] = kernels.new_tally(device)
        return self._tallies[device]

    def take(self) -> list[tuple[list[tuple[int, int]], Tensor]]:
        """Return the rows of the passes since the last time, with their keys, by device, without waiting for it."""
        taken = [tally.take() for tally in self._tallies.values()]
        return [(keys, rows) for keys, rows in taken if rows is not None]

    def new_window(self) -> None:
        """Begin a new window: units count as dead if they fire neither in it nor in the one that ends here."""
        for probe in self._probes:
            if self._stays and probe.fired is not None:
                probe.fired_before = probe.fired.copy()
                probe.fired.flags.zero_()
            else:
                probe.fired_before, probe.fired = probe.fired, None

    def addresses(self) -> list[int]:
        """Return by what the memory is known that watched layers write to; from now on windows leave it where it is."""
        self._stays = True
        flags = [probe.fired.flags.data_ptr() for probe in self._probes if probe.fired is not None]
        return [*flags, *(address for tally in self._tallies.values() for address in tally.addresses())]

    def unite(self, ranks: Ranks) -> None:
        """Count units as fired that have fired on any rank."""
        for probe in self._relus().values():
            for fired in (probe.fired, probe.fired_before):
                if fired is not None:
                    ranks.unite(fired.flags)

    def dead(self) -> dict[str, Tensor]:
        """Return which units of each ReLU layer have fired neither in this window nor in the last, (units,) bool.

        Without those that have no whole window yet, or whose number of units is not always the same.
        """
        return {
            name: probe.dead
            for name, probe in zip(self.names, self._probes, strict=True)
            if probe.fired_before is not None and probe.dead is not None
        }

    def state_dict(self) -> dict[str, Any]:
        """Return which units have fired, as tensors in use."""
        return {name: probe.state_dict() for name, probe in self._relus().items()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            UserError: it is that of other layers.
        """
        relus = self._relus()
        if set(saved) != set(relus):
            found, expected = (", ".join(names) or "none" for names in (saved, relus))
            raise UserError(f"the saved ReLU layers are {found}, and here they are {expected}: they do not fit")
        for name, probe in relus.items():
            probe.load_state_dict(saved[name])

    def _relus(self) -> dict[str, _Probe]:
        named = zip(self.names, self._probes, strict=True)
        return {name: probe for name, probe in named if probe.layer.activation == "relu"}

    def _probe_of(self, part: torch.nn.Module, share: float, has_channels: bool) -> _Probe | None:
        number = len(self._probes)
        if isinstance(part, nn.Linear) and part.activation is not None:
            from_output = part.activation == "relu" or part.save == "output"
            layer = Layer(number, part.activation, part.bias is not None, from_output, share)
            return _Probe(self, part, layer)
        if isinstance(part, nn.Sigmoid | nn.Tanh | nn.ReLU):
            from_output = part.activation == "relu" or part.save == "output"
            return _Probe(self, part, Layer(number, part.activation, False, from_output, share), has_channels)
        activation = _OF_TORCH.get(type(part))  # a subclass may compute something else
        if activation is None:
            return None
        return _Hook(self, part, Layer(number, activation, False, from_output=True, share=share), has_channels)


class _Probe:
    """What one of minigrad's modules is given to compute with while it is watched.

    A copy of the module, made by `copy.deepcopy` or by pickling, is not watched: a probe is copied as None.

    Attributes:
        layer: what is computed.
        fired: which units of a ReLU have fired in this window, as far as is known.
        fired_before: the same of the window before.
    """

    def __init__(self, layers: Layers, module: Any, layer: Layer, has_channels: bool = False) -> None:
        self._layers = layers
        self._module = module
        self._has_channels = has_channels
        self.layer = layer
        self.fired: Fired | None = None
        self.fired_before: Fired | None = None
        self._has_varied = False

    @property
    def is_on(self) -> bool:
        return self._layers.is_attached and not self._layers.is_paused

    @property
    def is_taken(self) -> bool:
        return self._module.probe is not None

    @property
    def dead(self) -> Tensor | None:
        if self.fired_before is None or self._has_varied:
            return None
        before = self.fired_before.flags
        return (before if self.fired is None else before.to(self.fired.flags.device) | self.fired.flags) == 0

    def state_dict(self) -> dict[str, Any]:
        """Return which units have fired, as tensors in use."""
        fired, before = (None if f is None else (f.flags, f.dimension) for f in (self.fired, self.fired_before))
        return {"fired": fired, "fired_before": before, "has_varied": self._has_varied}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.fired, self.fired_before = (
            None if saved[name] is None else Fired(saved[name][0].clone(), int(saved[name][1]))
            for name in ("fired", "fired_before")
        )
        self._has_varied = bool(saved["has_varied"])

    def attach(self) -> None:
        self._module.probe = self

    def detach(self) -> None:
        del self._module.probe

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._layers.tally(x.device).forward(self.layer, x, bias, self._flags(x))

    def backward(self, upstream: Tensor, saved: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self._layers.tally(saved.device).backward(self.layer, upstream, saved, bias)

    def _flags(self, y: Tensor) -> Fired | None:
        """Return where the units of a ReLU with an output like y are marked."""
        if self.layer.activation != "relu" or self._has_varied:
            return None
        if self.fired is None:
            self.fired = Fired.none(y, self._has_channels)
        known = [fired for fired in (self.fired, self.fired_before) if fired is not None]
        if not all(fired.fits(y, self._has_channels) for fired in known):
            self._has_varied = True  # then no unit can be said never to fire
            return None
        if self.fired.flags.device != y.device:  # of the checkpoint it was loaded from
            self.fired = Fired(self.fired.flags.to(y.device), self.fired.dimension)
        return self.fired

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _no_probe, ()


class _Hook(_Probe):
    """Watches one of torch's modules through hooks: PyTorch computes, and the statistics are passes of their own.

    The output is kept until the backward pass, even where a checkpoint would compute it again.
    """

    def __init__(self, layers: Layers, module: torch.nn.Module, layer: Layer, has_channels: bool) -> None:
        super().__init__(layers, module, layer, has_channels)
        self._handle: Any = None

    @property
    def is_taken(self) -> bool:
        return any(isinstance(hook, _Hook) for hook in self._module._forward_hooks.values())

    def attach(self) -> None:
        self._handle = self._module.register_forward_hook(self, prepend=True)  # others may change the output

    def detach(self) -> None:
        self._handle.remove()

    def __call__(self, module: torch.nn.Module, inputs: tuple[Any, ...], y: Tensor) -> None:
        if torch.compiler.is_compiling() or not self.is_on or transforms_are_active():
            return  # first of all: what is below would break a compiled graph in two
        node = y.grad_fn
        if node is None or not torch.is_grad_enabled() or not _is_plain(y):
            return
        values: Tensor | None = y.detach()  # a hook that held y would hold its graph, and so itself
        assert values is not None
        self._layers.tally(y.device).saw_forward(self.layer, values, self._flags(values))
        is_view = y._is_view()  # of what ReLU(inplace=True) was given; the node is then that of the view, not of ReLU

        def after_backward(outgoing: tuple[Tensor | None, ...], upstream: tuple[Tensor | None, ...]) -> None:
            nonlocal values
            (dx, *_), (g, *_), output = outgoing, upstream, values
            if not _graph_is_kept():
                values = None  # the node has let go of it as well
            if output is not None and self.is_on and g is not None and dx is not None and not _is_legacy_batched(g):
                with torch.no_grad():
                    dx = torch.ops.aten.threshold_backward(g, output, 0) if is_view else dx
                    self._layers.tally(output.device).saw_backward(self.layer, g.detach(), dx.detach(), output)
                if torch.is_grad_enabled():
                    values = None  # later passes are of second order

        node.register_hook(after_backward)

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _no_hook, ()


def _is_plain(y: Tensor) -> bool:
    is_dense = type(y) is Tensor and y.layout == torch.strided and not y.is_nested
    return is_dense and y.is_floating_point() and not _is_legacy_batched(y)


def _no_probe() -> None:
    """Return what a copy of a module has in place of a probe."""


def _no_hook() -> Callable[..., None]:
    """Return what a copy of a module has in place of a hook."""
    return _ignore


def _ignore(*_: object) -> None:
    """See nothing."""
