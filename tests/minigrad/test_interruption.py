import signal
import subprocess
import sys
import threading

import pytest

from minigrad import interruption
from minigrad.interruption import SIGNALS, Interrupted, raising, requested

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
HANDLING = pytest.mark.parametrize("handling", [raising, requested])
EACH = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


def handlers() -> list:
    return [signal.getsignal(number) for number in SIGNALS]


@EACH
def test_the_exit_code_is_the_shell_s(number):
    error = Interrupted(number)
    assert error.exit_code == EXIT_CODES[number]
    assert str(error) == number.name
    assert isinstance(error, KeyboardInterrupt)  # which nothing that catches Exception holds up


@EACH
def test_raising_raises_wherever_the_program_is(number):
    with pytest.raises(Interrupted) as caught, raising():
        signal.raise_signal(number)
    assert caught.value.number == number


@EACH
def test_the_first_request_is_noted_and_honoured_when_asked(number):
    before = handlers()
    with requested() as request:
        assert not request.made()
        request.honour()
        signal.raise_signal(number)
        assert request.made()
        with pytest.raises(Interrupted) as caught:
            request.honour()
    assert caught.value.number == number
    assert handlers() == before


@EACH
def test_a_signal_that_comes_again_at_once_is_the_same_request(number):
    with requested() as request:
        for _ in range(3):
            signal.raise_signal(number)
        assert request.number == number
    finished = []

    def end() -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)
            finished.append(True)

    with pytest.raises(Interrupted), raising():
        end()
    assert finished


@HANDLING
def test_what_was_there_before_comes_back(handling):
    before = handlers()
    with handling():
        assert not set(handlers()) & set(before)
    assert handlers() == before

    def fail() -> None:
        with handling():
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert handlers() == before


def test_a_request_within_raising_gives_back_the_raising(monkeypatch):
    before = handlers()
    with raising():
        outer = handlers()
        with requested() as request:
            signal.raise_signal(signal.SIGINT)
        assert request.made()
        assert handlers() == outer
        monkeypatch.setattr(interruption, "_AGAIN", 0)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
    assert handlers() == before


@HANDLING
def test_in_another_thread_nothing_is_installed(handling):
    before, found = handlers(), []

    def work() -> None:
        with handling() as request:
            found.append(handlers())
            if request is not None:
                assert not request.made()
                request.honour()
        found.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before, before]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals between processes")
@pytest.mark.parametrize("first", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("second", SIGNALS, ids=lambda number: number.name)
def test_a_second_signal_ends_the_process_at_once(first, second):
    code = """
import sys, time
sys.modules["minigrad"] = type(sys)("minigrad")  # the package's own file brings torch, which takes seconds to start
sys.modules["minigrad"].__path__ = [sys.argv[1]]
from minigrad import interruption
from minigrad.interruption import requested

interruption._AGAIN = 0
try:
    with requested() as request:
        print("begun", flush=True)
        while not request.made():
            time.sleep(0.001)
        print("noted", flush=True)
        try:
            time.sleep(60)
        finally:
            print("never reached", flush=True)
finally:
    print("never reached", flush=True)
"""
    package = sys.modules["minigrad"].__path__[0]
    with subprocess.Popen([sys.executable, "-c", code, package], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(first)
        assert process.stdout.readline() == "noted\n"
        process.send_signal(second)
        assert process.wait(timeout=30) == -second
        assert process.stdout.read() == ""
