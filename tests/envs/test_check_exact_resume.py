"""The check of exact resume must be able to fail."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_exact_resume.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_exact_resume", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def here(function: Callable[..., str], *arguments: object) -> Future[str]:
    """Stand in for the other process."""
    future: Future[str] = Future()
    future.set_result(function(*arguments))
    return future


def test_states_copied_by_ale_are_found_inexact_where_those_played_again_are_exact(script: ModuleType) -> None:
    options = script.Options(steps=160, max_frames=400)
    row = script.start(here, "qbert", options)()
    assert row.is_exact and row.plain.ends_crossed > 0
    assert "ram" in row.copied


def test_a_run_that_forgets_a_part_of_the_states_fails_and_names_the_game() -> None:
    flags = ["--games", "pong", "--steps=100", "--max_frames=300", "--forget=actions"]
    job = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, timeout=120)
    assert job.returncode == 1, job.stderr
    assert "0 of 1 games are exact; not exact: ['pong']" in job.stdout
    assert "restarted" in job.stdout
