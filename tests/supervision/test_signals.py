import os
import signal

import pytest

from ppo.supervision.signals import AS_ASKED, INTERRUPTED, PREEMPTED, StopRequest


@pytest.fixture
def stop():
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    request = StopRequest()
    request.listen()
    yield request
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, INTERRUPTED),
        (signal.SIGTERM, PREEMPTED),
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
