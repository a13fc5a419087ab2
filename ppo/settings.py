"""Settings as dataclass fields with a default, a reason and a bound; values outside the bound are refused.

The sections of `config.py` and the families of `families.py` are made of such fields.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

REFUSED = 2
"""Exit code after a Refusal."""
MOST_STEPS = 2**48
"""Upper bound of all counters of a run: far above any real run, and exact in every type that stores one."""


def printable(text: str) -> str:
    """Return a text on one line, without characters that a terminal would interpret.

    All displayed text goes through this function: file names, strings in manifests and errors of environments come from
    outside and may contain anything.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


class Refusal(ValueError):
    """The user's input cannot be served; the message names the setting, the rule and the nearest valid choice.

    The program prints it once for the whole job and ends with exit code REFUSED.
    """


@dataclass(frozen=True)
class Bound:
    """The interval that a number must lie in. A setting may be None wherever its type allows it."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Return whether a number lies in the interval; a non-finite one never does."""
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """Return the rule in words: `between 1 and 16`, `at least 0 and below 1`."""
        if self.at_least is not None and self.at_most is not None:
            return f"between {_digits(self.at_least)} and {_digits(self.at_most)}"
        words = (("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below))
        return " and ".join(f"{word} {_digits(limit)}" for word, limit in words if limit is not None)


def setting(
    default: Any = dataclasses.MISSING,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    training_only: bool = False,
    of_playback: bool = False,
) -> Any:
    """Return a dataclass field.

    Args:
        default: value unless a preset or a flag says otherwise; omitted for fields that are always given.
        at_least: inclusive lower limit; see `Bound`.
        above: exclusive lower limit.
        at_most: inclusive upper limit.
        below: exclusive upper limit.
        training_only: play, record and evaluate ignore it.
        of_playback: a flag may change it for play, record and evaluate; otherwise they keep the value used in training.
    """
    bound = Bound(at_least, above, at_most, below)
    metadata = {"bound": bound, "training_only": training_only, "of_playback": of_playback}
    return dataclasses.field(default=default, metadata=metadata)


def check_bounds(section: Any) -> None:
    """Check every number of a section against its bound.

    Raises:
        Refusal: names the setting, the rule and the value.
    """
    for field in dataclasses.fields(section):
        value, bound = getattr(section, field.name), field.metadata.get("bound")
        if bound is not None and isinstance(value, int | float) and not isinstance(value, bool):
            require(bound.holds(value), field.name, str(bound), value)


def require(condition: bool, name: str, rule: str, value: Any) -> None:
    """Refuse a setting's value unless a condition holds."""
    if not condition:
        raise Refusal(f"{name} must be {rule}, got {value}")


def _digits(limit: float) -> str:
    """Return a limit as a user would type it; whole numbers exactly, without the rounding of floats."""
    return str(limit) if isinstance(limit, int) else f"{limit:.16g}"


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `; did you mean X?` for the nearest choice, or an empty string."""
    lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    return f"; did you mean {lower[close[0]]!r}?" if close else ""
