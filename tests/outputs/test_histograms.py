"""What TensorBoard is told of a rollout: a bounded sample that costs the training nothing and changes no bit of it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo.config import ModelSettings
from ppo.outputs import histograms, tensorboard
from ppo.outputs.histograms import MOST_NUMBERS, Look, look_at
from ppo.outputs.tensorboard import UPDATES_BETWEEN_LOOKS, TensorBoard
from tests.algorithm.learners import build
from tests.algorithm.worlds import ScriptedWorld
from tests.jobs import CARTPOLE, ON_PROCESSORS, PONG, ppo, weights

BOX = spaces.Box(-3.0, 5.0, (2,))


def looked(actions: spaces.Space, **model: object) -> tuple[Look, object, object, object]:
    """Learn from a rollout and look at it."""
    network, collector, learner = build(world=ScriptedWorld(actions=actions), model=ModelSettings(**model))
    rollout, _ = collector.collect(0)
    learner.update(rollout, update=0, env_steps=0, progress=0.0)
    assert learner.samples is not None and collector.newest is rollout
    return look_at(rollout, learner.samples, network.distribution), rollout, learner.samples, network.distribution


def test_every_number_of_a_small_rollout_is_counted_in_each_dimension_by_itself() -> None:
    look, rollout, samples, _ = looked(BOX)
    expected = {f"observations/{number}": rollout.observations[..., number] for number in range(3)}
    expected |= {f"actions/{number}": rollout.actions[..., number] for number in range(2)}
    expected |= {"rewards": rollout.rewards, "returns": samples.returns, "advantages": samples.advantages}
    assert look.histograms.keys() == expected.keys()
    for name, histogram in look.histograms.items():
        np.testing.assert_array_equal(histogram.numbers, expected[name].flatten().double(), err_msg=name)
        counts, _ = np.histogram(expected[name].flatten().double(), histogram.edges)
        np.testing.assert_array_equal(histogram.counts, counts)
        assert histogram.counts.sum() == rollout.rewards.numel()


@pytest.mark.parametrize("actions", [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)])
def test_categories_have_mean_probabilities(actions: spaces.Space) -> None:
    look, rollout, _, distribution = looked(actions)
    assert look.means.keys() == {f"policy/probability/{number}" for number in range(distribution.num_outputs)}
    parts = [2, 3] if isinstance(actions, spaces.MultiDiscrete) else [distribution.num_outputs]
    if isinstance(actions, spaces.MultiBinary):
        expected = rollout.outputs.sigmoid()
    else:
        expected = torch.cat([part.softmax(-1) for part in torch.split(rollout.outputs, parts, -1)], -1)
    np.testing.assert_allclose(list(look.means.values()), expected.flatten(0, 1).mean(0), rtol=1e-5)


@pytest.mark.parametrize("policy", ["gaussian", "beta"])
def test_continuous_actions_have_a_mean_deviation(policy: str) -> None:
    look, rollout, _, distribution = looked(BOX, policy=policy)
    (mean,) = look.means.items()
    assert mean == ("policy/deviation", pytest.approx(distribution.deviation(rollout.outputs).mean().item()))


def test_a_rollout_that_is_not_learnt_from_is_looked_at_without_what_was_learnt() -> None:
    network, collector, learner = build()
    learner.update(collector.collect(0)[0], update=0, env_steps=0, progress=0.0)
    rollout, _ = collector.collect(1)
    learner.no_update()
    assert learner.samples is None
    look = look_at(rollout, learner.samples, network.distribution)
    assert "rewards" in look.histograms and not {"returns", "advantages"} & look.histograms.keys()


VECTORS = [(8, 3), (2048, 8), (256, 16, 4), (128, 8, 33), (4, 2, 100_000)]
SHAPES = [*VECTORS, (128, 8, 4, 84, 84), (16, 4, 3, 7, 5), (3, 2, 1, 1, 900)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_look_takes_a_bounded_sample_of_all_steps_and_environments(shape: tuple[int, ...]) -> None:
    steps, environments, *of_a_row = shape
    numbers = torch.arange(steps * environments).view(steps, environments, *[1] * len(of_a_row)).expand(shape)
    rows = histograms._sampled(numbers)
    assert rows.numel() <= MOST_NUMBERS
    taken = rows.flatten(1)[:, 0] if of_a_row else rows
    assert len(taken) >= min(steps * environments, 8)
    assert taken.max() >= 0.8 * numbers.max()
    if len(taken) >= environments:
        assert len((taken % environments).unique()) == environments


@pytest.mark.parametrize(
    "numbers", [[], [1.0], [0.0] * 5, [np.nan, np.inf], [np.nan, 2.0, 3.0], [-3e38, 3e38], [0.0, 1e-45]]
)
def test_no_numbers_are_too_odd_for_a_histogram(tmp_path: Path, numbers: list[float]) -> None:
    histogram = histograms._histogram(np.array(numbers))
    finite = [number for number in numbers if np.isfinite(number)]
    assert histogram.counts.sum() == len(finite)
    TensorBoard(tmp_path, 0, look=lambda: Look({"odd": histogram}, {})).log({"update": 1, "env_steps": 1}, [])
    (event,) = EventAccumulator(str(tmp_path)).Reload().Histograms("odd")
    assert event.histogram_value.num == len(finite)


def test_tensorboard_looks_in_the_first_of_every_ten_updates_and_shows_the_texts(tmp_path: Path) -> None:
    looks = []

    def look() -> Look:
        looks.append(histograms._histogram(np.arange(10.0) * (1 + len(looks))))
        return Look({"rewards": looks[-1]}, {"policy/deviation": 0.5})

    for resumed, updates in ((0, range(1, 33)), (12, range(13, 43))):
        board = TensorBoard(tmp_path, resumed * 100, texts={"network": f"from {resumed}"}, look=look)
        for update in updates:
            board.log({"update": update, "env_steps": update * 100}, [])
        board.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0, "histograms": 0}).Reload()
    # What the first start had written past update 12 is hidden.
    assert UPDATES_BETWEEN_LOOKS == 10
    shown = [(event.step, event.histogram_value.max) for event in events.Histograms("rewards")]
    assert shown == [(100, 9.0), (1100, 18.0), (2100, 45.0), (3100, 54.0), (4100, 63.0)]
    assert [event.step for event in events.Scalars("policy/deviation")] == [100, 1100, 2100, 3100, 4100]
    texts = [(event.step, event.tensor_proto.string_val[0]) for event in events.Tensors("network")]
    assert texts == [(0, b"from 0"), (1200, b"from 12")]


CONTINUOUS = [
    *("--env_name=ppo/ContinuousCartPole-v0", "--num_envs=4", "--rollout_steps=16", "--minibatch_size=32"),
    ON_PROCESSORS,
]
WORLDS = {"CartPole-v1": CARTPOLE, "PongNoFrameskip-v4": PONG, "ppo-ContinuousCartPole-v0": CONTINUOUS}


@pytest.mark.parametrize(
    "world", [pytest.param(world, marks=pytest.mark.slow if "Pong" in world else []) for world in WORLDS]
)
def test_looking_changes_no_bit_of_the_training(world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "UPDATES_BETWEEN_LOOKS", 2)
    assert ppo(tmp_path, *WORLDS[world], "--env_steps=128", "--model_name=looking").returncode == 0
    monkeypatch.setattr("ppo.run_trackers.look_at", lambda *given: Look({}, {}))
    assert ppo(tmp_path, *WORLDS[world], "--env_steps=128", "--model_name=blind").returncode == 0
    looking, blind = (weights(tmp_path, name, 128) for name in ("looking", "blind"))
    assert looking.keys() == blind.keys()
    assert all(np.array_equal(looking[name], blind[name]) for name in looking)
    for name, seen in (("looking", True), ("blind", False)):
        tags = EventAccumulator(str(tmp_path / "runs" / name)).Reload().Tags()["histograms"]
        assert bool(tags) == seen
    texts = EventAccumulator(str(tmp_path / "runs/looking")).Reload()
    network = texts.Tensors("network")[0].tensor_proto.string_val[0].decode()
    count = sum(array.size for name, array in looking.items() if re.search(r"\.(weight|bias|log_deviations)$", name))
    assert network.startswith(f"{count:,} parameters\n\n    ActorCritic(\n")
    assert '"env_steps": 128' in texts.Tensors("settings")[0].tensor_proto.string_val[0].decode()
