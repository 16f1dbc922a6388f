"""The monitor: what the gradient does in every layer and every step, and what is wrong with it, in words."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from minigrad.errors import UserError
from minigrad.monitoring.layers import Layers
from minigrad.monitoring.readings import Readings
from minigrad.monitoring.steps import Step, flow_of, on_host, order_of, updates_of
from minigrad.monitoring.thresholds import Thresholds
from minigrad.monitoring.updates import Updates
from minigrad.monitoring.verdicts import Verdict, judge, update_ratios
from minigrad.ranks import ALONE, Ranks

_BLIND = 2  # steps in which nothing was seen before it is said


class Writer(Protocol):
    """What a TensorBoard `SummaryWriter` offers, as far as it is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write a number."""

    def add_text(self, tag: str, text_string: str, global_step: int) -> None:
        """Write a text."""


class GradientMonitor:
    """Watches a model train: the gradient's flow through its activation layers, and the updates of its parameters.

        monitor = minigrad.GradientMonitor(model)
        with monitor:
            for step, (inputs, targets) in enumerate(batches):
                optimizer.zero_grad()
                loss(model(inputs), targets).backward()
                optimizer.step()
                monitor.step()
                if step % 100 == 0:
                    monitor.log(writer, step)
                    for verdict in monitor.verdicts():
                        print(verdict)

    While it is attached, the kernels of minigrad's modules (`minigrad.nn`) write statistics of what they hold anyway,
    and results and gradients stay the same to the bit. PyTorch's own activation modules are watched through hooks,
    which costs passes of their own, and memory where a checkpoint would save it; `minigrad.nn.replace_activations`
    makes them minigrad's. Activations called as functions (`torch.relu(x)`) are not seen. Nor are passes that record no
    gradient, such as an evaluation's, those under torch.func, forward mode or export, and of a compiled model those of
    PyTorch's own modules; minigrad's leave the compiled graph while they are watched. Detached, it leaves the model as
    it was.

    Nothing here waits for the device but `read`, `log` and `verdicts`.

    What is counted: all backward passes up to `step` are one step, so with an accumulated gradient the figures are
    those of the whole batch (if each part of the loss was divided by the number of parts before its backward pass, as
    its gradient has to be), and those of several losses are of all their passes together. A loss that is scaled, as
    with a GradScaler, has layers with scaled gradients; ratios and fractions are the same. Of a pass made with
    `create_graph=True` the gradient is counted, and what goes through the graph that it makes is not; if it is the
    other way round, as where a gradient penalty is a part of the loss, make the inner pass in `paused()`.

    Units of a ReLU layer, of which some may be dead, are the channels of what a convolution or a batch normalisation
    registered just before it can have made (dimension 1), and of any output of four or five dimensions; else the last
    dimension. A layer after which the model registers no parameter is taken for its output, and not called saturated
    or vanishing. No verdict is no certificate: a network may fail to learn for reasons that no gradient shows.

    Args:
        module: the model; its floating-point parameters that require a gradient are watched.
        thresholds: from where on something is wrong.
        window: steps by which verdicts go; also those in which a unit of ReLU must have fired not to count as dead.
        ranks: that divide every batch among them, so that the loss of each has the weight of its part; what they see is
            put together where it is read, which all of them do at the same steps. By default there is one.

    Raises:
        TypeError: an argument is of another type.
        ValueError: `window` is below 1.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        thresholds: Thresholds = Thresholds(),  # noqa: B008 - it never changes
        window: int = 100,
        ranks: Ranks = ALONE,
    ) -> None:
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"`module` is {module!r}: pass a torch.nn.Module")
        if not isinstance(thresholds, Thresholds):
            raise TypeError(f"`thresholds` is {thresholds!r}: pass minigrad.Thresholds(...)")
        if not isinstance(window, int):
            raise TypeError(f"`window` is {window!r}: pass a number of steps, an integer")
        if window < 1:
            raise ValueError(f"`window` is {window}: pass a number of steps, at least 1")
        self._thresholds = thresholds
        self._window = window
        self._ranks = ranks
        self._layers = Layers(module, thresholds.share)
        self._parameters = {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and parameter.is_floating_point()
        }
        self._updates = Updates(list(self._parameters.values()))
        self._order = list(range(len(self._layers.names)))  # of the layers, from input to output
        self._steps = 0
        self._has_seen = self._is_stepped = False
        self._pending: list[Step] = []
        self._unread = self._history = self._readings([], {})
        self._highest_ratio = 0.0
        self._began_ill = False
        self._said: list[str] = []

    def attach(self) -> Self:
        """Begin to watch; as `with monitor:` does.

        Raises:
            RuntimeError: it is attached already, or another monitor watches one of the layers.
        """
        if self._layers.is_attached:
            raise RuntimeError("the monitor is attached already: detach it first")
        n_hooks = len(self._layers.through_hooks)
        if n_hooks:
            modules = "1 activation module is" if n_hooks == 1 else f"{n_hooks} activation modules are"
            warnings.warn(
                f"{modules} PyTorch's own and watched through hooks, which is slower: "
                "minigrad.nn.replace_activations(model), before the monitor is made, makes them minigrad's",
                stacklevel=2,
            )
        if not self._layers.names and sum(parameter.dim() >= 2 for parameter in self._parameters.values()) >= 2:
            warnings.warn(
                "the model has no module of sigmoid, tanh or ReLU, and activations called as functions are not seen: "
                "only its parameters are watched",
                stacklevel=2,
            )
        self._layers.attach()
        self._updates.begin()
        return self

    __enter__ = attach  # itself, so that a warning is about the line that has `with`

    def detach(self) -> None:
        """Leave the model as it was; what was measured can still be read."""
        if self._layers.is_attached:
            self._layers.detach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    @property
    def is_attached(self) -> bool:
        """Whether it watches."""
        return self._layers.is_attached

    @property
    def is_paused(self) -> bool:
        """Whether it sees nothing for a while."""
        return self._layers.is_paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        """See nothing for a while, such as passes that are no part of the training."""
        before, self._layers.is_paused = self._layers.is_paused, True
        try:
            yield
        finally:
            self._layers.is_paused = before

    def step(self, measured: Tensor | None = None) -> None:
        """End a step: to be called after the update, while the gradients are still there.

        A warning says if there are none, or if no pass through a layer was seen.

        Args:
            measured: what the update has measured of the parameters, if it has been given their `directions_of`.

        Raises:
            RuntimeError: the monitor is not attached.
        """
        if not self.is_attached:
            raise RuntimeError("the monitor is not attached: call attach(), or use it as a context")
        step = self.take(measured)
        if step.taken and self._parameters and not step.here:
            warnings.warn("no parameter has a gradient: call step() before optimizer.zero_grad()", stacklevel=2)
        self._has_seen = self._has_seen or bool(step.taken)
        if self._layers.names and not self._has_seen and self._steps == _BLIND:
            warnings.warn(
                f"no pass through an activation layer was seen in {_BLIND + 1} steps: "
                "have they been replaced since the monitor was made?",
                stacklevel=2,
            )
        self._is_stepped = True
        self._end_step(step)

    def take(self, measured: Tensor | None = None) -> Step:
        """Return what was seen since the last step, on the device, and forget it; for a step that is captured."""
        return Step(self._layers.take(), *self._updates.measure(measured))

    def forget(self) -> None:
        """Forget the passes that were seen since the last step."""
        self._layers.take()

    def replayed(self) -> None:
        """Count a step that was captured and is replayed; `extend` brings what was seen in it."""
        self._count()

    def extend(self, steps: Sequence[Step]) -> None:
        """Take what was seen in the steps that were replayed since the last time."""
        self._pending.extend(steps)

    def addresses(self) -> list[int]:
        """Return by what all memory that stays between steps is known, for a step that is captured.

        From now on this changes only where sizes do, or another state is loaded.
        """
        return [*self._layers.addresses(), *self._updates.addresses()]

    def directions_of(self, parameters: Sequence[Tensor]) -> list[Tensor] | None:
        """Return the directions of the last gradients, for an update that measures in its own pass what it does.

        Args:
            parameters: those that it changes.

        Returns: for each its last gradient, of length 1, flat, to be kept up to date; None if others are watched.
        """
        return self._updates.directions_of(parameters)

    def read(self) -> Readings:
        """Return what was measured in the steps since the last reading, by one copy from the device.

        Passes after the last `step` belong to a step that has not ended. Where `step` is never called, those since the
        last reading are taken for one, without what the update did.
        """
        if not self._is_stepped:
            taken = self._layers.take()
            if taken:
                self._end_step(Step(taken, [], None))
        self._collect()
        readings, self._unread = self._unread, self._readings([], {})
        return readings

    @property
    def history(self) -> Readings:
        """What was measured in the last `window` of the steps that were read or judged."""
        return self._history

    def verdicts(self) -> list[Verdict]:
        """Say what is wrong, by the last `window` steps; nothing if nothing is."""
        if self._pending:
            self._collect()
        is_early = self._steps < self._window
        return judge(self._history, self._thresholds, self._highest_ratio, is_early=is_early, began_ill=self._began_ill)

    def log(self, writer: Writer, step: int) -> Readings:
        """Read, and write the medians over the steps since the last reading to TensorBoard; the verdicts as text.

        Args:
            writer: a `torch.utils.tensorboard.SummaryWriter`, or what has its two methods.
            step: under which the numbers appear.
        Returns: the readings.
        """
        readings = self.read()
        for tag, value in readings.median().points()[0].items():
            writer.add_scalar(tag, value, global_step=step)
        said = [str(verdict) for verdict in self.verdicts()]
        if said != self._said:
            writer.add_text("flow/verdicts", "  \n".join(said) or "nothing is wrong", global_step=step)
            self._said = said
        return readings

    def state_dict(self) -> dict[str, Any]:
        """Return all that later readings and verdicts depend on besides the model; what has been measured must be read.

        The tensors are the monitor's own, not copies.

        Raises:
            RuntimeError: there are steps that have not been read.
        """
        n_unread = len(self._pending) + len(self._unread)
        if n_unread:
            raise RuntimeError(f"{n_unread} steps have not been read: call read() or log() first")
        history = self._history
        return {
            "steps": self._steps,
            "order": self._order,
            "layers": self._layers.state_dict(),
            "updates": self._updates.state_dict(),
            "history": {"flow": history.flow, "updates": history.updates, "dead": dict(history.dead)},
            "highest_ratio": self._highest_ratio,
            "began_ill": self._began_ill,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, once the model has its parameters of then; attached or not.

        Raises:
            UserError: it is that of another model's monitor.
        """
        flow, updates = saved["history"]["flow"].cpu(), saved["history"]["updates"].cpu()
        found, expected = (flow.shape[1], updates.shape[1]), (len(self._layers.names), len(self._parameters))
        if found != expected:
            what = "activation layers and parameters"
            raise UserError(f"the saved history is of {found} {what}, and here there are {expected}: they do not fit")
        self._layers.load_state_dict(saved["layers"])
        self._updates.load_state_dict(saved["updates"])
        self._order, self._steps = list(saved["order"]), int(saved["steps"])
        self._unread = self._readings([], {})
        self._history = replace(
            self._unread,
            first_step=self._steps - len(flow),
            flow=flow,
            updates=updates,
            dead={name: units.cpu() for name, units in saved["history"]["dead"].items()},
        )
        self._highest_ratio, self._began_ill = float(saved["highest_ratio"]), bool(saved["began_ill"])

    def _end_step(self, step: Step) -> None:
        if self._steps == 0:
            self._order = order_of(step, len(self._layers.names))
        self._pending.append(step)
        self._count()

    def _count(self) -> None:
        self._steps += 1
        if self._steps % self._window == 0:
            self._layers.new_window()

    def _collect(self) -> None:
        """Copy to the host what has been measured, for the next reading and for verdicts."""
        pending, self._pending = self._pending, []
        self._layers.unite(self._ranks)
        dead = self._layers.dead()
        host = iter(on_host([*(tensor for step in pending for tensor in step.tensors), *dead.values()]))
        steps = [
            Step([(keys, next(host)) for keys, _ in s.taken], s.here, next(host) if s.here else None) for s in pending
        ]
        steps = [step.with_rows_of(others) for step, *others in zip(*self._ranks.gathered(steps), strict=True)]
        readings = self._readings(steps, {name: next(host) != 0 for name in dead})
        self._unread = self._unread.followed_by(readings)
        self._history = self._history.followed_by(readings).last(self._window)
        if readings.first_step == 0 and steps:
            self._began_ill = bool(judge(readings.until(1), self._thresholds, is_early=True))
        ratios = update_ratios(readings)
        self._highest_ratio = max([self._highest_ratio, *ratios[ratios.isfinite()].tolist()])

    def _readings(self, steps: list[Step], dead: dict[str, Tensor]) -> Readings:
        """Return steps on the host as readings."""
        names, activations = self._layers.names, self._layers.activations
        return Readings(
            first_step=self._steps - len(steps),
            layers={names[i]: activations[i] for i in self._order},
            flow=flow_of(steps, len(names))[:, self._order],
            parameters={name: tuple(parameter.shape) for name, parameter in self._parameters.items()},
            updates=updates_of(steps, len(self._parameters)),
            dead=dead,
            outputs=self._layers.outputs,
        )
