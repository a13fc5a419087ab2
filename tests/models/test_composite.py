"""The distribution of Dict and Tuple actions is the product of its parts' distributions."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from ppo.config import ModelSettings
from ppo.envs.actions import CompositeSpace
from ppo.models.actor_critic import build_distribution, build_model
from ppo.models.distributions import make_distribution
from ppo.models.distributions.composite import Composite
from ppo.settings import Refusal

SPACES = (Discrete(3, start=5), Box(-2.0, 2.0, (2, 2), np.float32), MultiBinary(2), MultiDiscrete([2, 4]))
SPACE = CompositeSpace(Tuple(SPACES))
PARTS = tuple(make_distribution(space) for space in SPACES)
BATCH = 64


@pytest.fixture
def composite() -> Composite:
    distribution = make_distribution(SPACE)
    assert isinstance(distribution, Composite)
    return distribution


def outputs_of(seed: int, composite: Composite) -> torch.Tensor:
    return torch.randn(BATCH, composite.num_outputs, generator=torch.Generator().manual_seed(seed))


def split(outputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(outputs, [part.num_outputs for part in PARTS], -1)


def sampled(composite: Composite, outputs: torch.Tensor) -> torch.Tensor:
    return composite.sample(outputs, torch.from_numpy(composite.noise(np.random.default_rng(0), BATCH)))


def own_actions(actions: torch.Tensor) -> list[torch.Tensor]:
    category, box, bits, several = torch.split(actions, [1, 4, 2, 2], -1)
    return [category.squeeze(-1).long(), box, bits.long(), several.long()]


def test_log_probability_entropy_and_divergence_are_the_sums_over_parts(composite: Composite) -> None:
    old, new = outputs_of(0, composite), outputs_of(1, composite)
    actions = sampled(composite, new)
    triples = list(zip(PARTS, split(old), split(new), own_actions(actions), strict=True))
    log_prob = sum(part.log_prob(outputs, own) for part, _, outputs, own in triples)
    torch.testing.assert_close(composite.log_prob(new, actions), log_prob)
    torch.testing.assert_close(composite.entropy(new), sum(part.entropy(outputs) for part, _, outputs, _ in triples))
    torch.testing.assert_close(composite.kl(old, new), sum(part.kl(before, now) for part, before, now, _ in triples))


def test_the_mode_is_that_of_every_part(composite: Composite) -> None:
    outputs = outputs_of(0, composite)
    for part, own, action in zip(PARTS, split(outputs), own_actions(composite.mode(outputs)), strict=True):
        torch.testing.assert_close(action, part.mode(own))


def test_categories_are_sampled_as_often_as_they_are_probable(composite: Composite) -> None:
    outputs = outputs_of(0, composite)[:1].expand(20_000, -1)
    noise = torch.from_numpy(composite.noise(np.random.default_rng(0), 20_000))
    category, *_ = own_actions(composite.sample(outputs, noise))
    frequencies = torch.bincount(category, minlength=3) / 20_000
    torch.testing.assert_close(frequencies, outputs[0, :3].softmax(-1), atol=0.015, rtol=0.0)


def test_how_many_steps_of_noise_are_drawn_does_not_change_the_first(composite: Composite) -> None:
    few, many = (composite.noise(np.random.default_rng(3), steps) for steps in (4, 9))
    np.testing.assert_array_equal(few, many[:4])


def test_raw_actions_become_elements_of_the_space(composite: Composite) -> None:
    vectors = composite.to_environment(sampled(composite, outputs_of(0, composite)).numpy())
    assert vectors.shape == (BATCH, 9) and vectors.dtype == np.float64
    for vector in vectors:
        category, box, bits, several = SPACE.element(vector)
        assert SPACES[0].contains(category) and SPACES[1].contains(box)
        assert SPACES[2].contains(bits) and SPACES[3].contains(several)


def test_a_network_has_a_head_for_every_part_and_the_settings_reach_the_boxes() -> None:
    settings = ModelSettings(log_deviation_init=-1.0)
    model = build_model(Box(-1.0, 1.0, (3,), np.float32), SPACE, settings, seed=0)
    outputs = model(torch.zeros(2, 3)).action
    assert outputs.shape == (2, 3 + 8 + 2 + 6)
    torch.testing.assert_close(outputs[:, 3 + 4 : 3 + 8], torch.full((2, 4), -1.0))


def test_a_policy_for_boxes_alone_is_refused() -> None:
    with pytest.raises(Refusal, match=r"policy=gaussian needs a Box space, got .*; try auto or composite"):
        build_distribution(SPACE, ModelSettings(policy="gaussian"))
    with pytest.raises(Refusal, match="policy=composite needs a Dict or Tuple space"):
        build_distribution(Box(-1.0, 1.0, (2,)), ModelSettings(policy="composite"))


def test_a_dict_of_boxes_alone_is_served_too() -> None:
    distribution = make_distribution(CompositeSpace(Dict(a=Box(-1.0, 1.0, (2,)), b=Box(0.0, np.inf, (1,)))))
    assert distribution.action_shape == (3,) and distribution.num_outputs == 6


@pytest.mark.parametrize("initialization", ["orthogonal", "default"])
def test_the_first_policy_of_a_part_is_the_one_that_was_asked_for(initialization) -> None:
    settings = ModelSettings(action_start="0.1", initialization=initialization)
    actions = CompositeSpace(Tuple((Discrete(3), Box(-2.0, 2.0, (2,)))))
    model = build_model(Box(-1.0, 1.0, (3,)), actions, settings, seed=0)
    biases = model.policy_head[1].means.bias
    torch.testing.assert_close(biases, torch.full((2,), -0.8))
