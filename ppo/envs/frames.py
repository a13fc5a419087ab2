"""The frames that Gymnasium environments draw, as RGB, and their rate."""

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo.envs.making import Environment, cause
from ppo.settings import Refusal

_MODES = ("rgb_array", "rgb_array_list")
_CHANNELS = (1, 3, 4)
_DEFAULT_RATE = 30.0
_SLOWEST, _FASTEST = 0.01, 1000.0


def find_render_mode(env_name: str, env: Environment) -> str:
    """Return the render mode in which an environment returns frames.

    Raises:
        Refusal: it has no such mode, or an unusable frame rate.
    """
    modes, rate = env.metadata.get("render_modes") or [], env.metadata.get("render_fps")
    if rate is not None and not _is_rate(rate):
        raise Refusal(
            f"env_name {env_name!r} cannot be drawn: its render_fps must be a number from {_SLOWEST:g} to "
            f"{_FASTEST:g}, or None for {_DEFAULT_RATE:g}, got {rate!r}"
        )
    for mode in _MODES:
        if mode in modes:
            return mode
    raise Refusal(f"env_name {env_name!r} cannot be drawn: rgb_array must be among its render_modes, got {modes}")


def frames_per_second(env: Environment) -> float:
    """Return an environment's frame rate, 30 per second if it gives none."""
    rate: Any = env.metadata.get("render_fps")
    return float(rate) if _is_rate(rate) else _DEFAULT_RATE


def render(env_name: str, env: Environment, hint: str = "") -> list[NDArray[np.uint8]]:
    """Return copies of an environment's frames (H, W, 3): the current one, or all since the last call.

    Args:
        env_name: its id.
        env: the environment.
        hint: appended to the error if it cannot draw.

    Raises:
        Refusal: it cannot draw here, or draws something else.
    """
    try:
        drawn = env.render()
    except Exception as error:
        raise Refusal(f"env_name {env_name!r} cannot be drawn here: {cause(error, env.spec)}{hint}") from error
    # A world may draw its next frame into the same array.
    return [_rgb(env_name, frame).copy() for frame in (drawn if isinstance(drawn, list) else [drawn])]


def _rgb(env_name: str, frame: Any) -> NDArray[np.uint8]:
    """Convert a grey, RGB or RGBA frame to RGB (H, W, 3)."""
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim in (2, 3):
        pixels: NDArray[np.uint8] = frame[..., np.newaxis] if frame.ndim == 2 else frame
        if pixels.shape[2] in _CHANNELS and pixels.size:
            return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]
    got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
    raise Refusal(f"env_name {env_name!r} cannot be drawn: its render must return uint8 (H, W, 3) frames, got {got}")


def _is_rate(rate: Any) -> bool:
    return isinstance(rate, Real) and _SLOWEST <= float(rate) <= _FASTEST
