"""Signals to stop: noted once, obeyed at once the second time, and given back."""

import os
import signal
import threading

import pytest

from video_diffusion_pytorch.training.signals import StopSignals

BOTH = (signal.SIGINT, signal.SIGTERM)


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _handlers():
    """Puts back what a failing test leaves behind."""
    before = {number: signal.getsignal(number) for number in BOTH}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_the_first_one_is_noted(number):
    signals = StopSignals()
    with signals:
        assert signals.caught is None
        send(number)
        assert signals.caught == number


def test_the_end_is_as_the_signal_wanted_it():
    StopSignals().leave()
    signals = StopSignals()
    with signals:
        send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signals.leave()
    signals = StopSignals()
    with signals:
        send(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        signals.leave()
    assert end.value.code == 143


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        ((signal.SIGINT, signal.SIGINT), KeyboardInterrupt),
        ((signal.SIGINT, signal.SIGTERM), SystemExit),
        ((signal.SIGTERM, signal.SIGTERM), SystemExit),
        ((signal.SIGTERM, signal.SIGINT), KeyboardInterrupt),
    ],
)
def test_a_second_one_ends_at_once(numbers, error):
    with StopSignals() as signals:
        send(numbers[0])
        with pytest.raises(error):
            send(numbers[1])
        assert signals.caught == numbers[1]


@pytest.mark.parametrize(("number", "error"), [(BOTH[0], KeyboardInterrupt), (BOTH[1], SystemExit)])
def test_the_first_one_ends_at_once_where_nothing_is_left_to_save(number, error):
    with StopSignals() as signals:
        signals.at_once = True
        with pytest.raises(error):
            send(number)


def fail_within(signals):
    with signals:
        send(signal.SIGTERM)
        raise ZeroDivisionError


def test_handlers_are_put_back():
    def own(number, frame):
        heard.append(number)

    heard = []
    signal.signal(signal.SIGTERM, own)
    before = [signal.getsignal(number) for number in BOTH]
    with StopSignals():
        assert all(signal.getsignal(number) not in before for number in BOTH)
    assert [signal.getsignal(number) for number in BOTH] == before
    signals = StopSignals()
    with pytest.raises(ZeroDivisionError):
        fail_within(signals)
    assert signals.caught == signal.SIGTERM
    assert [signal.getsignal(number) for number in BOTH] == before
    assert heard == []
    send(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_what_is_ignored_stays_so():
    """As Ctrl+C is for a job that a shell runs in its background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals() as signals:
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        send(signal.SIGINT)
        assert signals.caught is None
        send(signal.SIGTERM)
        assert signals.caught == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_another_thread_leaves_signals_alone():
    before = [signal.getsignal(number) for number in BOTH]
    seen = []

    def enter():
        with StopSignals() as signals:
            seen.extend(signal.getsignal(number) for number in BOTH)
        seen.append(signals.caught)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [*before, None]


def exit_code_of_child(numbers):
    """The exit code of a forked process, as those that read clips are, to which signals come."""
    child = os.fork()
    if not child:
        try:
            for number in numbers:
                send(number)
        except BaseException:
            os._exit(2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_processes_that_read_clips_outlast_ctrl_c():
    """The step in progress needs their clips; SIGTERM is how they are ended."""
    with StopSignals() as signals:
        assert exit_code_of_child([signal.SIGINT, signal.SIGINT]) == 0
        assert exit_code_of_child([signal.SIGTERM]) == 143
        assert signals.caught is None
