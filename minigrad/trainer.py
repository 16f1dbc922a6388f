"""The trainer: gradient descent's step, written out, and nothing else.

A plain script uses it as the command line does:

    objective = Digits("tanh", batch_size=32, seed=0, device=torch.device("cpu"), hidden=[128, 128])
    trainer = Trainer(objective, gradient_descent, learning_rate=0.1)
    record = trainer.advance(500)
    print(record.loss[-1], objective.judge())
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minigrad.errors import RunFailed
from minigrad.objectives.objective import Trainable
from minigrad.rules import Rule


@dataclass(frozen=True)
class Record:
    """What consecutive steps report, on the host.

    Attributes:
        first_step: number of updates made before the first of these steps.
        loss: (steps,) float32, the batch's loss before the step's update.
        gradient_norm: (steps,) float32, Euclidean norm of the gradient of all parameters.
    """

    first_step: int
    loss: Tensor
    gradient_norm: Tensor


class NonFiniteError(RunFailed):
    """A loss or a gradient that is infinite or not a number.

    Attributes:
        record: the steps before it, all of them finite.
    """

    def __init__(self, message: str, record: Record) -> None:
        super().__init__(message)
        self.record = record


class Trainer:
    """Trains an objective by a rule.

    Args:
        objective: owns the parameters and gives a batch for a step and a loss for a batch.
        rule: updates parameters in place from gradients and a learning rate.
        learning_rate: handed to the rule at every step.

    Attributes:
        steps: number of updates made so far.
    """

    def __init__(self, objective: Trainable, rule: Rule, learning_rate: float) -> None:
        self.objective = objective
        self.rule = rule
        self.learning_rate = learning_rate
        self.parameters = objective.parameters()
        self.steps = 0

    def step(self) -> tuple[Tensor, Tensor]:
        """Make one update, and return the loss before it and the norm of its gradient, both () on the device."""
        batch = self.objective.batch(self.steps)
        loss = self.objective.loss(batch)
        gradients = list(torch.autograd.grad(loss, self.parameters))
        with torch.no_grad():
            gradient_norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            self.rule(self.parameters, gradients, self.learning_rate)
        self.steps += 1
        return loss.detach(), gradient_norm

    def advance(self, steps: int) -> Record:
        """Make `steps` updates without waiting for the device, then copy what they reported to the host, once.

        Raises:
            NonFiniteError: a loss or a gradient was not finite; the message names the first such step.
        """
        first_step = self.steps
        reports = torch.empty(2, steps, device=self.parameters[0].device)
        for i in range(steps):
            reports[0, i], reports[1, i] = self.step()
        loss, gradient_norm = reports.cpu()
        finite = loss.isfinite() & gradient_norm.isfinite()
        if not finite.all():
            last = int(finite.long().argmin())
            raise NonFiniteError(
                f"step {first_step + last}: the loss is {loss[last]:g} and the norm of its gradient "
                f"{gradient_norm[last]:g}; a smaller learning_rate than {self.learning_rate:g} may help",
                Record(first_step, loss[:last], gradient_norm[:last]),
            )
        return Record(first_step, loss, gradient_norm)
