"""Measure how close minigrad comes to a GPU's limits, beside PyTorch, torch.compile and JAX in the same run.

    python kernels/bench/gpu.py                              all sections, a table each, within 8 minutes on an H100
    python kernels/bench/gpu.py --sections bias monitor      some of them
    python kernels/bench/gpu.py --write                      also writes kernels/bench/results/gpu_<section>.{json,md}
    python kernels/bench/gpu.py --dry                        no GPU: everything runs, tiny, and nothing is measured

    elementwise  forward and backward of the activations, 2^10 to 2^28 elements: the part of a copy's rate from 2^26
                 elements on, the time over the best of the others at every size
    bias         bias and activation in one kernel, and its backward with the bias gradient: the same, and the speed-up
                 over torch.compile
    derivatives  the n-th derivative, n = 1 to 8: time over that of n = 1, speed-up over nested autograd
    launching    a call on a small tensor, from the public function down to the bare launch
    update       all parameters updated by a rule: the time over that of torch's fused, the speed-up over its foreach,
                 the part of a copy's rate
    step         training steps: the speed-up over PyTorch's loop and over the best of all, and the memory
    monitor      steps with every statistic on over steps without, and the same for hooks
    exactness    the worst results over all inputs there are, in ULP

GPU time is that of captured graphs (timing.py says how), "wall" that of calls from Python. A figure is the median of
the rounds; behind it stands half the distance of the quartiles. GB/s counts the bytes that have to move. Every section
first checks that results are right: where one is not, the section's table is not shown, the others go on, and the exit
code is 1. A bound that is missed is said beside its case and leaves the exit code as it is. A section begins no case
after its time is over, and says how many that cost; SECTIONS has the times.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from bench import bias, derivatives, elementwise, exactness, launching, step, update, watching
from bench.lines import Line, markdown, plain
from bench.measure import conditions, gpu_conditions, write_files
from bench.setting import CheckFailed, Setting
from minigrad_kernels import path_for


@dataclass(frozen=True)
class Section:
    """A part of the benchmark.

    Attributes:
        title: of its table.
        measure: checks, measures and yields the table's lines; raises CheckFailed where a result is wrong.
        seconds: after which it begins no new case.
    """

    title: str
    measure: Callable[[Setting], Iterator[Line]]
    seconds: int


SECTIONS = {
    "elementwise": Section("Activations, forward and backward", elementwise.measure, 200),
    "bias": Section("Bias and activation in one kernel", bias.measure, 70),
    "derivatives": Section("The n-th derivative of tanh", derivatives.measure, 25),
    "launching": Section("A call on a small tensor, from Python down to the launch", launching.measure, 10),
    "update": Section("The update of all parameters", update.measure, 45),
    "step": Section("The whole training step", step.measure, 60),
    "monitor": Section("What it costs to watch", watching.measure, 40),
    "exactness": Section("The worst result over all inputs", exactness.measure, 30),
}
AT_MOST = 480
"""Seconds for all sections together."""
DRY = "[dry run] "


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections, print and write their tables, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--dry", action="store_true", help="run everything on the CPU at tiny sizes; measures nothing")
    parser.add_argument("--write", action="store_true", help="write kernels/bench/results/gpu_<section>.{json,md}")
    parser.add_argument("--commit", help="to record, where the files lie outside of git")
    chosen = parser.parse_args(arguments)
    if chosen.dry and chosen.write:
        parser.error("--dry measures nothing that could be written: leave out --dry or --write")
    device = torch.device("cpu" if chosen.dry else "cuda")
    if problem := obstacle(device):
        print(f"gpu.py: {problem}", file=sys.stderr)
        return 2
    taken = {} if chosen.dry else gpu_conditions(device) | conditions(torch.get_num_threads())
    if chosen.commit:
        taken["commit"] = chosen.commit
    for name, value in taken.items():
        print(f"{name}: {value}")
    if chosen.dry:
        say(f"nothing is measured: tiny sizes on the CPU, on the {path_for(device)} path\n", dry=True)
    passed = [run(name, device, chosen.dry, taken if chosen.write else None) for name in chosen.sections]
    return 0 if all(passed) else 1


def obstacle(device: torch.device) -> str:
    """Return why nothing can be measured on a device; nothing if it can."""
    if device.type == "cpu":
        return ""
    if not torch.cuda.is_available():
        return "torch sees no GPU: run this on a machine with one, or pass --dry to see that everything runs"
    if path_for(device) != "triton":
        return "Triton's kernels do not run on this GPU: install triton, and unset TRITON_INTERPRET"
    return ""


def run(name: str, device: torch.device, dry: bool, conditions_to_write: dict[str, str] | None) -> bool:
    """Measure one section, print its table and write it; return whether its checks passed."""
    section, start = SECTIONS[name], time.monotonic()
    setting = Setting(device, dry, deadline=start + section.seconds)
    say(f"{name}: {section.title}", dry)
    torch.manual_seed(0)
    try:
        lines = list(section.measure(setting))  # all of them before any is shown: a late check may withhold the first
    except CheckFailed as failed:
        say(f"{name}: no figures, a check failed: {failed}\n", dry)
        return False
    except Exception:  # what went wrong here leaves the other sections their time on a GPU that is not always there
        say(f"{name}: no figures, it broke off:\n{traceback.format_exc()}", dry)
        return False
    notes = [f"took {time.monotonic() - start:.0f} s"]
    if setting.left_out:
        notes.append(f"{setting.left_out} cases left out: the section's {section.seconds} s were over")
    if not dry:
        missed = sum(line.verdict.startswith("missed") for line in lines)
        notes.append(f"{missed} of {len(lines)} cases miss a bound")
    say(plain(lines, judge=not dry), dry)
    say(f"{name}: {'; '.join(notes)}\n", dry)
    if conditions_to_write is not None:
        content = {"notes": notes, "lines": [line.as_json() for line in lines]}
        page = [*(f"- {note}" for note in notes), "", markdown(lines)]
        command = f"python kernels/bench/gpu.py --sections {name} --write"
        write_files(f"gpu_{name}", section.title, content, page, conditions_to_write, command)
    return True


def say(text: str, dry: bool) -> None:
    """Print lines, each marked if this is a dry run."""
    print("\n".join(DRY * dry + line for line in text.split("\n")), flush=True)


if __name__ == "__main__":
    sys.exit(main())
