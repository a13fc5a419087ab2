"""Ratios of new to old probabilities are 1 before the first gradient step, for all observations and actions.

This holds only if each action is stored with its own observation, and if acting and learning agree.
"""

import dataclasses
from unittest import mock

import pytest
import torch
from gymnasium import spaces

from ppo.algorithm import update as update_module
from ppo.algorithm.loss import ppo_loss
from ppo.collectives import Alone
from ppo.config import ModelSettings
from tests.algorithm.learners import SETTINGS, build
from tests.algorithm.worlds import ScriptedWorld

BOX = spaces.Box(-3.0, 5.0, (2,))
KINDS = {
    "categorical": (spaces.Discrete(4), {}),
    "multi_categorical": (spaces.MultiDiscrete([2, 3, 4]), {}),
    "bernoulli": (spaces.MultiBinary(3), {}),
    "gaussian": (BOX, {}),
    "gaussian whose deviation depends on the state": (BOX, {"state_dependent_deviation": True}),
    "beta": (BOX, {"policy": "beta"}),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def build_kind(kind, **model_settings):
    actions, settings = KINDS[kind]
    model = ModelSettings(**settings, **model_settings)
    return build(SETTINGS, world=ScriptedWorld(actions=actions), model=model)


def ratios_of_the_first_minibatch(learner, rollout, update=0):
    """Learn from a rollout and return the ratios of its first loss."""
    seen = []

    def look(prediction, samples, distribution, *others):
        log_probs = distribution.log_prob(prediction.action, samples.actions)
        seen.append((log_probs - samples.log_probs).exp().detach())
        assert seen[0].shape == (SETTINGS.minibatch_size,)
        return ppo_loss(prediction, samples, distribution, *others)

    with mock.patch.object(update_module, "ppo_loss", look):
        learner.update(rollout, update=update, env_steps=0, progress=0.0)
    assert (seen[-1] - 1.0).abs().max() > 1e-4  # the policy has moved since
    return seen[0]


def check_that_ratios_are_one(learner, rollout, update=0):
    assert (ratios_of_the_first_minibatch(learner, rollout, update) - 1.0).abs().max() < 1e-5


@EVERY_KIND
def test_ratios_are_one_with_every_distribution(kind):
    _, collector, learner = build_kind(kind)
    for update in range(2):
        check_that_ratios_are_one(learner, collector.collect(update)[0], update)


@EVERY_KIND
def test_ratios_are_one_where_observations_are_normalised(kind):
    model, collector, learner = build_kind(kind, observation_normalization=True)
    model.inputs.follow(collector.collect(0)[0].observations, Alone())
    for update in (1, 2):
        rollout, _ = collector.collect(update)
        applied = model.inputs.applied.clone()
        check_that_ratios_are_one(learner, rollout, update)
        model.inputs.follow(rollout.observations, Alone())
        assert not torch.equal(model.inputs.applied, applied)


@EVERY_KIND
def test_statistics_that_follow_between_acting_and_learning_are_noticed(kind):
    model, collector, learner = build_kind(kind, observation_normalization=True)
    rollout, _ = collector.collect(0)
    model.inputs.follow(rollout.observations, Alone())
    with pytest.raises(AssertionError):
        check_that_ratios_are_one(learner, rollout)


@EVERY_KIND
@pytest.mark.parametrize("name", ["observations", "actions", "log_probs"])
def test_rows_that_do_not_belong_together_are_noticed(kind, name):
    _, collector, learner = build_kind(kind)
    rollout, _ = collector.collect(0)
    shifted = dataclasses.replace(rollout, **{name: getattr(rollout, name).roll(-1, 0)})
    with pytest.raises(AssertionError):
        check_that_ratios_are_one(learner, shifted)


@pytest.mark.parametrize("env_name", ["CartPole-v1", "BreakoutNoFrameskip-v4"])
def test_ratios_are_one_in_real_worlds(env_name):
    _, collector, learner = build(env_name=env_name)
    check_that_ratios_are_one(learner, collector.collect(0)[0])


@pytest.mark.parametrize("env_name", ["CartPole-v1", "BreakoutNoFrameskip-v4"])
def test_a_shifted_observation_of_a_real_world_is_noticed(env_name):
    _, collector, learner = build(env_name=env_name)
    for update in range(3):  # the first screens of a game are all alike
        rollout, _ = collector.collect(update)
    shifted = dataclasses.replace(rollout, observations=rollout.observations.roll(-1, 0))
    assert (ratios_of_the_first_minibatch(learner, shifted) - 1.0).abs().max() > 1e-3


def test_centring_pixels_moves_no_ratio_between_collecting_and_learning():
    model, collector, learner = build(
        dataclasses.replace(SETTINGS, learning_rate=1e-4),  # at a higher rate one action becomes certain
        env_name="BreakoutNoFrameskip-v4",
        model=ModelSettings(pixel_normalization=True),
    )
    seen = []
    for update in range(2):
        rollout, _ = collector.collect(update)
        check_that_ratios_are_one(learner, rollout, update)
        model.inputs.follow(rollout.observations, Alone())
        seen.append(rollout.observations[0].double())  # one step in 64 is looked at
    mean, deviation = model.inputs.applied.tolist()
    assert mean == pytest.approx(torch.stack(seen).mean().item())
    assert deviation == pytest.approx(torch.stack(seen).std(unbiased=False).item())
