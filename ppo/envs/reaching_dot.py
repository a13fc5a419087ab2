"""A dot in the plane that has to reach a target: `ppo/ReachingDot-v0`.

The smallest world with continuous actions in which a good policy is known: straight to the target. Modelled on the
world of that name in github.com/denismegerle/rl-ppo-agent.
"""

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

EDGE = 32.0
"""Half the side of the field."""
REACH = 2.0
REWARD_AT_TARGET, REWARD_OUTSIDE = 100.0, -100.0
_START = 24.0
_SIZE = 256


class ReachingDot(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A dot that moves by at most 1 along each axis per step.

    Observation: the dot's position and the offset from it to the target, (x, y, dx, dy) / 32, float32. Action: the
    move, (2,) in [-1, 1], clipped to that. An episode begins with dot and target uniform in [-24, 24]^2, at least 2
    apart, and ends when they are less than 2 apart (reward 100) or the dot is outside [-32, 32]^2 (reward -100). The
    reward of every other step is minus the distance to the target / 32.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        """Make the world; `render_mode` is rgb_array or None."""
        limits = np.array([EDGE + 1, EDGE + 1, EDGE + 1 + _START, EDGE + 1 + _START], np.float32) / np.float32(EDGE)
        self.observation_space = Box(-limits, limits, dtype=np.float32)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.render_mode = render_mode
        self._x, self._y, self._target_x, self._target_y = 0.0, 0.0, 0.0, 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Place the dot and the target."""
        super().reset(seed=seed)
        while True:
            self._x, self._y, self._target_x, self._target_y = self.np_random.uniform(-_START, _START, 4).tolist()
            if self._distance() >= REACH:
                return self._observation(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move the dot."""
        move_x, move_y = action.tolist()
        self._x += min(max(move_x, -1.0), 1.0)
        self._y += min(max(move_y, -1.0), 1.0)
        distance = self._distance()
        if max(abs(self._x), abs(self._y)) > EDGE:
            return self._observation(), REWARD_OUTSIDE, True, False, {}
        if distance < REACH:
            return self._observation(), REWARD_AT_TARGET, True, False, {}
        return self._observation(), -distance / EDGE, False, False, {}

    def render(self) -> NDArray[np.uint8] | None:
        """Draw the field with the target (red) and the dot (black)."""
        if self.render_mode is None:
            return None
        frame = np.full((_SIZE, _SIZE, 3), 255, np.uint8)
        pixels = (np.arange(_SIZE) + 0.5) / _SIZE * 2 * EDGE - EDGE
        for x, y, radius, colour in (
            (self._target_x, self._target_y, REACH, (220, 40, 40)),
            (self._x, self._y, REACH / 2, (0, 0, 0)),
        ):
            # The y axis points up.
            frame[np.hypot(pixels - x, -pixels[:, np.newaxis] - y) <= radius] = colour
        return frame

    def _distance(self) -> float:
        return math.hypot(self._target_x - self._x, self._target_y - self._y)

    def _observation(self) -> NDArray[np.float32]:
        way_x, way_y = self._target_x - self._x, self._target_y - self._y
        return np.array((self._x / EDGE, self._y / EDGE, way_x / EDGE, way_y / EDGE), np.float32)
