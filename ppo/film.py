"""A film of a training run: each of its checkpoints plays the same game, side by side (--checkpoint=all).

All play with the same seed, so their games start identically. A finished game shows its last picture until the others
have finished.
"""

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ppo.agents import Agent, find_agents
from ppo.collectives import Collective, decided_by_root
from ppo.config import Config
from ppo.games import Game, Step
from ppo.outputs import checkpoint
from ppo.outputs.display import print_line
from ppo.outputs.folders import require_writable
from ppo.outputs.overlay import in_short, title
from ppo.outputs.video import VideoError, VideoRecorder
from ppo.playback import play_steps
from ppo.standard_streams import say_on_standard_error

MOST_GAMES = 9
_WIDTH, _WIDEST = 240, 400
"""Widths of a picture: narrower ones are enlarged by a whole factor, wider ones shrunk."""
_GAP = 4
_SECONDS_AT_THE_END = 2

Picture = NDArray[np.uint8]


def record_all(config: Config, comm: Collective, explicit: set[str]) -> int:
    """Play one game with each checkpoint of a run on rank 0, and write all of them as one mp4 and one gif."""

    def find() -> tuple[list[Agent], Path]:
        agents = find_agents(config, explicit, MOST_GAMES)
        folder = config.run.asset_dir / agents[0].name
        require_writable("asset_dir", folder)
        return agents, folder

    agents, folder = decided_by_root(comm, find)
    return decided_by_root(comm, lambda: film(agents, folder, config))


def film(agents: Sequence[Agent], folder: Path, config: Config) -> int:
    """Play one game with each of a run's checkpoints into one video; return the exit code.

    Args:
        agents: the checkpoints, ordered by steps.
        folder: where the video is written.
        config: the settings of this invocation.
    """
    first, last = (checkpoint.folder_name(agents[place].counters.env_steps) for place in (0, -1))
    screens = [_Screen(agent, config) for agent in agents]
    rate = agents[0].frames_per_second
    try:
        with VideoRecorder(folder / f"{first}-to-{last}", rate) as video:
            while any([screen.advance() for screen in screens]):
                picture = side_by_side([screen.picture() for screen in screens])
                video.write(picture)
            for _ in range(round(_SECONDS_AT_THE_END * rate) if video.num_frames else 0):
                video.write(picture)
        for screen in screens:
            print_line(screen.describe())
        print_line(f"wrote {video.describe()}")
    except VideoError as error:
        say_on_standard_error(f"ppo: {error}")
        return 1
    return 0


class _Screen:
    """The game of one checkpoint, a frame at a time."""

    def __init__(self, agent: Agent, config: Config) -> None:
        self._agent = agent
        self._frames: deque[Picture] = deque()
        self._frame = np.zeros((0, 0, 3), np.uint8)
        self._return, self._length = 0.0, 0
        self._game: Game | None = None
        self._steps = play_steps(agent, config, range(1), 1, self._hold, self._end_step, episodes=1)

    def advance(self) -> bool:
        """Advance to the next frame; return whether there is one."""
        while not self._frames:
            games = next(self._steps, None)
            if games is None:
                return False
            for game in games:
                self._game = game
        self._frame = self._frames.popleft()
        return True

    def picture(self) -> Picture:
        """Return the frame with its captions."""
        steps = f"after {self._agent.counters.env_steps:,} steps of training"
        is_over = self._game is not None and not self._frames
        said = f"return {in_short(self._return)}, {'over after' if is_over else 'step'} {self._length:,}"
        return np.concatenate([self._frame, *(title(text, self._frame.shape[1]) for text in (steps, said))])

    def describe(self) -> str:
        """Return the line about the finished game."""
        assert self._game is not None
        game, cut = self._game, " (cut there: --max_game_steps)" if self._game.is_cut else ""
        steps = f"{self._agent.counters.env_steps:,} steps of training"
        return f"after {steps}: return {game.episode_return:g}, {game.episode_length} steps{cut}"

    def _hold(self, frame: Picture) -> None:
        self._frames.append(_of_readable_size(frame))

    def _end_step(self, step: Step) -> None:
        self._return, self._length = step.episode_return, step.episode_length


def side_by_side(pictures: Sequence[Picture]) -> Picture:
    """Arrange pictures (H, W, 3) of any sizes: up to three in one row, more in a nearly square grid."""
    columns = len(pictures) if len(pictures) <= 3 else math.ceil(math.sqrt(len(pictures)))
    height = max(len(picture) for picture in pictures) + _GAP
    width = max(picture.shape[1] for picture in pictures) + _GAP
    rows = -(-len(pictures) // columns)
    sheet = np.zeros((rows * height - _GAP, columns * width - _GAP, 3), np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * height, place % columns * width
        sheet[top : top + len(picture), left : left + picture.shape[1]] = picture
    return sheet


def _of_readable_size(frame: Picture) -> Picture:
    """Resize a frame so that its title is readable and three fit side by side."""
    height, width = frame.shape[:2]
    if width > _WIDEST:
        size = _WIDEST, max(1, round(height * _WIDEST / width))
        return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
    factor = -(-_WIDTH // width)
    return frame.repeat(factor, 0).repeat(factor, 1)
