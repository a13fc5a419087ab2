"""One recorded game of an agent: its observations, outputs and actions in every step.

It is always the first game of `--mode=play` with the same seed, never a hand-picked one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo.agents import Agent
from ppo.config import Config
from ppo.envs import Environments
from ppo.games import Step, play_slots
from ppo.models.actor_critic import ActorCritic
from ppo.playback import prepare_to_draw
from ppo.settings import Refusal

MOST_STEPS = 3000
"""Longer games are cut: this many steps fit into memory and, in most worlds, into a page."""
_LARGEST_PICTURE = 320, 240
_MOST_COLOURS = 256
_BATCH = 64


@dataclass
class RecordedGame:
    """The T steps of a game."""

    observations: NDArray[Any]
    """Observation before each step, (T, *S)."""
    outputs: NDArray[np.float32]
    """Outputs of the policy head, (T, K)."""
    values: NDArray[np.float32]
    """Predicted values, (T,), in the units of the value head."""
    actions: list[list[float]]
    """Action sent to the world in each step, flattened."""
    rewards: NDArray[np.float32]
    """Raw rewards, (T,)."""
    is_over: bool
    """Whether the game ended with its last step."""
    film: "Film | None"
    """The screen before each step; None if the world cannot be drawn here."""
    steps_per_second: float
    """Speed at which the game is shown."""
    action_names: list[str]
    entry_names: list[str]

    @property
    def num_steps(self) -> int:
        """The number of steps, T."""
        return len(self.actions)


class Film:
    """Pictures that share a palette of at most 256 colours."""

    def __init__(self) -> None:
        """Begin without pictures."""
        self.palette: list[tuple[int, ...]] = []
        self.pictures: list[NDArray[np.uint8]] = []
        """Each (H, W), palette indices."""
        self._numbers: dict[int, int] = {}
        self._frame = np.zeros((0, 0, 3), np.uint8)

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame (H, W, 3), shrunk if large; colours beyond the 256th map to the nearest in the palette."""
        frame = _smaller(frame)
        if frame.shape == self._frame.shape:
            red, green, blue = np.moveaxis(frame != self._frame, 2, 0)
            changed = red | green | blue
            picture = self.pictures[-1].copy()
        else:
            changed, picture = np.ones(frame.shape[:2], np.bool_), np.zeros(frame.shape[:2], np.uint8)
        red, green, blue = frame[changed].T.astype(np.int32)
        codes, places = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
        picture[changed] = np.array([self._number(code) for code in codes.tolist()], np.uint8)[places]
        self.pictures.append(picture)
        self._frame = frame

    def _number(self, code: int) -> int:
        """Return the palette index of a colour, adding it while there is room."""
        if code not in self._numbers:
            colour = (code >> 16, code >> 8 & 255, code & 255)
            if len(self.palette) < _MOST_COLOURS:
                self.palette.append(colour)
                self._numbers[code] = len(self.palette) - 1
            else:
                self._numbers[code] = int(np.square(np.array(self.palette) - colour).sum(1).argmin())
        return self._numbers[code]


def play_game(agent: Agent, config: Config, goes_on: Callable[[], bool]) -> tuple[RecordedGame, ActorCritic]:
    """Play a game until it is over, too long, or `goes_on` returns False; return it and the network.

    Raises:
        Refusal: the agent cannot play.
    """
    steps: list[Step] = []
    shown, film = _Newest(), Film()

    def keep(step: Step) -> None:
        steps.append(step)
        if shown.frame is not None and (not step.is_over or not film.pictures):
            # A step's frame shows the state before the next step; the first step's also stands for the state before it.
            for _ in range(1 if film.pictures else 2):
                film.add(shown.frame)

    envs, actor = prepare_to_draw(agent, rng_seed=config.run.rng_seed, on_frame=shown.take)
    games = play_slots(actor, envs, range(1), num_slots=1, episodes=1, max_steps=MOST_STEPS, on_step=keep)
    try:
        while (goes_on() or not steps) and next(games, None) is not None:
            pass
    except FloatingPointError as error:
        raise Refusal(f"{agent.name} at {agent.counters.env_steps} steps cannot be played: {error}") from error
    finally:
        envs.close()
    film.pictures = film.pictures[: len(steps)]
    return _game_of(steps, film if film.pictures else None, shown.count, envs), actor.model


class _Newest:
    """The newest frame that an environment has drawn."""

    def __init__(self) -> None:
        self.frame: NDArray[np.uint8] | None = None
        self.count = 0

    def take(self, frame: NDArray[np.uint8]) -> None:
        self.frame = frame
        self.count += 1


def _game_of(steps: Sequence[Step], film: Film | None, num_frames: int, envs: Environments) -> RecordedGame:
    frames_per_step = max(1.0, round(num_frames / len(steps)))
    return RecordedGame(
        observations=np.stack([step.observation for step in steps]),
        outputs=np.stack([step.outputs for step in steps]),
        values=np.array([step.value for step in steps], np.float32),
        actions=[np.asarray(step.action, np.float64).flatten().tolist() for step in steps],
        rewards=np.array([step.reward for step in steps], np.float32),
        is_over=steps[-1].is_over,
        film=film if film and len(film.pictures) == len(steps) else None,
        steps_per_second=envs.frames_per_second / frames_per_step,
        action_names=list(envs.action_names),
        entry_names=list(envs.entry_names),
    )


def saliency(
    model: ActorCritic, observations: NDArray[np.uint8], side: int, goes_on: Callable[[], bool]
) -> NDArray[np.uint8]:
    """Return saliency maps (T, side, side): the value's absolute gradient, scaled to a maximum of 255 per step.

    Simonyan et al. 2014 (arXiv:1312.6034), section 3.

    Args:
        model: the network.
        observations: (T, C, H, W).
        side: height and width of the maps, in pixels.
        goes_on: checked before each batch; once it returns False, the remaining maps are 0.
    """
    maps = []
    for part in _batches(observations):
        if not goes_on():
            maps.append(np.zeros((len(part), side, side), np.uint8))
            continue
        pixels = torch.from_numpy(part).float().requires_grad_()
        (gradient,) = torch.autograd.grad(model(pixels).values.sum(), pixels)
        size: Tensor = torch.nn.functional.adaptive_avg_pool2d(gradient.abs().sum(1), (side, side))
        largest = size.amax((1, 2), keepdim=True).clamp_min(1e-30)
        maps.append((255.0 * size / largest).round().to(torch.uint8).numpy())
    return np.concatenate(maps)


def _batches(observations: NDArray[Any]) -> list[NDArray[Any]]:
    return [observations[place : place + _BATCH] for place in range(0, len(observations), _BATCH)]


def _smaller(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the frame, shrunk to the largest picture size if it exceeds that."""
    height, width, _ = frame.shape
    widest, highest = _LARGEST_PICTURE
    scale = min(1.0, widest / width, highest / height)
    if scale == 1.0:
        return frame
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shrunk = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk & np.uint8(0xF8), np.uint8)  # blending makes too many colours for the palette
