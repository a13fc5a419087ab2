"""`--seeds` trains one run after another, and `--stop_at_return` ends a run when it is good enough."""

import os
import signal
from pathlib import Path

import pytest

from ppo import loop
from ppo.command_line import parse_command_line
from ppo.envs.gymnasium import GymnasiumEnvironments
from ppo.settings import Refusal
from tests.jobs import CARTPOLE, ppo, rows

TWO = [*CARTPOLE, "--seeds=0,2", "--env_steps=128"]
NAMES = ["CartPole-v1", "CartPole-v1-seed2"]


def content(folder: Path, name: str, steps: int) -> list[bytes]:
    checkpoint = folder / "checkpoints" / name / f"step_{steps:012d}"
    return [(checkpoint / f"{part}.safetensors").read_bytes() for part in ("model", "training")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both seeds, each trained by a command of its own."""
    folder = tmp_path_factory.mktemp("alone")
    for seed in (0, 2):
        assert ppo(folder, *CARTPOLE, "--env_steps=128", f"--rng_seed={seed}").returncode == 0
    return folder


def test_seeds_train_what_a_command_for_each_would_and_are_compared(alone: Path, tmp_path: Path) -> None:
    job = ppo(tmp_path, *TWO)
    assert job.returncode == 0, job.stderr
    for name in NAMES:
        assert content(tmp_path, name, 128) == content(alone, name, 128)
    assert "| CartPole-v1 | 2 |" in job.stdout
    made = [f"comparison.{end}" for end in ("html", "md", "png", "svg")]
    assert sorted(os.listdir(tmp_path / "assets/CartPole-v1")) == made


def test_finished_seeds_are_skipped_and_the_interrupted_one_is_resumed(alone: Path, tmp_path: Path) -> None:
    for flags in (["--env_steps=128"], ["--env_steps=64", "--rng_seed=2"]):
        assert ppo(tmp_path, *CARTPOLE, *flags).returncode == 0
    before = content(tmp_path, NAMES[0], 128)
    job = ppo(tmp_path, *TWO)
    assert job.returncode == 0, job.stderr
    assert "CartPole-v1 is finished" in job.stdout
    assert "run 2 of 2: rng_seed 2" in job.stdout
    assert "resuming CartPole-v1-seed2 at 64 steps" in job.stdout
    assert content(tmp_path, NAMES[0], 128) == before
    assert content(tmp_path, NAMES[1], 128) == content(alone, NAMES[1], 128)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR2, 0), (signal.SIGUSR1, 75)])
def test_a_signal_stops_the_seed_that_runs_and_begins_no_other(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(envs, actions):  # type: ignore[no-untyped-def]
        os.kill(os.getpid(), number)
        return original(envs, actions)

    original = GymnasiumEnvironments.step
    monkeypatch.setattr(GymnasiumEnvironments, "step", step)
    job = ppo(tmp_path, *TWO)
    assert job.returncode == code
    assert os.listdir(tmp_path / "runs") == ["CartPole-v1"]
    assert not (tmp_path / "assets").exists()


def test_a_signal_at_the_very_end_of_a_seed_begins_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(run, **facts):  # type: ignore[no-untyped-def]
        os.kill(os.getpid(), signal.SIGUSR1)
        return original(run, **facts)

    original = loop.farewell
    monkeypatch.setattr(loop, "farewell", end)
    assert ppo(tmp_path, *TWO).returncode == 75
    assert os.listdir(tmp_path / "runs") == ["CartPole-v1"]
    monkeypatch.undo()
    assert ppo(tmp_path, *TWO).returncode == 0


def test_a_name_is_followed_by_the_seed() -> None:
    runs = parse_command_line([*CARTPOLE, "--seeds=0-2,7", "--model_name=mine"]).of_each_seed()
    assert [run.run.rng_seed for run in runs] == [0, 1, 2, 7]
    assert [run.model_name for run in runs] == ["mine", "mine-seed1", "mine-seed2", "mine-seed7"]
    assert {run.run.seeds for run in runs} == {None}


@pytest.mark.parametrize(
    "seeds", ["", "5-1", "1-", "a", "1,,2", "-1", "0-99999999", "9" * 30, "1 2", "1-2-3", "0-9223372036854775808"]
)
def test_what_is_no_list_of_seeds_is_refused(seeds: str) -> None:
    with pytest.raises(Refusal, match=r"seeds must be one to 1000 different numbers .* as 1-5 or 1,3,7"):
        parse_command_line([f"--seeds={seeds}"])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--rng_seed=1", "rng_seed must not be set together with seeds"),
        ("--fresh", "seeds must be used without --fresh"),
        ("--mode=play", "seeds must be used with --mode=train only"),
    ],
)
def test_what_seeds_do_not_go_with_is_refused(flag: str, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        parse_command_line(["--seeds=1-3", flag])


# ------------------------------------------------------------------------------------------------------- stop_at_return

GOOD = [*CARTPOLE, "--learning_rate_schedule=constant", "--env_steps=100000"]
LOW, HIGH = "--stop_at_return=15", "--stop_at_return=70"


def test_a_run_ends_saved_once_100_games_have_the_return_that_was_asked_for(tmp_path: Path) -> None:
    job = ppo(tmp_path, *GOOD, LOW)
    assert job.returncode == 0, job.stderr
    log = rows(tmp_path / "runs/CartPole-v1/progress.csv")
    has_ended = [row["rollout/return_mean"] and float(row["rollout/return_mean"]) >= 15 for row in log]
    assert any(has_ended[:-1]), "this run should not have 100 games when it first has the return"
    has_ended = [met and int(row["rollout/episodes"]) >= 100 for met, row in zip(has_ended, log, strict=True)]
    assert [bool(met) for met in has_ended] == [False] * (len(log) - 1) + [True]
    steps = int(log[-1]["env_steps"])
    last = job.stdout.splitlines()[-1]
    assert last.startswith(f"done: CartPole-v1 at {steps:,} steps, saved in checkpoints/CartPole-v1/step_{steps:012d};")
    mean, games = float(log[-1]["rollout/return_mean"]), log[-1]["rollout/episodes"]
    assert last.endswith(f"; return {mean:.2f} (mean of the last 100 of {games} games)")
    again = ppo(tmp_path, *GOOD, LOW)
    assert again.returncode == 0
    assert f"its return has reached --stop_at_return=15 at {steps:,} steps" in again.stdout
    assert content(tmp_path, "CartPole-v1", steps)


@pytest.mark.slow
def test_a_run_that_ended_at_a_return_goes_on_exactly_to_a_higher_one(tmp_path: Path) -> None:
    for flags in ([LOW], [HIGH], [HIGH, "--model_name=whole"]):
        assert ppo(tmp_path, *GOOD, *flags).returncode == 0
    steps = [int(row["env_steps"]) for row in rows(tmp_path / "runs/whole/progress.csv")]
    assert len(os.listdir(tmp_path / "checkpoints/CartPole-v1")) > len(os.listdir(tmp_path / "checkpoints/whole"))
    assert content(tmp_path, "CartPole-v1", steps[-1]) == content(tmp_path, "whole", steps[-1])
