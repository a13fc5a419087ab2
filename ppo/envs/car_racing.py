"""CarRacing: an action is held for several frames, and only the last frame is drawn, as a small picture.

Rewards and episode ends are those of Gymnasium's world, whose limit of 1,000 frames truncates the episode. In training
an episode also terminates when no new tile of the road has been reached for a while.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from ppo.envs import StepResult
from ppo.envs.box2d import Box2DEnvironments
from ppo.envs.car_racing_drawing import Drawing
from ppo.envs.gymnasium import GymnasiumWorld
from ppo.envs.making import Environment
from ppo.families import CarRacingSettings, WorldSettings

# Mean green of a picture above which the car counts as on grass, as in github.com/xtma/pytorch_car_caring.
_GREEN_OF_GRASS = 180.0

Picture = NDArray[np.uint8]


class Drive(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One environment with the protocol applied."""

    def __init__(self, env: Environment, protocol: CarRacingSettings) -> None:
        """Wrap what `gymnasium.make` returned.

        Args:
            env: the environment, with its time limit.
            protocol: settings for actions, observations and shaping.
        """
        super().__init__(env)
        self._protocol = protocol
        self.frame_stack = protocol.frame_stack
        self._drawing = Drawing(env.unwrapped)
        self._channels = 3 if protocol.colour else 1
        size = len(_SMALLER[protocol.picture](np.zeros((96, 96, 1), np.uint8)))
        self._stack = np.zeros((size, size, self._channels * self.frame_stack), np.uint8)
        self.observation_space = Box(0, 255, self._stack.shape, np.uint8)
        self.draws = True
        """Whether `step` updates the observation."""
        self.shaping = 0.0
        """Added to the last step's reward for the learner, but not to returns."""
        self._reward_of_noops = 0.0
        self._frames_without_tile = 0
        self._frames: list[Picture] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin an episode; its first picture fills the stack."""
        self.draws = True
        self.env.reset(seed=seed, options=options)
        self._reward_of_noops, self._frames_without_tile = 0.0, 0
        space = self.action_space
        noop = np.zeros(space.shape, space.dtype) if isinstance(space, Box) else 0
        for _ in range(self._protocol.noop_frames):
            self._reward_of_noops += float(self.env.step(noop)[1])
        self._frames.clear()
        self._stack[:] = np.tile(self._picture(self._drawing.draw()), self.frame_stack)
        return self._stack, {}

    def step(self, action: Any) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Hold an action; the first step's reward includes that of the no-op frames."""
        protocol = self._protocol
        reward, self._reward_of_noops = self._reward_of_noops, 0.0
        self.shaping = -reward
        terminated = truncated = False
        for _ in range(protocol.action_repeat):
            _, rewarded, terminated, truncated, _ = self.env.step(action)
            frame_reward = float(rewarded)
            reward += frame_reward
            # A frame costs 0.1, and a new tile earns more than that.
            self._frames_without_tile = 0 if frame_reward > 0.0 else self._frames_without_tile + 1
            if self.render_mode:
                self._frames.append(self.env.render())  # type: ignore[arg-type]
            if protocol.grass_penalty and self._drawing.draw()[..., 1].mean() > _GREEN_OF_GRASS:
                self.shaping -= protocol.grass_penalty
            terminated = terminated or self._frames_without_tile == protocol.give_up_frames
            if terminated or truncated:
                break
        if self.draws:
            self._stack[..., : -self._channels] = self._stack[..., self._channels :]
            self._stack[..., -self._channels :] = self._picture(self._drawing.draw())
        return self._stack, reward, terminated, truncated, {}

    def render(self) -> Any:
        """Return the frames since the last call, as Gymnasium draws them."""
        frames, self._frames = self._frames, []
        return frames

    def _picture(self, drawn: Picture) -> Picture:
        """Convert a drawn picture (96, 96, 3) to the observed one (H, W, channels)."""
        if not self._protocol.colour:
            drawn = cv2.cvtColor(drawn, cv2.COLOR_RGB2GRAY)[..., np.newaxis].astype(np.uint8, copy=False)
        return _SMALLER[self._protocol.picture](drawn)


class CarRacingEnvironments(Box2DEnvironments):
    """A block of CarRacing environments."""

    def __init__(self, env_name: str, *, protocol: CarRacingSettings, **arguments: Any) -> None:
        """Make one environment per index; see `GymnasiumEnvironments`."""
        self._protocol = protocol
        super().__init__(env_name, channel_axis="last", **arguments)

    def make_env(self, env_name: str, env_kwargs: Mapping[str, Any], render_mode: str | None = None) -> Environment:
        """Make one environment with the protocol applied."""
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # else every rank prints a line to standard output
        return Drive(super().make_env(env_name, env_kwargs, render_mode), self._protocol)

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Take one step in every environment; rewards are the learner's, returns are raw."""
        result = super().step(actions)
        self.arrays.rewards[:] += [env.shaping for env in self._envs]  # type: ignore[attr-defined]
        return result

    def before_replayed(self, env: Environment, left: int) -> None:
        """Draw only the frames that the stack will hold at the end of the replay."""
        assert isinstance(env, Drive)
        env.draws = left < env.frame_stack


class CarRacingWorld(GymnasiumWorld):
    """The family's behaviour; see `ppo.envs.World`."""

    def arguments(self, world: WorldSettings) -> dict[str, Any]:
        """Return the constructor's arguments and the protocol."""
        assert isinstance(world, CarRacingSettings)
        return {"env_kwargs": json.loads(world.env_kwargs), "protocol": world}


WORLD = CarRacingWorld(CarRacingEnvironments)


def _mean_of_four(picture: Picture) -> Picture:
    height, width, channels = picture.shape
    half = cv2.resize(picture, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return half.reshape(height // 2, width // 2, channels).astype(np.uint8, copy=False)


def _largest_of_four(picture: Picture) -> Picture:
    rows = np.maximum(picture[::2], picture[1::2])
    return np.maximum(rows[:, ::2], rows[:, 1::2])


_SMALLER: Mapping[str, Callable[[Picture], Picture]] = {
    "full": lambda picture: picture,
    "area": _mean_of_four,
    "maximum": _largest_of_four,
    "cropped": lambda picture: picture[:84, 6:90],
}
"""Functions from a picture (96, 96, channels) to the observed one, by value of the setting `picture`."""
