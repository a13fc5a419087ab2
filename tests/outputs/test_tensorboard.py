"""TensorBoard shows a run as one curve whatever stopped it, beside its settings, and a clip when it is time for one."""

import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from unittest import mock

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from ppo import clips
from ppo.clips import ClipMaker
from ppo.collectives import Alone
from ppo.command_line import parse_command_line
from ppo.outputs.tensorboard import TensorBoard
from ppo.outputs.trackers import Trackers
from ppo.run import build_run
from tests.jobs import CARTPOLE, ppo, weights
from tests.outputs.test_trackers import Recorder, curve, game, metrics

ENDLESS = ["--env_name=Pendulum-v1", '--env_kwargs={"max_episode_steps": 100000}', *CARTPOLE[1:]]


def test_tensorboard_receives_what_is_known(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, 0)
    board.log(metrics(1), [game(1, 1)])
    board.log({**metrics(2), "rollout/return_mean": -21.0}, [])
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert curves == {
        "update/entropy": [(10, 1.25), (20, 1.25)],
        "rollout/return_mean": [(20, -21.0)],
        "episode/return": [(7, -21.0)],
        "episode/length": [(7, 764.0)],
    }


def log_to_tensorboard(folder: Path, updates: Sequence[int], *, resumed_steps: int, value: float = 1.25) -> None:
    board = TensorBoard(folder, resumed_steps)
    for update in updates:
        board.log({**metrics(update), "update/entropy": value}, [game(update, update)])
    board.close()


@pytest.mark.parametrize("resumed_update", [0, 2])
def test_tensorboard_hides_what_a_stopped_run_wrote_past_the_checkpoint(tmp_path: Path, resumed_update: int) -> None:
    log_to_tensorboard(tmp_path, [1, 2, 3, 4, 5], resumed_steps=0, value=1.0)
    again = range(resumed_update + 1, 5)
    log_to_tensorboard(tmp_path, again, resumed_steps=10 * resumed_update, value=2.0)
    assert curve(tmp_path, "update/entropy") == [(10 * n, 1.0 if n <= resumed_update else 2.0) for n in range(1, 5)]
    assert curve(tmp_path, "episode/length") == [(10 * n - 3, 764.0) for n in range(1, 5)]


def test_the_events_of_a_later_start_are_read_later_even_if_the_clock_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment, value in ((2e9, 1.0), (1.9e9, 2.0), (1.8e9, 3.0)):
        monkeypatch.setattr("time.time", lambda moment=moment: moment)
        log_to_tensorboard(tmp_path, [1, 2], resumed_steps=0, value=value)
    assert curve(tmp_path, "update/entropy") == [(10, 3.0), (20, 3.0)]


def test_tensorboard_starts_no_thread_that_could_die(tmp_path: Path) -> None:
    before = threading.active_count()
    board = TensorBoard(tmp_path, 0)
    board.log(metrics(1), [])
    assert threading.active_count() == before
    assert curve(tmp_path, "update/entropy") == [(10, 1.25)]


def test_settings_are_those_of_a_trial_with_the_name_of_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "Pong-seed1"
    TensorBoard(folder, 0, hyperparameters={"learning_rate": 1e-3, "policy": "beta", "kl_stop": None}).close()
    metadata = EventAccumulator(str(folder)).Reload().summary_metadata["_hparams_/session_start_info"]
    start = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info
    assert start.group_name == "Pong-seed1"
    assert start.hparams["learning_rate"].number_value == 1e-3
    assert (start.hparams["policy"].string_value, start.hparams["kl_stop"].string_value) == ("beta", "none")


def duration(gif: bytes) -> float:
    """Return the seconds that a gif takes."""
    picture = Image.open(io.BytesIO(gif))
    return sum(frame.info["duration"] for frame in ImageSequence.Iterator(picture)) / 1000


def images(folder: Path) -> list[tuple[int, bytes]]:
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return [(event.step, event.encoded_image_string) for event in events.Images("clip")]


def test_a_training_with_clips_shows_them_and_learns_the_same_weights(tmp_path: Path) -> None:
    with_clips, without = tmp_path / "with", tmp_path / "without"
    for folder, more in ((with_clips, ["--clip_interval=2"]), (without, [])):
        folder.mkdir()
        assert ppo(folder, *CARTPOLE, "--env_steps=192", *more).returncode == 0
    learnt, expected = (weights(folder, "CartPole-v1", 192) for folder in (with_clips, without))
    assert learnt.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(learnt[name], tensor)
    shown = images(with_clips / "runs" / "CartPole-v1")
    assert [step for step, _ in shown] == [128]
    for _, gif in shown:
        picture = Image.open(io.BytesIO(gif))
        assert picture.format == "GIF" and getattr(picture, "n_frames", 0) > 5
    texts = EventAccumulator(str(with_clips / "runs" / "CartPole-v1")).Reload().Tensors("command")
    assert texts[0].tensor_proto.string_val[0].startswith(b"    python -m ppo")


def test_a_clip_ends_with_the_game_or_after_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "SECONDS", 3)
    still, falling = (
        build_run(parse_command_line([*flags, "--clip_interval=1"]), Alone()) for flags in (ENDLESS, CARTPOLE)
    )
    for run, seconds in ((still, 3.0), (falling, 0.5)):
        gif = ClipMaker(run.config, run.model, lambda: True).clip_of(1)
        assert gif is not None
        assert duration(gif) == pytest.approx(seconds, abs=0.5)


def test_a_clip_that_cannot_be_made_is_one_warning_and_costs_no_curve(tmp_path: Path) -> None:
    run = build_run(parse_command_line([*CARTPOLE, "--clip_interval=1"]), Alone())
    with mock.patch("imageio_ffmpeg.get_ffmpeg_exe", return_value="/nowhere/ffmpeg"):
        board, recorder = (
            TensorBoard(tmp_path, 0, clips=ClipMaker(run.config, run.model, lambda: True).clip_of),
            Recorder(),
        )
        both = Trackers([board, recorder])
        for update in (1, 2, 3):
            both.log(metrics(update), [])
        both.close()
    warnings = [line for line in recorder.heard if "WARNING" in line]
    assert len(warnings) == 1 and "no more clips" in warnings[0]
    assert [step for step, _ in curve(tmp_path, "update/entropy")] == [10, 20, 30]


class Undrawable(gymnasium.Env[np.ndarray, int]):
    """A world whose pictures cannot be drawn, as MuJoCo's without a graphics library."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space, action_space = Box(0.0, 1.0, (1,), np.float32), Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict[str, object]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        return np.zeros(1, np.float32), 1.0, False, False, {}

    def render(self) -> None:
        raise RuntimeError("there is no GL")


def test_a_world_that_cannot_be_drawn_is_trained_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        gymnasium.registry, "Undrawable-v0", gymnasium.envs.registration.EnvSpec("Undrawable-v0", Undrawable)
    )
    job = ppo(tmp_path, "--env_name=Undrawable-v0", *CARTPOLE[1:], "--env_steps=192", "--clip_interval=1")
    assert job.returncode == 0, job.stderr
    assert (job.stdout + job.stderr).count("no clip of a game was made") == 1
