"""A sparkline: the history of a number, however long, as one line of text."""

from collections.abc import Sequence

_BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_ASCII_BARS = "_.-=+*%#"


class Course:
    """The values of a number so far, as at most twice `width` means, each over equally many neighbours."""

    def __init__(self, width: int) -> None:
        """Start without values; `line` has at most `width` characters."""
        self._width = width
        self._means: list[float] = []
        self._newest: list[float] = []
        self._values_in_a_mean = 1

    def add(self, value: float) -> None:
        """Add the next value."""
        self._newest.append(value)
        if len(self._newest) < self._values_in_a_mean:
            return
        self._means.append(sum(self._newest) / len(self._newest))
        self._newest.clear()
        if len(self._means) == 2 * self._width:
            self._means = [(one + next_) / 2.0 for one, next_ in zip(self._means[::2], self._means[1::2], strict=True)]
            self._values_in_a_mean *= 2

    def line(self, *, is_plain: bool = False) -> str:
        """Return a bar per mean, or per two means if there are more than `width`, scaled from lowest to highest.

        A plain line has only ASCII characters.
        """
        means = self._means
        if len(means) > self._width:
            means = [sum(pair) / len(pair) for pair in (means[i : i + 2] for i in range(0, len(means), 2))]
        return _drawn(means, _ASCII_BARS if is_plain else _BARS)


def _drawn(values: Sequence[float], bars: str) -> str:
    if not values:
        return ""
    low, extent = min(values), max(values) - min(values)
    steps = len(bars) - 1
    return "".join(bars[round((value - low) / extent * steps) if extent else 0] for value in values)
