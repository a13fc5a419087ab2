"""Resumed runs, at another number of ranks and in every kind of game, compared with a run without a stop."""

import re

import numpy as np
import pytest

from tests.faults.running import STEADY, csv_rows, hashes, run_to_end
from tests.jobs import CARTPOLE, PONG, weights

SAMPLING_AND_UPDATES = ["update/policy_loss", "update/value_loss", "update/entropy", "update/approx_kl"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (2, 1),
        pytest.param(1, 2, marks=pytest.mark.slow),
        pytest.param(4, 2, marks=pytest.mark.slow),
        pytest.param(2, 4, marks=pytest.mark.slow),
        pytest.param(2, 3, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_continues_at_another_number_of_ranks(before, after, tmp_path, fault_report):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    whole.mkdir()
    moved.mkdir()
    flags = [*PONG, "--checkpoint_interval=100"]
    run_to_end(whole, *flags, "--env_steps=384", ranks=before)
    run_to_end(moved, *flags, "--env_steps=192", ranks=before)
    log = run_to_end(moved, *flags, "--env_steps=384", ranks=after)
    assert f"saved by {before} rank" in log and f"resumes with {after}" in log
    assert "WARNING" not in log
    name = "PongNoFrameskip-v4"
    for key, expected in weights(whole, name, 384).items():
        tolerance = 1e-4 if "moments" in key else 1e-5
        np.testing.assert_allclose(weights(moved, name, 384)[key], expected, rtol=tolerance, atol=1e-5, err_msg=key)
    # The games went on where they were: returns and lengths are those of the run that was never stopped.
    assert csv_rows(moved, "episodes.csv", name) == csv_rows(whole, "episodes.csv", name)
    for row, expected in zip(csv_rows(moved, "progress.csv", name), csv_rows(whole, "progress.csv", name), strict=True):
        for column in SAMPLING_AND_UPDATES:
            assert float(row[column]) == pytest.approx(float(expected[column]), abs=1e-4)
    fault_report(10, f"Pong, {before} ranks, resumed with {after}", "same weights to 1e-5, same games; the log says so")


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_continues_with_eight(tmp_path, fault_report):
    flags = [*CARTPOLE[:1], "--num_envs=8", "--rollout_steps=16", "--minibatch_size=32", *STEADY]
    run_to_end(tmp_path, *flags, "--env_steps=256")
    log = run_to_end(tmp_path, *flags, "--env_steps=512", ranks=8)
    assert re.search("saved by 2 ranks, resumes with 8", log)
    fault_report(10, "2 ranks, resumed with 8", "two updates on, the log says so")


@pytest.mark.slow
@pytest.mark.parametrize("game", ["Pong", "Breakout", "Seaquest", "Qbert", "Berzerk"])
def test_a_stopped_and_resumed_run_is_the_run_that_was_never_stopped(game, tmp_path, fault_report):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    name = f"{game}NoFrameskip-v4"
    flags = [f"--env_name={name}", *PONG[1:], "--sticky_actions=0.25", "--checkpoint_interval=100"]
    run_to_end(whole, *flags, "--env_steps=640")
    run_to_end(stopped, *flags, "--env_steps=320")
    run_to_end(stopped, *flags, "--env_steps=640")
    assert hashes(stopped, 640, name) == hashes(whole, 640, name)
    for file in ("progress.csv", "episodes.csv"):
        assert csv_rows(stopped, file, name) == csv_rows(whole, file, name)
    fault_report(
        11, f"{game}, -np 2: 10 updates against 5 + resume + 5", "same sha256 of weights and optimiser, same logs"
    )
