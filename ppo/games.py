"""Whole games by a policy that does not learn: what playback and the evaluations during training share.

Games are numbered from 0 and dealt to slots, each an environment with random numbers of its own: of S slots, slot s
plays the games s, s + S, s + 2 S and so on, all of them to their ends. So the results do not depend on the number of
ranks, and short games are not favoured.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo.envs import Environments
from ppo.models.actor_critic import ActorCritic, Prediction
from ppo.models.distributions import Rule
from ppo.random_streams import Purpose, stream

_MAX_GAMES_AT_ONCE = 16
_STEPS_OF_NOISE_AT_ONCE = 1024


@dataclass(frozen=True)
class Game:
    """A game played: its number from 0, raw return and agent steps."""

    number: int
    episode_return: float
    episode_length: int
    is_cut: bool = False
    """It was not over: its return is that of its first steps."""


class Actor:
    """Chooses the actions of a block of environments by one rule."""

    def __init__(self, model: ActorCritic, rule: Rule, *, indices: range, seed: int) -> None:
        """Begin at the first step.

        Args:
            model: the network; its weights must stay as they are.
            rule: which action it takes.
            indices: global indices of the environments.
            seed: of the noise, which is addressed by (seed, environment, step).
        """
        self._model, self._rule, self._indices, self._seed = model, rule, indices, seed
        self._step = 0
        self._noise = torch.empty(0)

    def act(self, observations: NDArray[Any]) -> NDArray[Any]:
        """Return what the environments are sent in their next step, for their observations (N, ...).

        Raises:
            FloatingPointError: see `choose`.
        """
        _, raw = self.choose(observations)
        return self._model.distribution.to_environment(raw.cpu().numpy())

    @torch.inference_mode()
    def choose(self, observations: NDArray[Any]) -> tuple[Prediction, Tensor]:
        """Return what the network says of observations (N, ...), and the raw actions that are chosen.

        Raises:
            FloatingPointError: an output of the network is not finite, which finite weights may lead to.
        """
        distribution, device = self._model.distribution, self._model.device
        prediction: Prediction = self._model(torch.from_numpy(observations).to(device))
        if not prediction.action.isfinite().all():
            raise FloatingPointError("the outputs of its network are not finite")
        if self._rule == "sample":
            return prediction, distribution.sample(prediction.action, self._next_noise().to(device))
        return prediction, getattr(distribution, self._rule)(prediction.action)

    def _next_noise(self) -> Tensor:
        """Return the noise of the next step, (N, ...)."""
        block, position = divmod(self._step, _STEPS_OF_NOISE_AT_ONCE)
        if position == 0:
            streams = [stream(self._seed, Purpose.ACTIONS, index, block) for index in self._indices]
            draws = [self._model.distribution.noise(generator, _STEPS_OF_NOISE_AT_ONCE) for generator in streams]
            self._noise = torch.from_numpy(np.stack(draws, axis=1))
        self._step += 1
        return self._noise[position]


def number_of_slots(episodes: int) -> int:
    """Return how many games of so many are played at once, over all ranks."""
    return min(episodes, _MAX_GAMES_AT_ONCE)


def play_slots(
    actor: Actor,
    envs: Environments,
    slots: range,
    *,
    num_slots: int,
    episodes: int,
    max_steps: int,
    on_step: Callable[[float], None] | None = None,
) -> Iterator[list[Game]]:
    """Play some slots' share of a set of games, all at once; yield after every step the games that ended with it.

    Args:
        actor: the policy.
        envs: an environment for each of `slots`, where an episode begins.
        slots: the slots of this rank.
        num_slots: the slots of all ranks.
        episodes: the games of all slots.
        max_steps: agent steps after which a game is cut, and counts with the return it has then; the lean engine only.
            Nothing else bounds a game: a world may have no time limit, and a checkpoint's settings may put it off.
        on_step: called after every step with the return of the first slot's game so far.
    """
    numbers = [iter(range(slot, episodes, num_slots)) for slot in slots]
    current = [next(own, None) for own in numbers]
    lengths = np.zeros(len(slots), np.int64)
    returns = np.zeros(len(slots))
    while any(number is not None for number in current):
        _, rewards, terminated, truncated, info = envs.step(actor.act(envs.observations))
        lengths += 1
        returns += rewards
        ended = terminated | truncated
        if on_step:
            on_step(float(returns[0]))
        games = []
        for position in np.flatnonzero(ended | (lengths >= max_steps)).tolist():
            episode_return = info["episode_return"][position] if ended[position] else envs.end_episode(position)
            number = current[position]
            if number is not None:
                games.append(Game(number, float(episode_return), int(lengths[position]), not ended[position]))
                current[position] = next(numbers[position], None)
            lengths[position] = returns[position] = 0
        yield games


def mean_and_error(games: Sequence[Game]) -> tuple[float, float | None]:
    """Return the mean of the games' returns and its standard error, which a single game does not have.

    Sums are exact, so that the order of the games, which depends on the number of ranks, does not matter.
    """
    returns = [game.episode_return for game in games]
    error = statistics.stdev(returns) / len(returns) ** 0.5 if len(returns) > 1 else None
    return statistics.fmean(returns), error
