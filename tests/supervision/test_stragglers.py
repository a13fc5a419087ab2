import pytest

from ppo.supervision.stragglers import StragglerWatch, waiting_seconds


def warnings(updates, hosts=("a", "b", "c")):
    watch = StragglerWatch(hosts)
    return [watch.notice(busy) for busy in updates]


def test_a_rank_that_is_slow_three_times_in_a_row_is_named_with_its_host_and_times():
    first, second, third, fourth = warnings([[1.0, 1.0, 2.0]] * 4)
    assert (first, second, fourth) == (None, None, None)
    assert "rank 2 on c is slow" in third
    assert "2.00 s of work per update; the others' median is 1.00 s" in third


def test_it_is_named_again_ten_times_as_late():
    said = [number for number, text in enumerate(warnings([[1.0, 1.0, 2.0]] * 40), start=1) if text]
    assert said == [3, 30]


def test_a_rank_that_is_slow_now_and_then_is_not_named():
    assert warnings([[1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [1.0, 1.0, 1.0]] * 4) == [None] * 12


def test_different_ranks_in_turn_are_not_named():
    assert warnings([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0]] * 5) == [None] * 10


def test_milliseconds_do_not_matter():
    assert warnings([[0.01, 0.01, 0.1]] * 5) == [None] * 5


def test_a_single_rank_never_waits():
    assert warnings([[9.0]] * 5, hosts=("a",)) == [None] * 5


def test_what_a_rank_spends_in_all_reduces_beyond_the_rank_that_came_last_is_waiting():
    assert waiting_seconds([0.1, 0.5, 0.6]) == pytest.approx(0.3)


def test_ranks_that_come_at_the_same_time_communicate_and_do_not_wait():
    assert waiting_seconds([0.2, 0.2]) == 0.0
    assert waiting_seconds([0.2]) == 0.0
