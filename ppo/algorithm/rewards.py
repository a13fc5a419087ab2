"""Transforms raw rewards for the learner: sign, fixed scale, or units of the deviation of discounted returns.

The rollout and the logs keep raw rewards. Each environment has a running return, which is reset when a game ends, not
when a life is lost, and is saved with the environment's state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo.algorithm.rollout import Rollout
from ppo.collectives.moments import MomentsOverRanks, RunningMoments
from ppo.config import PPOSettings

RUNNING_RETURN = "running_return"
"""Name of a running return in the state of an environment."""


class RewardTransform:
    """Transforms the rewards of successive rollouts of this rank's N environments."""

    def __init__(self, settings: PPOSettings, num_envs: int) -> None:
        """Start without statistics."""
        self._settings = settings
        self._moments = RunningMoments()
        self._returns = np.zeros(num_envs)

    def __call__(self, rollout: Rollout, moments_of: MomentsOverRanks) -> Tensor:
        """Return the rewards to learn from, (T, N); called by all ranks together.

        The moments of this rollout's discounted returns are merged over ranks before its rewards are scaled by them
        (Engstrom et al. 2020, arXiv:2005.12729, section 3).
        """
        settings = self._settings
        rewards = rollout.rewards.sign() if settings.clip_rewards else rollout.rewards
        if settings.reward_scale != 1.0:
            rewards = rewards * settings.reward_scale
        if settings.reward_normalization:
            returns = self._discounted_returns(rewards, rollout.game_ends)
            self._moments.update(moments_of(torch.from_numpy(returns).flatten()))
            rewards = rewards / self._moments.deviation
        if settings.reward_clip is not None:
            rewards = rewards.clamp(-settings.reward_clip, settings.reward_clip)
        return rewards

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moments of discounted returns."""
        return {"return_moments": self._moments.state_dict()["moments"]}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a `state_dict`."""
        self._moments.load_state_dict({"moments": state["return_moments"]})

    def environment_states(self) -> list[dict[str, NDArray[np.float64]]]:
        """Return each environment's running return."""
        return [{RUNNING_RETURN: self._returns[n : n + 1].copy()} for n in range(len(self._returns))]

    def set_environment_states(self, states: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        """Restore the running return of each environment.

        Raises:
            ValueError: a state has no running return, or one of another type or shape.
        """
        for position, state in enumerate(states):
            value = state.get(RUNNING_RETURN, np.zeros(0))
            if value.dtype != np.float64 or value.shape != (1,):
                raise ValueError(
                    f"the saved {RUNNING_RETURN} of this rank's environment {position} must be float64 of shape (1,)"
                )
            self._returns[position] = value[0]

    def _discounted_returns(self, rewards: Tensor, game_ends: Tensor) -> NDArray[np.float64]:
        """Return R_t = r_t + discount * R_{t-1}, (T, N), restarted after the end of a game, and keep the last."""
        returns: NDArray[np.float64] = rewards.cpu().double().numpy().copy()
        ends = game_ends.cpu().numpy()
        running = self._returns
        for t in range(len(returns)):
            running = returns[t] = returns[t] + self._settings.discount * running
            running = np.where(ends[t], 0.0, running)
        self._returns = running
        return returns
