"""Evaluations during training: whole games played by the current policy between two updates.

All ranks play them together, on separate environments, and score them by raw return. Every evaluation of a run plays
the same games with the same noise, so its result is a function of the weights alone; training is not affected. The
games differ from those of --mode=evaluate, which scores the agent that the evaluations have chosen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from ppo.agents import choose_rule
from ppo.collectives import Collective, Halt, of_all_ranks, share
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
    """Plays the games of all evaluations on environments made once."""

    def __init__(self, config: Config, comm: Collective, model: ActorCritic) -> None:
        """Make this rank's environments.

        Args:
            config: the settings of the run.
            comm: the job.
            model: the network being trained.

        Raises:
            Refusal: the policy does not support the setting `act`.
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
        """Return whether an evaluation is due after this many updates."""
        return update % self._interval == 0

    def evaluate(self, stops: Callable[[], bool]) -> Evaluation | None:
        """Play all games; called by all ranks together.

        Args:
            stops: called periodically on every rank; once it returns True on one, all stop.

        Returns:
            The result, equal on all ranks, or None if it was stopped.

        Raises:
            Halt: on all ranks: the policy's outputs are non-finite on one of them.
        """
        steps = self._play()
        games: list[Game] = []
        playing, stopped = True, False
        while playing and not stopped:
            taken: list[list[Game]] = []
            failed = False
            try:
                taken = list(islice(steps, _STEPS_BETWEEN_MEETINGS))
            except FloatingPointError:
                failed = True
            games += chain.from_iterable(taken)
            # Ranks meet regularly, so that none waits without a sign of life for the long games of another.
            votes = np.array([len(taken) == _STEPS_BETWEEN_MEETINGS, stops(), failed], np.float64)
            self._comm.sum_in_place(votes)
            playing, stopped, failed = votes.astype(bool).tolist()
            if failed:
                raise Halt("the policy's outputs in an evaluation are not finite; the last checkpoint is intact")
        if stopped:
            return None
        everyone = list(chain.from_iterable(of_all_ranks(self._comm, games)))
        return Evaluation(*mean_and_error(everyone), len(everyone))

    def close(self) -> None:
        """Close the environments."""
        if self._envs:
            self._envs.close()

    def _play(self) -> Iterator[list[Game]]:
        """Play this rank's games from the same start every time, one step per item."""
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
