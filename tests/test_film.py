"""The same game under each checkpoint of a run, in one video (--checkpoint=all)."""

import re
from pathlib import Path

import numpy as np
import pytest

from ppo.agents import find_agents
from ppo.command_line import parse_command_line
from ppo.film import side_by_side
from ppo.outputs import checkpoint
from tests.jobs import CARTPOLE, ppo
from tests.outputs.test_video import decode_mp4

FILM = ["--env_name=CartPole-v1", "--mode=record", "--checkpoint=all", "--max_game_steps=12"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints at 0, 64, 128 and 192 steps."""
    folder = tmp_path_factory.mktemp("trained")
    flags = [*CARTPOLE, "--env_steps=192", "--checkpoint_interval=1", "--keep_checkpoints=all", "--no_report"]
    assert ppo(folder, *flags).returncode == 0
    return folder


def test_every_checkpoint_plays_the_game_it_plays_alone(trained: Path) -> None:
    job = ppo(trained, *FILM)
    assert job.returncode == 0, job.stderr
    games = re.findall(r"^after (\d+) steps of training: (return \d+, \d+ steps)", job.stdout, re.M)
    assert [steps for steps, _ in games] == ["0", "64", "128", "192"]
    for steps, game in games[::3]:
        alone = ppo(trained, *FILM[:1], "--mode=play", "--episodes=1", f"--checkpoint={steps}", FILM[3])
        assert f"game 1: {game}" in alone.stdout
    frames, rate = decode_mp4(trained / "assets/CartPole-v1/step_000000000000-to-step_000000000192.mp4")
    longest = max(int(re.findall(r"(\d+) steps", game)[0]) for _, game in games)
    assert len(frames) == longest + 2 * rate
    height, width = (size // 2 for size in frames[0].shape[:2])
    # All begin alike; the titles, below, do not.
    first = frames[0].astype(int)
    rows = slice(0, 250)
    assert np.abs(first[rows, : width - 10] - first[rows, width + 4 : 2 * width - 6]).mean() < 2.0
    assert np.abs(first[250:height, : width - 10] - first[250:height, width + 4 : 2 * width - 6]).mean() > 2.0


def test_of_many_checkpoints_the_first_the_last_and_some_between_are_chosen(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    config = parse_command_line(FILM)
    for most, steps in ((9, [0, 64, 128, 192]), (3, [0, 128, 192]), (2, [0, 192])):
        assert [agent.counters.env_steps for agent in find_agents(config, set(), most)] == steps


def test_a_damaged_checkpoint_is_left_out(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    path = checkpoint.list_checkpoints(trained / "checkpoints/CartPole-v1")[1] / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    agents = find_agents(parse_command_line(FILM), set(), 9)
    path.write_bytes(whole)
    assert [agent.counters.env_steps for agent in agents] == [0, 128, 192]


@pytest.mark.parametrize("flags", [["--mode=play"], ["--mode=record", "--overlay"], ["--mode=evaluate"], []])
def test_all_checkpoints_are_for_a_film_only(trained: Path, flags: list[str]) -> None:
    job = ppo(trained, "--env_name=CartPole-v1", "--checkpoint=all", *flags)
    assert job.returncode == 2
    assert "checkpoint must be best, latest, shipped or a number of steps" in job.stderr


def test_a_run_without_checkpoints_is_refused(tmp_path: Path) -> None:
    job = ppo(tmp_path, *FILM)
    assert job.returncode == 2
    assert "there is no agent 'CartPole-v1'" in job.stderr


@pytest.mark.parametrize(("number", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (4, 2, 2), (7, 3, 3), (9, 3, 3)])
def test_pictures_stand_in_rows(number: int, rows: int, columns: int) -> None:
    pictures = [np.full((10, 20, 3), 1 + place, np.uint8) for place in range(number)]
    sheet = side_by_side(pictures)
    assert sheet.shape == (rows * 14 - 4, columns * 24 - 4, 3)
    assert set(np.unique(sheet)) - {0} == set(range(1, number + 1))
