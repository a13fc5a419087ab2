"""What `--mode=record` makes of what worlds draw: a video that plays at the world's speed, or a refusal in words."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from ppo.command_line import explicit_settings, parse_command_line
from ppo.playback import play, record
from ppo.settings import Refusal
from tests.jobs import CARTPOLE, Job, ppo
from tests.outputs.test_video import decode_gif, decode_mp4, described_by_ffmpeg
from tests.ranks import on_ranks

STEPS = 8
GREY = np.full((30, 41), 90, np.uint8)
COLOURED = np.dstack([GREY, GREY + 50, GREY + 100])


class Painted(gymnasium.Env[Any, Any]):
    """A world of eight steps that draws what a test says."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012
    observation_space, action_space = Box(-1.0, 1.0, (2,)), Discrete(2)
    draw: Callable[[int], Any] = lambda step: COLOURED

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.steps = render_mode, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps == STEPS, False, {}

    def render(self):
        return type(self).draw(self.steps)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("Painted-v0", Painted)
    yield
    del gymnasium.registry["Painted-v0"]


@pytest.fixture(scope="module")
def trained(registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    job = ppo(folder, "--env_name=Painted-v0", *CARTPOLE[1:], "--env_steps=64")
    assert job.returncode == 0, job.stderr
    return folder


@pytest.fixture
def painted(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Record a game that draws this."""

    def record_one(draw: Callable[[int], Any], *flags: str, **metadata: Any) -> Job:
        monkeypatch.setattr(Painted, "draw", staticmethod(draw))
        monkeypatch.setattr(Painted, "metadata", {**Painted.metadata, **metadata})
        return ppo(trained, "--env_name=Painted-v0", "--mode=record", "--episodes=1", *flags)

    return record_one


def recorded(job: Job, trained: Path) -> tuple[list[Any], float, list[int]]:
    """Return the frames of the mp4, its rate and the delays of the gif."""
    assert job.returncode == 0, job.stderr
    named = re.search(r"wrote (\S+\.mp4) \(.*\) and (\S+\.gif) \(.*\)", job.stdout)
    assert named is not None, job.stdout
    mp4, gif = (trained / name for name in named.groups())
    assert "yuv420p" in described_by_ffmpeg(mp4)
    return *decode_mp4(mp4), decode_gif(gif)[1]


@pytest.mark.parametrize("picture", [COLOURED, np.dstack([COLOURED, GREY]), COLOURED[:, ::-1], COLOURED[:1, :3]])
def test_colours_are_recorded_step_by_step(painted: Callable[..., Job], trained: Path, picture: Any) -> None:
    frames, rate, delays = recorded(painted(lambda step: picture), trained)
    assert (len(frames), rate, sum(delays)) == (STEPS, 15.0, 53)
    np.testing.assert_allclose(frames[-1].mean((0, 1)), [90, 140, 190], atol=10)


@pytest.mark.parametrize("picture", [GREY, GREY[..., np.newaxis]])
def test_grey_is_recorded_as_grey(painted: Callable[..., Job], trained: Path, picture: Any) -> None:
    frames, _, _ = recorded(painted(lambda step: picture), trained)
    np.testing.assert_allclose(frames[-1].mean((0, 1)), [90, 90, 90], atol=10)


@pytest.mark.parametrize(("given", "rate"), [(None, 30.0), (np.float32(62.5), 62.5), (1, 1.0)])
def test_the_rate_is_the_world_s_or_30(painted: Callable[..., Job], trained: Path, given: Any, rate: float) -> None:
    assert recorded(painted(lambda step: COLOURED, render_fps=given), trained)[1] == rate


REFUSED: dict[str, tuple[Any, str]] = {
    "no picture": (None, "got NoneType"),
    "floats": (COLOURED / 255, r"got float64 \(30, 41, 3\)"),
    "large floats": (COLOURED.astype(np.float32), r"got float32 \(30, 41, 3\)"),
    "bits": (COLOURED > 100, r"got bool \(30, 41, 3\)"),
    "nothing": (COLOURED[:0], r"got uint8 \(0, 41, 3\)"),
    "channels first": (COLOURED.transpose(2, 0, 1), r"got uint8 \(3, 30, 41\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("since", [1, 5])
def test_what_is_no_picture_is_refused_and_no_file_is_left(
    painted: Callable[..., Job], trained: Path, kind: str, since: int
) -> None:
    drawn, got = REFUSED[kind]
    folder = f"--asset_dir={kind}-{since}"
    job = painted(lambda step: COLOURED if step < since else drawn, folder)
    assert job.returncode == 2
    assert re.search(rf"^ppo: env_name 'Painted-v0' cannot be drawn: its render must return .* {got}$", job.stderr)
    assert list((trained / f"{kind}-{since}").rglob("*.*")) == []


@pytest.mark.parametrize("rate", [0, -5, float("nan"), float("inf"), 1e9, "fast", (30,), True + 0.0j])
def test_a_rate_that_is_none_is_refused_where_it_is_drawn(painted: Callable[..., Job], rate: Any) -> None:
    job = painted(lambda step: COLOURED, render_fps=rate)
    assert job.returncode == 2
    assert "its render_fps must be a number from 0.01 to 1000, or None for 30, got" in job.stderr


def test_a_picture_of_another_size_is_named_and_no_file_is_left(painted: Callable[..., Job], trained: Path) -> None:
    job = painted(lambda step: COLOURED[: 30 - step // 5], "--asset_dir=sizes")
    assert job.returncode == 1
    assert job.stderr.endswith("its frames must have one size, got 30 x 41 and 29 x 41 (frame 5)\n")
    assert list((trained / "sizes").rglob("*.*")) == []


def test_a_world_that_never_draws_is_named(painted: Callable[..., Job]) -> None:
    job = painted(lambda step: [], render_modes=["rgb_array_list"])
    assert job.returncode == 1
    assert job.stderr.endswith("was not made: no frame was drawn\n")


def test_a_world_without_a_rate_can_be_trained_and_evaluated(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Painted, "metadata", {"render_modes": [], "render_fps": "fast"})
    job = ppo(trained, "--env_name=Painted-v0", *CARTPOLE[1:], "--env_steps=64", "--model_name=unseen")
    assert job.returncode == 0, job.stderr
    assert ppo(trained, "--model_name=unseen", "--mode=evaluate", "--episodes=1").returncode == 0


@pytest.mark.parametrize("mode", [record, play])
def test_a_refusal_to_draw_reaches_every_rank(
    trained: Path, monkeypatch: pytest.MonkeyPatch, mode: Callable[..., int]
) -> None:
    class Window:
        def __init__(self, *given: Any) -> None:
            self.show = self.close = lambda *given: None

    monkeypatch.setattr("ppo.playback.has_display", lambda: True)
    monkeypatch.setattr("ppo.playback.GameWindow", Window)
    monkeypatch.setattr(Painted, "draw", staticmethod(lambda step: None))
    flags = ["--env_name=Painted-v0", f"--mode={mode.__name__}", "--episodes=1"]
    config, explicit = parse_command_line(flags), explicit_settings(flags)
    monkeypatch.chdir(trained)

    def refused(comm: Any) -> str:
        with pytest.raises(Refusal) as refusal:
            mode(config, comm, explicit)
        return str(refusal.value)

    first, *others = on_ranks(3, refused)
    assert "got NoneType" in first
    assert others == [first, first]
