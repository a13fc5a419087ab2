"""Schedules of the learning rate, the clip range and lambda.

Each is a pure function of progress, evaluated once per update. The one exception is the KL-adaptive learning rate: it
is state, saved with the run and adapted to the KL over all ranks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppo.algorithm import equations
from ppo.config import PPOSettings


@dataclass(frozen=True)
class Scheduled:
    """The scheduled values of one update."""

    learning_rate: float
    """The rate of the first epoch; a KL-adaptive rate changes between epochs."""
    clip_range: float
    gae_lambda: float


class Schedules:
    """Evaluates the schedules of a run."""

    def __init__(self, settings: PPOSettings) -> None:
        """Start at the initial values."""
        self._settings = settings
        self._adaptive_rate = settings.learning_rate

    def at(self, *, env_steps: int, progress: float) -> Scheduled:
        """Return the scheduled values of an update.

        Args:
            env_steps: agent steps of the job before the update, for lambda and the inverse-time rate, which depend on
                experience so far, not on the length of the run.
            progress: env_steps divided by those of the whole run, for the linear schedules.
        """
        settings = self._settings
        clip_range = settings.clip_range
        if settings.clip_range_schedule == "linear":
            clip_range = equations.linear_decay(clip_range, progress)
        return Scheduled(self._learning_rate(env_steps, progress), clip_range, self._gae_lambda(env_steps))

    def after_epoch(self, learning_rate: float, kl: float) -> float:
        """Return the learning rate that follows an epoch with this KL."""
        settings = self._settings
        if settings.learning_rate_schedule != "kl_adaptive":
            return learning_rate
        self._adaptive_rate = equations.adapted_learning_rate(
            learning_rate,
            kl,
            kl_target=settings.kl_target,
            factor=settings.kl_factor,
            maximum=settings.learning_rate_max,
        )
        return self._adaptive_rate

    def state_dict(self) -> dict[str, Tensor]:
        """Return the adaptive learning rate."""
        return {"adaptive_rate": torch.tensor(self._adaptive_rate, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a `state_dict`."""
        self._adaptive_rate = min(float(state["adaptive_rate"]), self._settings.learning_rate_max)

    def _learning_rate(self, env_steps: int, progress: float) -> float:
        settings = self._settings
        if settings.learning_rate_schedule == "linear":
            return equations.linear_decay(settings.learning_rate, progress)
        if settings.learning_rate_schedule == "inverse_time":
            return equations.inverse_time_decay(settings.learning_rate, env_steps, settings.learning_rate_decay_steps)
        if settings.learning_rate_schedule == "kl_adaptive":
            return self._adaptive_rate
        return settings.learning_rate

    def _gae_lambda(self, env_steps: int) -> float:
        settings = self._settings
        if settings.gae_lambda_late is None:
            return settings.gae_lambda
        return equations.scheduled_lambda(
            env_steps,
            early=settings.gae_lambda,
            late=settings.gae_lambda_late,
            late_steps=settings.gae_lambda_late_steps,
        )
