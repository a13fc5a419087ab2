"""Small worlds: the cost of a block, and the comparison of both programs in their fastest ways."""

import dataclasses
import json
import time

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

pytest.importorskip("Box2D")
pytest.importorskip("mujoco")

from ppo.settings import Refusal
from scripts.benchmarking import small_worlds, stable_baselines3
from scripts.benchmarking.block_cost import main as measure_block_cost
from scripts.benchmarking.plan import QUICK, SMALL_WORLDS, Settings, make_cases, make_world_cases
from scripts.benchmarking.reach import find_targets
from scripts.benchmarking.report import markdown
from scripts.benchmarking.small_worlds import BlockCost, Comparison, Ways, compare, try_ways
from scripts.benchmarking.stable_baselines3 import WAYS
from tests.benchmark import examples

CORES = [0, 1]


class Busy(gymnasium.Env):
    """Takes 20 microseconds of processor time for a step; an episode has three."""

    observation_space, action_space = Box(-1.0, 1.0, (2,), np.float32), Discrete(2, start=1)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert action in self.action_space
        assert self.steps < 3
        end = time.process_time() + 20e-6
        while time.process_time() < end:
            pass
        self.steps += 1
        return np.zeros(2, np.float32), 0.0, self.steps == 3, False, {}


def test_the_cost_of_a_block_is_per_step_of_one_environment(tmp_path):
    gymnasium.register("Busy-v0", Busy)
    try:
        measure_block_cost([str(tmp_path / "cost.json"), "0", "Busy-v0"])
    finally:
        del gymnasium.registry["Busy-v0"]
    cost = BlockCost(**json.loads((tmp_path / "cost.json").read_text()))
    assert 20.0 < cost.bare < 200.0
    assert cost.added == cost.block - cost.bare > 0.0


def test_a_world_is_trained_with_its_own_preset_and_minibatches_of_256_on_every_number_of_ranks():
    cases = make_world_cases(Settings(), 2)
    assert tuple(cases) == SMALL_WORLDS
    assert [case.name for case in cases["CartPole-v1"]] == ["CartPole-v1 -np 1", "CartPole-v1 -np 2"]
    for of_world in cases.values():
        for case in of_world:
            assert case.config.ppo.minibatch_size == 256
    assert cases["CartPole-v1"][0].config.run.preset == "CartPole"
    assert cases["HalfCheetah-v5"][0].config.run.preset == "HalfCheetah"
    assert make_world_cases(Settings(worlds=()), 2) == {}


def test_quick_has_the_worlds_and_no_training_of_theirs():
    assert QUICK.worlds == SMALL_WORLDS
    assert not QUICK.stable_baselines3


@pytest.mark.parametrize(
    ("world", "message"),
    [
        ("CartPol-v1", "did you mean 'CartPole-v1'"),
        ("PongNoFrameskip-v4", "worlds must have vectors as observations"),
        ("CarRacing-v3", "worlds must have vectors as observations"),
    ],
)
def test_other_than_small_worlds_are_refused(world, message):
    with pytest.raises(Refusal, match=message):
        make_world_cases(Settings(worlds=(world,)), 1)


@pytest.fixture
def two_ranks_and_subprocesses_are_fastest(monkeypatch):
    """Records which ways were measured at full length; has the speeds of all ways."""
    measured = []
    ours = {"CartPole-v1 -np 1": 900.0, "CartPole-v1 -np 2": 1000.0}
    theirs = dict(zip(WAYS, [250.0, 180.0, 260.0, 170.0], strict=True))

    def measure_ours(case, cores, settings, ideal):
        measured.append((case.name, ideal))
        return examples.program(ours[case.name], case.ranks)

    def measure_theirs(training, way, settings, share=1.0):
        assert json.loads(training)["env_name"] == "CartPole-v1"
        if share == 1.0:
            measured.append(str(way))
        return theirs[way]

    monkeypatch.setattr(small_worlds, "steps_per_second", lambda case, cores, settings, share: ours[case.name])
    monkeypatch.setattr(small_worlds, "measure_program", measure_ours)
    monkeypatch.setattr(stable_baselines3, "measure", measure_theirs)
    return measured


def test_both_are_compared_in_their_fastest_ways(two_ranks_and_subprocesses_are_fastest):
    cases = make_world_cases(Settings(worlds=("CartPole-v1",)), 2)["CartPole-v1"]
    ways = try_ways(cases, CORES, Settings())
    assert list(ways.program) == ["CartPole-v1 -np 2", "CartPole-v1 -np 1"]
    assert next(iter(ways.stable_baselines3)) == "SubprocVecEnv, default threads"
    found = compare(cases, ways, CORES, Settings())
    assert found.ratio == pytest.approx(1000.0 / 260.0)
    assert two_ranks_and_subprocesses_are_fastest == [("CartPole-v1 -np 2", 1000.0), "SubprocVecEnv, default threads"]


def benchmark(*, added, ratios):
    """A benchmark with a round for each pair of numbers."""
    (case,) = make_cases(Settings(presets=("paper",), ranks=(1,), stable_baselines3=False), 1, [])
    found = examples.benchmark(*[(1000.0,)] * len(added), cases=[case])
    rounds = [
        dataclasses.replace(
            measured,
            block_costs={"CartPole-v1": BlockCost(5.0, 5.0 + us)},
            worlds={"CartPole-v1": Comparison(examples.program(1000.0 * ratio, 2), 1000.0)},
        )
        for measured, us, ratio in zip(found.rounds, added, ratios, strict=True)
    ]
    ways = Ways({"CartPole-v1 -np 2": 2400.0, "CartPole-v1 -np 1": 2000.0}, {"DummyVecEnv, 1 thread": 1000.0})
    return dataclasses.replace(found, rounds=rounds, ways_by_world={"CartPole-v1": ways})


@pytest.mark.parametrize(("us", "met"), [(14.9, True), (15.1, False)])
def test_a_block_may_add_15_microseconds(us, met):
    (target,) = (t for t in find_targets(benchmark(added=[1.0, us, 99.0], ratios=[3.0] * 3)) if "added" in t.what)
    assert "64 of CartPole-v1" in target.what
    assert (target.measured.median, target.met) == (pytest.approx(us), met)


@pytest.mark.parametrize(("ratio", "met"), [(2.51, True), (2.49, False)])
def test_stable_baselines3_must_take_two_and_a_half_times_as_long(ratio, met):
    found = benchmark(added=[1.0] * 3, ratios=[1.0, ratio, 9.0])
    (target,) = (t for t in find_targets(found) if "same network and sizes" in t.what)
    assert "CartPole-v1 -np 2" in target.what
    assert (target.measured.median, target.met) == (pytest.approx(ratio), met)


def test_the_report_shows_costs_speeds_and_the_ways_that_were_tried():
    text = markdown(benchmark(added=[4.0], ratios=[2.6]), figure=None)
    assert "| CartPole-v1 | 5.0 | 9.0 | 4.0 |" in text
    assert "| CartPole-v1 -np 2 | 2,600 | 1,000 | 2.60 |" in text
    assert "CartPole-v1: CartPole-v1 -np 2 2,400, CartPole-v1 -np 1 2,000, DummyVecEnv, 1 thread 1,000." in text
    assert "## Small worlds" not in markdown(examples.benchmark((900, 1800, 1)), figure=None)


def test_what_was_measured_of_worlds_can_be_read_back_from_json():
    data = json.loads(json.dumps(benchmark(added=[4.0], ratios=[2.6]).to_dict()))
    assert data["rounds"][0]["block_costs"]["CartPole-v1"] == {"bare": 5.0, "block": 9.0}
    assert data["rounds"][0]["worlds"]["CartPole-v1"]["stable_baselines3"] == 1000.0
    assert data["ways_by_world"]["CartPole-v1"]["program"]["CartPole-v1 -np 1"] == 2000.0
