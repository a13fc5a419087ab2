"""The check of exact resume must be able to fail."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from scripts.exact_resume import games, worlds
from scripts.exact_resume.report import write_section
from tests.jobs import CARTPOLE, ppo

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_exact_resume.py"


def here(function: Callable[..., str], *arguments: object) -> Future[str]:
    """Stand in for the other process."""
    future: Future[str] = Future()
    future.set_result(function(*arguments))
    return future


def test_states_copied_by_ale_are_found_inexact_where_those_played_again_are_exact() -> None:
    options = games.Options(steps=160, max_frames=400)
    row = games.start(here, "qbert", options)()
    assert row.is_exact and row.plain.ends_crossed > 0
    assert "ram" in row.copied


def test_a_run_that_forgets_a_part_of_the_states_fails_and_names_the_game() -> None:
    flags = ["--only=games", "--games", "pong", "--steps=100", "--max_frames=300", "--forget=actions"]
    job = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, timeout=120)
    assert job.returncode == 1, job.stderr
    assert "0 of 1 games are exact; not exact: ['pong']" in job.stdout
    assert "restarted" in job.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two updates of CartPole."""
    folder = tmp_path_factory.mktemp("run")
    assert ppo(folder, *CARTPOLE, "--reward_normalization", "--env_steps=128").returncode == 0
    return folder


def test_a_running_return_that_is_off_by_one_unit_in_the_last_place_is_named(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert worlds.differences(run, copy) == []
    file = worlds.last_checkpoint(copy) / "training.safetensors"
    tensors, name = load_file(file), "environment/2/running_return"
    save_file({**tensors, name: np.nextafter(tensors[name], np.inf)}, file)
    assert worlds.differences(run, copy) == [name]


def test_logs_may_differ_in_nothing_but_times(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (log,) = copy.glob("runs/*/progress.csv")
    header, first, second = log.read_text().splitlines()
    seconds, entropy = (header.split(",").index(name) for name in ("time/seconds", "update/entropy"))
    for column, found in ((seconds, []), (entropy, ["progress.csv"])):
        cells = second.split(",")
        cells[column] = "0.125"
        log.write_text("\n".join([header, first, ",".join(cells), ""]))
        assert worlds.differences(run, copy) == found


def test_a_section_of_the_report_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    write_section(report, "Runs", ["old"])
    write_section(report, "Games", ["kept"])
    write_section(report, "Runs", ["new"])
    assert report.read_text() == "# Exact resume\n\n## Runs\n\nnew\n\n## Games\n\nkept\n"
