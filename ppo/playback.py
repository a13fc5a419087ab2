"""Games with a frozen policy: play (watch), record (video) and evaluate (scores).

The protocol is the one the agent was trained with; only what the command line names explicitly differs.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppo.agents import Agent, find_agent, restore_model
from ppo.collectives import Collective, decided_by_root, share
from ppo.config import Config
from ppo.envs import Environments, FrameListener, make_envs, world_of
from ppo.models.actor_critic import ActorCritic
from ppo.models.distributions import Rule
from ppo.outputs import checkpoint
from ppo.outputs.display import print_line
from ppo.outputs.folders import require_writable, write_whole
from ppo.outputs.trackers import say_on_standard_error
from ppo.outputs.window import GameWindow, NoWindowError, WindowClosedError, has_display
from ppo.random_streams import Purpose, derived_seed, stream

_MAX_GAMES_AT_ONCE = 16
_STEPS_OF_NOISE_AT_ONCE = 1024


@dataclass(frozen=True)
class Game:
    """A whole game played: its number from 0, raw return and agent steps."""

    number: int
    episode_return: float
    episode_length: int


def play(config: Config, comm: Collective, explicit: set[str]) -> int:
    """Play games on rank 0, in a window where there is a display, and print each game's return."""
    agent = decided_by_root(comm, lambda: find_agent(config, explicit))
    code = 0
    if comm.rank == 0:
        announce(agent)
        window = _open_window(agent)
        try:
            for game in play_games(agent, config, range(1), 1, window.show if window else None):
                print_line(describe(game))
        except WindowClosedError:
            print_line("window closed")
        except NoWindowError as error:  # the display has gone away
            say_on_standard_error(f"ppo: {error}")
            code = 1
        finally:
            if window:
                window.close()
    return comm.broadcast(code)


def record(config: Config, comm: Collective, explicit: set[str]) -> int:
    """Play games on rank 0 and write them as one mp4 and one gif."""
    from ppo.outputs.video import VideoError, VideoRecorder

    agent, folder = decided_by_root(comm, lambda: _find_with_folder(config, explicit, "asset_dir"))
    code = 0
    if comm.rank == 0:
        announce(agent)
        path = folder / checkpoint.folder_name(agent.counters.env_steps)
        try:
            with VideoRecorder(path, agent.frames_per_second) as video:
                for game in play_games(agent, config, range(1), 1, video.write):
                    print_line(describe(game))
            print_line(f"wrote {path}.mp4 and {path}.gif")
        except VideoError as error:
            say_on_standard_error(f"ppo: {error}")
            code = 1
    return comm.broadcast(code)


def evaluate(config: Config, comm: Collective, explicit: set[str]) -> int:
    """Play games on all ranks; print the statistics as JSON and write them to evaluation.json."""
    agent, folder = decided_by_root(comm, lambda: _find_with_folder(config, explicit, "run_dir"))
    if comm.rank == 0:
        announce(agent)
    num_slots = min(config.episodes, _MAX_GAMES_AT_ONCE)
    slots = share(num_slots, comm.rank, comm.size)
    games = list(play_games(agent, config, slots, num_slots)) if slots else []
    gathered = comm.gather(games)
    code = 0
    if gathered is not None:
        everyone = sorted((game for part in gathered for game in part), key=lambda game: game.number)
        result = statistics_of(everyone, agent, config)
        print_line(json.dumps(result))
        try:
            write_whole(folder / "evaluation.json", (json.dumps(result, indent=1) + "\n").encode())
        except OSError as error:
            say_on_standard_error(f"ppo: {folder / 'evaluation.json'} was not written: {error.strerror}")
            code = 1
    return comm.broadcast(code)


def play_games(
    agent: Agent, config: Config, slots: range, num_slots: int, on_frame: FrameListener | None = None
) -> Iterator[Game]:
    """Play this rank's share of a fixed set of games, many at once.

    The games are dealt to slots, each an environment with random numbers of its own, and each slot plays all of its
    games to the end: the result does not depend on the number of ranks, and short games are not favoured.

    Args:
        agent: the policy.
        config: the settings of this invocation: games and seed.
        slots: the slots of this rank.
        num_slots: the slots of all ranks.
        on_frame: receives the screens of the first slot.
    """
    seed = derived_seed(config.run.rng_seed, Purpose.PLAYBACK)
    envs = make_envs(agent.config.run.env_name, agent.config.world, indices=slots, seed=seed, on_frame=on_frame)
    model = restore_model(agent, envs)
    numbers = {slot: iter(range(slot, config.episodes, num_slots)) for slot in slots}
    current = {slot: next(numbers[slot], None) for slot in slots}
    envs.reset()
    actions = _actions(model, envs, slots, seed, agent.rule)
    while any(number is not None for number in current.values()):
        _, _, terminated, truncated, info = envs.step(next(actions))
        for position in np.flatnonzero(terminated | truncated):
            slot = slots[position]
            number = current[slot]
            if number is not None:
                yield Game(number, float(info["episode_return"][position]), int(info["episode_length"][position]))
                current[slot] = next(numbers[slot], None)
    envs.close()


def statistics_of(games: Sequence[Game], agent: Agent, config: Config) -> dict[str, Any]:
    """Return the statistics of raw whole-game returns, with the protocol they were played under."""
    returns = [game.episode_return for game in games]
    mean = statistics.fmean(returns)
    deviation = statistics.stdev(returns) if len(returns) > 1 else None
    env_name = agent.config.run.env_name
    return {
        "env_name": env_name,
        "model_name": agent.name,
        "env_steps": agent.counters.env_steps,
        "episodes": len(returns),
        "return_mean": mean,
        "return_stderr": None if deviation is None else deviation / len(returns) ** 0.5,
        "return_median": statistics.median(returns),
        "return_min": min(returns),
        "return_max": max(returns),
        "episode_length_mean": statistics.fmean(game.episode_length for game in games),
        "act": agent.rule,
        "rng_seed": config.run.rng_seed,
        "protocol": agent.config.to_dict()["world"],
        **world_of(env_name).facts(env_name, mean),
    }


def describe(game: Game) -> str:
    """Return a game's line: `game 1: return -20, 1234 steps`."""
    return f"game {game.number + 1}: return {game.episode_return:g}, {game.episode_length} steps"


def announce(agent: Agent) -> None:
    """Say which agent plays."""
    for note in agent.notes:
        print_line(note)
    print_line(f"{agent.name}, trained for {agent.counters.env_steps:,} steps")


def _open_window(agent: Agent) -> GameWindow | None:
    """Open a window for the games, or say why there is none."""
    reason = "no display"
    if has_display():
        try:
            return GameWindow(f"{agent.name} at {agent.counters.env_steps:,} steps", agent.frames_per_second)
        except NoWindowError as error:
            reason = str(error)
    print_line(f"{reason}: only the results are shown; --mode=record makes a video")
    return None


def _find_with_folder(config: Config, explicit: set[str], setting: str) -> tuple[Agent, Path]:
    """Find the agent and make sure that its folder under a setting can be written, before any game is played."""
    agent = find_agent(config, explicit)
    parent: Path = getattr(config.run, setting)
    require_writable(setting, parent / agent.name)
    return agent, parent / agent.name


def _actions(model: ActorCritic, envs: Environments, slots: range, seed: int, rule: Rule) -> Iterator[NDArray[Any]]:
    """Yield the agent's actions for the current observations, with noise addressed by (slot, step)."""
    distribution = model.distribution
    step = 0
    while True:
        block, position = divmod(step, _STEPS_OF_NOISE_AT_ONCE)
        if position == 0 and rule == "sample":
            streams = [stream(seed, Purpose.ACTIONS, slot, block) for slot in slots]
            draws = [distribution.noise(generator, _STEPS_OF_NOISE_AT_ONCE) for generator in streams]
            noise = torch.from_numpy(np.stack(draws, axis=1))
        with torch.inference_mode():
            outputs = model(torch.from_numpy(envs.observations)).action
            raw = (
                distribution.sample(outputs, noise[position])
                if rule == "sample"
                else getattr(distribution, rule)(outputs)
            )
        step += 1
        yield distribution.to_environment(raw.numpy())
