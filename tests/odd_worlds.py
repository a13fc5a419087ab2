"""Worlds that no package has: odd spaces, and worlds that misbehave; their ids begin with `tests.odd_worlds:`."""

import os
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Space, Text, Tuple

_SEEN = Box(-1.0, 1.0, (2,))
_WAYS = Discrete(2)


class Odd(gymnasium.Env[Any, Any]):
    """Shows random elements of a space, for 7 steps."""

    def __init__(self, observations: Space[Any] = _SEEN, actions: Space[Any] = _WAYS, **kwargs: Any) -> None:
        self.observation_space, self.action_space = observations, actions
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self._steps += 1
        return self._observation(), 1.0, self._is_over(), False, {}

    def _observation(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def _is_over(self) -> bool:
        return self._steps >= 7


class Broken(Odd):
    """Cannot be made."""

    def __init__(self) -> None:
        raise OSError("no such robot")


class Forgetful(Odd):
    """Draws from a generator that no seed reaches."""

    def _observation(self) -> Any:
        return np.random.default_rng().random(2, np.float32)


class Secretive(Odd):
    """Remembers earlier episodes, and shows it late in an episode, not right after a restore."""

    _episodes = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._episodes += 1
        return super().reset(**kwargs)

    def _observation(self) -> Any:
        return np.full(2, self._episodes / 100 if self._steps > 43 else 0.0, np.float32)

    def _is_over(self) -> bool:
        return self._steps > 100


class Endless(Odd):
    """Has no end."""

    def _is_over(self) -> bool:
        return False


class Invisible(Odd):
    """Says that it can be drawn, and cannot."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> Any:
        raise OSError("no screen")


class Crashing(Odd):
    """Ends the process."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        os._exit(3)


class Hanging(Odd):
    """Never answers."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(1e6)
        raise AssertionError


_SPACES: dict[str, dict[str, Space[Any]]] = {
    "OddObservations": {"observations": Dict(word=Text(4), more=Tuple([Discrete(3, start=-1), MultiBinary((2, 2))]))},
    "OddActions": {"actions": Dict(what=Discrete(3, start=5), how=Tuple([_SEEN, MultiBinary(2)]))},
    "Words": {"observations": Text(4)},
    "Speech": {"actions": Text(4)},
    "TinyImages": {"observations": Box(0, 255, (7, 7, 3), np.uint8)},
}
for _name, _spaces in _SPACES.items():
    gymnasium.register(f"{_name}-v0", Odd, kwargs=_spaces)
for _world in (Broken, Forgetful, Secretive, Endless, Invisible, Crashing, Hanging):
    gymnasium.register(f"{_world.__name__}-v0", _world)
