import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

from ppo.algorithm import equations
from ppo.algorithm.rollout import Collector
from ppo.collectives.moments import Moments, RunningMoments
from ppo.config import ModelSettings
from ppo.models.actor_critic import build_model
from tests.algorithm.learners import sharpen
from tests.algorithm.worlds import ScriptedWorld, WorldInGroups


def make(kind=ScriptedWorld, *, steps=7, seed=0, normalizer=None, indices=range(3)):
    world = kind()
    model = build_model(world.single_observation_space, world.single_action_space, ModelSettings(), seed=1)
    sharpen(model, 300.0)
    collector = Collector(world, model, normalizer or RunningMoments(), indices=indices, rollout_steps=steps, seed=seed)
    collector.reset()
    return world, model, collector


def collect(kind=ScriptedWorld, *, updates=1, **how):
    world, model, collector = make(kind, **how)
    for update in range(updates):
        rollout, episodes = collector.collect(update)
    return world, model, rollout, episodes


def predict(model, observations):
    with torch.no_grad():
        return model(torch.as_tensor(observations))


def values_of(model, observations):
    return predict(model, observations).values


def check_that_rows_belong_together(model, rollout):
    """Assert that every row's outputs, log-probability and value are those of its own observation."""
    said = predict(model, rollout.observations.flatten(0, 1))
    torch.testing.assert_close(rollout.outputs.flatten(0, 1), said.action)
    expected = model.distribution.log_prob(said.action, rollout.actions.flatten(0, 1))
    torch.testing.assert_close(rollout.log_probs.flatten(), expected)
    torch.testing.assert_close(rollout.values.flatten(), said.values)


def check_that_ends_are_stored(rollout):
    """Assert that every kind of end is on its own step, and that nothing leaks across it."""
    for environment in range(3):
        assert rollout.dones[:, environment].tolist() == [False, False, True, False, False, True, False]
    late = rollout.rewards.clone()
    late[3:] += 1000.0
    advantages = [
        equations.gae(rewards, rollout.values, rollout.next_values, rollout.dones, discount=0.99, gae_lambda=0.95)
        for rewards in (rollout.rewards, late)
    ]
    assert torch.equal(advantages[0][:3], advantages[1][:3])


def test_a_row_holds_the_observation_its_action_was_taken_in():
    world, model, rollout, _ = collect()
    assert rollout.observations[:, 0, 0].tolist() == list(range(7))
    check_that_rows_belong_together(model, rollout)
    assert np.array_equal(rollout.actions.numpy(), np.stack(world.actions))


def test_an_observation_stored_after_the_step_that_left_it_is_noticed(monkeypatch):
    # As in a published repair of CarRacing agents: s_{t+1} beside a_t, log pi(a_t|s_t) and V(s_t).
    before = {}

    def upload_late(collector, row, group):
        shown = torch.from_numpy(collector._envs.observations[group]).clone()
        if group.start in before:
            before[group.start].copy_(shown)
        before[group.start] = row.copy_(shown)
        return shown

    monkeypatch.setattr(Collector, "_upload", upload_late)
    _, model, rollout, _ = collect()
    assert rollout.observations[:-1, 0, 0].tolist() == list(range(1, 7))
    with pytest.raises(AssertionError):
        check_that_rows_belong_together(model, rollout)


def test_a_row_holds_the_reward_its_action_earned():
    _, _, rollout, _ = collect()
    torch.testing.assert_close(rollout.rewards, 100.0 * rollout.observations[..., 0] + rollout.actions)


def test_every_kind_of_end_is_stored_on_the_step_that_led_to_it():
    check_that_ends_are_stored(collect()[2])


class EndsAreCleared(ScriptedWorld):
    """A block that clears the flags of ends before they are stored."""

    def step(self, actions):
        observations, rewards, terminated, truncated, info = super().step(actions)
        info["life_lost"] = np.zeros(3, bool)
        return observations, rewards, np.zeros_like(terminated), np.zeros_like(truncated), info


def test_ends_that_are_cleared_before_they_are_stored_are_noticed():
    _, model, rollout, _ = collect(EndsAreCleared)
    check_that_rows_belong_together(model, rollout)  # all else is right
    with pytest.raises(AssertionError):
        check_that_ends_are_stored(rollout)
    with pytest.raises(AssertionError):
        check_that_ends_are_stored(dataclasses.replace(collect()[2], dones=torch.zeros(7, 3, dtype=torch.bool)))


def test_games_end_by_termination_and_by_time_and_not_with_a_life():
    _, _, rollout, _ = collect()
    ends = [False, False, True, False, False, True, False]
    assert [rollout.game_ends[:, environment].tolist() for environment in range(3)] == [ends, ends, [False] * 7]


def test_next_values_are_zero_at_an_end_and_the_final_observations_value_at_a_cut():
    _, model, rollout, _ = collect()
    assert rollout.next_values[2].tolist()[0] == 0.0
    assert rollout.next_values[2].tolist()[2] == 0.0
    # The cut episode's last observation has clock 3 in episode 0; the row after it is already episode 1.
    torch.testing.assert_close(rollout.next_values[2, 1], values_of(model, [[3.0, 1.0, 0.0]])[0])
    assert rollout.observations[3, 1].tolist() == [3.0, 1.0, 1.0]


def test_nothing_of_the_rollout_before_is_left_at_an_end():
    _, _, collector = make()
    collector._rollout.next_values.fill_(1000.0)
    rollout, _ = collector.collect(0)
    assert rollout.next_values[2, 0] == rollout.next_values[2, 2] == 0.0
    assert rollout.next_values.abs().max() < 100.0


def test_next_values_are_the_next_rows_values_elsewhere_and_after_the_last_row():
    _, model, rollout, _ = collect()
    torch.testing.assert_close(rollout.next_values[0], rollout.values[1])
    after = values_of(model, [[7.0, 0.0, 2.0], [7.0, 1.0, 2.0], [7.0, 2.0, 0.0]])
    torch.testing.assert_close(rollout.next_values[6], after)


class LivesAreNotEpisodes(ScriptedWorld):
    """The same world, reported without episodic life."""

    def step(self, actions):
        *result, info = super().step(actions)
        return *result, {**info, "life_lost": np.zeros(3, bool)}


def test_a_lost_life_that_is_no_end_of_an_episode_ends_nothing():
    _, _, rollout, _ = collect(LivesAreNotEpisodes)
    assert not rollout.dones[:, 2].any()
    torch.testing.assert_close(rollout.next_values[2, 2], rollout.values[3, 2])


def test_a_lost_life_is_no_finished_game():
    _, _, _, episodes = collect()
    assert [(e.environment, e.step, e.episode_return) for e in episodes] == [
        (0, 2, 10.0),
        (1, 2, 20.0),
        (0, 5, 10.0),
        (1, 5, 20.0),
    ]


@pytest.mark.parametrize("kind", [ScriptedWorld, WorldInGroups])
def test_observations_behind_the_last_step_and_at_every_cut_are_kept(kind):
    for updates in (1, 2):
        _, _, rollout, _ = collect(kind, updates=updates)
        clock = 7.0 * updates
        assert rollout.last_observations[:, 0].tolist() == [clock] * 3
        cuts = [(step, environment, final.tolist()) for step, environment, final in rollout.cuts]
        if updates == 1:
            assert cuts == [(2, 1, [3.0, 1.0, 0.0]), (5, 1, [6.0, 1.0, 1.0])]
        else:
            assert cuts == [(1, 1, [9.0, 1.0, 2.0]), (4, 1, [12.0, 1.0, 3.0])]


def test_values_are_stored_in_raw_units():
    normalizer = RunningMoments()
    normalizer.update(Moments(np.array(1.0), np.array(50.0), np.array(100.0)))
    _, model, rollout, _ = collect(normalizer=normalizer)
    torch.testing.assert_close(rollout.values, values_of(model, rollout.observations) * 10.0 + 50.0)
    torch.testing.assert_close(rollout.next_values[2, 1], values_of(model, [[3.0, 1.0, 0.0]])[0] * 10.0 + 50.0)
    assert rollout.next_values[2, 0] == 0.0


def test_actions_are_addressed_by_environment_and_update():
    _, _, first, _ = collect()
    _, _, again, _ = collect()
    _, _, second_update, _ = collect(updates=2)
    _, _, elsewhere, _ = collect(indices=range(3, 6))
    assert torch.equal(first.actions, again.actions)
    assert not torch.equal(first.actions, second_update.actions)
    assert not torch.equal(first.actions, elsewhere.actions)


def test_groups_of_environments_give_the_rollout_of_one_group():
    # Two updates: the second begins where the groups of the first stood.
    _, _, whole, whole_episodes = collect(updates=2)
    _, _, parts, part_episodes = collect(WorldInGroups, updates=2)
    for name in ("observations", "actions", "rewards", "dones", "game_ends"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name
    for name in ("outputs", "log_probs", "values", "next_values"):  # a product of other shapes may round differently
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    in_order = sorted(part_episodes, key=lambda episode: (episode.step, episode.environment))
    assert in_order == whole_episodes


def test_a_group_gets_its_actions_before_another_is_waited_for():
    world, *_ = collect(WorldInGroups, steps=3)
    assert world.calls == [
        *("send 0", "send 1"),
        *("recv 0", "send 0", "recv 1", "send 1"),
        *("recv 0", "send 0", "recv 1", "send 1"),
        *("recv 0", "recv 1"),
    ]


@pytest.mark.parametrize(
    "actions",
    [
        gymnasium.spaces.Discrete(3, start=5),
        gymnasium.spaces.MultiDiscrete([2, 3]),
        gymnasium.spaces.MultiBinary(4),
        gymnasium.spaces.Box(-3.0, 5.0, (2,)),
    ],
    ids=["categorical", "multi_categorical", "bernoulli", "gaussian"],
)
def test_raw_actions_are_stored_and_the_environment_gets_its_own_form(actions):
    world, model, rollout, _ = collect(lambda: ScriptedWorld(actions=actions))
    distribution = model.distribution
    assert rollout.actions.shape == (7, 3, *distribution.action_shape) and rollout.actions.dtype == distribution.dtype
    assert rollout.outputs.shape == (7, 3, distribution.num_outputs)
    sent = np.stack(world.actions)
    assert np.array_equal(sent, distribution.to_environment(rollout.actions.numpy()))
    assert all(actions.contains(action) for step in sent for action in step)
    check_that_rows_belong_together(model, rollout)


class ShortRewards(ScriptedWorld):
    def step(self, actions):
        observations, rewards, *others = super().step(actions)
        return observations, rewards[:1], *others


def test_an_array_of_another_length_is_not_broadcast():
    with pytest.raises(ValueError, match=r"rewards of 3 environments must have shape \(3,\), got \(1,\)"):
        collect(ShortRewards)
