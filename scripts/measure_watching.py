"""Measure the cost of showing an agent: on the page of `--mode=watch`, and in terminals of two sizes.

The agent plays at the game's own speed. For the page, the processor time of the whole watcher is counted; in the
terminal, that of showing alone, without the game and the network. Measure while nothing else runs: a machine without an
idle core slows the game down. Needs the extras of the worlds and an agent for each.
"""

import fcntl
import http.client
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from ppo.agents import decision_of, find_agent
from ppo.command_line import explicit_settings, parse_command_line
from ppo.outputs.terminal import TerminalView
from ppo.outputs.window import keep_drawing_quiet
from ppo.settings import Refusal
from ppo.viewer.player import Player
from ppo.viewer.server import free_port

_SIZES = ((24, 80), (53, 160))
_SECONDS_OF_WARM_UP = 1.0
_PATIENCE = 30.0


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
            share, megabits = on_a_page(world, options.seconds)
            shown = [in_a_terminal(world, size, options.seconds) for size in _SIZES]
        except Refusal as error:
            sys.exit(f"{world}: {error}")
        pages.append(f"| {world} | {share:.1%} | {megabits:.1f} |")
        cells = (f"{pictures:.0f} | {share:.1%} | {megabits:.2f}" for pictures, share, megabits in shown)
        terminals.append(f"| {world} | {' | '.join(cells)} |")
    print("| world | page: share of a core | Mbit/s |\n|---|---|---|")
    print("\n".join(pages), end="\n\n")
    heads = (f"{columns} x {rows}: pictures a second | share of a core | Mbit/s" for rows, columns in _SIZES)
    print(f"| world | {' | '.join(heads)} |\n|{'---|' * (1 + 3 * len(_SIZES))}")
    print("\n".join(terminals))


def on_a_page(world: str, seconds: float) -> tuple[float, float]:
    """Start `--mode=watch` and read all that it sends to one page.

    Returns:
        The share of a core that the whole process takes, its server included, and megabits, each per second of wall
        time.
    """
    command = [sys.executable, "-m", "ppo", f"--env_name={world}", "--mode=watch", f"--port={free_port()}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = (re.search(r"watch it: (\S+)", line) for line in process.stdout)
            address = next((match[1] for match in found if match), None)
            if address is None:
                raise Refusal(f"the watcher ended with exit code {process.wait()}")
            browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
            browser.open(address, timeout=_PATIENCE).read()
            with browser.open(f"{address.partition('?')[0]}stream", timeout=_PATIENCE) as stream:
                _read(stream, _SECONDS_OF_WARM_UP)
                before = processor_seconds(process.pid)
                num_bytes, of_clock = _read(stream, seconds)
                spent = processor_seconds(process.pid) - before
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
    return spent / of_clock, num_bytes * 8e-6 / of_clock


def _read(stream: http.client.HTTPResponse, seconds: float) -> tuple[int, float]:
    """Read what arrives for at least `seconds`; return how many bytes and seconds it was."""
    begin, num_bytes = time.monotonic(), 0
    while time.monotonic() < begin + seconds:
        num_bytes += len(stream.read1())
    return num_bytes, time.monotonic() - begin


def processor_seconds(pid: int) -> float:
    """Return the processor time, in seconds, that all threads of a process have taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def in_a_terminal(world: str, size: tuple[int, int], seconds: float) -> tuple[float, float, float]:
    """Play in a terminal of `size` = (rows, columns).

    Returns:
        Pictures, the share of a core spent on showing alone, and megabits, each per second of wall time.
    """
    flags = [f"--env_name={world}", "--mode=watch", "--view=terminal"]
    config = parse_command_line(flags)
    agent = find_agent(config, explicit_settings(flags))
    player = Player(agent, rng_seed=config.run.rng_seed, max_steps=config.playback.max_game_steps)
    with terminal(size), TerminalView(world, agent.frames_per_second, agent.action_names, agent.entry_names) as view:
        while not view.num_pictures:  # the first one is the whole screen
            _show_step(player, view)
        first, spent, begin = (view.num_pictures, view.num_bytes), 0.0, time.monotonic()
        while time.monotonic() < begin + seconds:
            spent += _show_step(player, view)
        of_clock = time.monotonic() - begin
    player.close()
    pictures, num_bytes = view.num_pictures - first[0], view.num_bytes - first[1]
    return pictures / of_clock, spent / of_clock, num_bytes * 8e-6 / of_clock


def _show_step(player: Player, view: TerminalView) -> float:
    """Play a step and show it; return the processor time, in seconds, that showing it took."""
    step, frames, _ = player.step()
    decision = decision_of(player.agent, step)
    started = time.thread_time()
    for frame in frames:
        view.hold(frame)
    view.end_step(decision)
    return time.thread_time() - started


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
