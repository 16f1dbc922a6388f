"""SIGINT and SIGTERM: the first one is a request, the second one an end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
    """Whether a signal has asked the run to end."""

    def __init__(self) -> None:
        self._number: int | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Keep the signal; a second one ends the process at once, as if nobody listened."""
        self._number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    def made(self) -> bool:
        """Return whether a signal has come."""
        return self._number is not None

    def honour(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self._number is not None:
            raise Interrupted(self._number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def raising() -> Iterator[None]:
    """Let both signals raise Interrupted wherever the program is."""
    with _handling(_raise):
        yield


@contextmanager
def requested() -> Iterator[Request]:
    """Let the first signal be noted in a Request, to be honoured when the step has ended, and the second end all."""
    request = Request()
    with _handling(request.note):
        yield request


@contextmanager
def _handling(handler: "signal._HANDLER") -> Iterator[None]:
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
