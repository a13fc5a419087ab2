"""Play two games of each shipped agent, and store them in its card.

    python -m scripts.stored_games [NAME...]

tests/test_shipped_agents.py plays them again: where processor and software are those that stored them, each game must
be the same; elsewhere the returns may differ by four standard errors. scripts/ship_agent.py stores them for an agent
that it ships; this script does so for those in checkpoints/pretrained, by default for all of them.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppo import playback
from ppo.agents import Agent, find_agent
from ppo.command_line import explicit_settings, parse_command_line
from ppo.config import SHIPPED, Config
from ppo.games import Game, number_of_slots
from ppo.models.actor_critic import one_thread
from ppo.outputs.manifest import machine_here, rounding_here
from ppo.versions import versions_of_run
from scripts.benchmarking.machine import processor_facts

ROOT = Path(__file__).resolve().parent.parent
CARD = "card.json"
NUM_GAMES = 2
_SEED = 1_000_000


def play(folder: Path, episodes: int, *flags: str) -> tuple[list[Game], Agent, Config]:
    """Play games of a shipped agent as `--mode=evaluate` does; return them with the agent and the settings.

    Args:
        folder: of the agent, in a folder `pretrained` of checkpoints.
        episodes: how many games.
        flags: more flags, such as another `--rng_seed`.

    Raises:
        Refusal: the agent cannot be played.
    """
    flags = (
        *(f"--model_name={folder.name}", "--checkpoint=shipped", "--mode=evaluate", f"--rng_seed={_SEED}"),
        *(f"--checkpoint_dir={folder.parent.parent}", f"--episodes={episodes}"),
        *flags,
    )
    config = parse_command_line(flags)
    slots = number_of_slots(episodes)
    with one_thread():
        agent = find_agent(config, explicit_settings(flags))
        games = list(playback.play_games(agent, config, range(slots), slots, episodes=episodes))
    return sorted(games, key=lambda game: game.number), agent, config


def kind_of_machine(config: Config) -> dict[str, str]:
    """Return what decides how a game's numbers are rounded: the processor, the C library and the run's software."""
    own = {**processor_facts(), "libc": " ".join(platform.libc_ver())}
    own |= {**machine_here(), **rounding_here(), **versions_of_run(config)}
    return {name: value for name, value in own.items() if name not in ("threads", "ppo")}


def stored(folder: Path) -> dict[str, Any]:
    """Play an agent's games and return what its card says about them."""
    games, agent, _ = play(folder, NUM_GAMES)
    return {
        "rng_seed": _SEED,
        "act": agent.rule,
        "returns": [game.episode_return for game in games],
        "lengths": [game.episode_length for game in games],
        "machine": kind_of_machine(agent.config),
    }


def store(folder: Path) -> None:
    """Write an agent's games into its card."""
    path = folder / CARD
    card = json.loads(path.read_text()) | {"games": stored(folder)}
    path.write_text(json.dumps(card, indent=1) + "\n")


def main(arguments: Sequence[str]) -> None:
    """Store the games of the named agents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    folder = ROOT / "checkpoints" / SHIPPED
    for name in parser.parse_args(arguments).names or sorted(path.parent.name for path in folder.glob(f"*/{CARD}")):
        store(folder / name)
        print(f"{name}: {json.loads((folder / name / CARD).read_text())['games']['returns']}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
