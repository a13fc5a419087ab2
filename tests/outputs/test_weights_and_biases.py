"""Weights & Biases gets what the other logs get: tried with its own package, which writes to a folder offline."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tests.jobs import CARTPOLE, Job, ppo, rows, separately

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "ppo", *CARTPOLE, "--track=wandb"]


@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)], ids=["nothing", "a folder of that name"])
def test_without_the_package_training_is_refused_with_how_to_install_it(
    found: ModuleSpec | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    job = ppo(tmp_path, *CARTPOLE, "--track=wandb")
    assert job.returncode == 2
    assert "pip install wandb" in job.stderr
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Install the package where nothing else is."""
    folder = tmp_path_factory.mktemp("wandb")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--quiet", "--target", str(folder), "wandb"]
    subprocess.run([*install, "--constraint", str(ROOT / "scripts" / "constraints.txt")], check=True, timeout=300)
    yield folder


def trained(folder: Path, package: Path, *flags: str, **variables: str) -> Job:
    path = f"{ROOT}:{package}"
    return separately([*COMMAND, *flags], folder, PYTHONPATH=path, WANDB_DIR="", WANDB_API_KEY="", **variables)


@pytest.mark.slow
def test_offline_a_run_and_what_resumes_it_are_one_run_with_every_update_and_clip(
    tmp_path: Path, package: Path
) -> None:
    for steps in (192, 320):
        job = trained(tmp_path, package, f"--env_steps={steps}", "--clip_interval=2", WANDB_MODE="offline")
        assert job.returncode == 0, job.stderr
        assert "WARNING" not in job.stdout + job.stderr
    folder = tmp_path / "runs" / "CartPole-v1"
    starts = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert [start.stem for start in starts] == [f"run-{(folder / 'wandb_id.txt').read_text().strip()}"] * 2
    logged = rows(folder / "progress.csv")
    assert len(logged) == 5
    for start, updates in zip(starts, (logged[:3], logged[3:]), strict=True):
        content = start.read_bytes()
        assert all(row["update/value_loss"].encode() in content for row in updates)
        assert all(name in content for name in (b"learning_rate", b"env_steps", b"CartPole-v1"))
        assert list(start.parent.glob("files/media/videos/clip_*.gif"))


@pytest.mark.slow
def test_without_an_account_there_is_a_warning_and_a_training(tmp_path: Path, package: Path) -> None:
    job = trained(tmp_path, package, "--env_steps=64", WANDB_MODE="online", HOME=str(tmp_path))
    assert job.returncode == 0, job.stderr
    assert "WARNING: cannot log to Weights & Biases" in job.stdout
    assert (tmp_path / "runs" / "CartPole-v1" / "progress.csv").exists()
