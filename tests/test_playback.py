import json
import re
import shutil
import sys
import time

import pytest
import torch

from ppo.agents import SHIPPED_FOLDER
from ppo.command_line import parse_command_line
from ppo.outputs import checkpoint
from ppo.random_streams import stream
from ppo.versions import version_of
from scripts.ship_agent import main as ship_agent
from scripts.stored_games import play
from tests.forgery import edit_manifest
from tests.jobs import CARTPOLE, PONG, ppo, separately


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a hardly trained agent for each world."""
    folder = tmp_path_factory.mktemp("trained")
    assert ppo(folder, *CARTPOLE, "--env_steps=128").returncode == 0
    assert ppo(folder, *PONG, "--env_steps=64", "--sticky_actions=0.25").returncode == 0
    return folder


def last_line(job):
    assert job.returncode == 0, job.stdout + job.stderr
    return json.loads(job.stdout.splitlines()[-1])


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_cartpole_reaches_475_over_100_sampled_games_in_90_seconds(ranks, tmp_path):
    started = time.monotonic()
    training = ppo(tmp_path, "--env_name=CartPole-v1", "--device=cpu", ranks=ranks)
    assert training.returncode == 0, training.stdout + training.stderr
    result = last_line(ppo(tmp_path, "--env_name=CartPole-v1", "--mode=evaluate", ranks=ranks))
    assert result["episodes"] == 100
    assert result["act"] == "sample"
    assert result["return_mean"] >= 475
    assert time.monotonic() - started < 90


def test_an_evaluation_is_the_same_at_any_rank_count_and_is_written_down(trained):
    flags = ["--env_name=CartPole-v1", "--mode=evaluate", "--episodes=20"]
    one = last_line(ppo(trained, *flags))
    three = last_line(ppo(trained, *flags, ranks=3))
    assert one == three
    assert json.loads((trained / "runs/CartPole-v1/evaluation.json").read_text()) == one
    assert one["return_min"] <= one["return_median"] <= one["return_max"]
    assert one["return_stderr"] > 0
    assert "human_normalised_score" not in one


def test_an_evaluation_says_how_far_it_is_on_standard_error_and_prints_nothing_but_json(trained, monkeypatch):
    monkeypatch.setattr("ppo.playback.SECONDS_BETWEEN_LINES", 0.0)
    job = ppo(trained, "--env_name=CartPole-v1", "--mode=evaluate", "--episodes=3")
    assert json.loads(job.stdout)["episodes"] == 3
    progress = [f"played {number} of 3 games" for number in (1, 2, 3)]
    assert job.stderr.splitlines() == ["CartPole-v1, trained for 128 steps", *progress]


def test_more_ranks_than_games_still_play_every_game(trained):
    result = last_line(ppo(trained, "--env_name=CartPole-v1", "--mode=evaluate", "--episodes=2", ranks=3))
    assert result["episodes"] == 2


def test_another_seed_plays_other_games(trained):
    flags = ["--env_name=CartPole-v1", "--mode=evaluate", "--episodes=20"]
    assert last_line(ppo(trained, *flags, "--rng_seed=1")) != last_line(ppo(trained, *flags))


def test_the_protocol_of_the_training_is_reused_and_a_flag_overrides_it(trained):
    flags = ["--env_name=PongNoFrameskip-v4", "--mode=evaluate", "--episodes=1"]
    saved = last_line(ppo(trained, *flags))
    assert saved["protocol"]["sticky_actions"] == 0.25
    assert saved["protocol"]["episodic_life"] is False  # for training only
    assert -0.1 < saved["human_normalised_score"] < 0.1
    assert last_line(ppo(trained, *flags, "--sticky_actions=0"))["protocol"]["sticky_actions"] == 0.0


def test_play_prints_a_line_per_game_once_whatever_the_rank_count(trained):
    job = ppo(trained, "--env_name=CartPole-v1", "--mode=play", "--episodes=2", ranks=2)
    assert job.returncode == 0, job.stderr
    games = re.findall(r"^game (\d+): return (-?\d+), (\d+) steps\r?$", job.stdout, re.M)
    assert [number for number, _, _ in games] == ["1", "2"]
    assert all(episode_return == length for _, episode_return, length in games)  # a point per step in this world


def test_the_most_probable_action_does_not_depend_on_the_noise(trained, monkeypatch):
    flags = ["--env_name=CartPole-v1", "--mode=play", "--episodes=2"]
    before = [ppo(trained, *flags, "--deterministic").stdout, ppo(trained, *flags).stdout]
    monkeypatch.setattr("ppo.games.stream", lambda seed, *address: stream(seed + 1, *address))
    after = [ppo(trained, *flags, "--deterministic").stdout, ppo(trained, *flags).stdout]
    assert before[0] == after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("name", ["CartPole-v1", "PongNoFrameskip-v4"])
def test_record_writes_an_mp4_and_a_gif(name, trained):
    short = ["--max_frames=600"] if "Pong" in name else []
    job = ppo(trained, f"--model_name={name}", "--mode=record", *short, ranks=2 if name == "CartPole-v1" else 0)
    assert job.returncode == 0, job.stderr
    folder = trained / "assets" / name
    assert sorted(p.suffix for p in folder.iterdir()) == [".gif", ".mp4"]
    assert all(p.stat().st_size > 1000 for p in folder.iterdir())


@pytest.mark.parametrize("mode", ["record", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_a_machine_without_a_screen_or_a_loudspeaker_is_nothing_to_tell_of(mode, trained):
    command = [sys.executable, "-m", "ppo", "--model_name=CartPole-v1", f"--mode={mode}", "--episodes=1"]
    without = ["env", *(f"--unset={name}" for name in ("XDG_RUNTIME_DIR", "SDL_VIDEODRIVER", "SDL_AUDIODRIVER"))]
    without += ["--unset=PYGAME_HIDE_SUPPORT_PROMPT"]  # which this process may have set
    job = separately([*without, *command], trained)
    words = "CartPole-v1, trained for 128 steps"
    if mode == "record":
        assert (job.returncode, job.stderr) == (0, "")
        first, _, last = job.stdout.splitlines()
        assert first == words
        assert last.startswith("wrote ")
    else:
        assert (job.returncode, job.stderr) == (0, f"{words}\n")
        assert json.loads(job.stdout)["episodes"] == 1


def test_a_missing_agent_is_refused_with_those_there_are(trained):
    job = ppo(trained, "--model_name=nobody", "--mode=play", ranks=2)
    assert job.returncode == 2
    assert job.stderr.count("there is no agent 'nobody'") == 1
    assert "--model_name=CartPole-v1" in job.stderr


def test_a_setting_the_weights_do_not_fit_is_refused_even_where_a_rank_has_no_game(trained):
    flags = ["--env_name=PongNoFrameskip-v4", "--mode=evaluate", "--episodes=2", "--frame_stack=1"]
    job = ppo(trained, *flags, ranks=3, timeout=40)
    assert job.returncode == 2
    assert job.stderr.count("do not fit these settings") == 1


def test_both_spellings_of_a_game_name_the_same_agent(trained):
    job = ppo(trained, "--env_name=ALE/Pong-v5", "--mode=play", "--episodes=1")
    assert job.returncode == 0, job.stderr
    assert "PongNoFrameskip-v4, trained for 64 steps" in job.stdout


def test_an_agent_of_another_world_is_refused(trained):
    job = ppo(trained, "--model_name=CartPole-v1", "--env_name=Acrobot-v1", "--mode=evaluate")
    assert job.returncode == 2
    assert "env_name must be CartPole-v1" in job.stderr


def test_an_unknown_checkpoint_is_refused_with_those_there_are(trained):
    job = ppo(trained, "--env_name=CartPole-v1", "--mode=play", "--checkpoint=5")
    assert job.returncode == 2
    assert "128" in job.stderr


@pytest.fixture
def two(tmp_path):
    """The checkpoints of a run at 64 and 128 steps, the older one the better."""
    assert ppo(tmp_path, *CARTPOLE, "--env_steps=128", "--checkpoint_interval=1", "--model_name=two").returncode == 0
    older, newer = checkpoint.list_checkpoints(tmp_path / "checkpoints/two")[-2:]
    for folder, episode_return in ((older, 200.0), (newer, 100.0)):
        edit_manifest(folder, lambda data, value=episode_return: data["counters"].update(recent_returns=[value] * 100))
    return older, newer


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("which", "damaged", "steps"), [("latest", 1, 64), ("best", 0, 128)])
def test_a_damaged_checkpoint_is_named_and_the_next_whole_one_plays(which, damaged, steps, two, tmp_path):
    flip_last_bit(two[damaged] / "model.safetensors")
    job = ppo(tmp_path, "--model_name=two", "--mode=play", "--episodes=1", f"--checkpoint={which}")
    assert job.returncode == 0, job.stderr
    assert f"WARNING: skipped a damaged checkpoint: checkpoints/two/{two[damaged].name}/model.safe" in job.stdout
    assert f"two, trained for {steps} steps" in job.stdout


def test_a_damaged_checkpoint_that_is_asked_for_is_refused(two, tmp_path):
    flip_last_bit(two[1] / "model.safetensors")
    job = ppo(tmp_path, "--model_name=two", "--mode=play", "--checkpoint=128")
    assert job.returncode == 2
    assert job.stderr.startswith("ppo: checkpoint 128 is damaged: checkpoints/two/step_000000000128/model.safetensors")


def test_an_agent_without_a_whole_checkpoint_is_refused_with_the_damage(two, tmp_path):
    for folder in checkpoint.list_checkpoints(two[0].parent):
        flip_last_bit(folder / "model.safetensors")
    job = ppo(tmp_path, "--model_name=two", "--mode=evaluate", ranks=2)
    assert job.returncode == 2
    assert job.stderr.count("checkpoints/two is whole") == 1
    assert "sha256" in job.stderr
    assert "Traceback" not in job.stderr


def test_a_checkpoint_of_a_newer_version_is_refused_by_its_format(two, tmp_path):
    edit_manifest(two[1], lambda data: data.update(format=4))
    job = ppo(tmp_path, "--model_name=two", "--mode=play")
    assert job.returncode == 2
    assert "newer version of ppo: it has format 4, this version reads format 3" in job.stderr


def test_a_final_agent_is_shipped_with_its_card_curve_and_scores_and_plays_as_it_was_trained(two, tmp_path):
    evaluate = ["--env_name=CartPole-v1", "--mode=evaluate", "--model_name=two", "--checkpoint=latest", "--episodes=2"]
    evaluation = last_line(ppo(tmp_path, *evaluate))
    project = tmp_path / "project"
    ship_agent(["two", f"--root={tmp_path}", f"--project={project}"])
    shipped = project / "checkpoints/pretrained/CartPole-v1"
    assert sorted(path.name for path in shipped.iterdir()) == ["card.json", "manifest.json", "model.safetensors"]
    assert checkpoint.verify(shipped).versions == checkpoint.verify(two[1]).versions
    card = json.loads((shipped / "card.json").read_text())
    assert card["evaluation"] == evaluation
    assert card["env_steps"] == evaluation["env_steps"] == 128
    assert card["games"]["returns"] == [game.episode_return for game in play(shipped, 2)[0]]
    trained_with = parse_command_line(card["command"].split()[1:])
    assert trained_with.ppo == checkpoint.verify(two[1]).config.ppo
    scores = project / "docs/runs/scores"
    assert (scores / "CartPole-v1-128-seed-0.csv").read_bytes() == (tmp_path / "runs/two/progress.csv").read_bytes()
    assert json.loads((scores / "CartPole-v1-128-seed-0.json").read_text()) == evaluation
    job = ppo(project, "--env_name=CartPole-v1", "--mode=play", "--episodes=1")
    assert job.returncode == 0, job.stderr
    assert "using the shipped one in checkpoints/pretrained/CartPole-v1" in job.stdout
    assert "trained for 128 steps" in job.stdout


def test_an_agent_is_shipped_with_the_rule_by_which_it_was_evaluated(two, tmp_path):
    ship = ["two", f"--root={tmp_path}", f"--project={tmp_path}/project"]
    evaluate = ["--env_name=CartPole-v1", "--mode=evaluate", "--model_name=two", "--checkpoint=latest", "--episodes=2"]
    for evaluated, shipped in (("sample", "mode"), ("mode", "sample")):
        assert ppo(tmp_path, *evaluate, f"--act={evaluated}").returncode == 0
        with pytest.raises(SystemExit, match=f"play by {shipped}, but was evaluated by {evaluated}.*--act={evaluated}"):
            ship_agent([*ship, *["--act=mode"] * (shipped == "mode")])
        assert not (tmp_path / "project").exists()
    ship_agent([*ship, "--act=mode"])
    played = last_line(ppo(tmp_path / "project", *evaluate[:2], "--checkpoint=shipped", "--episodes=2"))
    assert played["act"] == "mode"


def test_an_agent_is_shipped_in_16_bits_if_it_scores_the_same(two, tmp_path):
    evaluate = ["--env_name=CartPole-v1", "--mode=evaluate", "--model_name=two", "--checkpoint=latest", "--episodes=4"]
    assert ppo(tmp_path, *evaluate).returncode == 0
    project = tmp_path / "project"
    ship = ["two", f"--root={tmp_path}", f"--project={project}"]
    shipped = project / "checkpoints/pretrained/CartPole-v1"
    ship_agent(ship)
    whole, expected = (shipped / "model.safetensors").stat().st_size, checkpoint_tensors(shipped)
    ship_agent([*ship, "--float16"])
    assert (shipped / "model.safetensors").stat().st_size < 0.6 * whole
    tensors = checkpoint_tensors(shipped)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {n: t.dtype for n, t in expected.items()}
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-6)
    before = shipped.stat().st_ino
    path = tmp_path / "runs/two/evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"return_mean": 500.0, "return_stderr": 0.0}))
    with pytest.raises(SystemExit, match="in 16 bits the mean return changes by -"):
        ship_agent([*ship, "--float16"])
    assert shipped.stat().st_ino == before


def checkpoint_tensors(folder):
    return checkpoint.read_tensors(folder, checkpoint.read_manifest(folder), "model.safetensors")


def test_an_agent_whose_last_checkpoint_was_not_evaluated_is_not_shipped(two, tmp_path):
    assert ppo(tmp_path, *CARTPOLE[:1], "--mode=evaluate", "--model_name=two", "--episodes=2").returncode == 0
    with pytest.raises(SystemExit, match=r"evaluate .*128 first: evaluation.json is for the agent at 64 steps"):
        ship_agent(["two", f"--root={tmp_path}", f"--project={tmp_path}/project"])
    assert not (tmp_path / "project").exists()


def test_the_shipped_agent_can_be_asked_for_beside_one_of_the_same_name(trained):
    assert ppo(trained, "--env_name=CartPole-v1", "--mode=evaluate", "--episodes=1").returncode == 0
    own = (trained / "runs/CartPole-v1/evaluation.json").read_bytes()
    for flag in ("--env_name=CartPole-v1", "--model_name=CartPole-v1"):
        job = ppo(trained, flag, "--mode=evaluate", "--episodes=1", "--checkpoint=shipped")
        assert last_line(job)["env_steps"] > 10_000
        assert "CartPole-v1-shipped, trained for" in job.stderr
    assert (trained / "runs/CartPole-v1-shipped/evaluation.json").exists()
    assert (trained / "runs/CartPole-v1/evaluation.json").read_bytes() == own
    job = ppo(trained, "--model_name=nobody", "--mode=play", "--checkpoint=shipped")
    assert job.returncode == 2
    assert "there is no agent 'nobody'" in job.stderr


def test_a_damaged_shipped_agent_is_named_and_the_one_of_the_package_plays(tmp_path):
    shipped = tmp_path / "checkpoints/pretrained/PongNoFrameskip-v4"
    shutil.copytree(SHIPPED_FOLDER / "PongNoFrameskip-v4", shipped)
    flip_last_bit(shipped / "model.safetensors")
    job = ppo(tmp_path, "--env_name=PongNoFrameskip-v4", "--mode=play", "--episodes=1", "--max_frames=40")
    assert job.returncode == 0, job.stderr
    assert "WARNING: skipped a damaged shipped agent: checkpoints/pretrained/PongNoFrameskip-v4" in job.stdout
    assert f"using the shipped one in {SHIPPED_FOLDER}" in job.stdout


@pytest.mark.parametrize("mode", ["play", "evaluate", "record"])
def test_a_game_that_its_settings_let_go_on_for_ever_is_cut(mode, trained, tmp_path):
    shutil.copytree(trained / "checkpoints" / "PongNoFrameskip-v4", tmp_path / "checkpoints" / "idle")
    for folder in checkpoint.list_checkpoints(tmp_path / "checkpoints" / "idle"):
        edit_manifest(folder, lambda data: data["config"]["world"].update(max_frames=2**40, fire_reset=False))
    flags = [f"--mode={mode}", "--model_name=idle", "--episodes=2", "--max_game_steps=30"]
    job = ppo(tmp_path, *flags)
    assert job.returncode == 0, job.stderr
    if mode == "evaluate":
        result = last_line(job)
        assert (result["episodes"], result["episodes_cut"], result["max_game_steps"]) == (2, 2, 30)
        assert result["episode_length_mean"] == 30
    else:
        assert job.stdout.count("30 steps (cut there: --max_game_steps)") == 2


def test_a_game_that_ends_by_itself_is_not_cut(trained):
    result = last_line(ppo(trained, "--env_name=CartPole-v1", "--mode=evaluate", "--episodes=3"))
    assert (result["episodes_cut"], result["episodes_timed_out"], result["max_game_steps"]) == (0, 0, 27_000)
    assert result["versions"]["gymnasium"] == version_of("gymnasium")


def test_a_game_that_the_worlds_time_limit_ends_is_counted_as_such(tmp_path):
    flags = ["--env_name=Pendulum-v1", "--checkpoint=shipped", "--mode=evaluate", "--episodes=2"]
    assert last_line(ppo(tmp_path, *flags))["episodes_timed_out"] == 2
