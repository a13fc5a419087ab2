"""An agent that plays game after game, step by step, and may be exchanged while it does."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ppo.agents import Agent, restore_model
from ppo.games import Game, Step, play_slots
from ppo.models.distributions import ActionDistribution, Rule
from ppo.playback import prepare_games, prepare_to_draw
from ppo.settings import MOST_STEPS, Refusal


class Player:
    """Plays an agent's games, the same ones as `--mode=play` with the same seed."""

    def __init__(self, agent: Agent, *, rng_seed: int, max_steps: int) -> None:
        """Begin the first game.

        Args:
            agent: who plays.
            rng_seed: of the games.
            max_steps: after which a game is cut.

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
        """Which action it takes."""
        return self._actor.rule

    @rule.setter
    def rule(self, rule: Rule) -> None:
        self._actor.rule = rule

    @property
    def distribution(self) -> ActionDistribution:
        """Of its actions."""
        return self._actor.model.distribution

    def step(self) -> tuple[Step, list[NDArray[np.uint8]], Game | None]:
        """Take a step; return it, the frames (H, W, 3) that it has drawn, and the game if it is over or cut with it.

        Raises:
            FloatingPointError: the numbers of the network overflow; no step follows.
        """
        if self._failure:
            raise self._failure
        self._frames.clear()
        try:
            games = next(self._games)
        except FloatingPointError as error:
            self._failure = error
            raise
        except Refusal:  # a world that said it can be drawn; it begins again without
            if not self._draws:
                raise
            self._draws, rule = False, self.rule
            self.envs.close()
            self.envs, self._actor = prepare_games(self.agent, range(1), rng_seed=self._seed)
            self.rule, self._games = rule, self._play()
            return self.step()
        return self._steps.pop(), list(self._frames), games[0] if games else None

    def can_be(self, agent: Agent) -> bool:
        """Tell whether another agent can go on with the game: there is one, and its world is the same."""
        mine, other = self.agent.config, agent.config
        is_same = mine.run.env_name == other.run.env_name and mine.world == other.world
        return self._failure is None and is_same and mine.model.policy == other.model.policy

    def become(self, agent: Agent) -> None:
        """Let another agent take the next step of the game, by the rule of the one before."""
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
