import os
import re
import shutil
import signal
from unittest import mock

import numpy as np
import pytest

from ppo import __version__
from ppo.loop import Loop
from ppo.report import game, run_report
from ppo.report.page import assemble
from tests.jobs import CARTPOLE, ppo
from tests.report.test_packing import unpack

CART = "--env_name=CartPole-v1"


def content_of(path):
    """Return what a report shows, and a function that finds its arrays."""
    return unpack(re.search(r'id="data">([^<]*)<', path.read_text())[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert (
        ppo(folder, *CARTPOLE, "--env_steps=2000", "--evaluation_interval=20", "--evaluation_episodes=2").returncode
        == 0
    )
    return folder


def test_the_report_of_a_run_has_its_logs_its_agent_and_a_game(trained):
    job = ppo(trained, CART, "--mode=report")
    path = trained / "runs/CartPole-v1/report.html"
    assert job.returncode == 0 and f"wrote {path.relative_to(trained)}" in job.stdout
    content, array = content_of(path)
    assert content["steps"] == 2048 and content["numGames"] > 10
    assert content["curves"]["env_steps"][-1] == 2048
    assert content["bestEvaluation"] > 0
    assert content["network"] is not None
    assert content["game"]["length"] == content["game"]["steps"] == content["game"]["return"]
    assert array(content["game"]["observations"]["values"]).shape == (content["game"]["steps"], 4)
    facts = dict(content["facts"])
    assert facts["ranks"] == "1" and "torch" in facts["versions"] and facts["hosts"] and facts["command"]
    assert facts["started"] and facts["code"].startswith("0.")
    assert facts["report made by"] == f"ppo {__version__}"
    labels = {reference["label"] for reference in content["references"]}
    assert labels == {"random", "solved", "best published PPO"}


def test_a_shipped_agent_has_a_report_without_logs(tmp_path):
    assert ppo(tmp_path, "--env_name=MountainCar-v0", "--mode=report").returncode == 0
    path = tmp_path / "runs/MountainCar-v0/report.html"
    content, _ = content_of(path)
    assert content["curves"]["env_steps"] == [] and content["score"] > -115
    facts = dict(content["facts"])
    assert facts["agent"].startswith("shipped with the program") and len(facts["commit"]) == 40
    assert content["evaluation"]["games"] == 100 and content["evaluation"]["score"] > -115
    assert path.stat().st_size < 500_000


def test_logs_without_an_agent_have_a_report_that_says_so(trained, tmp_path):
    (tmp_path / "runs").mkdir()
    os.symlink(trained / "runs/CartPole-v1", tmp_path / "runs/mine")
    assert ppo(tmp_path, CART, "--mode=report", "--model_name=mine").returncode == 0
    content, _ = content_of(tmp_path / "runs/mine/report.html")
    assert content["game"] is None and "there is no agent 'mine'" in content["reason"]
    assert content["steps"] == 2048


def test_the_report_of_logs_shows_their_settings_and_not_those_of_this_command_line(trained, tmp_path):
    folder = tmp_path / "runs/mine"
    shutil.copytree(trained / "runs/CartPole-v1", folder)
    assert ppo(tmp_path, "--mode=report", "--model_name=mine").returncode == 0
    content, _ = content_of(folder / "report.html")
    assert content["world"] == dict(content["facts"])["world"] == "CartPole-v1"
    assert content["settings"]["ppo"]["num_epochs"] == content["changed"]["num_epochs"] == 2
    assert "solved" in {reference["label"] for reference in content["references"]}
    (folder / "config.json").unlink()
    assert ppo(tmp_path, "--mode=report", "--model_name=mine").returncode == 0
    content, _ = content_of(folder / "report.html")
    assert not {"world", "kind of world", "seed", "preset"} & dict(content["facts"]).keys()
    assert (content["settings"], content["changed"], content["references"]) == ({}, {}, [])
    assert "unknown" in content["world"] and content["steps"] == 2048


def test_a_game_of_the_shipped_agent_is_not_mixed_with_the_logs_of_a_run_without_checkpoints(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(game, "MOST_STEPS", 10)
    folder = tmp_path / "runs/CartPole-v1"
    shutil.copytree(trained / "runs/CartPole-v1", folder)
    assert "shipped" not in ppo(tmp_path, CART, "--mode=report").stdout
    content, _ = content_of(folder / "report.html")
    assert content["game"] is None and content["reason"] == "there is no checkpoint of CartPole-v1 in checkpoints"
    assert content["steps"] == 2048 and content["settings"]["ppo"]["num_epochs"] == 2
    assert ppo(tmp_path, CART, "--mode=report", "--checkpoint=shipped").returncode == 0
    content, _ = content_of(tmp_path / "runs/CartPole-v1-shipped/report.html")
    assert content["game"] is not None and content["curves"]["env_steps"] == []


def test_the_report_says_which_agent_it_shows_and_what_was_passed_over(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(game, "MOST_STEPS", 10)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    newest = max((tmp_path / "checkpoints/CartPole-v1").glob("step_*"))
    (newest / "model.safetensors").write_bytes(b"damaged")
    job = ppo(tmp_path, CART, "--mode=report", "--checkpoint=latest")
    damaged, agent, wrote = job.stdout.splitlines()
    assert "damaged" in damaged and newest.name in damaged
    assert agent.startswith("CartPole-v1, trained for ") and wrote.startswith("wrote ")


def test_without_agent_and_logs_there_is_nothing_to_report(tmp_path):
    job = ppo(tmp_path, CART, "--mode=report", "--model_name=mine")
    assert job.returncode == 2 and "there is no agent 'mine'" in job.stderr
    assert not (tmp_path / "runs").exists()


def test_a_network_that_is_too_large_is_left_out_and_saliency_is_there_in_its_stead(tmp_path, monkeypatch):
    flags = ["--env_name=PongNoFrameskip-v4", "--model_size=large", "--env_engine=lean", "--device=cpu"]
    flags += ["--num_envs=2", "--rollout_steps=8", "--minibatch_size=16", "--max_frames=400"]
    assert ppo(tmp_path, *flags, "--env_steps=16").returncode == 0
    computed = mock.Mock(wraps=run_report.saliency)
    monkeypatch.setattr(run_report, "saliency", computed)
    monkeypatch.setattr(run_report, "MAX_BYTES", 180_000)  # too few for the whole game
    assert ppo(tmp_path, "--env_name=PongNoFrameskip-v4", "--mode=report").returncode == 0
    assert computed.call_count == 1
    content, array = content_of(tmp_path / "runs/PongNoFrameskip-v4/report.html")
    assert content["network"] is None and "1.7 million weights" in content["reason"]
    game = content["game"]
    assert game["steps"] < game["length"]
    assert array(game["saliency"]).shape == (game["steps"], 21, 21)
    assert game["observations"]["new"] == 1
    newest = array(game["observations"]["newest"])
    assert newest.shape == (game["steps"], 1, 84, 84)
    np.testing.assert_array_equal(newest[0, 0], array(game["observations"]["first"])[-1])


def test_a_page_that_would_be_too_large_shows_a_part_of_the_game(trained, monkeypatch):
    limit = len(assemble("", "")) + 60_000
    monkeypatch.setattr(run_report, "MAX_BYTES", limit)
    assert ppo(trained, "--env_name=MountainCar-v0", "--mode=report").returncode == 0
    path = trained / "runs/MountainCar-v0/report.html"
    game = content_of(path)[0]["game"]
    assert path.stat().st_size <= limit
    assert 0 < game["steps"] < game["length"] and not game["isWhole"]


@pytest.fixture
def at_once(monkeypatch):
    """Have a report made of however short a training."""
    monkeypatch.setattr(run_report, "_SECONDS_OF_TRAINING", 0.0)


def test_a_training_ends_with_its_report(tmp_path, at_once):
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=64")
    assert job.returncode == 0
    assert job.stdout.splitlines()[-1] == "report: runs/CartPole-v1/report.html"
    assert content_of(tmp_path / "runs/CartPole-v1/report.html")[0]["steps"] == 64


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_training_that_a_signal_has_stopped_makes_none(number, tmp_path, at_once, monkeypatch):
    advance = Loop.advance

    def stopped(loop):
        os.kill(os.getpid(), number)
        return advance(loop)

    monkeypatch.setattr(Loop, "advance", stopped)
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=640")
    assert job.returncode == (0 if number == signal.SIGUSR2 else 75) and "stopped; the same command" in job.stdout
    assert "report:" not in job.stdout and not (tmp_path / "runs/CartPole-v1/report.html").exists()


def test_a_training_that_had_ended_before_makes_no_report_again(tmp_path, at_once):
    ppo(tmp_path, *CARTPOLE, "--env_steps=64")
    before = (tmp_path / "runs/CartPole-v1/report.html").stat()
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=64")
    assert "is finished" in job.stdout and "report:" not in job.stdout
    assert (tmp_path / "runs/CartPole-v1/report.html").stat().st_mtime_ns == before.st_mtime_ns


def test_a_short_training_makes_none(tmp_path):
    assert "report:" not in ppo(tmp_path, *CARTPOLE, "--env_steps=64").stdout
    assert not (tmp_path / "runs/CartPole-v1/report.html").exists()


def test_a_training_makes_none_if_the_user_wants_none(tmp_path, at_once):
    assert "report:" not in ppo(tmp_path, *CARTPOLE, "--env_steps=64", "--no_report").stdout


def test_a_report_that_fails_is_one_line_and_the_training_has_ended_well(tmp_path, at_once, monkeypatch):
    def fail(*arguments):
        raise ZeroDivisionError("in the report")

    monkeypatch.setattr(run_report, "play_game", fail)
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=64")
    assert job.returncode == 0
    assert job.stderr == "WARNING: no report was made (ZeroDivisionError: in the report); try --mode=report\n"


def test_the_game_at_a_trainings_end_is_cut_when_its_time_is_over(tmp_path, at_once, monkeypatch):
    monkeypatch.setattr(run_report, "_SECONDS_OF_GAME", 0.0)
    assert ppo(tmp_path, *CARTPOLE, "--env_steps=64").returncode == 0
    assert content_of(tmp_path / "runs/CartPole-v1/report.html")[0]["game"]["steps"] == 1


def test_logs_that_take_long_to_read_keep_no_rank_waiting_at_a_trainings_end(tmp_path, at_once, monkeypatch):
    monkeypatch.setattr(run_report, "_MOST_BYTES_OF_LOGS", 500)
    monkeypatch.setattr(run_report, "read_logs", mock.Mock(wraps=run_report.read_logs))
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=64")
    assert job.stdout.splitlines()[-1].startswith("no report written: reading ") and "--mode=report" in job.stdout
    assert not run_report.read_logs.called
    assert not (tmp_path / "runs/CartPole-v1/report.html").exists()


@pytest.mark.parametrize("world", ["OddObservations", "OddActions", "TinyImages", "Endless"])
def test_odd_worlds_from_outside_have_a_report_without_a_screen(world, tmp_path, at_once, monkeypatch):
    monkeypatch.setattr(game, "MOST_STEPS", 50)
    flags = [f"--env_name=tests.odd_worlds:{world}-v0", *CARTPOLE[1:], "--network=mlp", "--env_steps=64"]
    job = ppo(tmp_path, *flags)
    assert job.returncode == 0 and "WARNING" not in job.stderr, job.stderr
    (path,) = tmp_path.rglob("report.html")
    content, _ = content_of(path)
    assert content["game"]["film"] is None
    assert content["game"]["isOver"] == (world != "Endless")
    assert content["network"] or world == "OddActions"
