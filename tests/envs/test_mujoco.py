"""MuJoCo worlds: rendering without a display, and no warnings that users cannot act on."""

import ctypes.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("mujoco")

from ppo.envs.mujoco import MujocoEnvironments
from ppo.settings import Refusal


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone too
        monkeypatch.delenv(name)


def make(on_frame: Any = None) -> MujocoEnvironments:
    return MujocoEnvironments("Reacher-v5", indices=range(1), seed=0, on_frame=on_frame)


def step(envs: MujocoEnvironments) -> None:
    envs.reset()
    envs.step(np.zeros((1, 2), np.float32))
    envs.close()


@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="there is no libEGL")
def test_a_frame_listener_receives_pictures_without_a_display() -> None:
    frames: list[NDArray[np.uint8]] = []
    step(make(frames.append))
    assert [frame.shape for frame in frames] == [(480, 480, 3)]
    assert frames[0].std() > 0


@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="there is no libEGL")
def test_egl_is_chosen_only_for_pictures_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    make().close()
    assert "MUJOCO_GL" not in os.environ
    monkeypatch.setenv("DISPLAY", ":0")
    make(print).close()
    assert "MUJOCO_GL" not in os.environ
    monkeypatch.delenv("DISPLAY")
    make(print).close()
    assert os.environ["MUJOCO_GL"] == "egl"


def camera_of(env_name: str, **env_kwargs: Any) -> int:
    envs = MujocoEnvironments(env_name, indices=range(1), seed=0, env_kwargs=env_kwargs, on_frame=print)
    try:
        return int(envs._envs[0].unwrapped.mujoco_renderer.camera_id)  # type: ignore[attr-defined]
    finally:
        envs.close()


@pytest.mark.parametrize("env_name", ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"])
def test_the_camera_goes_along_with_a_body(env_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")  # nothing is drawn
    assert camera_of(env_name) == 0


def test_a_camera_stays_where_the_model_has_none_that_moves_or_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert camera_of("InvertedPendulum-v5") == -1
    assert camera_of("HalfCheetah-v5", default_camera_config={"distance": 9.0}) == -1
    assert camera_of("HalfCheetah-v5", camera_id=-1) == -1


@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="there is no libEGL")
def test_a_body_far_from_its_start_is_in_the_picture() -> None:
    frames: list[NDArray[np.uint8]] = []
    envs = MujocoEnvironments("HalfCheetah-v5", indices=range(1), seed=0, on_frame=frames.append)
    envs.reset()
    action = np.zeros((1, 6), np.float32)
    envs.step(action)
    envs._envs[0].unwrapped.data.qpos[0] += 16.0  # type: ignore[attr-defined]
    envs.step(action)
    envs.close()
    reddish = [(frame.astype(int)[..., 0] - frame[..., 2] > 40).sum() for frame in frames]  # nothing but the body is
    assert reddish[1] > 0.7 * reddish[0] > 500


def test_a_renderer_that_the_user_chose_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    make(print).close()
    assert os.environ["MUJOCO_GL"] == "osmesa"


def test_a_renderer_that_fails_is_one_error_that_names_the_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    egl = types.ModuleType("mujoco.egl")  # as if its import had found no library
    monkeypatch.setitem(sys.modules, "mujoco.egl", egl)
    with pytest.raises(Refusal, match=r"'Reacher-v5' cannot be drawn here: ImportError: .*apt install libegl1"):
        make(print)


def test_warnings_about_gymnasium_s_models_are_not_shown(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    MujocoEnvironments("HalfCheetah-v5", indices=range(2), seed=0).close()
    assert capfd.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []  # MuJoCo's log
