"""What a trainer is made of, as a config says it: objective, rule, schedule and the options of the step."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from minigrad.config import RunConfig, bind, check_at_least, check_learning_rate, check_one_of, check_positive, show
from minigrad.errors import UserError
from minigrad.monitoring.monitor import GradientMonitor
from minigrad.objectives import OBJECTIVES
from minigrad.objectives.objective import Objective, Trainable
from minigrad.rules import RULES, check_rule
from minigrad.trainer import Trainer
from minigrad_kernels import ACTIVATIONS

PRECISIONS = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}


@dataclass(kw_only=True)
class ObjectiveConfig(RunConfig):
    """The keys of every experiment with an objective, which is a group with keys of its own.

    Those with a default are there for the objectives that have a use for them, whose configs bring them.
    """

    objective: dict[str, Any]
    steps: int | None
    activation: str | None = None
    batch_size: int | None = None
    epochs: int | None = None
    function: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        name, needs = self.objective.get("name"), self.needs
        for key in ("activation", "batch_size", "function"):
            value = getattr(self, key)
            if value is None and key in needs:
                raise UserError(f"{key} has no value; objective={name} needs one")
            if value is not None and key not in needs:
                raise UserError(f"{key}={show(value)}: objective={name} has no use for it; leave it out")
        if self.activation is not None:
            check_one_of("activation", self.activation, ACTIVATIONS)
        for key in ("batch_size", "epochs", "steps"):
            if getattr(self, key) is not None:
                check_at_least(key, getattr(self, key), 1)

    @property
    def label(self) -> str:
        """A run with an objective is called by both."""
        return f"{self.experiment}_{self.objective['name']}"

    @property
    def needs(self) -> list[str]:
        """What the objective takes from the run: its parameters that are no options of its own."""
        parameters = inspect.signature(bind(OBJECTIVES, self.objective, "objective")).parameters.values()
        return [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]

    @property
    def dtype(self) -> torch.dtype:
        """What the objective computes in."""
        return torch.float32

    def new_objective(self, device: torch.device) -> Objective:
        """Return the objective on a device, its parameters where they start."""
        given = {
            "activation": self.activation,
            "batch_size": self.batch_size,
            "function": self.function,
            "seed": self.seed,
            "device": device,
            "dtype": self.dtype,
        }
        return bind(OBJECTIVES, self.objective, "objective")(**{name: given[name] for name in self.needs})

    def total_steps(self, objective: Objective) -> int:
        """Return how many steps are asked for, of one batch each."""
        if self.steps is not None:
            return self.steps
        if self.epochs is None:
            raise UserError(f"neither steps nor epochs are given; objective={self.objective['name']} needs one of them")
        if objective.batches_per_epoch is None:
            raise UserError(
                f"epochs={self.epochs}: objective={self.objective['name']} has no data to pass over; give steps"
            )
        return self.epochs * objective.batches_per_epoch


@dataclass(kw_only=True)
class Recipe(ObjectiveConfig):
    """The keys of every experiment with a trainer; `rule` is a group with keys of its own."""

    rule: dict[str, Any]
    learning_rate: float | None
    accumulate: int
    clip_norm: float | None
    precision: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rule(bind(RULES, self.rule, "rule"))
        if self.learning_rate is not None:
            check_learning_rate("learning_rate", self.learning_rate)
        check_at_least("accumulate", self.accumulate, 1)
        if self.clip_norm is not None:
            check_positive("clip_norm", self.clip_norm)
        check_one_of("precision", self.precision, PRECISIONS)
        if self.precision == "bfloat16" and "activation" not in self.needs:
            raise UserError(
                f"precision=bfloat16: objective={self.objective['name']} is no network; use float32 or float64"
            )

    @property
    def dtype(self) -> torch.dtype:
        """That of the parameters, whatever autocast computes in."""
        return PRECISIONS[self.precision]

    def new_trainer(
        self,
        objective: Trainable,
        learning_rate: Callable[[int], float],
        on_nonfinite: str,
        execution: str = "eager",
        monitor: GradientMonitor | None = None,
    ) -> Trainer:
        """Return a trainer of an objective."""
        return Trainer(
            objective,
            bind(RULES, self.rule, "rule"),
            learning_rate,
            accumulate=self.accumulate,
            clip_norm=self.clip_norm,
            autocast=torch.bfloat16 if self.precision == "bfloat16" else None,
            on_nonfinite=on_nonfinite,
            execution=execution,
            monitor=monitor,
        )

    def total_steps(self, objective: Objective) -> int:
        """Return how many steps are asked for, of `accumulate` batches each."""
        if self.steps is not None:
            return self.steps
        return max(1, super().total_steps(objective) // self.accumulate)
