"""`--mode=watch --view=terminal`: the newest checkpoint plays in the terminal, beside the training's progress.

The process runs at low priority, like the one that serves the page.
"""

import os
import time
from typing import Any

import numpy as np

from ppo.agents import Agent, decision_of
from ppo.config import Config
from ppo.models.decisions import Decision
from ppo.outputs.display import print_line
from ppo.outputs.terminal import TerminalView
from ppo.outputs.window import WindowClosedError
from ppo.playback import announce, describe
from ppo.settings import Refusal
from ppo.supervision.signals import INTERRUPTED, StopRequest
from ppo.viewer.player import Player
from ppo.viewer.progress import Progress
from ppo.viewer.selection import Selection

NICENESS = 10
_SECONDS_BETWEEN_POLLS = 1.0
# Shown if the world cannot be drawn here.
_BLANK = np.zeros((60, 80, 3), np.uint8)
# Shown if the first agent cannot be played.
_NOTHING = Decision(np.zeros(0), 0.0, (), np.zeros(0), 0.0, 0)


def watch_in_terminal(config: Config, explicit: set[str]) -> int:
    """Play game after game until a key or a signal ends it; return the exit code."""
    stop = StopRequest()
    stop.listen()
    selection = Selection(config, explicit)
    announce(selection.agent)
    sizes: dict[str, Any] = {"rng_seed": config.run.rng_seed, "max_steps": config.playback.max_game_steps}
    agent = selection.agent
    player = Player(agent, **sizes)
    os.nice(NICENESS)
    progress = Progress()
    frames, decision = [_BLANK], _NOTHING
    game_said = failure = refusal = ""
    poll_due = 0.0
    try:
        with TerminalView(_title(agent), agent.frames_per_second, agent.action_names, agent.entry_names, stop) as view:
            while True:
                try:
                    step, drawn, game = player.step()
                    frames, decision, failure = drawn or [_BLANK], decision_of(player.agent, step), ""
                    if game is not None:
                        game_said = describe(game)
                except FloatingPointError as error:  # the last picture stays until there is another agent
                    failure = f"this agent cannot be played: {error}"
                for frame in frames:
                    view.hold(frame)
                view.end_step(decision)
                if time.monotonic() >= poll_due:
                    poll_due = time.monotonic() + _SECONDS_BETWEEN_POLLS
                    progress.poll(selection.run_folder / "progress.csv")
                    try:
                        has_others, is_another = selection.poll()
                        if has_others:
                            refusal = ""
                        if is_another:
                            player = _exchange(player, selection.agent, sizes)
                    except Refusal as error:  # the new checkpoint cannot be played; the previous one continues
                        refusal = str(error)
                    view.title = _title(player.agent)
                    view.say("   ".join(filter(None, [game_said, _training(progress)])))
                    view.warn("; ".join(filter(None, [failure, refusal, *selection.agent.notes])))
    except WindowClosedError:
        return stop.exit_code or 0
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        player.close()
        if game_said:
            print_line(game_said)


def _exchange(player: Player, agent: Agent, sizes: dict[str, Any]) -> Player:
    """Let an agent take over in mid-game, or in a new game if its world differs; return its player."""
    if player.can_be(agent):
        player.become(agent)
        return player
    another = Player(agent, **sizes)
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
