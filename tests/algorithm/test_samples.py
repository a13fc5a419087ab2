"""From a rollout to samples: advantages, returns, their normalisation, and the explained variance."""

import dataclasses

import numpy as np
import pytest
import torch

from ppo.algorithm import equations
from ppo.algorithm.rollout import Rollout
from ppo.algorithm.samples import Samples, gather_minibatches, prepare
from ppo.collectives import Alone
from ppo.collectives.moments import RunningMoments, moments_over_ranks
from tests.algorithm.learners import SETTINGS


def moments_of(samples):
    return moments_over_ranks(samples, Alone())


def a_rollout(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(8, 3, *shape, generator=generator)

    dones = normal() > 1.0
    return Rollout(
        observations=normal(4),
        actions=normal(2),
        outputs=normal(5),
        log_probs=normal(),
        values=normal(),
        next_values=normal(),
        rewards=normal(),
        dones=dones,
        game_ends=dones,
        last_observations=torch.randn(3, 4, generator=generator),
    )


def samples_of(rollout, *, normalizer=None, rewards=None, gae_lambda=0.95, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    rewards = rollout.rewards if rewards is None else rewards
    return prepare(rollout, rewards, normalizer or RunningMoments(), settings, moments_of, gae_lambda=gae_lambda)


def advantages_of(rollout, rewards=None, gae_lambda=0.95):
    rewards = rollout.rewards if rewards is None else rewards
    return equations.gae(
        rewards, rollout.values, rollout.next_values, rollout.dones, discount=0.99, gae_lambda=gae_lambda
    )


def test_everything_is_flattened_the_same_way_step_by_step():
    rollout = a_rollout()
    samples, _ = samples_of(rollout, advantage_normalization="none")
    for name in ("actions", "outputs", "log_probs", "values"):
        assert torch.equal(getattr(samples, name), getattr(rollout, name).flatten(0, 1)), name
    assert samples.actions.shape == (24, 2) and samples.outputs.shape == (24, 5)
    torch.testing.assert_close(samples.advantages, advantages_of(rollout).flatten())
    torch.testing.assert_close(samples.returns, samples.advantages + samples.values)


def test_the_rewards_that_are_given_count_and_not_those_of_the_rollout():
    rollout = a_rollout()
    rewards = rollout.rewards.sign()
    samples, _ = samples_of(rollout, rewards=rewards, gae_lambda=0.5, advantage_normalization="none")
    torch.testing.assert_close(samples.advantages, advantages_of(rollout, rewards, 0.5).flatten())


def test_batch_normalization_scales_the_whole_rollout_and_leaves_returns_alone():
    rollout = a_rollout()
    plain, scaled = (samples_of(rollout, advantage_normalization=how)[0] for how in ("none", "batch"))
    expected = (plain.advantages - plain.advantages.mean()) / plain.advantages.std(unbiased=False)
    torch.testing.assert_close(scaled.advantages, expected)
    assert torch.equal(scaled.returns, plain.returns)


def test_minibatch_normalization_scales_each_minibatch_to_mean_zero():
    settings = dataclasses.replace(SETTINGS, advantage_normalization="minibatch")
    samples, _ = samples_of(a_rollout(), advantage_normalization="minibatch")
    indices = torch.randperm(24, generator=torch.Generator().manual_seed(0)).view(2, 12)
    gathered = gather_minibatches(samples, indices, settings, moments_of)
    torch.testing.assert_close(gathered.advantages.mean(-1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(gathered.advantages.std(-1, unbiased=False), torch.ones(2), atol=1e-4, rtol=0)
    assert torch.equal(gathered.returns, samples.returns[indices])


@pytest.mark.parametrize("how", ["batch", "none"])
def test_minibatches_are_gathered_as_in_the_general_case(how):
    settings = dataclasses.replace(SETTINGS, advantage_normalization=how)
    samples, _ = samples_of(a_rollout(), advantage_normalization=how)
    indices = torch.tensor([[3, 1, 3], [0, 23, 7]])
    for name, gathered in gather_minibatches(samples, indices, settings, moments_of)._asdict().items():
        assert torch.equal(gathered, getattr(samples, name)[indices]), name


def test_gathering_keeps_the_entries_of_a_sample_together():
    samples = Samples(*(torch.arange(5.0) + 10 * number for number in range(6)))
    gathered = samples.at(torch.tensor([4, 2]))
    assert [numbers.tolist() for numbers in gathered] == [[4.0 + 10 * n, 2.0 + 10 * n] for n in range(6)]


def test_normalised_returns_are_in_the_new_units_and_old_values_in_those_they_were_predicted_in():
    rollout, normalizer = a_rollout(), RunningMoments()
    normalizer.update(moments_of(torch.tensor([5.0, 9.0])))
    old_mean, old_deviation = normalizer.mean, normalizer.deviation
    raw, _ = samples_of(rollout)
    samples, _ = samples_of(rollout, normalizer=normalizer, value_normalization=True)
    everything = np.concatenate([[5.0, 9.0], raw.returns.numpy()])
    assert normalizer.mean == pytest.approx(everything.mean())
    assert normalizer.deviation == pytest.approx(everything.std())
    torch.testing.assert_close(samples.returns, (raw.returns - normalizer.mean) / normalizer.deviation)
    torch.testing.assert_close(samples.values, (raw.values - old_mean) / old_deviation)
    assert torch.equal(samples.advantages, raw.advantages)


def test_the_value_normaliser_is_left_alone_without_value_normalization():
    normalizer = RunningMoments()
    samples_of(a_rollout(), normalizer=normalizer)
    assert (normalizer.mean, normalizer.deviation) == (0.0, 1.0)


def test_explained_variance_is_one_for_perfect_values_and_zero_for_constant_ones():
    rollout = a_rollout()
    perfect, constant = torch.arange(8.0, 0.0, -1.0).unsqueeze(1).expand(8, 3), torch.zeros(8, 3)
    for values, expected in ((perfect, 1.0), (constant, 0.0)):
        crafted = dataclasses.replace(
            rollout,
            rewards=torch.ones(8, 3),
            values=values,
            next_values=torch.cat([values[1:], torch.zeros(1, 3)]),
            dones=torch.zeros(8, 3, dtype=torch.bool),
        )
        assert samples_of(crafted, discount=1.0, gae_lambda=1.0)[1] == pytest.approx(expected, abs=1e-6)


def test_a_rollout_that_is_prepared_again_does_not_count_twice_in_the_value_normaliser():
    rollout, normalizer = a_rollout(), RunningMoments()
    first, _ = samples_of(rollout, normalizer=normalizer, value_normalization=True)
    before = normalizer.state_dict()["moments"]
    settings = dataclasses.replace(SETTINGS, value_normalization=True)
    again, _ = prepare(rollout, rollout.rewards, normalizer, settings, moments_of, gae_lambda=0.95, again=True)
    assert torch.equal(normalizer.state_dict()["moments"], before)
    assert torch.equal(again.returns, first.returns)
