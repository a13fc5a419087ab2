"""`--mode=watch --view=terminal`: the newest checkpoint plays in the terminal, beside the training's progress.

The process runs at low priority, like the one that serves the page.
"""

import os
import time
from typing import Any

import numpy as np

from ppo.agents import Agent, decision_of
from ppo.config import Config
from ppo.outputs.display import print_line
from ppo.outputs.terminal import TerminalView
from ppo.outputs.window import WindowClosedError
from ppo.playback import announce, describe
from ppo.settings import Refusal
from ppo.supervision.signals import INTERRUPTED
from ppo.viewer.choice import Choice
from ppo.viewer.player import Player
from ppo.viewer.progress import Progress

NICENESS = 10
_SECONDS_BETWEEN_POLLS = 1.0
# Shown if the world cannot be drawn here.
_BLANK = np.zeros((60, 80, 3), np.uint8)


def watch_in_terminal(config: Config, explicit: set[str]) -> int:
    """Play game after game until a key or a signal ends it; return the exit code."""
    choice = Choice(config, explicit)
    announce(choice.agent)
    sizes: dict[str, Any] = {"rng_seed": config.run.rng_seed, "max_steps": config.playback.max_game_steps}
    player = Player(choice.agent, **sizes)
    os.nice(NICENESS)
    progress = Progress(choice.run_folder / "progress.csv")
    game_said = ""
    poll_due = 0.0
    agent = choice.agent
    try:
        with TerminalView(_title(agent), agent.frames_per_second, agent.action_names, agent.entry_names) as view:
            while True:
                step, frames, game = player.step()
                for frame in frames or [_BLANK]:
                    view.hold(frame)
                view.end_step(decision_of(player.agent, step))
                if game is not None:
                    game_said = describe(game)
                if time.monotonic() >= poll_due:
                    poll_due = time.monotonic() + _SECONDS_BETWEEN_POLLS
                    progress.poll()
                    said = [game_said, _training(progress)]
                    try:
                        player = _follow(choice, player, sizes)
                    except Refusal as error:  # the new checkpoint cannot be played; the previous one continues
                        said.insert(0, str(error))
                    view.title = _title(player.agent)
                    view.say("   ".join(filter(None, said)))
    except WindowClosedError:
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except FloatingPointError as error:
        raise Refusal(f"{player.agent.name} cannot be played: {error}") from error
    finally:
        player.close()
        if game_said:
            print_line(game_said)


def _follow(choice: Choice, player: Player, sizes: dict[str, Any]) -> Player:
    """Switch to the agent to show if it has changed: in mid-game, or in a new game if its world differs."""
    _, is_another = choice.poll()
    if not is_another:
        return player
    if player.can_be(choice.agent):
        player.become(choice.agent)
        return player
    another = Player(choice.agent, **sizes)
    player.close()
    return another


def _title(agent: Agent) -> str:
    return f"{agent.name} at {agent.counters.env_steps:,} steps"


def _training(progress: Progress) -> str:
    """Return the training's progress in words; empty if there is none."""
    columns = progress.columns
    if not len(columns.get("env_steps", ())):
        return ""
    returns = columns.get("rollout/return_mean", np.array([]))
    known = returns[np.isfinite(returns)]
    said = f", return {known[-1]:.2f}" if len(known) else ""
    return f"training: {int(columns['env_steps'][-1]):,} steps{said}"
