"""Cart-pole with a continuous force: `ppo/ContinuousCartPole-v0`.

The world of Barto, Sutton and Anderson 1983 without friction, as in Gymnasium's CartPole, but with any force between
-30 and 30 N instead of one of two.
"""

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

GRAVITY = 9.8
CART_MASS, POLE_MASS = 1.0, 0.1
HALF_POLE_LENGTH = 0.5
MAX_FORCE = 30.0
SECONDS_PER_STEP = 0.02
MAX_POSITION = 2.4
MAX_ANGLE = math.radians(12)
_START = 0.05
_SIZE = (400, 600)


class ContinuousCartPole(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A pole on a cart that is pushed to keep the pole upright.

    Observation: position (m), velocity (m/s), angle from upright (rad) and angular velocity (rad/s), float32. Action:
    the force in units of 30 N, (1,) in [-1, 1], clipped to that. Every step of 0.02 s is worth 1. An episode begins
    with all four numbers uniform in [-0.05, 0.05] and ends when the cart is more than 2.4 m from the centre or the pole
    more than 12 degrees from upright.

    With x the position, a the angle, F the force, m and M the masses of pole and cart and l half the pole's length:

        u   = (F + m l a'^2 sin a) / (M + m)
        a'' = (g sin a - u cos a) / (l (4/3 - m cos^2 a / (M + m)))
        x'' = u - m l a'' cos a / (M + m)

    integrated by the explicit Euler method.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / SECONDS_PER_STEP)}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        """Make the world; `render_mode` is rgb_array or None."""
        limits = np.array([2 * MAX_POSITION, np.inf, 2 * MAX_ANGLE, np.inf], np.float32)
        self.observation_space = Box(-limits, limits, dtype=np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)
        self.render_mode = render_mode
        self._state = (0.0, 0.0, 0.0, 0.0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode near the centre, with the pole almost upright."""
        super().reset(seed=seed)
        x, velocity, angle, turning = self.np_random.uniform(-_START, _START, 4).tolist()
        self._state = (x, velocity, angle, turning)
        return np.array(self._state, np.float32), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Push for 0.02 s."""
        x, velocity, angle, turning = self._state
        force = MAX_FORCE * min(max(float(action[0]), -1.0), 1.0)
        sine, cosine = math.sin(angle), math.cos(angle)
        mass, leverage = CART_MASS + POLE_MASS, POLE_MASS * HALF_POLE_LENGTH
        push = (force + leverage * turning**2 * sine) / mass
        turning_rate = (GRAVITY * sine - push * cosine) / (
            HALF_POLE_LENGTH * (4.0 / 3.0 - POLE_MASS * cosine**2 / mass)
        )
        acceleration = push - leverage * turning_rate * cosine / mass
        self._state = x, _, angle, _ = (
            x + SECONDS_PER_STEP * velocity,
            velocity + SECONDS_PER_STEP * acceleration,
            angle + SECONDS_PER_STEP * turning,
            turning + SECONDS_PER_STEP * turning_rate,
        )
        fallen = abs(x) > MAX_POSITION or abs(angle) > MAX_ANGLE
        return np.array(self._state, np.float32), 1.0, fallen, False, {}

    def render(self) -> NDArray[np.uint8] | None:
        """Draw the cart, its rail and the pole."""
        if self.render_mode is None:
            return None
        import cv2

        height, width = _SIZE
        frame = np.full((height, width, 3), 255, np.uint8)
        scale = width / (2 * MAX_POSITION)
        x, _, angle, _ = self._state
        middle, rail = round(width / 2 + scale * x), round(0.75 * height)
        reach = scale * 2 * HALF_POLE_LENGTH
        tip = (round(middle + reach * math.sin(angle)), round(rail - reach * math.cos(angle)))
        cv2.line(frame, (0, rail), (width, rail), (0, 0, 0), 1)
        cv2.rectangle(frame, (middle - 25, rail - 15), (middle + 25, rail + 15), (0, 0, 0), cv2.FILLED)
        cv2.line(frame, (middle, rail), tip, (202, 152, 101), 10, cv2.LINE_AA)
        cv2.circle(frame, (middle, rail), 5, (129, 132, 203), cv2.FILLED, cv2.LINE_AA)
        return frame
