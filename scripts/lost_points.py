"""Count where an agent loses points in CarRacing: the points missing from a perfect 1,000, by cause.

    python scripts/lost_points.py --model_name=M --checkpoint=latest [--rules sample mean] [--episodes=100]

A missed tile lies behind the furthest tile reached; a tile not reached lies ahead of it. A spin is more than half a
turn within a second. Tracks are those of `--mode=evaluate --rng_seed=1000000`. Needs the box2d extra.
"""

import statistics
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pygame
import tyro
from gymnasium.envs.box2d.car_racing import FPS, PLAYFIELD

from ppo.agents import Agent, find_agent
from ppo.command_line import explicit_settings, parse_command_line
from ppo.envs.car_racing import CarRacingEnvironments
from ppo.games import Game, mean_and_error, number_of_slots, play_slots
from ppo.playback import prepare_games
from ppo.settings import MOST_STEPS, Refusal


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    model_name: str | None = None
    """Model name of the run. Default: that of the environment."""
    env_kwargs: str = "{}"
    """Arguments of the environment as JSON: `{"continuous": false}` for five actions."""
    checkpoint: str = "best"
    """Checkpoint to play, as for `--mode=evaluate`."""
    rules: tuple[Literal["sample", "mean", "mode"], ...] = ()
    """Rules for choosing actions, measured one after another. Default: by samples, and by the mean, or by
    the mode where actions have no mean."""
    episodes: int = 100
    rng_seed: int = 1_000_000


@dataclass(frozen=True)
class Outcome:
    """The outcome of one episode."""

    frames: int
    tiles: int
    missed: int
    """Tiles behind the furthest tile reached."""
    not_reached: int
    """Tiles ahead of the furthest tile reached."""
    left_field: bool
    spins: int

    @property
    def is_finished(self) -> bool:
        """Whether every tile was reached."""
        return not self.missed + self.not_reached

    def losses(self) -> dict[str, float]:
        """Return the points lost by cause; together with the return they add up to 1,000."""
        return {
            "frames": 0.1 * (self.frames - self.left_field),
            "tiles missed": 1000.0 * self.missed / self.tiles,
            "tiles not reached": 1000.0 * self.not_reached / self.tiles,
            "leaving the field": 100.0 * self.left_field,
        }


class Observer:
    """Watches the cars of a block; an episode is recorded when the next one begins."""

    def __init__(self, envs: CarRacingEnvironments) -> None:
        """Watch a block that has been reset."""
        self._envs, self._before_reset = envs, envs.before_reset
        self.outcomes: dict[int, list[Outcome]] = {position: [] for position in range(envs.num_envs)}
        """Finished episodes by environment, in the order played."""
        decisions_per_second = FPS // envs._envs[0].get_wrapper_attr("_protocol").action_repeat
        self._angles: list[deque[float]] = [deque(maxlen=decisions_per_second + 1) for _ in self.outcomes]
        self._spins = [0 for _ in self.outcomes]
        self._furthest = [-1 for _ in self.outcomes]
        envs.before_reset = self._end  # type: ignore[method-assign]

    def look(self) -> None:
        """Record the cars' headings and progress and count spins; call once per step."""
        for position, env in enumerate(self._envs._envs):
            self._furthest[position] = furthest_tile(env.unwrapped, self._furthest[position])
            angles = self._angles[position]
            angles.append(float(env.unwrapped.car.hull.angle))  # type: ignore[attr-defined]
            if abs(angles[-1] - angles[0]) > np.pi:
                self._spins[position] += 1
                angles.clear()

    def _end(self, env: Any) -> None:
        position = next(number for number, own in enumerate(self._envs._envs) if own is env)
        furthest = furthest_tile(env.unwrapped, self._furthest[position])
        self.outcomes[position].append(outcome_of(env.unwrapped, furthest, self._spins[position]))
        self._furthest[position], self._spins[position] = -1, 0
        self._angles[position].clear()
        self._before_reset(env)


def main(arguments: Sequence[str]) -> None:
    """Play and print a Markdown table."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    flags = ["--env_name=CarRacing-v3", f"--env_kwargs={options.env_kwargs}", "--mode=evaluate"]
    flags += [f"--checkpoint={options.checkpoint}"] + [f"--model_name={options.model_name}"] * bool(options.model_name)
    try:
        agents = [agent_with(rule, flags) for rule in options.rules] or usual_agents(flags)
    except Refusal as error:
        sys.exit(str(error))
    steps = agents[0].counters.env_steps
    print(f"{agents[0].name} at {steps:,} steps, {options.episodes} tracks, pygame {pygame.version.ver}\n")
    print(
        "| act | return | median | worst | finished | frames | spins | points lost: frames | tiles missed "
        f"| tiles not reached | leaving the field |\n|{'---|' * 11}"
    )
    for agent in agents:
        print(row(agent.rule, list(played(agent, options.episodes, options.rng_seed))))


def usual_agents(flags: Sequence[str]) -> list[Agent]:
    """Find the agent twice: playing by samples, and by the mean or, where actions have no mean, by the mode.

    Raises:
        Refusal: there is no such agent.
    """
    sampling = agent_with("sample", flags)
    try:
        return [sampling, agent_with("mean", flags)]
    except Refusal:
        return [sampling, agent_with("mode", flags)]


def agent_with(rule: str, flags: Sequence[str]) -> Agent:
    """Find the agent and let it choose actions by a rule.

    Raises:
        Refusal: there is no such agent, or its distribution has no such rule.
    """
    flags = [*flags, f"--act={rule}"]
    return find_agent(parse_command_line(flags), explicit_settings(flags))


def played(agent: Agent, episodes: int, rng_seed: int) -> Iterator[tuple[Game, Outcome]]:
    """Play whole episodes; yield each with its outcome."""
    slots = range(number_of_slots(episodes))
    envs, actor = prepare_games(agent, slots, rng_seed=rng_seed)
    assert isinstance(envs, CarRacingEnvironments)
    observer = Observer(envs)
    for games in play_slots(actor, envs, slots, num_slots=len(slots), episodes=episodes, max_steps=MOST_STEPS):
        observer.look()
        for game in games:
            yield game, observer.outcomes[game.environment][-1]
    envs.close()


def row(rule: str, outcomes: Sequence[tuple[Game, Outcome]]) -> str:
    """Return the table row of a rule."""
    games = [game for game, _ in outcomes]
    mean, error = mean_and_error(games)
    returns = [game.episode_return for game in games]
    finished = statistics.fmean(outcome.is_finished for _, outcome in outcomes)
    frames = statistics.fmean(outcome.frames for _, outcome in outcomes)
    spins = sum(outcome.spins for _, outcome in outcomes)
    losses = [outcome.losses() for _, outcome in outcomes]
    lost = " | ".join(f"{statistics.fmean(own[cause] for own in losses):.1f}" for cause in losses[0])
    return (
        f"| {rule} | {mean:.1f} ± {error or 0.0:.1f} | {statistics.median(returns):.1f} | {min(returns):.1f} "
        f"| {finished:.0%} | {frames:.0f} | {spins} | {lost} |"
    )


def furthest_tile(world: Any, before: int) -> int:
    """Return the furthest tile that a car has reached driving forward, -1 for none.

    Args:
        world: its tiles are numbered in the direction of the race.
        before: the result for the step before. A tile more than a quarter of the track ahead of it was not reached
            driving forward: a car that turns around at the start touches the last tiles.
    """
    window = world.road[before + 1 : before + 1 + max(1, len(world.road) // 4)]
    return before + max((number for number, tile in enumerate(window, 1) if tile.road_visited), default=0)


def outcome_of(world: Any, furthest: int, spins: int) -> Outcome:
    """Return the outcome of the episode that a world is at the end of."""
    missed = sum(not tile.road_visited for tile in world.road[: furthest + 1])
    not_reached = sum(not tile.road_visited for tile in world.road[furthest + 1 :])
    return Outcome(
        frames=round(world.t * FPS) - 1,  # reset() itself takes a step
        tiles=len(world.road),
        missed=missed,
        not_reached=not_reached,
        left_field=max(abs(number) for number in world.car.hull.position) > PLAYFIELD,
        spins=spins,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
