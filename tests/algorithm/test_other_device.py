"""A network on a device other than the processor.

PyTorch's `meta` device stands in for a GPU: its tensors have shapes but no numbers, cannot be mixed with tensors on the
processor, and can only be read by `Tensor.cpu`, which here returns zeros and counts its calls.
"""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

from ppo.collectives import Alone
from ppo.config import ModelSettings, PPOSettings
from tests.algorithm.learners import build
from tests.algorithm.worlds import ScriptedWorld, WorldInGroups

SETTINGS = PPOSettings(
    num_envs=3, rollout_steps=8, minibatch_size=6, num_epochs=3, learning_rate=1e-2, learning_rate_schedule="constant"
)
META = torch.device("meta")


class ImageWorld(ScriptedWorld):
    """The same world, seen as two grey screens that lie channels-last in memory."""

    def __init__(self):
        super().__init__()
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (2, 84, 84), np.uint8)
        self.scripted = self.observations
        self.observations = np.zeros((3, 84, 84, 2), np.uint8).transpose(0, 3, 1, 2)

    def step(self, actions):
        shown, self.observations = self.observations, self.scripted
        _, rewards, terminated, truncated, info = super().step(actions)
        self.observations = shown
        return shown, rewards, terminated, truncated, {**info, "final_obs": np.zeros_like(shown)}


@pytest.fixture
def reads(monkeypatch):
    """Return a growing list of the shapes of tensors read from the device."""
    shapes, real = [], torch.Tensor.cpu

    def cpu(tensor):
        if tensor.device != META:
            return real(tensor)
        shapes.append(tuple(tensor.shape))
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    return shapes


@pytest.mark.parametrize("kind", [ScriptedWorld, WorldInGroups, ImageWorld])
def test_only_the_actions_of_each_step_come_back_while_a_rollout_is_collected(kind, reads):
    world = kind()
    _, collector, _ = build(SETTINGS, world=world, device=META)
    rollout, episodes = collector.collect(0)
    assert reads == [(group.stop - group.start,) for _ in range(8) for group in world.groups]
    assert {value.device for value in vars(rollout).values() if isinstance(value, torch.Tensor)} == {META}
    assert len(episodes) == 4


@pytest.mark.parametrize("kind", [ScriptedWorld, ImageWorld])
@pytest.mark.parametrize("advantages", ["batch", "minibatch"])
def test_an_update_waits_for_the_device_once_an_epoch_and_for_moments(kind, advantages, reads):
    settings = dataclasses.replace(
        SETTINGS,
        advantage_normalization=advantages,
        value_normalization=True,
        value_clip_range=0.2,
        learning_rate_schedule="kl_adaptive",
    )
    _, collector, learner = build(
        settings, world=kind(), device=META, model=ModelSettings(pixel_normalization=kind is ImageWorld)
    )
    rollout, _ = collector.collect(0)
    reads.clear()
    learner.update(rollout, update=0, env_steps=0, progress=0.0)
    of_the_rollout, of_an_epoch = [(2, 24)], [(4, 6)] if advantages == "minibatch" else []
    assert reads == [*of_the_rollout, *([*of_an_epoch, (4 * 2 + 5,)] * 3)]


@pytest.mark.parametrize("kind", [ScriptedWorld, ImageWorld])
def test_inputs_are_followed_by_reading_their_moments_and_little_more(kind, reads):
    settings = ModelSettings(pixel_normalization=True, observation_normalization=True)
    model, collector, _ = build(SETTINGS, world=kind(), device=META, model=settings)
    rollout, _ = collector.collect(0)
    reads.clear()
    model.inputs.follow(rollout.observations, Alone())
    # Old moments, then the sums of pixels and of their squares, or the vectors themselves.
    assert reads == ([(3,), (2,)] if kind is ImageWorld else [(3, 3), (3, 24)])
    assert model.inputs.applied.device == META


def test_returns_are_read_once_for_the_deviation_of_rewards(reads):
    _, collector, learner = build(
        dataclasses.replace(SETTINGS, reward_normalization=True), world=ScriptedWorld(), device=META
    )
    rollout, _ = collector.collect(0)
    reads.clear()
    assert learner.rewards(rollout, learner._moments).device == META
    assert reads == [(8, 3), (8, 3)]  # rewards and ends


def test_an_observation_stays_channels_last_on_the_device():
    _, collector, _ = build(SETTINGS, world=ImageWorld(), device=META)
    assert collector._rollout.observations.stride()[1:] == (84 * 84 * 2, 1, 84 * 2, 2)
