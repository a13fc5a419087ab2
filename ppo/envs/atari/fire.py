"""When a game is waiting for FIRE: nothing has happened in it for long, and the policy has not pressed it.

FIRE at the start of a game and after a lost life is not always enough. Gopher and Name This Game do not yet take it
then, Donkey Kong plays its last life at 0 lives, ALE does not count the buckets of Kaboom or the serves of Tennis, Beam
Rider and Double Dunk want a direction too. While they wait no reward comes and no life is lost.
docs/measurements/fire.md has all games.
"""

from collections.abc import Sequence

import ale_py
import numpy as np
from numpy.typing import NDArray

FIRE_ACTIONS = frozenset(action.value for name, action in ale_py.Action.__members__.items() if "FIRE" in name)
"""FIRE alone and with a direction."""
STEPS_BETWEEN_LOOKS = 80
"""5 seconds: longer than games that go on by themselves stand still after an event (at most 64 steps, Venture), and a
multiple of 16, so that what blinks is seen in the same phase."""
MOST_LOOKS = 6
"""After 32 seconds the picture does not count: in some games the player can move while they wait."""


class FireWatch:
    """Follows one game and says what to press; depends on nothing but what has happened since the game began."""

    def __init__(self, fires: Sequence[int]) -> None:
        """Begin with a game that has just begun.

        Args:
            fires: the game's actions with FIRE, FIRE alone first; pressed in turn until something happens.
        """
        self._fires = fires
        self._idle_steps = self._presses = 0
        self._picture: NDArray[np.uint8] | None = None

    def is_to_look(self, happened: bool) -> bool:
        """Count a step and tell whether `look` is to be asked what to press.

        Args:
            happened: whether the step had a reward, changed the number of lives or held one of FIRE_ACTIONS.
        """
        if happened:
            self._idle_steps = self._presses = 0
            return False
        self._idle_steps += 1
        return self._idle_steps % STEPS_BETWEEN_LOOKS == 0

    def look(self, picture: NDArray[np.uint8]) -> int | None:
        """Return what to press now, if anything, given what the step led to: an array that stays as it is."""
        looks, before = self._idle_steps // STEPS_BETWEEN_LOOKS, self._picture
        self._picture = picture
        stands_still = looks > 1 and before is not None and np.array_equal(picture, before)
        if not stands_still and looks < MOST_LOOKS:
            return None
        press = self._fires[self._presses % len(self._fires)]
        self._idle_steps, self._presses = 0, self._presses + 1
        return press
