"""Transformed rewards compared with a plain loop over one environment at a time."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from ppo.algorithm.rewards import RewardTransform
from ppo.algorithm.rollout import Rollout
from ppo.collectives import Alone, share
from ppo.collectives.moments import moments_over_ranks
from tests.algorithm.learners import SETTINGS, build, weights_of
from tests.ranks import on_ranks

STEPS, NUM_ENVS = 12, 3


def moments_of(samples):
    return moments_over_ranks(samples, Alone())


def a_rollout(number=0, num_envs=NUM_ENVS):
    """Return a rollout with rewards from -30 to 30, in which lives and games end."""
    generator = np.random.default_rng(number)
    rewards = torch.from_numpy(generator.normal(size=(STEPS, num_envs)) * 10.0).float()
    rewards[generator.random((STEPS, num_envs)) < 0.3] = 0.0
    game_ends = torch.from_numpy(generator.random((STEPS, num_envs)) < 0.15)
    lives = torch.from_numpy(generator.random((STEPS, num_envs)) < 0.3)
    nothing = torch.zeros(STEPS, num_envs)
    ends = {"dones": game_ends | lives, "game_ends": game_ends}
    return Rollout(*[nothing] * 6, rewards=rewards, **ends, last_observations=nothing)


def part_of(rollout, environments):
    tensors = {name: value for name, value in vars(rollout).items() if isinstance(value, torch.Tensor)}
    return Rollout(**{name: tensor[:, environments] for name, tensor in tensors.items()})


def transform(num_envs=NUM_ENVS, **changes):
    return RewardTransform(dataclasses.replace(SETTINGS, **changes), num_envs)


class PlainLoop:
    """One list of discounted returns per environment, and numpy's deviation of all of them."""

    def __init__(self, discount=0.99):
        self.discount, self.returns, self.running = discount, [], {}

    def deviation(self, rewards, game_ends):
        for n in range(rewards.shape[1]):
            for reward, ended in zip(rewards[:, n].tolist(), game_ends[:, n].tolist(), strict=True):
                self.running[n] = reward + self.discount * self.running.get(n, 0.0)
                self.returns.append(self.running[n])
                if ended:
                    self.running[n] = 0.0
        return float(np.std(self.returns))


def test_rewards_are_learnt_from_as_they_are_by_default():
    rollout = a_rollout()
    assert torch.equal(transform()(rollout, moments_of), rollout.rewards)


def test_clipped_rewards_are_their_signs():
    rollout = a_rollout()
    got = transform(clip_rewards=True)(rollout, moments_of)
    assert got.tolist() == [[math.copysign(1.0, r) if r else 0.0 for r in row] for row in rollout.rewards.tolist()]
    assert set(got.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_scaled_rewards_are_multiplied():
    rollout = a_rollout()
    assert torch.equal(transform(reward_scale=0.05)(rollout, moments_of), rollout.rewards * 0.05)


def test_the_sign_comes_before_the_scale_and_the_bound_after_it():
    rollout = a_rollout()
    got = transform(clip_rewards=True, reward_scale=5.0, reward_clip=2.0)(rollout, moments_of)
    assert set(got.unique().tolist()) == {-2.0, 0.0, 2.0}
    bounded = transform(reward_scale=0.5, reward_clip=2.0)(rollout, moments_of)
    assert torch.equal(bounded, (rollout.rewards * 0.5).clamp(-2.0, 2.0))
    assert bounded.min() == -2.0 and bounded.max() == 2.0 and bounded.unique().numel() > 4


@pytest.mark.parametrize("changes", [{}, {"reward_scale": 0.1}, {"clip_rewards": True}, {"discount": 0.5}])
def test_normalised_rewards_are_divided_by_the_deviation_of_all_returns_so_far(changes):
    normalise, plain = transform(reward_normalization=True, **changes), PlainLoop(changes.get("discount", 0.99))
    before = transform(**changes)
    for number in range(3):
        rollout = a_rollout(number)
        rewards = before(rollout, moments_of)
        expected = rewards / plain.deviation(rewards, rollout.game_ends)
        torch.testing.assert_close(normalise(rollout, moments_of), expected)


def test_the_bound_is_that_of_normalised_rewards():
    rollout = a_rollout()
    plain = transform(reward_normalization=True)(rollout, moments_of)
    bounded = transform(reward_normalization=True, reward_clip=0.5)(rollout, moments_of)
    assert torch.equal(bounded, plain.clamp(-0.5, 0.5)) and not torch.equal(bounded, plain)


def test_a_rollout_without_rewards_gives_none():
    rollout = a_rollout()
    nothing = dataclasses.replace(rollout, rewards=torch.zeros_like(rollout.rewards))
    assert not transform(reward_normalization=True)(nothing, moments_of).any()


def test_running_returns_end_with_games_and_not_with_lives():
    rewards, never = torch.ones(STEPS, 1), torch.zeros(STEPS, 1, dtype=torch.bool)
    always = ~never
    endless = sum(0.99**k for k in range(STEPS))
    for dones, game_ends, last in ((always, never, endless), (always, always, 0.0)):
        rollout = dataclasses.replace(a_rollout(num_envs=1), rewards=rewards, dones=dones, game_ends=game_ends)
        normalise = transform(1, reward_normalization=True)
        normalise(rollout, moments_of)
        (state,) = normalise.environment_states()
        assert state["running_return"] == pytest.approx(last)


def test_the_rollout_keeps_its_raw_rewards():
    rollout = a_rollout()
    before = rollout.rewards.clone()
    transform(clip_rewards=True, reward_scale=3.0, reward_normalization=True, reward_clip=0.1)(rollout, moments_of)
    assert torch.equal(rollout.rewards, before)


def test_a_restored_transform_continues_bit_for_bit():
    whole, first = (transform(reward_normalization=True) for _ in range(2))
    for normalise in (whole, first):
        normalise(a_rollout(0), moments_of)
    restored = transform(reward_normalization=True)
    restored.load_state_dict(first.state_dict())
    states = first.environment_states()
    assert len(states) == NUM_ENVS and all(state["running_return"].shape == (1,) for state in states)
    restored.set_environment_states(states)
    assert torch.equal(restored(a_rollout(1), moments_of), whole(a_rollout(1), moments_of))
    assert torch.equal(restored.state_dict()["return_moments"], whole.state_dict()["return_moments"])


def test_a_state_that_was_taken_does_not_change_with_later_rollouts():
    normalise = transform(reward_normalization=True)
    normalise(a_rollout(0), moments_of)
    state, environments = normalise.state_dict()["return_moments"].clone(), normalise.environment_states()
    taken = (normalise.state_dict()["return_moments"], [e["running_return"].copy() for e in environments])
    normalise(a_rollout(1), moments_of)
    assert torch.equal(taken[0], state)
    assert [e["running_return"].tolist() for e in environments] == [returns.tolist() for returns in taken[1]]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_scale_by_the_deviation_of_one_with_all_environments(ranks):
    rollouts = [a_rollout(number) for number in range(3)]

    def work(comm):
        own = share(NUM_ENVS, comm.rank, comm.size)
        normalise = transform(len(own), reward_normalization=True)
        parts = [part_of(rollout, slice(own.start, own.stop)) for rollout in rollouts]
        scaled = [normalise(part, lambda samples: moments_over_ranks(samples, comm)) for part in parts]
        return scaled, normalise.state_dict()["return_moments"]

    whole = transform(reward_normalization=True)
    expected = [whole(rollout, moments_of) for rollout in rollouts]
    scaled, moments = zip(*on_ranks(ranks, work), strict=True)
    for number in range(3):
        torch.testing.assert_close(torch.cat([parts[number] for parts in scaled], 1), expected[number])
    assert all(torch.equal(one, moments[0]) for one in moments)
    torch.testing.assert_close(moments[0], whole.state_dict()["return_moments"], rtol=1e-12, atol=0.0)


def test_an_update_learns_from_transformed_rewards():
    weights = []
    for changes, halve in (({"reward_scale": 0.5}, False), ({}, True), ({}, False)):
        settings = dataclasses.replace(SETTINGS, advantage_normalization="none", **changes)
        model, collector, learner = build(settings)
        rollout, _ = collector.collect(0)
        if halve:
            rollout = dataclasses.replace(rollout, rewards=rollout.rewards * 0.5)
        learner.update(rollout, update=0, env_steps=0, progress=0.0)
        weights.append(weights_of(model))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
