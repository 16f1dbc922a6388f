"""Measure the trainer as people start it, whole commands against whole commands; needs no GPU.

    python kernels/bench/trainer.py                           all sections, a table each
    python kernels/bench/trainer.py --sections logging        one of logging, start_up, published
    python kernels/bench/trainer.py --write                   also writes kernels/bench/results/trainer.{json,md}

`logging` compares a run's training loop, judged every 1,000 steps and saved at its end, with that in bare_loop.py.
`start_up` compares `--help` with importing torch and hydra. `published` repeats a published result of plain gradient
descent with ten seeds; its ratio is how far the mean is from the published one, in published spreads. Both take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.measure import Row, conditions, row, show, write

BARE_LOOP = Path(__file__).with_name("bare_loop.py")
STEPS = 20_000
PUBLISHED, SPREAD = 87.40, 0.16  # DeepOBS: mean and standard deviation of the final test loss over ten seeds


def train(*overrides: str) -> list[dict[str, float]]:
    """Carry out a command line of minigrad in an empty folder, and return the summaries of its runs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "minigrad.train", "device=cpu", *overrides]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return [json.loads(file.read_text()) for file in sorted(Path(folder).rglob("summary.json"))]


def seconds_of(command: list[str]) -> float:
    """Return how long a command takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def in_turns(ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> list[list[float]]:
    """Return the seconds that both report, in microseconds, taken in turn after a warm-up."""
    pairs = [(ours(), theirs()) for _ in range(repeats + 1)][1:]
    return [[seconds * 1e6 for seconds in side] for side in zip(*pairs, strict=True)]


def bare() -> float:
    """Return the seconds of the hand-written loop."""
    output = subprocess.run([sys.executable, str(BARE_LOOP), str(STEPS)], check=True, capture_output=True, text=True)
    return float(output.stdout)


def logging() -> Iterator[Row]:
    """The trainer on the parabola against the hand-written loop that reports nothing."""
    for case, log_every, bound in (("every step", 1, "<= 2.5"), ("one step in 100", 100, "<= 1.3")):

        def ours(log_every: int = log_every) -> float:
            rarely = ("judge_every=1000", f"checkpoint_every={STEPS}")
            (summary,) = train("objective=parabola", f"steps={STEPS}", f"log_every={log_every}", *rarely)
            if summary["distance_to_minimum"] > 1e-5:
                sys.exit("the trainer has not found the minimum")
            return STEPS / summary["steps_per_second"]

        yield row("logging", f"loss and gradient norm of {case}", in_turns(ours, bare, repeats=11), bound)


def start_up() -> Iterator[Row]:
    """The help against the imports that a run needs at least."""
    ours = [sys.executable, "-m", "minigrad.train", "--help"]
    theirs = [sys.executable, "-c", "import torch, hydra"]
    times = in_turns(lambda: seconds_of(ours), lambda: seconds_of(theirs), repeats=11)
    yield row("start_up", "--help against import torch, hydra", times, "<= 1.5")


def published() -> Iterator[Row]:
    """How far the final test loss of plain gradient descent on quadratic_deep is from the published, in its spreads."""
    seeds = ",".join(str(seed) for seed in range(42, 52))
    losses = [summary["test/loss"] for summary in train("-m", "objective=quadratic_deep", f"seed={seeds}")]
    low, _, high = (abs(loss - PUBLISHED) / SPREAD for loss in statistics.quantiles(losses, n=4))
    mean = statistics.mean(losses)
    case = f"test loss {mean:.2f} +- {statistics.stdev(losses):.2f}; published {PUBLISHED:.2f} +- {SPREAD:.2f}"
    yield Row("published", case, mean, PUBLISHED, abs(mean - PUBLISHED) / SPREAD, low, high, "<= 1")


SECTIONS = {"logging": logging, "start_up": start_up, "published": published}


def main() -> None:
    """Run the sections and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--write", action="store_true", help="write kernels/bench/results/trainer.{json,md}")
    arguments = parser.parse_args()
    rows = show(r for section in arguments.sections for r in SECTIONS[section]())
    if arguments.write:
        write("trainer", "Trainer benchmark", rows, conditions(threads=1))


if __name__ == "__main__":
    main()
