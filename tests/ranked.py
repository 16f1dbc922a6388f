"""Runs on several ranks: many command lines, one after the other, in processes that torchrun starts once.

As a program, which is what torchrun starts, it carries out the command lines in the file that it is given.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def on_ranks(size: int, *commands: list[str]) -> list[list[int]]:
    """Carry out command lines in the current folder; return the exit codes of each, those of all ranks."""
    Path("commands.json").write_text(json.dumps(commands))
    subprocess.run([*TORCHRUN, f"--nproc-per-node={size}", __file__, "commands.json"], check=True, timeout=240)
    codes = [json.loads(Path(f"codes_{rank}.json").read_text()) for rank in range(size)]
    return [list(all_ranks) for all_ranks in zip(*codes, strict=True)]


@contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """Let no process outlive the test, nor one that it has started: torchrun's ranks are in sessions of their own."""
    with process:
        try:
            yield process
        finally:
            started = descendants(process.pid) if process.poll() is None else []
            process.kill()
            for number in started:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


def descendants(process: int) -> list[int]:
    """Return the processes that a process has started, and those that these have."""
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True).stdout
    children = [int(number) for number in found.split()]
    return [*children, *(number for child in children for number in descendants(child))]


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until a condition holds, which it has to in so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def free_port() -> int:
    """Return the number of a port that nobody listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def main() -> None:
    from minigrad.train import main as train

    codes = [train(command) for command in json.loads(Path(sys.argv[1]).read_text())]
    Path(f"codes_{os.environ['RANK']}.json").write_text(json.dumps(codes))
    threads = [(thread / "comm").read_text().strip() for thread in Path("/proc/self/task").glob("*")]
    assert not [name for name in threads if "gloo" in name], "threads of the connection have outlived the last run"


if __name__ == "__main__":
    main()
