"""`--mode=watch`: a page that shows an agent playing and the progress of its training.

One thread plays, at the game's own speed and only while a page is open; the server's threads send its messages to the
pages and queue the pages' commands. The process runs at low priority: on a machine without an idle core, the game slows
down, not the training.
"""

import gc
import getpass
import math
import os
import queue
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from ppo.collectives import Collective, decided_by_root
from ppo.config import MAX_SEED, Config
from ppo.games import Game, Step
from ppo.outputs.display import print_line
from ppo.playback import announce
from ppo.report.logs import read_settings
from ppo.report.network import describe_distribution
from ppo.report.packing import Pack
from ppo.report.page import assemble
from ppo.settings import Refusal
from ppo.supervision.signals import StopRequest
from ppo.viewer.lookers import BEAT, Lookers
from ppo.viewer.pictures import PictureCoder
from ppo.viewer.player import Player
from ppo.viewer.progress import Progress
from ppo.viewer.selection import Selection
from ppo.viewer.server import HOST, Server, listen

SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_SECONDS_OF_BEAT = 0.05
"""One message shows at least this much of the game."""
_MOST_PICTURES = 60.0
"""Per second."""
_SECONDS_BETWEEN_POLLS = 1.0
_SECONDS_OF_PATIENCE = 0.25
"""The longest wait before a signal is noticed."""
_LARGEST_DELAY = 0.25
_MOST_COMMANDS = 100
_NICENESS = 10
"""With this niceness, a watcher gets about a tenth of what a training run on the same core gets."""
_MOST_GAMES = 20
_LEVEL = 1
"""Of compression: higher levels take several times as long and save a third."""


def watch(config: Config, comm: Collective, explicit: set[str]) -> int:
    """Serve the page on rank 0, or show its content in the terminal, until a signal ends it.

    Returns:
        The exit code that belongs to the signal.
    """
    if config.playback.view == "terminal":
        from ppo.viewer.in_terminal import watch_in_terminal

        return decided_by_root(comm, lambda: watch_in_terminal(config, explicit))
    return decided_by_root(comm, lambda: _watch(config, explicit))


def _watch(config: Config, explicit: set[str]) -> int:
    stop = StopRequest()
    stop.listen()
    os.nice(_NICENESS)
    with listen(config.playback.port) as listening:
        show = Show(config, explicit)
        announce(agent := show.selection.agent)
        page = assemble(f"{agent.name} - watch", Pack().encode({"name": agent.name}), "watch")
        with Server(listening, page, show.lookers, show.do) as server:
            port = config.playback.port
            print_line(f"watch it: {server.address}")
            print_line(f"from another machine, first run: ssh -L {port}:{HOST}:{port} {_account()}")
            print_line("Ctrl-C ends it")
            gc.freeze()  # the objects made so far are not garbage; scanning them would take a second at exit
            try:
                return show.run(lambda: stop.exit_code)
            finally:
                show.close()


def _account() -> str:
    """Return this account as an ssh destination."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user in a container may have no name
        user = "user"
    return f"{user}@{socket.gethostname()}"


class Show:
    """Plays for the open pages, and sends them what to show."""

    def __init__(self, config: Config, explicit: set[str]) -> None:
        """Find the agent and begin its first game.

        Raises:
            Refusal: there is no such agent, or it cannot be played.
        """
        self.selection = Selection(config, explicit)
        self._commands: queue.Queue[dict[str, Any]] = queue.Queue(_MOST_COMMANDS)
        self.lookers = Lookers(self._greet)
        self._max_steps, self._seed = config.playback.max_game_steps, config.run.rng_seed
        self._progress = Progress()
        self._coder = PictureCoder()
        self._player = Player(self.selection.agent, rng_seed=self._seed, max_steps=self._max_steps)
        self._is_paused, self._speed = False, 1.0
        self._note = ""
        self._frame_number = self._game_number = 0
        self._games: deque[dict[str, Any]] = deque(maxlen=_MOST_GAMES)
        self._newest_beat = ""

    def _greet(self) -> None:
        self.do({"look": True})

    def do(self, command: dict[str, Any]) -> bool:
        """Queue a command for the thread that plays; return whether there was room for it."""
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            return False
        return True

    def run(self, exit_code: Callable[[], int | None]) -> int:
        """Play until there is an exit code, and return it."""
        due = poll_due = time.monotonic()
        while (code := exit_code()) is None:
            now = time.monotonic()
            is_looked_at = len(self.lookers) > 0
            plays = is_looked_at and not self._is_paused
            if is_looked_at and now >= poll_due:
                self._poll()
                poll_due = now + _SECONDS_BETWEEN_POLLS
            if not plays:
                due = now
            elif now >= due:
                due = max(due, now - _LARGEST_DELAY) + self._play(_SECONDS_OF_BEAT)
            wait = (due if plays else poll_due) - time.monotonic() if is_looked_at else _SECONDS_OF_PATIENCE
            self._await_command(max(0.0, min(wait, _SECONDS_OF_PATIENCE)))
        return code

    def close(self) -> None:
        """End the game."""
        self._player.close()

    def _await_command(self, seconds: float) -> None:
        """Execute the next command, if one arrives within `seconds`."""
        try:
            command = self._commands.get(timeout=seconds) if seconds else self._commands.get_nowait()
        except queue.Empty:
            return
        try:
            self._obey(command)
        except Refusal as error:
            self._note = str(error)
        self._send_state()

    def _obey(self, command: dict[str, Any]) -> None:
        """Execute a page's command; ignore anything invalid."""
        rule, speed, wish = command.get("act"), command.get("speed"), command.get("checkpoint")
        if command.get("look") is True:
            self._progress.poll(self.selection.run_folder / "progress.csv")
            self._send_progress()
            if self._is_paused and self._newest_beat:
                self.lookers.send(BEAT, self._newest_beat)
        if isinstance(command.get("pause"), bool):
            self._is_paused = command["pause"]
        if speed in SPEEDS:
            self._speed = float(speed)
        if rule in self._player.distribution.rules:
            self._player.rule = rule
        if isinstance(wish, str) and wish in self.selection.wishes and self.selection.choose(wish):
            self._exchange()
        if command.get("restart") is True:
            self._seed = (self._seed + 1) % (MAX_SEED + 1)
            self._begin()
        if command.get("step") is True and self._is_paused:
            self._play(0.0)

    def _poll(self) -> None:
        """Check for new checkpoints and log rows of the training."""
        try:
            has_others, is_another = self.selection.poll()
            if is_another:
                self._exchange()
            if has_others:
                self._note = ""
                self._send_state()
        except Refusal as error:
            self._say(str(error))
        if self._progress.poll(self.selection.run_folder / "progress.csv"):
            self._send_progress()

    def _say(self, note: str) -> None:
        """Show a message on the page until another agent is shown."""
        if note != self._note:
            self._note = note
            self._send_state()

    def _exchange(self) -> None:
        """Let the chosen agent take over the game, or begin a new one if its world differs."""
        self._note = ""
        if self._player.can_be(self.selection.agent):
            self._player.become(self.selection.agent)
        else:
            self._begin()

    def _begin(self) -> None:
        """Begin a new game of the chosen agent, keeping the chosen rule if the agent supports it."""
        player = Player(self.selection.agent, rng_seed=self._seed, max_steps=self._max_steps)
        if self._player.rule in player.distribution.rules:
            player.rule = self._player.rule
        self._player.close()
        self._player = player
        self._game_number += 1

    def _play(self, seconds: float) -> float:
        """Play and send at least one step and `seconds` of the game; return the seconds played."""
        steps: list[Step] = []
        pictures: list[Any] = []
        rate = self._player.envs.frames_per_second * self._speed
        # Odd, since Atari games draw some objects only in every other frame.
        every = math.ceil(rate / _MOST_PICTURES) | 1 if rate > _MOST_PICTURES else 1
        num_frames = 0
        game: Game | None = None
        while not steps or (num_frames < seconds * rate and game is None):
            try:
                step, frames, game = self._player.step()
            except FloatingPointError as error:
                self._say(f"this agent cannot be played: {error}")
                return _SECONDS_OF_BEAT
            steps.append(step)
            num_frames += max(1, len(frames))
            for frame in frames:
                if self._frame_number % every == 0:
                    pictures.append(frame)
                self._frame_number += 1
        pictures = pictures or frames[-1:]
        self._newest_beat = self._beat(steps, pictures, num_frames / rate, game)
        self.lookers.send(BEAT, self._newest_beat)
        if game is not None:
            agent = self._player.agent
            of = {"return": game.episode_return, "length": game.episode_length, "steps": agent.counters.env_steps}
            self._games.append({**of, "isCut": game.is_cut, "act": self._player.rule})
            self._game_number += 1
            self._send_state()
        return num_frames / rate

    def _beat(self, steps: list[Step], pictures: list[Any], seconds: float, game: Game | None) -> str:
        """Return the message for the steps just played: all values, the pictures, and the newest decision."""
        pack, newest = Pack(), steps[-1]
        values = self._player.agent.moments.denormalize(np.array([step.value for step in steps]))
        observation = newest.observation
        is_image = observation.ndim == 3
        content: dict[str, Any] = {
            "seconds": seconds,
            "game": self._game_number,
            "return": newest.episode_return,
            "length": newest.episode_length,
            "isOver": game is not None,
            "values": pack.add(values.astype(np.float32)),
            "rewards": pack.add(np.array([step.reward for step in steps], np.float32)),
            "outputs": pack.add(np.asarray(newest.outputs, np.float32)),
            "action": pack.add(np.asarray(newest.action, np.float32).flatten()),
            "image": pack.add_film(observation) if is_image else None,
            "vector": None if is_image else pack.add(observation.astype(np.float32)),
            "palette": None,
            "pictures": None,
        }
        if pictures:
            palette, coded = self._coder.encode(pictures)
            content |= {"palette": pack.add(palette), "pictures": pack.add_film(coded)}
        return pack.encode(content, _LEVEL)

    def _send_state(self) -> None:
        player, agent = self._player, self._player.agent
        state = {
            "name": agent.name,
            "world": agent.config.run.env_name,
            "steps": agent.counters.env_steps,
            "isShipped": agent.is_shipped,
            "wish": self.selection.wish,
            "wishes": self.selection.wishes,
            "rule": player.rule,
            "rules": list(player.distribution.rules),
            "isPaused": self._is_paused,
            "speed": self._speed,
            "speeds": list(SPEEDS),
            "distribution": describe_distribution(player.distribution),
            "actionNames": list(player.envs.action_names),
            "entryNames": list(player.envs.entry_names),
            "channelsPerPicture": agent.channels_per_picture,
            "games": list(self._games),
            "note": self._note,
            "notes": list(self.selection.agent.notes),  # they also say why another agent was not chosen
        }
        self.lookers.send("state", Pack().encode(state, _LEVEL))

    def _send_progress(self) -> None:
        pack, columns = Pack(), self._progress.columns
        # Not those of the shown agent: it may be a shipped one, or older than an extension of the run.
        settings = read_settings(self.selection.run_folder)
        content = {
            "secondsSince": self._progress.seconds_since,
            "goal": settings and settings.run.env_steps,
            "columns": {name: pack.add(column.astype(np.float32)) for name, column in columns.items()},
        }
        self.lookers.send("progress", pack.encode(content, _LEVEL))
