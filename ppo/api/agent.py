"""A trained agent in Python: it acts, makes its world, and can be exported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from ppo.agents import Agent, restore_model
from ppo.config import Config
from ppo.envs import make_envs
from ppo.games import Actor
from ppo.models.actor_critic import one_thread
from ppo.models.exported import exported
from ppo.outputs.folders import write_whole
from ppo.random_streams import Purpose, derived_seed
from ppo.settings import Refusal


@dataclass(frozen=True)
class Choice:
    """An agent's action, with its probabilities and value."""

    action: Any
    """An element of the world's action space, for its `step`."""
    probabilities: NDArray[np.float32] | None
    """Probability of each category, or of a 1 for each bit; None for other kinds of action."""
    density: float
    """Probability of the action as drawn; for continuous actions its density, before clipping to bounds."""
    value: float
    """Expected discounted return from here on, of the rewards used in training (clipped, if they were)."""


class TrainedAgent:
    """An agent as `ppo.load` returns it."""

    def __init__(self, saved: Agent, *, seed: int) -> None:
        """Build the network for the agent's world and load its weights.

        Args:
            saved: policy and protocol.
            seed: of the sampled actions.
        """
        self.saved = saved
        self.name, self.env_name, self.env_steps = saved.name, saved.config.run.env_name, saved.counters.env_steps
        envs = make_envs(self.env_name, saved.config.world, indices=range(1), seed=0)
        self.observation_space, self.action_space = envs.single_observation_space, envs.single_action_space
        self._model = restore_model(saved, envs).requires_grad_(False)
        envs.close()
        noise_seed = derived_seed(seed, Purpose.PLAYBACK)
        self._actor = Actor(self._model, saved.rule, indices=range(1), seed=noise_seed)
        self._values = saved.moments

    def __repr__(self) -> str:
        """Return the agent's name and training steps."""
        return f"<{self.name}, trained for {self.env_steps:,} steps>"

    @torch.inference_mode()
    def act(self, observation: Any) -> Choice:
        """Choose an action for one observation, by the agent's rule: a mode, a mean or a sample.

        Args:
            observation: an element of `observation_space`, as the environment of `make_env` returns it.

        Raises:
            Refusal: the observation has the wrong shape.
            FloatingPointError: an output of the network is non-finite.
        """
        space = self.observation_space
        shown = np.asarray(observation, space.dtype)
        if shown.shape != space.shape:
            raise Refusal(
                f"observation must have shape {space.shape}, got {shown.shape}; use observations from agent.make_env()"
            )
        with one_thread():
            prediction, raw = self._actor.choose(np.ascontiguousarray(shown[None]))
        distribution = self._model.distribution
        probabilities = distribution.probabilities(prediction.action)
        return Choice(
            distribution.to_environment(raw.numpy())[0],
            None if probabilities is None else probabilities[0].numpy(),
            float(distribution.log_prob(prediction.action, raw).exp()),
            float(self._values.denormalize(prediction.values)),
        )

    def make_env(self, *, seed: int = 0, draw: bool = False) -> "AgentWorld":
        """Make the agent's world as one environment, under the protocol that it was trained with.

        Args:
            seed: of the episodes, which are those of `--mode=play --rng_seed=<seed>`.
            draw: whether to draw pictures for `render()`, which is slower.
        """
        return AgentWorld(self.saved.config, seed=seed, draw=draw)

    def export(self, path: str | Path) -> None:
        """Write the agent as TorchScript, which `torch.jit.load` reads in Python or C++ without this program.

        The exported module maps observations (N, ...) to actions (N, ...), the mean or the mode, and values (N,).

        Raises:
            Refusal: the distribution is user-defined and cannot be exported.
            OSError: the file cannot be written.
        """
        example = torch.from_numpy(np.stack([self.observation_space.sample()] * 2))
        rule = "mode" if self.saved.rule == "sample" else self.saved.rule
        write_whole(Path(path), exported(self._model, rule, self._values, example))


class AgentWorld(gymnasium.Env[NDArray[Any], Any]):
    """One environment with the observations an agent was trained on, raw rewards, and whole games as episodes."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # as Gymnasium has it

    def __init__(self, config: Config, *, seed: int, draw: bool) -> None:
        """Make the environment; the first episode begins with `reset`."""
        self.render_mode = "rgb_array" if draw else None
        self._config = config
        self._frame: NDArray[np.uint8] | None = None
        self._has_begun = self._is_over = False
        self._begin(seed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begin the next episode, or the first one of a seed."""
        super().reset(seed=seed)
        if seed is not None:
            self.close()
            self._begin(seed)
        if not self._has_begun:
            self._envs.reset()
        elif not self._is_over:
            self._envs.end_episode(0)
        self._has_begun, self._is_over = True, False
        return self._envs.observations[0].copy(), {}

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Take one step of the agent: four frames of an Atari game."""
        observations, rewards, terminated, truncated, info = self._envs.step(np.asarray(action)[None])
        self._is_over = bool(terminated[0] or truncated[0])
        shown = info["final_obs"] if self._is_over else observations
        return shown[0].copy(), float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> NDArray[np.uint8] | None:
        """Return the newest picture, (H, W, 3); None before the first step and without `draw`."""
        return self._frame

    def close(self) -> None:
        """Close the environment."""
        self._envs.close()

    def _begin(self, seed: int) -> None:
        self._envs = make_envs(
            self._config.run.env_name,
            self._config.world,
            indices=range(1),
            seed=derived_seed(seed, Purpose.PLAYBACK),
            on_frame=self._keep if self.render_mode else None,
        )
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space
        self._has_begun = self._is_over = False

    def _keep(self, frame: NDArray[np.uint8]) -> None:
        self._frame = frame
