"""Games of a training that are played again: the same return bit for bit, whatever the world, ranks and stops."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from ppo.config import Config
from ppo.envs import Engine, Environments, make_envs
from ppo.families import family_of
from ppo.outputs import checkpoint
from ppo.outputs.game_log import find_game
from tests.forgery import edit_manifest
from tests.jobs import CARTPOLE, PONG, ppo

BREAKOUT = ["--env_name=BreakoutNoFrameskip-v4", *PONG[1:], "--sticky_actions=0.25"]


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / "runs" / name / "episodes.csv") as file:
        return list(csv.DictReader(file))


def played_again(folder: Path, name: str) -> None:
    """Play every game of a run again, by its log and the settings of its checkpoint, and compare it with its row."""
    manifest = checkpoint.newest_manifest(folder / "checkpoints" / name)
    assert manifest is not None
    config = manifest.config
    episodes = rows(folder, name)
    assert episodes
    for row in episodes:
        game = find_game(folder / "runs" / name, int(row["episode"]))
        assert (game.environment, game.episode_length) == (int(row["environment"]), int(row["length"]))
        indices = range(game.environment, game.environment + 1)
        envs = make_envs(config.run.env_name, config.world, indices=indices, seed=config.run.rng_seed)
        envs.begin_again(0, game.state)
        assert repr(return_of(envs, game.state["actions"])) == row["return"]
        envs.close()


def return_of(envs: Environments, actions: np.ndarray) -> float:
    """Send actions to the only environment of a block and return the return of the game that the last one ends."""
    for number, action in enumerate(actions.astype(envs.single_action_space.dtype)):
        *_, terminated, truncated, info = envs.step(action[np.newaxis])
        assert bool(terminated[0] or truncated[0]) == (number == len(actions) - 1)
    return float(info["episode_return"][0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of CartPole and one of Breakout, whose games have lost lives."""
    folder = tmp_path_factory.mktemp("trained")
    for flags in ([*CARTPOLE, "--env_steps=512"], [*BREAKOUT, "--env_steps=1152", "--rollout_steps=32"]):
        job = ppo(folder, *flags, "--no_report")
        assert job.returncode == 0, job.stderr
    return folder


@pytest.mark.parametrize("name", ["CartPole-v1", "BreakoutNoFrameskip-v4"])
def test_every_game_of_a_training_has_its_return_again_bit_for_bit(trained: Path, name: str) -> None:
    played_again(trained, name)


WORLDS = [
    *("PongNoFrameskip-v4", "CartPole-v1", "ppo/ReachingDot-v0", "Pendulum-v1"),
    *("LunarLander-v3", "BipedalWalker-v3"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("CarRacing-v3", "HalfCheetah-v5")),
]


@pytest.mark.parametrize("engine", [Engine("lean", 1), Engine("processes", 2)], ids=["lean", "processes"])
@pytest.mark.parametrize("env_name", WORLDS)
def test_games_of_every_family_and_engine_are_played_again(env_name: str, engine: Engine) -> None:
    if "Bipedal" in env_name or "Lunar" in env_name or "Car" in env_name:
        pytest.importorskip("Box2D")
    if "Cheetah" in env_name:
        pytest.importorskip("mujoco")
    world = family_of(env_name).settings()
    if env_name.startswith("Pong"):
        import dataclasses

        world = dataclasses.replace(world, max_frames=200, sticky_actions=0.25)
    arguments = {"seed": 5, "indices": range(7, 9)}
    envs = make_envs(env_name, world, engine=engine, **arguments)
    envs.keep_games(True)
    envs.reset()
    envs.action_space.seed(0)
    games, returns = [[], []], [[], []]
    # The second game of an environment shows what the first one leaves behind.
    while min(map(len, returns)) < 2:
        *_, terminated, truncated, info = envs.step(envs.action_space.sample())
        for position in np.flatnonzero(terminated | truncated):
            returns[position].append(float(info["episode_return"][position]))
        for own, new in zip(games, envs.take_games(), strict=True):
            own += new
    envs.close()
    position = 1
    alone = make_envs(env_name, world, seed=5, indices=range(8, 9))
    for game, episode_return in list(zip(games[position], returns[position], strict=True))[::-1]:
        alone.begin_again(0, game)
        assert return_of(alone, game["actions"]) == episode_return
    alone.close()


@pytest.mark.slow
def test_a_stopped_and_resumed_run_on_other_ranks_logs_the_games_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    flags = [*CARTPOLE, "--no_report", "--checkpoint_interval=2"]
    assert ppo(tmp_path, *flags, "--env_steps=512", "--model_name=whole").returncode == 0
    assert ppo(tmp_path, *flags, "--env_steps=192", "--model_name=stopped").returncode == 0
    resumed = ppo(
        tmp_path, *flags, "--env_steps=512", "--model_name=stopped", "--learning_rate_schedule=linear", ranks=2
    )
    assert resumed.returncode == 0, resumed.stdout
    for name in ("whole", "stopped"):
        played_again(tmp_path, name)
    before = [row for row in rows(tmp_path, "whole") if int(row["env_steps"]) <= 192]
    assert [row["return"] for row in rows(tmp_path, "stopped")[: len(before)]] == [row["return"] for row in before]


def test_a_game_that_a_stop_has_cut_in_two_is_whole(tmp_path: Path) -> None:
    flags = [*CARTPOLE, "--no_report", "--learning_rate_schedule=constant"]
    for steps in range(64, 64 * 9, 64):  # every update a start of its own
        assert ppo(tmp_path, *flags, f"--env_steps={steps}").returncode == 0
    assert max(int(row["length"]) for row in rows(tmp_path, "CartPole-v1")) > 16
    played_again(tmp_path, "CartPole-v1")
    assert ppo(tmp_path, *flags, "--env_steps=512", "--model_name=whole").returncode == 0
    for row in rows(tmp_path, "whole"):
        both = [find_game(tmp_path / "runs" / name, int(row["episode"])) for name in ("whole", "CartPole-v1")]
        assert np.array_equal(*(game.state["actions"] for game in both))


@pytest.mark.parametrize("overlay", [(), ("--overlay",)])
def test_a_replay_is_a_video_of_the_game(trained: Path, overlay: tuple[str, ...]) -> None:
    length = int(rows(trained, "CartPole-v1")[2]["length"])
    job = ppo(
        trained, "--env_name=CartPole-v1", "--mode=replay", "--episode=3", *overlay, f"--asset_dir=a{len(overlay)}"
    )
    assert job.returncode == 0, job.stderr
    assert re.search(rf"^game 3: return {length}, {length} steps$", job.stdout, re.M)
    assert f"episode_000003.mp4 ({length} frames" in job.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mode=replay", "--episode=100000"], "episode must be one of those in runs/CartPole-v1/games, from 1 to"),
        (["--mode=replay"], "episode must be the number of a game in episodes.csv for --mode=replay"),
        (["--mode=record", "--episode=3"], "episode must be the number of a game in episodes.csv for --mode=replay"),
        (["--mode=replay", "--episode=1", "--run_dir=elsewhere"], "elsewhere/CartPole-v1/games has no logged games"),
        (
            ["--mode=replay", "--episode=1", "--checkpoint=shipped"],
            "runs/CartPole-v1-shipped/games has no logged games",
        ),
    ],
)
def test_what_cannot_be_played_again_is_refused_in_words(trained: Path, flags: list[str], words: str) -> None:
    job = ppo(trained, "--env_name=CartPole-v1", *flags)
    assert job.returncode == 2
    assert words in job.stderr


def test_a_world_that_has_changed_since_is_refused_and_no_video_is_left(trained: Path) -> None:
    for folder in checkpoint.list_checkpoints(trained / "checkpoints/BreakoutNoFrameskip-v4"):
        edit_manifest(folder, lambda data: data["config"]["world"].update(sticky_actions=0.0))
    flags = ("--env_name=BreakoutNoFrameskip-v4", "--mode=replay", "--episode=2", "--asset_dir=changed")
    job = ppo(trained, *flags)
    assert job.returncode == 2
    assert re.search(r"cannot be played again: the replay differs \(return .*\n$", job.stderr)
    assert list((trained / "changed").rglob("*.*")) == []


@pytest.mark.parametrize("env_name", ["CartPole-v1", "PongNoFrameskip-v4", "Pendulum-v1"])
def test_a_forged_game_is_refused(env_name: str) -> None:
    envs = make_envs(env_name, family_of(env_name).settings(), indices=range(1), seed=0)
    envs.reset()
    state = envs.get_states()[0]
    shape = envs.single_action_space.shape
    kind = "uint8" if "Pong" in env_name else envs.single_action_space.dtype
    names = {"counters", "generator", "ram"} if "Pong" in env_name else {"episode"}
    honest = {name: state[name] for name in names} | {"actions": np.zeros((3, *shape), kind)}
    honest["last_seen"] = np.zeros(1, np.int64)
    envs.begin_again(0, honest)
    wrong = [{name: array for name, array in honest.items() if name != left_out} for left_out in honest]
    wrong += [{**honest, "more": np.zeros(1)}]
    used = honest.keys() - {"last_seen"}  # which is only compared
    wrong += [{**honest, name: honest[name][..., np.newaxis]} for name in used]
    wrong += [{**honest, name: honest[name].astype(np.float64) - 1000.0} for name in used]
    wrong += [{**honest, "actions": np.full((3, *shape), 200, kind)}]
    for game in wrong:
        with pytest.raises(ValueError, match=r"of environment 0|of the game"):
            envs.begin_again(0, game)
    envs.close()


def test_the_best_and_the_worst_of_many_games_are_recorded_under_their_returns(trained: Path) -> None:
    flags = ["--env_name=CartPole-v1", "--checkpoint=latest"]
    job = ppo(trained, *flags, "--mode=evaluate", "--episodes=6")
    evaluated = json.loads(job.stdout)
    job = ppo(trained, *flags, "--mode=record", "--record_games=6", "--asset_dir=extremes")
    assert job.returncode == 0, job.stderr
    shown = {path.name for path in (trained / "extremes/CartPole-v1").iterdir() if path.suffix == ".mp4"}
    best, worst = (int(re.search(rf"-{name}-return_(\d+)\.mp4", " ".join(shown))[1]) for name in ("best", "worst"))
    assert (best, worst) == (evaluated["return_max"], evaluated["return_min"]) and best > worst
    assert "6 games: mean return" in job.stdout
    assert re.search(rf"-best-return_{best}\.mp4 \({best} frames", job.stdout)
    assert re.search(rf"-worst-return_{worst}\.mp4 \({worst} frames", job.stdout)
    assert len(shown) == 2


def test_the_log_can_be_left_out(tmp_path: Path) -> None:
    assert ppo(tmp_path, *CARTPOLE, "--env_steps=128", "--replay_megabytes=0", "--no_report").returncode == 0
    assert not (tmp_path / "runs/CartPole-v1/games").exists()
    assert Config().run.replay_megabytes == 100


@pytest.mark.parametrize("engine", [Engine("lean", 1), Engine("processes", 2)], ids=["lean", "processes"])
def test_games_are_kept_only_where_they_are_asked_for(engine: Engine) -> None:
    envs = make_envs("CartPole-v1", family_of("CartPole-v1").settings(), engine=engine, seed=0, indices=range(2))
    envs.reset()
    kept = {}
    for keeps in (False, True, False):
        envs.keep_games(keeps)
        for _ in range(60):
            envs.step(np.zeros(2, np.int64))
        kept[keeps] = [len(own) for own in envs.take_games()]
    envs.close()
    assert kept[False] == [0, 0] and min(kept[True]) > 3
