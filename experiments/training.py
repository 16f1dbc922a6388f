"""Train an objective by a rule: gradient descent with its curves in TensorBoard, and nothing lost when it stops."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from minigrad import generators, path
from minigrad.autodiff.drawing import draw_graph
from minigrad.checkpoints import Checkpoints
from minigrad.config import bind, check, check_at_least, check_one_of, check_positive
from minigrad.data_parallel import DataParallel
from minigrad.errors import RunFailed, UserError
from minigrad.interruption import SharedRequest, requested
from minigrad.leaderboard import JUDGED
from minigrad.loading import saved_parameters
from minigrad.models import describe, is_same
from minigrad.objectives.function import Function
from minigrad.objectives.objective import Divisible, Objective
from minigrad.progress import progress
from minigrad.ranks import Ranks
from minigrad.recipe import Recipe
from minigrad.record import NonFiniteError, Record
from minigrad.run import Run
from minigrad.schedules import SCHEDULES, check_schedule, warm_up
from minigrad.stopping import Stopping
from minigrad.surveys import Surveys
from minigrad.tensors import overwrite
from minigrad.trainer import EXECUTIONS, Trainer
from minigrad.watching import MONITORS, Watching, check_monitor

_WEEK = 7 * 24 * 3600.0
MOST_DRAWN = 5000  # nodes of the graph of the loss; more take megabytes, and are not looked at


@dataclass(kw_only=True)
class Config(Recipe):
    """The keys of a training run."""

    schedule: dict[str, Any]
    warmup_steps: int
    on_nonfinite: str
    execution: str
    patience: int | None
    target_loss: float | None
    log_every: int
    judge_every: int
    checkpoint_every: int
    keep: int
    monitor: dict[str, Any]
    on_verdict: str
    histogram_every: int | None
    noise_every: int | None
    noise_batches: int
    hessian_every: int | None
    rank_timeout: float
    initial: str | None
    resume: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_rate is None:
            raise UserError("learning_rate has no value; give a number above 0")
        check_schedule(bind(SCHEDULES, self.schedule, "schedule"))
        check_monitor(bind(MONITORS, self.monitor, "monitor"))
        check_one_of("on_nonfinite", self.on_nonfinite, ("stop", "skip"))
        check_one_of("execution", self.execution, EXECUTIONS)
        check_one_of("on_verdict", self.on_verdict, ("warn", "stop"))
        if self.on_verdict == "stop" and self.monitor["name"] == "none":
            raise UserError("on_verdict=stop, but monitor=none gives no verdicts; leave out one of the two")
        check_at_least("warmup_steps", self.warmup_steps, 0)
        for key in ("log_every", "judge_every", "checkpoint_every", "keep"):
            check_at_least(key, getattr(self, key), 1)
        for key in ("patience", "histogram_every", "noise_every", "hessian_every"):
            if getattr(self, key) is not None:
                check_at_least(key, getattr(self, key), 1)
        check_at_least("noise_batches", self.noise_batches, 2)
        if self.noise_every is not None and self.batch_size is None:
            raise UserError(f"noise_every={self.noise_every}: objective={self.label} has no batches; leave it out")
        check_positive("rank_timeout", self.rank_timeout)
        check(self.rank_timeout < _WEEK, "rank_timeout", self.rank_timeout, "a week at most")
        if self.target_loss is not None:
            check(math.isfinite(self.target_loss), "target_loss", self.target_loss, "a finite number")

    @property
    def label(self) -> str:
        """A training run is called by its objective."""
        return str(self.objective["name"])

    @property
    def seconds_for_ranks(self) -> float:
        """How long a rank waits for another."""
        return self.rank_timeout

    def new_watching(self, objective: Objective, run: Run, total: int) -> Watching | None:
        """Return what watches a network in a run of `total` steps; None for a function, which has no layers."""
        if self.activation is None:
            return None
        return bind(MONITORS, self.monitor, "monitor")(objective.model, run, total)

    def new_shared(self, objective: Objective, ranks: Ranks) -> DataParallel | None:
        """Return the objective as each of several ranks trains it; None for one that is alone."""
        if ranks.is_alone:
            return None
        if self.execution != "eager":
            raise UserError(f"execution={self.execution}: a step of several ranks is made eagerly; leave it out")
        if not isinstance(objective, Divisible):
            raise UserError(f"objective={self.label} has no batches to divide among ranks; start it without torchrun")
        return DataParallel(objective, ranks, self.accumulate)

    def new_surveys(self, trainer: Trainer, run: Run, aside: Callable[[], AbstractContextManager[None]]) -> Surveys:
        """Return what is measured now and then, aside from the training."""
        return Surveys(
            trainer,
            run,
            aside,
            histogram_every=self.histogram_every,
            noise_every=self.noise_every,
            noise_batches=self.noise_batches,
            batch_size=self.batch_size or 1,
            hessian_every=self.hessian_every,
        )

    def learning_rate_at(self, total: int) -> Callable[[int], float]:
        """Return the learning rate as a function of the step, in a run of `total` steps."""
        schedule, highest = warm_up(bind(SCHEDULES, self.schedule, "schedule"), self.warmup_steps), self.learning_rate
        assert highest is not None
        return lambda step: highest * schedule(step, total)


def run(config: Config, run: Run) -> str:
    """Train to the last step or to a reason to stop; return what was reached."""
    with requested() as request:
        interruption = request if run.ranks.is_alone else SharedRequest(request, run.ranks)
        training = Training(config, run)
        training.begin()
        first_step, start = training.trainer.steps, time.perf_counter()
        with progress(training.total) as report:
            while True:
                training.look()
                report(training.trainer.steps, training.shown())
                if training.is_over():
                    break
                training.advance(interruption.made)
                if interruption.made():
                    training.save()
                    interruption.honour()
            if training.trainer.steps > first_step:
                steps = training.trainer.steps - first_step
                run.metrics["steps_per_second"] = steps / (time.perf_counter() - start)
            training.draw()
            interruption.honour()  # one that came while the last step was judged, saved and drawn
    return training.reached()


class Training:
    """A training run and what is attached to it: checkpoints, curves, the path, and reasons to stop.

    Args:
        config: what to train, and how.
        run: where to report it.

    Attributes:
        trainer: makes the steps.
        total: the step to train to.
    """

    def __init__(self, config: Config, run: Run) -> None:
        self._config, self._run, self._ranks = config, run, run.ranks
        self._objective = config.new_objective(run.device)
        self.total = config.total_steps(self._objective)
        self._watching = config.new_watching(self._objective, run, self.total)
        self._shared = config.new_shared(self._objective, run.ranks)
        self.trainer = config.new_trainer(
            self._objective if self._shared is None else self._shared,
            config.learning_rate_at(self.total),
            config.on_nonfinite,
            config.execution,
            None if self._watching is None else self._watching.monitor,
        )
        self._surveys = config.new_surveys(self.trainer, run, self._aside)
        self._stopping = Stopping(config.patience, config.target_loss)
        self._path = path.Path(self.total)
        self._checkpoints = Checkpoints(run.directory / "checkpoints", config.keep)
        self._saved_at: int | None = None
        self._judged_at: int | None = None
        self._lowest_saved = math.inf  # of the losses judged where a checkpoint is due
        self._drawn = (
            self._objective if isinstance(self._objective, Function) and self._objective.x.numel() <= 2 else None
        )

    def begin(self) -> None:
        """Start from the objective's own parameters, from those of another run, or where this run was."""
        for note in self._objective.notes:
            print(note, flush=True)
        if not self._ranks.is_alone:
            self._ranks.on_each(
                partial(self._check_data, self._ranks.of_first(lambda: describe(self._objective.model)))
            )
        resumes = self._config.resume is not None
        saved = self._ranks.of_first(lambda: self._checkpoints.newest(complain=print)) if resumes else None
        if saved is not None:
            self._watch()
            self._restore(saved)
            return
        if self._config.initial is not None:
            overwrite(self.trainer.parameters, saved_parameters(self._config.initial), "parameters")
        if self._config.resume is not None:  # it was stopped before its first checkpoint
            self._run.goes_on(0, 0)
        self._draw_graph()
        self._watch()
        self._keep_point()

    def advance(self, stop: Callable[[], bool]) -> None:
        """Train until something is due, or until the step after which `stop` says true."""
        steps = self.trainer.steps
        every = (self._config.judge_every, self._config.checkpoint_every)
        due = min(self.total, *((steps // n + 1) * n for n in (*every, *self._surveys.intervals)))

        def after_step() -> bool:
            self._surveys.after_step()
            self._keep_point()
            return stop()

        try:
            self._write(self.trainer.advance(due - steps, after_step))
        except NonFiniteError as error:
            self._write(error.record)
            if self._watching is not None:
                self._watching.judge()
                self._watching.show()
            raise

    def look(self) -> None:
        """Do what is due: measure, judge, save; stop where something is wrong and that is asked for."""
        self._surveys.look()
        if self._is_to_be_saved() or self.trainer.steps % self._config.judge_every == 0:
            self._judge()
        if self._config.on_verdict == "stop" and self._watching is not None and self._watching.verdicts:
            self.save()
            self._watching.show()
            raise RunFailed(f"step {self.trainer.steps}: {self._watching.verdicts[0]}")

    def is_over(self) -> bool:
        """Return whether the last step is made or there is a reason to stop."""
        return self.trainer.steps >= self.total or bool(self._stopping.reason)

    def save(self) -> None:
        """Write a checkpoint, after all curves up to it, unless there is one of this step."""
        self._save(self._content())

    def draw(self) -> None:
        """Draw the flow of a network's gradient, or the path of a point of one or two variables, and tell of them."""
        if self._watching is not None:
            self._watching.end()
        if self._drawn is not None:
            self._run.figure("path", path.draw(self._drawn.landscape, self._path, self._drawn.x))

    def shown(self) -> dict[str, float]:
        """Return what to show of the last step: how it was judged only if it was."""
        tags = ("train/loss", *(JUDGED if self._judged_at == self.trainer.steps else ()))
        return {tag: self._run.metrics[tag] for tag in tags if tag in self._run.metrics}

    def reached(self) -> str:
        """Say what was reached, and why the run ended before its last step if it did."""
        values = ", ".join(f"{tag} {value:.4g}" for tag, value in self.shown().items() if tag != "train/loss")
        reason = f": {self._stopping.reason}" if self._stopping.reason else ""
        return f"{values} at step {self.trainer.steps}{reason}"

    def _check_data(self, described: dict[str, Any]) -> None:
        """Raise a UserError unless the data are those of the first rank, by which it has described the model."""
        if not is_same(described, self._objective.model):
            raise UserError("a rank has other data than the first; every machine has to read the same")

    def _draw_graph(self) -> None:
        """Record the graph of the loss of the first batch, computed for that alone; random numbers are put back."""
        if not self._ranks.is_first or (self._run.directory / "figures" / "graph.svg").exists():
            return  # it is the first rank's to draw, or was drawn by the run that is resumed
        before = generators.state_dict()
        try:
            with self._aside():
                drawing = draw_graph(self.trainer.loss(0), self.trainer.parameters)
        finally:
            generators.load_state_dict(before)
        nodes = len(drawing.graph.nodes)
        if nodes <= MOST_DRAWN:
            self._run.graph(drawing)
        else:
            print(f"the graph of the loss has {nodes:,} nodes, too many to be drawn", flush=True)

    def _judge(self) -> None:
        """Judge the result, and save what was before: on resumption the step of a checkpoint is judged again."""
        before = self._content()
        judged = self._ranks.of_first(self._judged)
        self._judged_at = self.trainer.steps
        self._run.scalars(self.trainer.steps, judged)
        if self._watching is not None:
            self._watching.judge()
        self._run.flush()
        loss = judged["test/loss"]
        if not math.isfinite(loss) and self._config.on_nonfinite == "stop":
            raise RunFailed(f"test/loss is {loss:g} after step {self.trainer.steps}; a smaller learning_rate may help")
        self._stopping.judged(loss)
        if not self._is_to_be_saved():
            return
        self._save(before)
        if loss < self._lowest_saved:
            self._lowest_saved = loss
            if self._ranks.is_first:
                self._checkpoints.mark_best(self.trainer.steps, loss)

    def _judged(self) -> dict[str, float]:
        """Return what the result is worth, by one read from the device."""
        tags, values = zip(*self._objective.judge().items(), strict=True)
        return dict(zip(tags, torch.stack(values).tolist(), strict=True))

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Compute for a while what is no part of the training: unseen by the monitor, whole batches on every rank."""
        with ExitStack() as stack:
            if self._watching is not None:
                stack.enter_context(self._watching.monitor.paused())
            if self._shared is not None:
                stack.enter_context(self._shared.whole())
            yield

    def _is_to_be_saved(self) -> bool:
        return self.trainer.steps % self._config.checkpoint_every == 0 or self.is_over()

    def _save(self, content: dict[str, Any]) -> None:
        steps = self.trainer.steps
        if steps != self._saved_at:
            self._run.flush()
            if self._ranks.is_first:
                self._checkpoints.save(steps, content)
            self._saved_at = steps

    def _content(self) -> dict[str, Any]:
        """Return what a checkpoint holds; the tensors are those in use, not copies."""
        return {
            "seconds": self._run.seconds,
            "metrics": dict(self._run.metrics),
            "lowest_saved": self._lowest_saved,
            "model": describe(self._objective.model),
            "generators": generators.state_dict(),
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def _write(self, record: Record) -> None:
        """Write the points of the curves, and say which steps were skipped."""
        self._run.steps = self.trainer.steps
        seen = [{}] * len(record) if self._watching is None else self._watching.points()
        point: dict[str, float] = {}
        columns = (record.loss, record.gradient_norm, record.learning_rate, record.applied)
        for i, (loss, gradient_norm, learning_rate, applied) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            if applied:
                point = {"train/loss": loss, "gradient_norm": gradient_norm, "learning_rate": learning_rate, **seen[i]}
                if (record.first_step + i) % self._config.log_every == 0:
                    self._run.scalars(record.first_step + i, point)
        skipped = (~record.applied).nonzero().view(-1).tolist()
        if skipped:
            more = f", and {len(skipped) - 1} more up to step {record.first_step + skipped[-1]}" if skipped[1:] else ""
            print(f"{record.complaint(skipped[0])}: skipped{more}", flush=True)
            point["skipped_steps"] = self._run.metrics.get("skipped_steps", 0) + len(skipped)
        self._run.metrics.update(point)

    def _watch(self) -> None:
        if self._watching is not None:
            self._watching.monitor.attach()

    def _keep_point(self) -> None:
        if self._drawn is not None:
            self._path.add(self.trainer.steps, self._drawn.x)

    def _parts(self) -> dict[str, Trainer | Stopping | path.Path | Watching]:
        """Return what has a state of its own, by the names in a checkpoint."""
        watching = {} if self._watching is None else {"watching": self._watching}
        return {"trainer": self.trainer, "stopping": self._stopping, "path": self._path, **watching}

    def _restore(self, saved: dict[str, Any]) -> None:
        try:
            for name, part in self._parts().items():
                part.load_state_dict(saved[name])
            generators.load_state_dict(saved["generators"])
            self._run.metrics.update({str(tag): float(value) for tag, value in saved["metrics"].items()})
            self._lowest_saved, seconds = float(saved["lowest_saved"]), float(saved["seconds"])
            same = is_same(saved["model"], self._objective.model)
        except UserError:
            raise
        except Exception as error:  # whatever comes of a content that was not written here
            raise UserError(f"the checkpoint in {self._run.directory} is not one of such a run: {error!r}") from error
        if not same:
            raise UserError(
                f"the data are not those that the run in {self._run.directory} was trained on; restore them"
            )
        steps = self._saved_at = self.trainer.steps
        if steps > self.total:
            raise UserError(f"the run has made {steps} steps already, and {self.total} are asked for; give more steps")
        self._run.goes_on(steps, seconds)
        print(f"goes on at step {steps}", flush=True)
