"""SIGINT and SIGTERM: the first one is a request, the second one an end."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minigrad.ranks import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_AGAIN = 1.0  # seconds in which a signal that comes again is the same request: a terminal and a cluster signal all
# processes, and torchrun and a sweep pass on what they get
_latest = -math.inf


class Interrupted(KeyboardInterrupt):
    """A run that ended because a signal asked for it.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells have it: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


class Request:
    """Whether a signal has asked the run to end.

    Attributes:
        number: of the signal; 0 as long as there was none.
    """

    def __init__(self) -> None:
        self.number = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """Keep the signal; a second one ends the process at once, as if nobody listened."""
        if is_again():
            return
        if self.made():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = number

    def made(self) -> bool:
        """Return whether a signal has come."""
        return self.number != 0

    def honour(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.made():
            raise Interrupted(self.number)


class SharedRequest:
    """Whether a signal has asked any of several ranks to end, so that all end after the same step.

    What each rank has been asked travels while the next step is made: nobody waits, and all know it a step later.

    Args:
        request: to this rank.
        ranks: that call the same methods in the same order.
    """

    def __init__(self, request: Request, ranks: Ranks) -> None:
        self._request = request
        self._ranks = ranks
        self._number = 0
        self._arrives: Callable[[], int] | None = None

    def made(self) -> bool:
        """Return whether a signal had come to any rank when this was called the last time."""
        self._receive()
        if self._number == 0:
            self._arrives = self._ranks.highest(self._request.number)
        return self._number != 0

    def honour(self) -> None:
        """Raise Interrupted if a signal has come to any rank."""
        if not self.made():
            self._receive()
        if self._number != 0:
            raise Interrupted(self._number)

    def _receive(self) -> None:
        if self._arrives is not None:
            self._number, self._arrives = self._arrives(), None


def is_again() -> bool:
    """Return whether the signal that came just now is one that came a moment ago; to be asked once for each."""
    global _latest
    now = time.monotonic()
    again = now - _latest < _AGAIN
    if not again:
        _latest = now
    return again


def _raise(number: int, frame: FrameType | None) -> None:
    if not is_again():
        raise Interrupted(number)


@contextmanager
def raising() -> Iterator[None]:
    """Let both signals raise Interrupted wherever the program is."""
    with handling(_raise):
        yield


@contextmanager
def requested() -> Iterator[Request]:
    """Let the first signal be noted in a Request, to be honoured when the step has ended, and the second end all."""
    request = Request()
    with handling(request.note):
        yield request


@contextmanager
def handling(handler: signal._HANDLER) -> Iterator[None]:
    """Install a handler for both signals for a while; in another thread than the main one Python allows none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _latest
    _latest = -math.inf
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
