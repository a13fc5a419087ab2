"""A world for tests whose observations record everything that happens."""

import gymnasium
import numpy as np

from ppo.envs import Environments


class ScriptedWorld(Environments):
    """Observation [clock, index, episode]; the reward of a step is 100 * clock before it + the sum of the action.

    Episodes end after `length` steps: environment 0 terminates, environment 1 is truncated, environment 2 loses a life
    every `length` steps and never ends.
    """

    def __init__(self, length=3, actions=None):
        self.num_envs = 3
        self.frames_per_second = 1.0
        self.length = length
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.single_action_space = actions or gymnasium.spaces.Discrete(2)
        self.observations = np.zeros((3, 3), np.float32)
        self.observations[:, 1] = range(3)
        self.actions = []

    def reset(self, *, seed=None, options=None):
        return self.observations, {}

    def step(self, actions):
        self.actions.append(actions.copy())
        return self.advance(slice(0, 3), actions)

    def advance(self, group, actions):
        observations = self.observations[group]
        rewards = 100.0 * observations[:, 0] + actions.reshape(len(actions), -1).sum(1)
        observations[:, 0] += 1
        ended = observations[:, 0] % self.length == 0
        only = np.eye(3, dtype=bool)[:, group]
        info = {
            "life_lost": ended & only[2],
            "final_obs": observations.copy(),
            "episode_return": np.array([10.0, 20.0, 30.0])[group],
            "episode_length": np.array([self.length] * 3)[group],
        }
        observations[ended & ~only[2], 2] += 1
        return observations, rewards, ended & only[0], ended & only[1], info

    def get_states(self):
        return []

    def set_states(self, states):
        pass


class WorldInGroups(ScriptedWorld):
    """The same world, stepped in a group of one environment and a group of two; records the calls."""

    groups = (slice(0, 1), slice(1, 3))

    def __init__(self):
        super().__init__()
        self.calls = []
        self.on_the_way = {}

    def send(self, group, actions):
        assert group.start not in self.on_the_way
        self.calls.append(f"send {group.start}")
        self.on_the_way[group.start] = actions.copy()

    def recv(self, group):
        self.calls.append(f"recv {group.start}")
        return self.advance(group, self.on_the_way.pop(group.start))
