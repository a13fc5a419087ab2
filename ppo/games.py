"""Whole games played by a fixed policy, for playback and for evaluations during training.

Games are numbered from 0 and dealt to S slots, each an environment with its own random stream: slot s plays the games
s, s + S, s + 2 S and so on, each to its end. So the results do not depend on the number of ranks, and short games are
not favoured.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo.envs import ArrayState, Environments
from ppo.models.actor_critic import ActorCritic, Prediction
from ppo.models.distributions import ActionDistribution
from ppo.models.distributions.base import Rule
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
    """It was cut before its end; its return is that of the steps played."""
    is_timed_out: bool = False
    """The world's time limit ended it."""
    environment: int = 0
    """Its slot."""
    state: ArrayState | None = None
    """How to restart it, and its actions, if the environments keep them; see `Environments.take_games`."""


@dataclass(frozen=True)
class Step:
    """A step of a game: the observation, the network's prediction, the action and the outcome."""

    observation: NDArray[Any]
    """Observation before the step, (*S)."""
    outputs: NDArray[np.float32]
    """Outputs of the policy head for the observation, (K,)."""
    value: float
    """Value of the observation in the units of the value head; `Agent.moments` convert it to those of returns."""
    action: NDArray[Any]
    """Action sent to the world."""
    reward: float
    episode_return: float
    """Return of the game so far."""
    episode_length: int
    """Steps of the game so far."""
    is_over: bool
    """The game ended with this step; False for a game that is cut."""
    distribution: ActionDistribution
    """Distribution that interprets the outputs."""


StepListener = Callable[[Step], None]


class Actor:
    """Chooses the actions of a block of environments.

    The model and the rule may be replaced between two steps.
    """

    def __init__(self, model: ActorCritic, rule: Rule, *, indices: range, seed: int) -> None:
        """Start at the first step.

        Args:
            model: the network.
            rule: how actions are chosen.
            indices: global indices of the environments.
            seed: seed of the noise, which is addressed by (seed, environment, step).
        """
        self.model, self.rule = model, rule
        self._indices, self._seed = indices, seed
        self._step = 0
        self._noise = torch.empty(0)

    def to_environment(self, raw: Tensor) -> NDArray[Any]:
        """Convert raw actions to those that the environments take."""
        return self.model.distribution.to_environment(raw.cpu().numpy())

    @torch.inference_mode()
    def choose(self, observations: NDArray[Any]) -> tuple[Prediction, Tensor]:
        """Return the network's prediction for observations (N, ...), and the chosen raw actions.

        Raises:
            FloatingPointError: an output of the network is non-finite, which can happen with finite weights.
        """
        distribution, device = self.model.distribution, self.model.device
        prediction: Prediction = self.model(torch.from_numpy(observations).to(device))
        if not prediction.action.isfinite().all():
            raise FloatingPointError("the outputs of its network are not finite")
        if self.rule == "sample":
            return prediction, distribution.sample(prediction.action, self._next_noise().to(device))
        return prediction, getattr(distribution, self.rule)(prediction.action)

    def _next_noise(self) -> Tensor:
        """Return the noise of the next step, (N, ...)."""
        block, position = divmod(self._step, _STEPS_OF_NOISE_AT_ONCE)
        if position == 0:
            streams = [stream(self._seed, Purpose.ACTIONS, index, block) for index in self._indices]
            draws = [self.model.distribution.noise(generator, _STEPS_OF_NOISE_AT_ONCE) for generator in streams]
            self._noise = torch.from_numpy(np.stack(draws, axis=1))
        self._step += 1
        return self._noise[position]


class Repeater(Actor):
    """Repeats the actions of an earlier game; the network's predictions are only shown."""

    def __init__(self, model: ActorCritic, actions: NDArray[Any]) -> None:
        """Start at the first of the actions that were sent, (L, ...)."""
        super().__init__(model, "mode", indices=range(1), seed=0)
        self._actions, self._next = actions, 0

    def to_environment(self, raw: Tensor) -> NDArray[Any]:
        """Return the next action, (1, ...)."""
        self._next += 1
        return self._actions[self._next - 1 : self._next]


def number_of_slots(episodes: int) -> int:
    """Return how many of these games are played in parallel over all ranks."""
    return min(episodes, _MAX_GAMES_AT_ONCE)


def play_slots(
    actor: Actor,
    envs: Environments,
    slots: range,
    *,
    num_slots: int,
    episodes: int,
    max_steps: int,
    on_step: StepListener | None = None,
) -> Iterator[list[Game]]:
    """Play the games of some slots in parallel; after every step, yield the games that ended with it.

    Args:
        actor: the policy.
        envs: one environment per slot in `slots`, at the start of an episode.
        slots: the slots of this rank.
        num_slots: number of slots over all ranks.
        episodes: number of games over all slots.
        max_steps: agent steps after which a game is cut and counted with its return so far; lean engine only. Nothing
            else bounds a game: a world may have no time limit, and a checkpoint's settings may postpone it.
        on_step: receives every step of the first slot's games, after the frames drawn in that step.
    """
    numbers = [iter(range(slot, episodes, num_slots)) for slot in slots]
    current = [next(own, None) for own in numbers]
    lengths = np.zeros(len(slots), np.int64)
    returns = np.zeros(len(slots))
    while any(number is not None for number in current):
        seen = envs.observations[0].copy() if on_step else None
        prediction, raw = actor.choose(envs.observations)
        actions = actor.to_environment(raw)
        _, rewards, terminated, truncated, info = envs.step(actions)
        lengths += 1
        returns += rewards
        ended = terminated | truncated
        if on_step and seen is not None:
            outputs, value = prediction.action[0].float().cpu().numpy(), float(prediction.values[0])
            so_far = float(returns[0]), int(lengths[0]), bool(ended[0])
            on_step(Step(seen, outputs, value, actions[0], float(rewards[0]), *so_far, actor.model.distribution))
        over = np.flatnonzero(ended | (lengths >= max_steps)).tolist()
        given_up = {position: envs.end_episode(position) for position in over if not ended[position]}
        kept = envs.take_games() if over else []
        games = []
        for position in over:
            episode_return = given_up.get(position, float(info["episode_return"][position]))
            number = current[position]
            if number is not None:
                state = kept[position][0] if kept[position] else None
                timed_out = bool(truncated[position] and not terminated[position])
                played = episode_return, int(lengths[position]), position in given_up, timed_out
                games.append(Game(number, *played, slots[position], state))
                current[position] = next(numbers[position], None)
            lengths[position] = returns[position] = 0
        yield games


def mean_and_error(games: Sequence[Game]) -> tuple[float, float | None]:
    """Return the mean of the games' returns and its standard error, None for a single game.

    Sums are exact, so the order of the games, which varies with the number of ranks, does not matter.
    """
    returns = [game.episode_return for game in games]
    error = statistics.stdev(returns) / len(returns) ** 0.5 if len(returns) > 1 else None
    return statistics.fmean(returns), error
