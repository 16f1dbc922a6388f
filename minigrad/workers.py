"""Processes of joblib's in which several runs of a sweep go on at a time."""

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from minigrad.errors import UserError
from minigrad.interruption import SIGNALS, handling

Say = Callable[[str], None]

_RUNNING = threading.Lock()  # held by a run in a process of joblib's


@contextmanager
def processes(number: int) -> Iterator[None]:
    """Have joblib's processes wait for runs, for a while.

    Raises:
        UserError: joblib starts none.
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    # The settings are those of hydra-joblib-launcher: it is given these processes.
    parallel = Parallel(number, "loky", return_as="generator", prefer="processes", max_nbytes=None)
    with handling(signal.SIG_IGN):  # which they inherit: the terminal's Ctrl-C would end one that is only starting
        waiting = parallel(delayed(os.getpid)() for _ in range(number))
    try:
        if os.getpid() in list(waiting):
            raise UserError("joblib starts no processes here, for a reason of its own; leave out jobs=")
        yield
    finally:
        get_reusable_executor().shutdown()


@contextmanager
def apart(starter: int, log: Path) -> Iterator[Say]:
    """Stand apart from the terminal for a run: its signals come from the starter alone, its output goes to a file.

    Yields:
        A function that prints a line on the terminal.
    """
    if sys.platform != "win32":
        os.setpgid(0, 0)
        _outlive_no_longer(starter)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # before the run and after it there is nothing to interrupt
    streams = {1: sys.stdout, 2: sys.stderr}
    before = {descriptor: os.dup(descriptor) for descriptor in streams}

    def redirect(targets: Mapping[int, int]) -> None:
        for descriptor, target in targets.items():
            streams[descriptor].flush()
            os.dup2(target, descriptor)

    def say(line: str) -> None:
        with suppress(BrokenPipeError):  # the run goes on, and its output is kept
            os.write(before[1], f"{line}\n".encode())

    with log.open("ab") as file:
        redirect(dict.fromkeys(streams, file.fileno()))
    try:
        with _RUNNING:
            yield say
    finally:
        redirect(before)
        for descriptor in before.values():
            os.close(descriptor)


@functools.cache
def _outlive_no_longer(starter: int) -> None:
    """End this process soon after the one that started it; joblib's would wait for ever. A run saves first."""

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        with _RUNNING:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
