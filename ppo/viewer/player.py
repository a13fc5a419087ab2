"""An agent that plays game after game, step by step, and can be replaced in mid-game."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ppo.agents import Agent, restore_model
from ppo.games import Game, Step, play_slots
from ppo.models.distributions import ActionDistribution
from ppo.models.distributions.base import Rule
from ppo.playback import prepare_games, prepare_to_draw
from ppo.settings import MOST_STEPS, Refusal


class Player:
    """Plays an agent's games, the same ones as `--mode=play` with the same seed."""

    def __init__(self, agent: Agent, *, rng_seed: int, max_steps: int) -> None:
        """Begin the first game.

        Args:
            agent: the agent that plays.
            rng_seed: the seed of the games.
            max_steps: steps after which a game is cut.

        Raises:
            Refusal: the agent cannot be played.
        """
        self.agent, self._seed, self._max_steps = agent, rng_seed, max_steps
        self._failure: FloatingPointError | None = None
        self._frames: list[NDArray[np.uint8]] = []
        self._steps: list[Step] = []
        self._draws = True
        self.envs, self._actor = prepare_to_draw(agent, rng_seed=rng_seed, on_frame=self._take)
        self._games = self._play()

    @property
    def rule(self) -> Rule:
        """How the agent chooses its action."""
        return self._actor.rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        self._actor.rule = rule

    @property
    def distribution(self) -> ActionDistribution:
        """The distribution of the agent's actions."""
        return self._actor.model.distribution

    def step(self) -> tuple[Step, list[NDArray[np.uint8]], Game | None]:
        """Take a step; return it, the frames (H, W, 3) it has drawn, and the game if this step ended or cut it.

        Raises:
            FloatingPointError: the network's outputs are non-finite; later calls raise the same error.
        """
        if self._failure:
            raise self._failure.with_traceback(None)  # else it would grow with every call
        self._frames.clear()
        try:
            games = next(self._games)
        except FloatingPointError as error:
            self._failure = error
            raise
        except Refusal:  # a world that cannot be drawn after all: start over without drawing
            if not self._draws:
                raise
            self._draws, rule = False, self.rule
            self.envs.close()
            self.envs, self._actor = prepare_games(self.agent, range(1), rng_seed=self._seed)
            self.rule, self._games = rule, self._play()
            return self.step()
        return self._steps.pop(), list(self._frames), games[0] if games else None

    def can_be(self, agent: Agent) -> bool:
        """Return whether another agent can take over: the game has not failed, and world and policy type match."""
        mine, other = self.agent.config, agent.config
        is_same = mine.run.env_name == other.run.env_name and mine.world == other.world
        return self._failure is None and is_same and mine.model.policy == other.model.policy

    def become(self, agent: Agent) -> None:
        """Let another agent take over from the next step, with the rule unchanged."""
        self._actor.model = restore_model(agent, self.envs)
        self.agent = agent

    def close(self) -> None:
        """Close the world."""
        self.envs.close()

    def _play(self) -> Iterator[list[Game]]:
        sizes = {"num_slots": 1, "episodes": MOST_STEPS, "max_steps": self._max_steps}
        return play_slots(self._actor, self.envs, range(1), **sizes, on_step=self._steps.append)

    def _take(self, frame: NDArray[np.uint8]) -> None:
        self._frames.append(frame)
