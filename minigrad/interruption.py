"""SIGINT and SIGTERM: the first one is a request, the second one an end."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from minigrad.ranks import Ranks

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
        self.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

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


def _raise(number: int, frame: FrameType | None) -> None:
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
def handling(handler: "signal._HANDLER") -> Iterator[None]:
    """Install a handler for both signals for a while; in another thread than the main one Python allows none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
