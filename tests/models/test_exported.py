"""What an exported agent makes of raw actions is what the agent itself does."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ppo.config import ModelSettings
from ppo.envs.actions import action_space
from ppo.models.actor_critic import build_distribution
from ppo.models.distributions.categories import Categorical
from ppo.settings import Refusal

SPACES = {
    "a start of its own": (spaces.Discrete(5, start=-2), "auto"),
    "several categories": (spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 7], [-1, 0]]), "auto"),
    "bits": (spaces.MultiBinary((2, 2)), "auto"),
    "a bounded box": (spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)), "gaussian"),
    "a box without bounds": (spaces.Box(-np.inf, np.inf, (3,), np.float64), "gaussian"),
    "whole numbers": (spaces.Box(-3, 8, (2, 2), np.int32), "gaussian"),
    "a Beta": (spaces.Box(-1.0, 4.0, (2,), np.float32), "beta"),
    "several parts": (spaces.Dict(a=spaces.Discrete(3, start=1), b=spaces.Box(-1.0, 3.0, (2,))), "auto"),
}


@pytest.mark.parametrize(("space", "policy"), SPACES.values(), ids=SPACES.keys())
def test_tensors_become_the_same_elements_of_the_space(space: gymnasium.Space, policy: str) -> None:
    distribution = build_distribution(action_space(space), ModelSettings(policy=policy))
    outputs = torch.from_numpy(np.random.default_rng(0).normal(0.0, 2.0, (40, distribution.num_outputs))).float()
    noise = torch.from_numpy(distribution.noise(np.random.default_rng(1), 40))
    for raw in (distribution.mode(outputs), distribution.sample(outputs, noise)):
        expected = distribution.to_environment(raw.numpy())
        elements = distribution.elements(raw).numpy()
        assert elements.dtype == expected.dtype
        np.testing.assert_array_equal(elements, expected)


class Own(Categorical):
    """Of a user who has written no `elements`."""

    def elements(self, actions: torch.Tensor) -> torch.Tensor:
        return super(Categorical, self).elements(actions)


def test_a_distribution_from_outside_that_does_not_say_how_is_refused_by_name() -> None:
    with pytest.raises(Refusal, match="cannot be exported: Own does not implement `elements`"):
        Own(spaces.Discrete(2)).elements(torch.zeros(1))
