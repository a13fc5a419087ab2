import os
import signal

import pytest

from ppo.launcher import Signals
from ppo.supervision.signals import AS_ASKED, INTERRUPTED, PREEMPTED, StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def handlers():
    """Whatever a test does to the handlers ends with it."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def stop(handlers):
    request = StopRequest()
    request.listen()
    return request


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, INTERRUPTED),
        (signal.SIGTERM, PREEMPTED),
        (signal.SIGHUP, PREEMPTED),
        (signal.SIGUSR1, PREEMPTED),
        (signal.SIGUSR2, AS_ASKED),
    ],
)
def test_a_signal_asks_for_an_exit_code(stop, number, code):
    assert stop.exit_code is None
    os.kill(os.getpid(), number)
    assert stop.exit_code == code


def test_of_several_requests_the_strongest_counts(stop):
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        os.kill(os.getpid(), number)
    assert stop.exit_code == PREEMPTED


def test_a_second_ctrl_c_does_not_wait_for_the_update(stop):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_during_a_save_no_ctrl_c_is_more_than_a_note(stop):
    with stop.saving():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.exit_code == INTERRUPTED


@pytest.mark.parametrize("number", SIGNALS)
def test_what_a_process_was_started_to_ignore_it_ignores(handlers, number):
    signal.signal(number, signal.SIG_IGN)  # as nohup does, and a shell to what it starts in the background
    request, launcher = StopRequest(), Signals(saves=True)
    request.listen()
    launcher.listen()
    os.kill(os.getpid(), number)
    assert (request.exit_code, launcher.received) == (None, False)
    launcher.let_go()
    assert signal.getsignal(number) is signal.SIG_IGN


def test_a_launcher_still_hears_the_signals_that_are_not_ignored(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    launcher = Signals(saves=True)
    launcher.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    assert launcher.received
