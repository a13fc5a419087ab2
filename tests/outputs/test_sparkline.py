"""A course of values as one line of bars."""

import pytest

from ppo.outputs.sparkline import Course


def line(values: list[float], width: int = 8, *, is_plain: bool = True) -> str:
    course = Course(width)
    for value in values:
        course.add(value)
    return course.line(is_plain=is_plain)


def test_a_bar_stands_for_each_value_between_the_lowest_and_the_highest() -> None:
    assert line([-21, -21, 0, 21]) == "__+#"
    assert line(list(range(8))) == "_.-=+*%#"
    assert line(list(range(8)), is_plain=False) == "▁▂▃▄▅▆▇█"


def test_equal_values_are_low_bars_and_none_are_no_line() -> None:
    assert (line([5, 5]), line([])) == ("__", "")


@pytest.mark.parametrize("count", [9, 15, 16, 17, 100, 1000, 12_345])
def test_a_long_course_has_at_most_its_width_and_keeps_its_shape(count: int) -> None:
    bars = line([float(number) for number in range(count)])
    assert 4 <= len(bars) <= 8
    assert bars == "".join(sorted(bars, key="_.-=+*%#".index))
    assert (bars[0], bars[-1]) == ("_", "#")


def test_two_values_share_a_bar_where_there_are_twice_as_many_as_columns() -> None:
    assert line([0, 0, 0, 7, 7, 7], width=4) == "_+#"
