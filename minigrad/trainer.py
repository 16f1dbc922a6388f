"""The trainer: gradient descent's step, written out, and nothing else.

A plain script uses it as the command line does:

    trainer = Trainer(objective, momentum, learning_rate=0.1)
    record = trainer.advance(500)
    print(record.loss[-1], objective.judge())

where `objective` is anything with the three methods of `minigrad.objectives.Trainable`.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minigrad.captured import CAPACITY, CapturedStep, Graph
from minigrad.errors import UserError
from minigrad.guard import guard_of
from minigrad.monitoring.monitor import GradientMonitor
from minigrad.objectives.objective import Resident, Trainable
from minigrad.record import NonFiniteError, Record
from minigrad.rules import Rule, check_rule, fused, new_state
from minigrad.tensors import flatten, on_host, overwrite, total_norm

EXECUTIONS = ("eager", "graph", "compile")


class Report(NamedTuple):
    """What one step reports, on the device.

    Attributes:
        numbers: the four properties in their order, () each or together (3 + parameters,).
        learning_rate: on the host.
    """

    numbers: list[Tensor] | Tensor
    learning_rate: float

    @property
    def loss(self) -> Tensor:
        """The mean loss of the step's batches, ()."""
        return self.numbers[0]

    @property
    def gradient_norm(self) -> Tensor:
        """The norm of the gradient of all parameters, before it was clipped, ()."""
        return self.numbers[1]

    @property
    def applied(self) -> Tensor:
        """Whether parameters and state have changed, () bool, or 0 or 1."""
        return self.numbers[2]

    @property
    def gradient_norms(self) -> list[Tensor]:
        """The norm of the gradient of each parameter, () each."""
        return list(self.numbers[3:])


class Trainer:
    """Trains an objective by a rule.

    A step whose loss or gradient is not finite changes neither the parameters nor the rule's state.

    Args:
        objective: owns the parameters, gives batches and the loss of a batch.
        rule: updates parameters in place from gradients and a learning rate; one of `minigrad.rules`.
        learning_rate: handed to the rule; a number, or a function from the step, counted from 0, to one.
        accumulate: batches per step, whose gradients are averaged.
        clip_norm: a gradient longer than this, all parameters taken together, is scaled down to it; None: never.
        autocast: dtype in which matrix products are computed (`torch.autocast`); None: that of the parameters.
        on_nonfinite: "stop" raises at the first step that is not finite, "skip" goes on after it.
        execution: "eager"; "compile" compiles the loss with torch.compile; "graph" captures the step as a CUDA graph
            which `advance` replays, for objectives that are `Resident` and the rules of `minigrad.rules`.
        monitor: told when a step has ended, so that what it sees is told apart by steps; attached by whoever made it.

    Attributes:
        steps: number of steps made so far.
        parameters: the tensors that are trained, by name.
        state: the rule's state: by name, a tensor, or a list of one for each parameter.

    Raises:
        UserError: there is nothing to train, or an option is out of its range.
    """

    def __init__(
        self,
        objective: Trainable,
        rule: Rule,
        learning_rate: float | Callable[[int], float],
        *,
        accumulate: int = 1,
        clip_norm: float | None = None,
        autocast: torch.dtype | None = None,
        on_nonfinite: str = "stop",
        execution: str = "eager",
        monitor: GradientMonitor | None = None,
    ) -> None:
        self.objective = objective
        self.rule = rule
        self.steps = 0
        self.parameters = objective.parameters()
        _check(self.parameters, learning_rate, accumulate, clip_norm, on_nonfinite, execution)
        check_rule(rule)
        self._tensors = list(self.parameters.values())
        self.state = new_state(rule, self._tensors)
        self._guard = guard_of([*self._tensors, *flatten(self.state)], stops=on_nonfinite == "stop")
        directions = None if monitor is None else monitor.directions_of(self._tensors)
        self._fused = fused(
            rule, self._tensors, self.state, clip_norm=clip_norm, stops=on_nonfinite == "stop", directions=directions
        )
        self._rate = math.nan, torch.empty(0)  # the last learning rate, and the same on the device
        self._rate_at = learning_rate if callable(learning_rate) else lambda step: learning_rate
        self._accumulate = accumulate
        self._clip_norm = clip_norm
        self._stops = on_nonfinite == "stop"
        self._monitor = monitor
        self._loss = torch.compile(objective.loss) if execution == "compile" else objective.loss
        self._captured = self._new_captured() if execution == "graph" else None
        self._precision: Callable[[], AbstractContextManager[Any]] = (
            nullcontext if autocast is None else partial(torch.autocast, self._tensors[0].device.type, autocast)
        )

    def step(self) -> Report:
        """Make one step: the loss, its gradient, and the rule's update.

        It waits for nothing, so it cannot raise where the loss or the gradient is not finite: then nothing changes,
        and unless `on_nonfinite` is "skip" nothing changes any more until `advance` has raised.
        """
        self._check_watched()
        first = self.next_batch
        loss, gradients = self._backward(self.objective.batch(first + i) for i in range(self._accumulate))
        learning_rate = self._rate_at(self.steps)
        with torch.no_grad():
            numbers: list[Tensor] | Tensor
            measured = None
            if self._fused is None:
                numbers = self._descend(loss, gradients, learning_rate)
            else:  # the same as one kernel
                numbers, measured = self._fused.apply(gradients, self._on_device(learning_rate), loss)
        if self._monitor is not None:
            self._monitor.step(measured)
        self.steps += 1
        return Report(numbers, learning_rate)

    def _backward(self, batches: Iterable[Any]) -> tuple[Tensor, list[Tensor]]:
        """Return the mean loss of the step's batches and its gradient, one tensor for each parameter."""
        for tensor in self._tensors:
            tensor.grad = None
        losses = []
        for batch in batches:
            loss = self._checked_loss(self._loss, batch)
            part = loss if self._accumulate == 1 else loss / self._accumulate
            if part.requires_grad:  # what it depends on, if on anything, is found below
                part.backward()  # adds to what is there
            losses.append(loss.detach())
        gradients = []
        for name, tensor in self.parameters.items():
            if tensor.grad is None:
                raise UserError(f"the loss does not depend on {name}: leave it out of the objective's parameters()")
            gradients.append(tensor.grad)
        return losses[0] if self._accumulate == 1 else torch.stack(losses).mean(), gradients

    def _check_watched(self) -> None:
        if self._monitor is not None and not self._monitor.is_attached:
            raise RuntimeError("the monitor is not attached: call its attach(), or use it as a context")

    def _on_device(self, learning_rate: float) -> Tensor:
        """Return a learning rate as a number on the device, () float64."""
        if learning_rate != self._rate[0]:
            device = self._tensors[0].device
            self._rate = learning_rate, torch.full((), learning_rate, dtype=torch.float64, device=device)
        return self._rate[1]

    def _descend(self, loss: Tensor, gradients: list[Tensor], learning_rate: float) -> list[Tensor]:
        """Update parameters and state, if loss and gradient are finite; return what the step reports."""
        gradient_norms = list(torch._foreach_norm(gradients))
        gradient_norm = total_norm(gradient_norms)
        if self._clip_norm is not None:
            gradients = list(torch._foreach_mul(gradients, (self._clip_norm / gradient_norm).clamp(max=1)))
        update = partial(self.rule, self._tensors, gradients, learning_rate, **self.state)
        applied = self._guard.apply(update, loss, gradient_norm)
        return [loss, gradient_norm, applied, *gradient_norms]

    @property
    def next_batch(self) -> int:
        """Index of the batch with which the next step begins."""
        return self.steps * self._accumulate

    def loss(self, index: int) -> Tensor:
        """Return the loss of the batch of that index, (), with the graph that its backward pass goes through."""
        return self._checked_loss(self.objective.loss, self.objective.batch(index))

    def _checked_loss(self, function: Callable[[Any], Tensor], batch: Any) -> Tensor:
        with self._precision():
            loss = function(batch)
        if loss.shape != ():
            raise UserError(f"the loss is {tuple(loss.shape)}: expected one number, ()")
        return loss

    def advance(self, steps: int, stop: Callable[[], bool] = lambda: False) -> Record:
        """Make up to `steps` steps without waiting for the device, then copy what they reported to the host, once.

        Args:
            steps: at least 1.
            stop: asked after every step; true ends it there.

        Returns: what the steps that were made reported.

        Raises:
            ValueError: `steps` is below 1.
            NonFiniteError: a loss or a gradient was not finite and `on_nonfinite` is "stop"; the message names the step
                and the first parameter. Parameters, state and `steps` are as they were before that step.
        """
        if steps < 1:
            raise ValueError(f"`steps` is {steps}: pass at least 1")
        self._check_watched()
        first_step = self.steps
        reports: list[Report] = []
        with nullcontext() if self._captured is None else self._captured.stream():
            is_over = False
            while len(reports) < steps and not is_over:
                if self._captured is None or self._captured.is_warming_up(self.next_batch):
                    reports.append(self.step())
                    is_over = stop()
                else:
                    made, is_over = self._replay(self._captured, steps - len(reports), stop)
                    reports += made
            record = self._copy(first_step, reports)
        if self._stops and not record.applied.all():
            bad = int(record.applied.long().argmin())
            self.steps = first_step + bad
            self._release()
            advice = f"a smaller learning_rate than {record.learning_rate[bad]:g} may help"
            raise NonFiniteError(f"{record.complaint(bad)}; {advice}", record.until(bad))
        return record

    def _replay(self, captured: CapturedStep, steps: int, stop: Callable[[], bool]) -> tuple[list[Report], bool]:
        """Make up to `steps` steps by replaying them; return their reports, and whether `stop` has said true."""
        rates = [self._rate_at(self.steps + i) for i in range(min(steps, CAPACITY))]
        is_over = False

        def after_step() -> bool:
            nonlocal is_over
            self.steps += 1
            is_over = stop()
            return is_over

        rows = captured.advance(self.next_batch, rates, after_step)
        return [Report(row, rate) for row, rate in zip(rows, rates[: len(rows)], strict=True)], is_over

    def _new_captured(self) -> CapturedStep:
        graph = Graph(self._tensors[0].device)
        if not isinstance(self.objective, Resident):
            raise UserError(
                "execution=graph: the objective has no places() and batch_at(), by which the device chooses batches; "
                "use eager"
            )
        if self._fused is None:
            raise UserError("execution=graph: the rule is not one of minigrad.rules, or Triton is missing; use eager")
        return CapturedStep(
            graph, self.objective, self._backward, self._fused, self._tensors, self._accumulate, self._monitor
        )

    def _copy(self, first_step: int, reports: list[Report]) -> Record:
        """Return the reports on the host, by one copy from the device."""
        if self._fused is None:
            table = on_host([number for report in reports for number in report.numbers]).view(len(reports), -1)
        else:
            table = torch.stack([torch.as_tensor(report.numbers) for report in reports]).cpu()
        return Record(
            first_step=first_step,
            names=tuple(self.parameters),
            loss=table[:, 0],
            gradient_norm=table[:, 1],
            applied=table[:, 2].bool(),
            gradient_norms=table[:, 3:],
            learning_rate=torch.tensor([report.learning_rate for report in reports], dtype=torch.float64),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on besides the objective: steps, parameters, the rule's state.

        The tensors are the trainer's own, not copies.
        """
        parameters = {name: tensor.detach() for name, tensor in self.parameters.items()}
        return {"steps": self.steps, "parameters": parameters, "rule": self.state}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            UserError: it is that of another model or rule; the message names the first difference.
        """
        if type(saved["steps"]) is not int or saved["steps"] < 0:
            raise UserError(f"the saved steps are {saved['steps']!r}: expected an integer from 0 on")
        overwrite(self.parameters, saved["parameters"], "parameters")
        overwrite(self.state, saved["rule"], "state of the rule")
        self.steps = saved["steps"]
        self._release()

    def _release(self) -> None:
        """Let updates through again after one that was held back."""
        self._guard.release()
        if self._fused is not None:
            self._fused.release()


def _check(
    parameters: dict[str, Tensor],
    learning_rate: float | Callable[[int], float],
    accumulate: int,
    clip_norm: float | None,
    on_nonfinite: str,
    execution: str,
) -> None:
    if not parameters:
        raise UserError("the objective has no parameters: there is nothing to train")
    if not callable(learning_rate) and not 0 < learning_rate < math.inf:
        raise UserError(f"learning_rate={learning_rate:g}: expected a finite number above 0, or a function of the step")
    if accumulate < 1:
        raise UserError(f"accumulate={accumulate}: expected an integer from 1 on")
    if clip_norm is not None and not 0 < clip_norm < math.inf:
        raise UserError(f"clip_norm={clip_norm:g}: expected a finite number above 0")
    if on_nonfinite not in ("stop", "skip"):
        raise UserError(f"on_nonfinite={on_nonfinite}: expected one of stop, skip")
    if execution not in EXECUTIONS:
        raise UserError(f"execution={execution}: expected one of {', '.join(EXECUTIONS)}")
