import dataclasses

import pytest
import torch

from ppo.algorithm.minibatches import minibatch_indices
from ppo.random_streams import Purpose, stream
from tests.algorithm.learners import SETTINGS


def minibatches(settings=SETTINGS, environments=range(3), *, seed=5, update=4, epoch=0):
    return minibatch_indices(settings, environments, seed=seed, update=update, epoch=epoch)


def test_the_minibatches_of_an_epoch_hold_every_step_once():
    for epoch in range(2):
        indices = minibatches(epoch=epoch)
        assert indices.shape == (2, 12)
        assert sorted(indices.flatten().tolist()) == list(range(24))


def test_a_minibatch_takes_as_many_steps_of_every_environment():
    for minibatch in minibatches():
        assert (minibatch % 3).bincount().tolist() == [4, 4, 4]


def test_minibatch_k_takes_the_kth_share_of_each_environments_shuffled_steps():
    indices = minibatches(update=4, epoch=1)
    for n in range(3):
        order = stream(5, Purpose.SHUFFLE, n, 4, 1).permutation(8)
        for k in range(2):
            assert indices[k, 4 * n : 4 * n + 4].tolist() == [t * 3 + n for t in order[4 * k : 4 * k + 4]]


@pytest.mark.parametrize("address", ["seed", "update", "epoch"])
def test_shuffles_are_addressed_by_seed_update_and_epoch(address):
    assert torch.equal(minibatches(), minibatches())
    assert not torch.equal(minibatches(), minibatches(**{address: 7}))


def test_each_environment_is_shuffled_by_itself():
    of_environment = [minibatch // 3 for minibatch in minibatches()[0].view(3, 4)]
    assert not torch.equal(of_environment[0], of_environment[1])


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_minibatch_holds_the_same_steps_at_any_rank_count(cut):
    settings = dataclasses.replace(SETTINGS, num_envs=4, minibatch_size=16)

    def steps(environments):
        return [
            {(int(flat) // len(environments), environments[int(flat) % len(environments)]) for flat in minibatch}
            for minibatch in minibatches(settings, environments, epoch=1)
        ]

    whole = steps(range(4))
    parts = [steps(range(cut)), steps(range(cut, 4))]
    assert whole == [a | b for a, b in zip(*parts, strict=True)]
