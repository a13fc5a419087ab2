"""One game of an agent, with all that it saw, said and did.

It is the first game of `--mode=play` with the same seed, and not a chosen one.
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
"""Longer games are cut: this many fit into memory and, of most worlds, into a page."""
_LARGEST_PICTURE = 320, 240
_MOST_COLOURS = 256
_BATCH = 64


@dataclass
class Game:
    """A game's T steps."""

    observations: NDArray[Any]
    """What the agent saw before each step, (T, *S)."""
    outputs: NDArray[np.float32]
    """What its policy head said, (T, K)."""
    values: NDArray[np.float32]
    """What it expected, (T,), in the units of its value head."""
    actions: list[list[float]]
    """What the world was sent, by step."""
    rewards: NDArray[np.float32]
    """(T,), raw."""
    is_over: bool
    """Whether the game ended with its last step."""
    film: "Film | None"
    """The screen before each step; None of worlds that cannot be drawn here."""
    steps_per_second: float
    """Speed of the game on a screen."""
    action_names: list[str]
    entry_names: list[str]

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.actions)


class Film:
    """Pictures of at most 256 colours."""

    def __init__(self) -> None:
        """Begin without pictures."""
        self.palette: list[tuple[int, ...]] = []
        self.pictures: list[NDArray[np.uint8]] = []
        """(H, W), numbers of colours."""
        self._numbers: dict[int, int] = {}
        self._frame = np.zeros((0, 0, 3), np.uint8)

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame (H, W, 3), smaller if it is large; colours beyond the 256th become the nearest known one."""
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
        self._frame = frame.copy()

    def _number(self, code: int) -> int:
        """Return the number of a colour."""
        if code not in self._numbers:
            colour = (code >> 16, code >> 8 & 255, code & 255)
            if len(self.palette) < _MOST_COLOURS:
                self.palette.append(colour)
                self._numbers[code] = len(self.palette) - 1
            else:
                self._numbers[code] = int(np.square(np.array(self.palette) - colour).sum(1).argmin())
        return self._numbers[code]


def play_game(agent: Agent, config: Config, goes_on: Callable[[], bool]) -> tuple[Game, ActorCritic]:
    """Play a game from its beginning until it is over, too long, or `goes_on` says no; return it and its network.

    Raises:
        Refusal: the agent cannot play.
    """
    steps: list[Step] = []
    shown, film = _Newest(), Film()

    def keep(step: Step) -> None:
        steps.append(step)
        if shown.frame is not None and (not step.is_over or not film.pictures):
            # A frame is drawn after a step, and shows what the next one begins with; the first step has that after it.
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


def _game_of(steps: Sequence[Step], film: Film | None, num_frames: int, envs: Environments) -> Game:
    frames_per_step = max(1.0, round(num_frames / len(steps)))
    return Game(
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
    """Return where images matter to the value, (T, side, side): its absolute gradient, the largest of a step is 255.

    Simonyan et al. 2014 (arXiv:1312.6034), section 3.

    Args:
        model: the network.
        observations: (T, C, H, W).
        side: pixels of what is returned.
        goes_on: asked now and then; all later steps are 0 once it says no.
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
    """Return a frame that fits into the largest picture."""
    height, width, _ = frame.shape
    widest, highest = _LARGEST_PICTURE
    scale = min(1.0, widest / width, highest / height)
    if scale == 1.0:
        return frame
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shrunk = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk & np.uint8(0xF8), np.uint8)  # blended colours would be too many
