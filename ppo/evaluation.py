"""Evaluations during training: whole games by the policy as it is between two updates.

They are played by all ranks together, on environments of their own, and count by their raw returns. Every evaluation
of a run plays the same games with the same noise, so that it is a function of the weights alone; training does not
notice. The games are others than those of --mode=evaluate, which judges the agent that evaluations have chosen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from ppo.agents import choose_rule
from ppo.collectives import Collective, done_by_all, share
from ppo.config import Config
from ppo.envs import make_envs
from ppo.games import Actor, Game, mean_and_error, number_of_slots, play_slots
from ppo.models.actor_critic import ActorCritic
from ppo.random_streams import Purpose, derived_seed

_STEPS_BETWEEN_MEETINGS = 100


@dataclass(frozen=True)
class Evaluation:
    """The raw returns of an evaluation's games."""

    return_mean: float
    return_stderr: float | None
    """None for a single game."""
    episodes: int


class Evaluator:
    """Plays the games of evaluations, on environments that it makes once."""

    def __init__(self, config: Config, comm: Collective, model: ActorCritic) -> None:
        """Make this rank's environments.

        Args:
            config: the settings of the run.
            comm: the job.
            model: the network that learns.

        Raises:
            Refusal: the policy has no such action as the setting `act` asks for.
        """
        assert config.run.evaluation_interval is not None
        self._interval, self._episodes = config.run.evaluation_interval, config.run.evaluation_episodes
        self._max_steps = config.playback.max_game_steps
        self._comm, self._model = comm, model
        self._rule = choose_rule(config.playback.act, "saved", model.distribution)
        self._seed = derived_seed(config.run.rng_seed, Purpose.EVALUATION)
        self._num_slots = number_of_slots(self._episodes)
        self._slots = share(self._num_slots, comm.rank, comm.size)
        self._envs = None
        if self._slots:
            world = config.world.of_whole_games()
            self._envs = make_envs(config.run.env_name, world, indices=self._slots, seed=self._seed)
            self._envs.reset()
            self._beginnings = self._envs.get_states()

    def is_due(self, update: int) -> bool:
        """Tell whether there is an evaluation of the policy that the first so many updates have led to."""
        return update % self._interval == 0

    def evaluate(self, stops: Callable[[], bool]) -> Evaluation | None:
        """Play all games; by all ranks together.

        Args:
            stops: called on every rank now and then; once it holds on one of them, all stop.

        Returns:
            The result, equal on all ranks, or None if it was stopped.
        """
        steps = self._play()
        games: list[Game] = []
        playing, stopped = True, False
        while playing and not stopped:
            taken = list(islice(steps, _STEPS_BETWEEN_MEETINGS))
            games += chain.from_iterable(taken)
            # However long the games of another rank are, none waits for them without a sign of life.
            votes = np.array([len(taken) == _STEPS_BETWEEN_MEETINGS, stops()], np.float64)
            self._comm.sum_in_place(votes)
            playing, stopped = votes.astype(bool).tolist()
        if stopped:
            return None
        everyone = list(chain.from_iterable(done_by_all(self._comm, lambda: games)))
        return Evaluation(*mean_and_error(everyone), len(everyone))

    def close(self) -> None:
        """Close the environments."""
        if self._envs:
            self._envs.close()

    def _play(self) -> Iterator[list[Game]]:
        """Play this rank's games from the same beginning every time, a step for each item."""
        if self._envs is None:
            return iter(())
        self._envs.set_states(self._beginnings)
        actor = Actor(self._model, self._rule, indices=self._slots, seed=self._seed)
        return play_slots(
            actor,
            self._envs,
            self._slots,
            num_slots=self._num_slots,
            episodes=self._episodes,
            max_steps=self._max_steps,
        )
