"""Make the small animated picture of a shipped agent that the README shows.

    python -m scripts.make_clip NAME [--start=1] [--seconds=5] [--width=200] [--colours=64] [--overlay]

Plays a game with the agent, drawn, and writes assets/<name>.gif: the given seconds of it, with the running return on
top, small enough for a page that shows many (a few hundred kB). With --overlay the agent's value and policy stand
beside it, as in a recording with that flag. MuJoCo needs MUJOCO_GL=egl without a display.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image

from ppo.agents import decision_of, find_agent
from ppo.command_line import explicit_settings, parse_command_line
from ppo.games import Step
from ppo.outputs.overlay import Overlay
from ppo.playback import play_steps

ASSETS = Path(__file__).resolve().parent.parent / "assets"
_FONT, _TEXT_SIZE, _LINE = cv2.FONT_HERSHEY_SIMPLEX, 0.4, 16


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    name: Annotated[str, tyro.conf.Positional]
    """The name of the agent's folder in checkpoints/pretrained."""
    start: float = 1.0
    """Seconds of the game before the clip."""
    seconds: float = 5.0
    """Seconds of the game in the clip."""
    rate: float = 20.0
    """Pictures per second, at most those of the world."""
    width: int = 200
    """Pixels."""
    rows: tuple[float, float] = (0.0, 1.0)
    """The part of the picture that is shown, from top (0) to bottom (1)."""
    colours: int = 64
    """Of the palette, which all pictures share."""
    rng_seed: int = 1
    """Seed of the game."""
    overlay: bool = False
    """Show value and policy beside the game."""


def narrowed(frame: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Return a frame (H, W, 3) at this width."""
    height = round(frame.shape[0] * width / frame.shape[1])
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def with_return(frame: NDArray[np.uint8], episode_return: float, width: int) -> NDArray[np.uint8]:
    """Return a frame at this width with a line above it that says the return so far.

    Args:
        frame: (H, W, 3) RGB.
        episode_return: the sum of rewards.
        width: pixels of the result.
    """
    small = narrowed(frame, width)
    picture = np.full((len(small) + _LINE, width, 3), 255, np.uint8)
    picture[_LINE:] = small
    cv2.putText(picture, f"return {episode_return:,.0f}", (4, _LINE - 4), _FONT, _TEXT_SIZE, (0, 0, 0), 1, cv2.LINE_AA)
    return picture


def frames_of(options: Options) -> tuple[list[NDArray[np.uint8]], float]:
    """Play the game; return the pictures of the clip and the milliseconds that each is shown."""
    flags = [f"--model_name={options.name}", "--mode=play", "--checkpoint=shipped", f"--rng_seed={options.rng_seed}"]
    config = parse_command_line(flags)
    agent = find_agent(config, explicit_settings(flags))
    rate = agent.frames_per_second
    every = max(1, round(rate / options.rate))
    first, last = round(options.start * rate), round((options.start + options.seconds) * rate)
    pictures: list[NDArray[np.uint8]] = []
    num_frames, episode_return = 0, 0.0

    def keep(frame: NDArray[np.uint8]) -> None:
        nonlocal num_frames
        if first <= num_frames < last and (num_frames - first) % every == 0:
            width = options.width
            pictures.append(narrowed(frame, width) if overlay else with_return(frame, episode_return, width))
        num_frames += 1

    overlay = Overlay(keep, agent.action_names) if options.overlay else None
    show = overlay.hold if overlay else keep

    def on_frame(frame: NDArray[np.uint8]) -> None:
        top, bottom = (round(part * len(frame)) for part in options.rows)
        show(frame[top:bottom])

    def on_step(step: Step) -> None:
        nonlocal episode_return
        episode_return = step.episode_return
        if overlay:
            overlay.end_step(decision_of(agent, step))

    for ended in play_steps(agent, config, range(1), 1, on_frame, on_step, episodes=1):
        if ended or num_frames >= last:
            break
    return pictures, 1000.0 * every / rate


def main() -> None:
    """Write the clip."""
    options = tyro.cli(Options, description=__doc__)
    frames, milliseconds = frames_of(options)
    if not frames:
        raise SystemExit(f"the game ended within its first {options.start:g} seconds; use a lower --start")
    # One palette for all, or colours that stand still would flicker.
    palette = Image.fromarray(np.concatenate(frames[:: max(1, len(frames) // 8)])).quantize(options.colours)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    path = ASSETS / f"{options.name}.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(milliseconds), loop=0)
    print(f"wrote {path}: {len(pictures)} pictures, {path.stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    main()
