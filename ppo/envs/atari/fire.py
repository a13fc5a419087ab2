"""Detects a game that waits for FIRE: nothing has happened for a long time, and the policy has not pressed FIRE.

FIRE at the start of a game and after a lost life is not always enough. Gopher and Name This Game ignore it at first,
Donkey Kong plays its last life at 0 lives, ALE does not count the buckets of Kaboom or the serves of Tennis, and Beam
Rider and Double Dunk need a direction too. A waiting game gives no reward and loses no life.
docs/measurements/fire.md lists all games.
"""

from collections.abc import Sequence

import ale_py
import numpy as np
from numpy.typing import NDArray

FIRE_ACTIONS = frozenset(action.value for name, action in ale_py.Action.__members__.items() if "FIRE" in name)
"""FIRE alone and with a direction."""
STEPS_BETWEEN_CHECKS = 80
"""5 seconds: longer than a game that continues by itself stands still after an event (at most 64 steps, Venture), and a
multiple of 16, so that blinking objects are compared in the same phase."""
MAX_CHECKS = 6
"""After 32 seconds FIRE is pressed even if the screen changes: in some games the player can move while they wait."""


class FireWatch:
    """Follows one game and decides when to press FIRE, as a function of the game's history alone."""

    def __init__(self, fires: Sequence[int]) -> None:
        """Start watching at the beginning of a game.

        Args:
            fires: the game's actions with FIRE, FIRE alone first; pressed in turn until something happens.
        """
        self._fires = fires
        self._idle_steps = self._presses = 0
        self._screen: NDArray[np.uint8] | None = None

    def should_check(self, happened: bool) -> bool:
        """Count a step and return whether to call `check` now.

        Args:
            happened: whether the step had a reward, changed the number of lives or held one of FIRE_ACTIONS.
        """
        if happened:
            self._idle_steps = self._presses = 0
            return False
        self._idle_steps += 1
        return self._idle_steps % STEPS_BETWEEN_CHECKS == 0

    def check(self, screen: NDArray[np.uint8]) -> int | None:
        """Return the action to press now, or None.

        Args:
            screen: the newest screen; the array is kept, so the caller must not change it.
        """
        checks, before = self._idle_steps // STEPS_BETWEEN_CHECKS, self._screen
        self._screen = screen
        stands_still = checks > 1 and before is not None and np.array_equal(screen, before)
        if not stands_still and checks < MAX_CHECKS:
            return None
        press = self._fires[self._presses % len(self._fires)]
        self._idle_steps, self._presses = 0, self._presses + 1
        return press
