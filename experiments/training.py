"""Train an objective by a rule: gradient descent on real data, its curves in TensorBoard."""

from dataclasses import dataclass
from typing import Any

import torch

from minigrad.config import RunConfig, bind, check_at_least, check_one_of, check_positive
from minigrad.objectives import OBJECTIVES
from minigrad.progress import progress
from minigrad.rules import RULES
from minigrad.run import Run
from minigrad.trainer import NonFiniteError, Record, Trainer
from minigrad_kernels import ACTIVATIONS


@dataclass
class Config(RunConfig):
    """The keys of a training run; `objective` and `rule` are groups with keys of their own."""

    objective: dict[str, Any]
    rule: dict[str, Any]
    activation: str
    learning_rate: float
    batch_size: int
    epochs: int
    steps: int | None
    log_every: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("activation", self.activation, ACTIVATIONS)
        check_positive("learning_rate", self.learning_rate)
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("epochs", self.epochs, 1)
        if self.steps is not None:
            check_at_least("steps", self.steps, 1)
        check_at_least("log_every", self.log_every, 1)
        bind(OBJECTIVES, self.objective, "objective")  # checked now, before the run makes anything
        bind(RULES, self.rule, "rule")

    @property
    def label(self) -> str:
        """A training run is called by its objective."""
        return str(self.objective["name"])


def run(config: Config, run: Run) -> str:
    """Train to the last step, judging the result every `log_every` steps; return what was reached."""
    new_objective = bind(OBJECTIVES, config.objective, "objective")
    objective = new_objective(config.activation, config.batch_size, config.seed, run.device)
    trainer = Trainer(objective, bind(RULES, config.rule, "rule"), config.learning_rate)
    total = config.steps or config.epochs * objective.steps_per_epoch

    def judge() -> None:
        tags, values = zip(*objective.judge().items(), strict=True)
        run.scalars(trainer.steps, dict(zip(tags, torch.stack(values).tolist(), strict=True)))

    def write(record: Record) -> None:
        reports = zip(record.loss.tolist(), record.gradient_norm.tolist(), strict=True)
        for step, (loss, norm) in enumerate(reports, record.first_step):
            run.scalars(step, {"train/loss": loss, "gradient_norm": norm, "learning_rate": config.learning_rate})
        run.steps = record.first_step + len(record.loss)

    with progress(total) as report:
        judge()
        while trainer.steps < total:
            try:
                write(trainer.advance(min(config.log_every, total - trainer.steps)))
            except NonFiniteError as error:
                write(error.record)
                raise
            judge()
            shown = ("train/loss", "test/accuracy")
            report(trainer.steps, {tag: run.metrics[tag] for tag in shown if tag in run.metrics})
    reached = ", ".join(f"{tag} {value:.4g}" for tag, value in run.metrics.items() if tag.startswith("test/"))
    return f"{reached} at step {total}"
