"""Dict and Tuple actions: a vector for the agent, the element of the space for the environment."""

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Text, Tuple

from ppo.envs.actions import CompositeSpace, action_space
from ppo.envs.gymnasium import GymnasiumEnvironments

NESTED = Dict(
    move=Box(np.float32([-2.0, 0.0]), np.float32([2.0, np.inf])),
    hands=Tuple([Discrete(3, start=5), MultiBinary(2), Dict(finger=MultiDiscrete([[2, 3]], start=[[1, 0]]))]),
    whole=Box(-5, 5, (), np.int64),
)


class Recording(gymnasium.Env[Any, Any]):
    """Keeps what it was sent, if that is of its space."""

    observation_space = Box(-1.0, 1.0, (2,))

    def __init__(self, space: Space[Any]) -> None:
        self.action_space, self.sent = space, []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.sent.append(copy.deepcopy(action))
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 0.0, False, False, {}


@pytest.fixture
def env_name(monkeypatch: pytest.MonkeyPatch) -> str:
    name = "RecordsNestedActions-v0"
    spec = gymnasium.envs.registration.EnvSpec(name, lambda: Recording(NESTED))
    monkeypatch.setitem(gymnasium.registry, name, spec)
    return name


def test_the_parts_stand_one_after_the_other_with_their_bounds() -> None:
    space = CompositeSpace(NESTED)
    np.testing.assert_array_equal(space.low, [-2, 0, 5, 0, 0, 1, 0, -5])
    np.testing.assert_array_equal(space.high, [2, np.inf, 7, 1, 1, 2, 2, 5])


def test_a_vector_becomes_the_element_that_it_stands_for() -> None:
    element = CompositeSpace(NESTED).element(np.array([-0.5, 3.25, 6.0, 1.0, 0.0, 2.0, 1.0, -4.0]))
    assert NESTED.contains(element)
    kind, bits, fingers = element["hands"]
    assert kind == 6 and element["whole"] == -4
    np.testing.assert_array_equal(bits, [1, 0])
    np.testing.assert_array_equal(fingers["finger"], [[2, 1]])
    np.testing.assert_array_equal(element["move"], np.float32([-0.5, 3.25]))


def test_environments_are_sent_elements_and_brought_back_by_replaying_them(env_name: str) -> None:
    envs, restored = (GymnasiumEnvironments(env_name, indices=range(2), seed=0) for _ in range(2))
    envs.reset()
    envs.single_action_space.seed(0)
    for _ in range(5):
        envs.step(np.stack([envs.single_action_space.sample() for _ in range(2)]))
    assert restored.set_states(envs.get_states()) == []
    for before, after in zip(envs._envs, restored._envs, strict=True):
        assert repr(before.unwrapped.sent) == repr(after.unwrapped.sent)
        assert len(after.unwrapped.sent) == 5


@pytest.mark.parametrize("space", [Dict(say=Text(5), move=Discrete(2)), Tuple([]), Text(3)])
def test_actions_that_have_no_numbers_are_refused(space: Space[Any]) -> None:
    with pytest.raises(ValueError, match=r"action space must be Discrete, .* got Text|have no parts"):
        action_space(space)
