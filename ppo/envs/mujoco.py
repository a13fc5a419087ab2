"""Gymnasium's MuJoCo worlds, which need a way to draw without a display.

Their `reset` restores the whole state of the engine, including its warm start, so replayed episodes are exact.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

from ppo.envs.gymnasium import GymnasiumEnvironments, GymnasiumWorld
from ppo.envs.making import Environment, cause
from ppo.settings import Refusal

_CAMERA_ARGUMENTS = {"camera_id", "camera_name", "default_camera_config"}


class MujocoEnvironments(GymnasiumEnvironments):
    """A block of environments, drawn with EGL if there is no display."""

    rendering_hint = (
        "; without a display MuJoCo draws with MUJOCO_GL=egl, which needs libEGL (Debian, Ubuntu: apt install libegl1 "
        "libgl1)"
    )

    def make_env(self, env_name: str, env_kwargs: Mapping[str, Any], render_mode: str | None = None) -> Environment:
        """Make one environment, without the warnings of MuJoCo's compiler about Gymnasium's models.

        Raises:
            Refusal: as from `make_environment`, or EGL is selected for drawing and does not work.
        """
        try:
            import mujoco
        except Exception:  # not installed, or MUJOCO_GL does not work
            return super().make_env(env_name, env_kwargs, render_mode)  # reports the cause
        if render_mode:
            self._prepare_to_draw(env_name)
        on_warning = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda text: None)
        try:
            env = super().make_env(env_name, env_kwargs, render_mode)
        finally:
            mujoco.set_mju_user_warning(on_warning)
        if render_mode and not _CAMERA_ARGUMENTS & set(env_kwargs):
            _follow(env, mujoco)
        return env

    @classmethod
    def _prepare_to_draw(cls, env_name: str) -> None:
        """Select EGL if there is no display and MUJOCO_GL is unset, and test it.

        Without the test, Gymnasium fails in more places than one.
        """
        if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
            os.environ.setdefault("MUJOCO_GL", "egl")
        if os.environ.get("MUJOCO_GL") == "egl":
            try:
                from mujoco.egl import GLContext

                GLContext(1, 1).free()
            except Exception as error:
                raise Refusal(
                    f"env_name {env_name!r} cannot be drawn here: {cause(error)}{cls.rendering_hint}"
                ) from error


def _follow(env: Environment, mujoco: Any) -> None:
    """Draw with the camera that tracks the body, if the model has one.

    Gymnasium 1.4 uses a fixed camera unless one is named, and a running body soon leaves the picture.
    """
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is not None:
        renderer.camera_id = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")


WORLD = GymnasiumWorld(MujocoEnvironments)
