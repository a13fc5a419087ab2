"""Measure the cost of showing an agent: on the page of `--mode=watch`, and in terminals of two sizes.

For the page, the agent plays without pauses, and a share of a core is processor time per second of game time. In the
terminal, it plays at the game's speed, and a share is processor time per second of wall time. Only the thread that
plays and shows is timed, so other programs hardly matter. Needs the extras of the worlds and an agent for each.
"""

import fcntl
import os
import pty
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import tyro

from ppo.agents import decision_of, find_agent
from ppo.command_line import explicit_settings, parse_command_line
from ppo.outputs.terminal import TerminalView
from ppo.outputs.window import keep_drawing_quiet
from ppo.settings import Refusal
from ppo.viewer.player import Player
from ppo.viewer.watch import Show

_SIZES = ((24, 80), (53, 160))
_SECONDS_OF_BEAT = 0.05


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    worlds: tuple[str, ...] = (
        "PongNoFrameskip-v4",
        "BreakoutNoFrameskip-v4",
        "CartPole-v1",
        "LunarLander-v3",
        "CarRacing-v3",
    )
    """Worlds to measure."""
    seconds: float = 20.0
    """Seconds of each measurement."""


def main() -> None:
    """Measure and print the tables in Markdown."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    keep_drawing_quiet()
    pages, terminals = [], []
    for world in options.worlds:
        try:
            share, playing, megabits = on_a_page(world, options.seconds)
            shown = [in_a_terminal(world, size, options.seconds) for size in _SIZES]
        except Refusal as error:
            sys.exit(f"{world}: {error}")
        pages.append(f"| {world} | {share:.1%} | {playing:.1%} | {megabits:.1f} |")
        cells = (f"{pictures:.0f} | {share:.1%} | {megabits:.2f}" for pictures, share, megabits in shown)
        terminals.append(f"| {world} | {' | '.join(cells)} |")
    print("| world | page: share of a core | of which the game itself | Mbit/s |\n|---|---|---|---|")
    print("\n".join(pages), end="\n\n")
    heads = (f"{columns} x {rows}: pictures a second | share of a core | Mbit/s" for rows, columns in _SIZES)
    print(f"| world | {' | '.join(heads)} |\n|{'---|' * (1 + 3 * len(_SIZES))}")
    print("\n".join(terminals))


def on_a_page(world: str, seconds: float) -> tuple[float, float, float]:
    """Play for one page that receives every message.

    Returns:
        The share of a core, the share spent on world and network alone, and megabits, each per second of game time.
    """
    flags = [f"--env_name={world}", "--mode=watch"]
    show = Show(parse_command_line(flags), explicit_settings(flags))
    looker = show.lookers.add()
    played = [0.0]
    step = show._player.step

    def timed():  # type: ignore[no-untyped-def]
        begin = time.thread_time()
        try:
            return step()
        finally:
            played[0] += time.thread_time() - begin

    show._player.step = timed  # type: ignore[method-assign]
    for _ in range(10):
        show._play(_SECONDS_OF_BEAT)
    looker.take(0.0)
    played[0], num_bytes, of_game = 0.0, 0, 0.0
    begin = time.thread_time()
    while of_game < seconds:
        of_game += show._play(_SECONDS_OF_BEAT)
        num_bytes += sum(len(text) for _, text in looker.take(0.0))
    share = (time.thread_time() - begin) / of_game
    show.close()
    return share, played[0] / of_game, num_bytes * 8e-6 / of_game


def in_a_terminal(world: str, size: tuple[int, int], seconds: float) -> tuple[float, float, float]:
    """Play in a terminal of `size` = (rows, columns).

    Returns:
        Pictures, the share of a core spent on showing alone, and megabits, each per second of wall time.
    """
    flags = [f"--env_name={world}", "--mode=watch", "--view=terminal"]
    config = parse_command_line(flags)
    agent = find_agent(config, explicit_settings(flags))
    player = Player(agent, rng_seed=config.run.rng_seed, max_steps=config.playback.max_game_steps)
    spent = 0.0
    with terminal(size), TerminalView(world, agent.frames_per_second, agent.action_names, agent.entry_names) as view:
        begin = time.monotonic()
        while time.monotonic() < begin + seconds:
            step, frames, _ = player.step()
            decision = decision_of(agent, step)
            started = time.thread_time()
            for frame in frames:
                view.hold(frame)
            view.end_step(decision)
            spent += time.thread_time() - started
        of_clock = time.monotonic() - begin
    player.close()
    return view.num_pictures / of_clock, spent / of_clock, view.num_bytes * 8e-6 / of_clock


@contextmanager
def terminal(size: tuple[int, int]) -> Iterator[None]:
    """Make standard output a terminal of `size` = (rows, columns) whose output is discarded."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    kept = os.dup(1)
    sys.stdout.flush()
    os.dup2(writer, 1)
    drain = threading.Thread(target=_drain, args=(reader,), daemon=True)
    drain.start()
    before = os.environ.get("TERM")
    os.environ["TERM"] = "xterm-256color"
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(writer)
        drain.join(5.0)
        os.environ.pop("TERM") if before is None else os.environ.update(TERM=before)


def _drain(reader: int) -> None:
    try:
        while os.read(reader, 65_536):
            pass
    except OSError:  # the other end is closed
        os.close(reader)


if __name__ == "__main__":
    main()
