"""Evaluations during training: the same games every time, by raw returns, and no effect on training."""

import json
import math
import os
import signal

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from ppo.collectives import Alone, Halt, share
from ppo.command_line import parse_command_line
from ppo.envs import make_envs
from ppo.evaluation import Evaluation, Evaluator
from ppo.games import Actor, Game, Step, mean_and_error, play_slots
from ppo.outputs import checkpoint
from ppo.outputs.display import LiveTable, PlainLines, Terminal, describe_evaluation, summary_line
from ppo.outputs.manifest import decode_manifest
from ppo.outputs.untrusted import DamagedCheckpointError
from ppo.random_streams import stream
from ppo.run import build_run
from tests.forgery import sealed
from tests.jobs import CARTPOLE, PONG, rows
from tests.jobs import ppo as run_ppo
from tests.ranks import on_ranks

SHORT_PONG = [*PONG, "--max_frames=400"]
WORLDS = {"CartPole-v1": CARTPOLE, "PongNoFrameskip-v4": SHORT_PONG}
REWARD = 2.5


class Dice(gymnasium.Env):
    """An episode's length is rolled by a die, or endless; every step has the same reward."""

    observation_space = Box(0.0, math.inf, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self, endless=False):
        self._endless = endless

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps, self._length = 0, math.inf if self._endless else self.np_random.integers(1, 40)
        return self._observation(), {}

    def step(self, action):
        self._steps += 1
        return self._observation(), REWARD, self._steps >= self._length, False, {}

    def _observation(self):
        return np.array([self._steps], np.float32)


@pytest.fixture
def dice(monkeypatch):
    """Register the world of dice for the length of a test; return the flags of a run in it."""
    monkeypatch.setitem(gymnasium.registry, "Dice-v0", None)
    del gymnasium.registry["Dice-v0"]
    gymnasium.register("Dice-v0", Dice)
    return ["--env_name=Dice-v0", *CARTPOLE[1:]]


def config_of(*flags, episodes=5):
    return parse_command_line([*flags, "--evaluation_interval=1", f"--evaluation_episodes={episodes}"])


def evaluator_of(*flags, episodes=5):
    """Return the evaluator of a new run, and the network that it plays with."""
    run = build_run(config_of(*flags, episodes=episodes), Alone())
    return run.evaluator, run.model


def never():
    return False


def evaluations(folder, model_name):
    """Return the means in progress.csv by update."""
    log = rows(folder / "runs" / model_name / "progress.csv")
    return {int(row["update"]): row["evaluation/return_mean"] for row in log if row["evaluation/return_mean"]}


def manifests(folder, model_name):
    parent = folder / "checkpoints" / model_name
    return [checkpoint.read_manifest(path) for path in checkpoint.list_checkpoints(parent)]


# ------------------------------------------------------------------------------------------------------------ the games


@pytest.mark.parametrize("rule", ["sample", "mode"])
@pytest.mark.parametrize("num_slots", [1, 3, 7])
def test_a_slot_plays_every_num_slots_th_game_to_its_end(rule, num_slots, dice):
    config = config_of(*dice)
    model = build_run(config, Alone()).model

    def block(slots):
        envs = make_envs("Dice-v0", config.world, indices=slots, seed=4)
        envs.reset()
        return envs, Actor(model, rule, indices=slots, seed=4)

    envs, actor = block(range(num_slots))
    seen: list[Step] = []
    sizes = {"num_slots": num_slots, "episodes": 7, "max_steps": 1000}
    steps = play_slots(actor, envs, range(num_slots), **sizes, on_step=seen.append)
    games = sorted((game for ended in steps for game in ended), key=lambda game: game.number)
    of_first_slot = [REWARD * step for game in games[::num_slots] for step in range(1, game.episode_length + 1)]
    assert [step.episode_return for step in seen[: len(of_first_slot)]] == pytest.approx(of_first_slot)
    assert [game.number for game in games] == list(range(7))
    for slot in range(num_slots):
        alone, actor = block(range(slot, slot + 1))
        lengths = []
        while len(lengths) < len(range(slot, 7, num_slots)):
            *_, terminated, _, info = alone.step(actor.to_environment(actor.choose(alone.observations)[1]))
            lengths += info["episode_length"][terminated].tolist()
        assert [game.episode_length for game in games[slot::num_slots]] == lengths
    assert all(game.episode_return == REWARD * game.episode_length for game in games)


def test_a_game_without_an_end_is_cut_and_counts_with_what_it_has(dice):
    evaluator, _ = evaluator_of(*dice, '--env_kwargs={"endless": true}', "--max_game_steps=130", episodes=20)
    assert evaluator.evaluate(never) == Evaluation(130 * REWARD, 0.0, 20)


def test_what_is_for_training_only_ends_no_game_of_an_evaluation():
    pytest.importorskip("Box2D")
    flags = ["--env_name=CarRacing-v3", "--give_up_frames=1", '--env_kwargs={"max_episode_steps": 40}']
    evaluator, _ = evaluator_of(*flags, "--num_envs=1", episodes=2)
    games = [game for ended in evaluator._play() for game in ended]
    assert [game.episode_length for game in games] == [10, 10]  # of 4 frames each


@pytest.mark.parametrize("world", WORLDS)
def test_an_episode_that_is_ended_is_followed_by_the_next_and_the_others_stay_where_they_are(world):
    config = config_of(*WORLDS[world])
    envs, other = (make_envs(config.run.env_name, config.world, indices=range(2), seed=3) for _ in range(2))
    envs.reset()
    for _ in range(4):
        envs.step(np.zeros(2, np.int64))
    kept = envs.observations[1].copy()
    assert envs.end_episode(0) == (4.0 if world == "CartPole-v1" else 0.0)
    other.reset()
    other.reset()
    np.testing.assert_array_equal(envs.observations[0], other.observations[0])
    np.testing.assert_array_equal(envs.observations[1], kept)


def test_the_error_is_the_standard_error_of_the_mean_and_a_single_game_has_none():
    games = [Game(number, episode_return, 1) for number, episode_return in enumerate((1.0, 2.0, 6.0))]
    mean, error = mean_and_error(games)
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert mean_and_error(games[:1]) == (1.0, None)


def test_the_order_of_games_does_not_matter():
    returns = np.random.default_rng(0).normal(size=50) * 10.0 ** np.arange(-25, 25)
    games = [Game(number, float(episode_return), 1) for number, episode_return in enumerate(returns)]
    assert mean_and_error(games) == mean_and_error(games[::-1])


# ------------------------------------------------------------------------------------------------------- an evaluation


@pytest.mark.parametrize(
    ("flags", "episodes"), [(CARTPOLE, 20), ([*SHORT_PONG, "--sticky_actions=0.25"], 2)], ids=WORLDS
)
def test_an_evaluation_is_a_function_of_the_weights(flags, episodes):
    evaluator, model = evaluator_of(*flags, episodes=episodes)

    def play():
        result = evaluator.evaluate(never)
        return result, [{name: part.tobytes() for name, part in s.items()} for s in evaluator._envs.get_states()]

    weight = model.policy_head.get_parameter("weight")
    first, before = play(), weight.detach().clone()
    with torch.no_grad():
        weight += torch.linspace(-3.0, 3.0, weight.numel()).view_as(weight)
    assert play() != first
    with torch.no_grad():
        weight.copy_(before)
    assert play() == first


def test_returns_are_raw_and_of_whole_games(dice):
    evaluator, _ = evaluator_of(*dice, "--clip_rewards", "--reward_scale=0.01", episodes=1)
    result = evaluator.evaluate(never)
    assert result.return_mean > 0 and result.return_mean % REWARD == 0
    assert (result.return_stderr, result.episodes) == (None, 1)


@pytest.mark.parametrize(("ranks", "episodes"), [(2, 5), (3, 20), (4, 2)])
def test_the_result_is_the_same_at_any_number_of_ranks_and_known_to_all(ranks, episodes):
    config = config_of(*CARTPOLE, episodes=episodes)
    evaluator, model = evaluator_of(*CARTPOLE, episodes=episodes)
    results = on_ranks(ranks, lambda comm: Evaluator(config, comm, model).evaluate(never))
    alone = evaluator.evaluate(never)
    assert results == [alone] * ranks
    assert alone.episodes == episodes


def test_a_rank_that_is_asked_to_stop_stops_all_and_the_next_evaluation_is_whole():
    config = config_of(*CARTPOLE)
    alone, model = evaluator_of(*CARTPOLE)

    def work(comm):
        evaluator = Evaluator(config, comm, model)
        return evaluator.evaluate(lambda: comm.rank == 1), evaluator.evaluate(never)

    assert on_ranks(2, work) == [(None, alone.evaluate(never))] * 2


def test_ranks_give_signs_of_life_however_long_the_games_of_one_of_them_are(dice):
    flags = (*dice, '--env_kwargs={"endless": true}', "--max_game_steps=450")
    config = config_of(*flags, episodes=1)
    _, model = evaluator_of(*flags)

    def work(comm):
        calls = []
        Evaluator(config, comm, model).evaluate(lambda: bool(calls.append(None)))
        return len(calls), len(share(1, comm.rank, comm.size))

    assert sorted(on_ranks(2, work)) == [(5, 0), (5, 1)]  # one of them has no game at all


def test_a_policy_that_cannot_act_halts_the_run_on_all_ranks(monkeypatch):
    config, model = config_of(*CARTPOLE, episodes=2), evaluator_of(*CARTPOLE)[1]
    choose = Actor.choose

    def choose_or_fail(actor, observations):
        if 1 in actor._indices:  # the game of rank 1
            raise FloatingPointError("the outputs are not finite")
        return choose(actor, observations)

    def work(comm):
        evaluator = Evaluator(config, comm, model)
        with pytest.raises(Halt, match="outputs in an evaluation are not finite"):
            evaluator.evaluate(never)
        return comm.rank, len(evaluator._slots)

    monkeypatch.setattr(Actor, "choose", choose_or_fail)
    assert sorted(on_ranks(3, work)) == [(0, 0), (1, 1), (2, 1)]  # rank 0 has no game


def test_it_acts_as_the_agent_will_be_saved_to_act(monkeypatch):
    def results():
        return [evaluator_of(*CARTPOLE, f"--act={rule}")[0].evaluate(never) for rule in ("saved", "sample", "mode")]

    before = results()
    monkeypatch.setattr("ppo.games.stream", lambda seed, *address: stream(seed + 1, *address))
    after = results()
    assert before[0] == before[1] != after[1]  # a categorical policy is sampled by default
    assert before[2] == after[2]


def test_its_games_are_not_those_of_mode_evaluate(tmp_path):
    flags = [*CARTPOLE, "--env_steps=64", "--evaluation_interval=1", "--evaluation_episodes=20"]
    assert run_ppo(tmp_path, *flags).returncode == 0
    judged = run_ppo(tmp_path, "--env_name=CartPole-v1", "--mode=evaluate", "--episodes=20")
    assert evaluations(tmp_path, "CartPole-v1") != {1: str(json.loads(judged.stdout.splitlines()[-1])["return_mean"])}


# ------------------------------------------------------------------------------------------------------- in a training


@pytest.mark.parametrize("world", WORLDS)
def test_training_is_the_same_with_and_without_evaluations(world, tmp_path):
    with_them, without = tmp_path / "with", tmp_path / "without"
    flags = [*WORLDS[world], "--env_steps=320", "--evaluation_episodes=3"]
    for folder, more in ((with_them, ["--evaluation_interval=2"]), (without, [])):
        folder.mkdir()
        assert run_ppo(folder, *flags, *more).returncode == 0
    for file_name in ("model.safetensors", "training.safetensors"):
        relative = f"checkpoints/{world}/step_000000000320/{file_name}"
        assert (with_them / relative).read_bytes() == (without / relative).read_bytes()
    for log in ("progress.csv", "episodes.csv"):
        first, second = (
            rows(folder / "runs" / world / log, ignore=("time/", "evaluation/")) for folder in (with_them, without)
        )
        assert first == second
    assert list(evaluations(with_them, world)) == [2, 4]
    assert not evaluations(without, world)


def test_resuming_gives_the_same_evaluations_and_merits_as_never_stopping(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    flags = [*CARTPOLE, "--learning_rate_schedule=constant", "--checkpoint_interval=1000", "--keep_checkpoints=all"]
    flags += ["--evaluation_interval=2", "--evaluation_episodes=5"]
    for folder, lengths in ((whole, [640]), (stopped, [192, 640])):
        folder.mkdir()
        for env_steps in lengths:
            assert run_ppo(folder, *flags, f"--env_steps={env_steps}").returncode == 0
    logs = [rows(f / "runs/CartPole-v1/progress.csv", ignore=("time/",)) for f in (whole, stopped)]
    assert logs[0] == logs[1]
    assert list(evaluations(whole, "CartPole-v1")) == [2, 4, 6, 8, 10]
    saved = [
        {m.counters.update: m.counters.evaluation_return for m in manifests(f, "CartPole-v1")} for f in (whole, stopped)
    ]
    assert saved[0] == {update: saved[1][update] for update in range(0, 11, 2)}
    assert saved[1].keys() - saved[0].keys() == {3}  # where it was stopped
    assert saved[1][0] is saved[1][3] is None


def test_every_evaluation_is_followed_by_a_checkpoint_and_the_highest_is_the_best(tmp_path):
    flags = [*CARTPOLE, "--env_steps=640", "--checkpoint_interval=3", "--keep_checkpoints=all"]
    flags += ["--learning_rate=0.01", "--evaluation_interval=2", "--evaluation_episodes=5"]
    assert run_ppo(tmp_path, *flags).returncode == 0
    logged = evaluations(tmp_path, "CartPole-v1")
    saved = {m.counters.update: m.counters.evaluation_return for m in manifests(tmp_path, "CartPole-v1")}
    assert saved.keys() == {0, 2, 3, 4, 6, 8, 9, 10}
    assert {update: str(mean) for update, mean in saved.items() if mean is not None} == logged
    best = checkpoint.choose(tmp_path / "checkpoints/CartPole-v1", "best", lambda _, manifest: manifest, print)
    highest = max(map(float, logged.values()))
    assert best.counters.update == max(update for update, mean in logged.items() if float(mean) == highest)


def test_the_time_of_an_evaluation_counts_and_is_shown(tmp_path):
    job = run_ppo(tmp_path, *CARTPOLE, "--env_steps=192", "--evaluation_interval=2", "--evaluation_episodes=5")
    log = rows(tmp_path / "runs/CartPole-v1/progress.csv")
    spent = [float(row["time/evaluation"]) for row in log]
    assert spent[0] == spent[2] == 0.0 < spent[1]
    phases = sum(float(log[1][f"time/{name}"]) for name in ("env", "inference", "learn", "communicate", "evaluation"))
    assert phases <= float(log[1]["time/seconds"]) - float(log[0]["time/seconds"]) + 0.001
    assert [row["evaluation/episodes"] for row in log] == ["", "5", ""]
    assert f"evaluation {float(log[1]['evaluation/return_mean']):.2f} ± " in job.stdout


def test_a_signal_ends_an_evaluation_and_what_was_learnt_is_saved(tmp_path, monkeypatch):
    evaluate = Evaluator.evaluate

    def interrupted(evaluator, stops):
        os.kill(os.getpid(), signal.SIGUSR1)
        return evaluate(evaluator, stops)

    monkeypatch.setattr(Evaluator, "evaluate", interrupted)
    job = run_ppo(tmp_path, *CARTPOLE, "--env_steps=640", "--evaluation_interval=2")
    assert job.returncode == 75, job.stderr
    assert not evaluations(tmp_path, "CartPole-v1")
    assert [m.counters.update for m in manifests(tmp_path, "CartPole-v1")] == [0, 2]


def test_an_action_that_the_policy_does_not_have_is_refused_before_anything_is_made(tmp_path):
    job = run_ppo(tmp_path, *CARTPOLE, "--act=mean")
    assert job.returncode == 2
    assert "act must be one of saved, mode, sample for categorical actions, got mean" in job.stderr
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- what remains of it


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """The manifest of a checkpoint that was evaluated, as data."""
    folder = tmp_path_factory.mktemp("evaluated")
    assert run_ppo(folder, *CARTPOLE, "--env_steps=64", "--evaluation_interval=1").returncode == 0
    return json.loads((folder / "checkpoints/CartPole-v1/step_000000000064/manifest.json").read_text())


def with_evaluation(manifest, value):
    counters = {**manifest["counters"], "evaluation_return": value}
    return json.dumps(sealed({**manifest, "counters": counters})).encode()


@pytest.mark.parametrize("value", ["200", True, [1.0], {}, math.inf, math.nan, "missing"])
def test_a_forged_evaluation_is_damage(value, manifest):
    content = with_evaluation(manifest, value)
    if value == "missing":
        counters = {name: v for name, v in manifest["counters"].items() if name != "evaluation_return"}
        content = json.dumps(sealed({**manifest, "counters": counters})).encode()
    with pytest.raises(DamagedCheckpointError):
        decode_manifest(content)


def test_an_evaluation_counts_more_than_the_games_of_training(manifest):
    def merit(evaluation, returns):
        data = {**manifest, "counters": {**manifest["counters"], "recent_returns": returns}}
        return decode_manifest(with_evaluation(data, evaluation)).merit

    ordered = [merit(None, []), merit(None, [500.0]), merit(None, [300.0] * 100), merit(-10, []), merit(7.5, [1.0])]
    assert ordered == sorted(ordered) and len(set(ordered)) == len(ordered)


METRICS = {
    "update": 3,
    "env_steps": 250_000,
    "time/steps_per_second": 1000.0,
    "time/evaluation": 3.14159,
    "rollout/return_mean": -20.25,
    "rollout/episodes": 7,
    "evaluation/return_mean": 187.333,
    "evaluation/return_stderr": 12.125,
    "evaluation/episodes": 10,
    **{f"update/{name}": 0.5 for name in ("policy_loss", "value_loss", "entropy", "approx_kl", "learning_rate")},
}
NOT_EVALUATED = {**METRICS, **{f"evaluation/{name}": None for name in ("return_mean", "return_stderr", "episodes")}}


def test_a_line_shows_the_evaluation_with_its_error_and_cost_where_there_was_one():
    assert describe_evaluation(METRICS) == "187.33 ± 12.12 over 10 games in 3.1 s"
    assert describe_evaluation({**METRICS, "evaluation/return_stderr": None}) == "187.33 over 1 game in 3.1 s"
    assert summary_line(METRICS, 1_000_000).endswith("evaluation 187.33 ± 12.12 over 10 games in 3.1 s")
    assert "evaluation" not in summary_line(NOT_EVALUATED, 1_000_000)


def test_no_evaluation_falls_between_two_lines(capsys):
    lines = PlainLines(1_000_000)
    for metrics in (NOT_EVALUATED, NOT_EVALUATED, METRICS, NOT_EVALUATED):
        lines.log(metrics, [])
    assert ["evaluation" in line for line in capsys.readouterr().out.splitlines()] == [False, True]


def test_the_table_shows_the_last_evaluation(capsys):
    table = LiveTable("Pong", 1_000_000, Terminal(columns=100, rows=40))
    table.log(METRICS, [])
    capsys.readouterr()
    table.log({**NOT_EVALUATED, "env_steps": 260_000}, [])
    shown = capsys.readouterr().out
    assert "187.33 ± 12.12 over 10 games" in shown
    assert "250,000 steps, in 3.1 s" in shown
    table.close()
