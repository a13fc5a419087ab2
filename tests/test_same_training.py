"""The same training at any number of ranks: one update from the same rollout changes everything equally.

The ranks are threads of this process. The rollout is collected once and cut into the blocks of the ranks, since in
continuous worlds one unit in the last place of an action grows until whole rollouts differ.
"""

import dataclasses
import functools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, MultiBinary, MultiDiscrete

from ppo.algorithm.rollout import Collector, Rollout
from ppo.algorithm.update import Learner
from ppo.collectives import Alone, share
from ppo.collectives.moments import RunningMoments
from ppo.config import Config
from ppo.envs import make_envs
from ppo.families import family_of
from ppo.models.actor_critic import build_model
from tests.jobs import ON_PROCESSORS, ppo, weights
from tests.ranks import on_ranks

TOLERANCE = 1e-6
SEED = 5
UPDATES_BEFORE = 2
SIZES = {"num_envs": 4, "rollout_steps": 16, "minibatch_size": 32, "num_epochs": 2}
FAMILIES = {
    "PongNoFrameskip-v4": {"pixel_normalization": True, "clip_rewards": True},
    "Pendulum-v1": {},
    "BipedalWalker-v3": {"observation_normalization": True},
    "CarRacing-v3": {"network": "coordconv", "head_units": 100, "policy": "beta", "value_loss": "smooth_l1"},
    "HalfCheetah-v5": {"observation_normalization": True, "reward_normalization": True, "reward_clip": 10.0},
    "Taxi-v4": {"value_normalization": True},
}
PACKAGES = {"BipedalWalker-v3": "Box2D", "CarRacing-v3": "Box2D", "HalfCheetah-v5": "mujoco"}
# Episodes of 6 steps, so that time limits cut some within a rollout.
SHORT_PENDULUM = {"env_name": "Pendulum-v1", "env_kwargs": '{"max_episode_steps": 6}'}
SWITCHES = [
    {"observation_normalization": True},
    {"observation_normalization": True, "observation_clip": 0.5},
    {"reward_normalization": True},
    {"reward_normalization": True, "reward_clip": 0.1},
    {"reward_scale": 0.1},
    {"clip_rewards": True},
    {"value_normalization": True},
    {"recompute_advantages": True},
    {"recompute_advantages": True, "value_normalization": True, "observation_normalization": True},
    {"advantage_normalization": "minibatch"},
    {"advantage_normalization": "none"},
    {"value_clip_range": 0.1},
    {"value_loss": "smooth_l1"},
    {"l2_penalty": 0.01},
    {"max_gradient_norm": None},
    {"learning_rate_schedule": "kl_adaptive", "kl_target": 1e-6},
    {"kl_stop": 1e-9},
    {"entropy_coefficient": 0.1},
    {"trunk": "shared"},
    {"activation": "leaky_relu", "initialization": "default"},
    {"policy": "gaussian", "state_dependent_deviation": True},
    {"policy": "beta"},
    {
        "observation_normalization": True,
        "reward_normalization": True,
        "reward_clip": 5.0,
        "value_normalization": True,
        "recompute_advantages": True,
        "advantage_normalization": "minibatch",
        "value_clip_range": 0.1,
        "value_loss": "smooth_l1",
        "l2_penalty": 0.01,
        "trunk": "shared",
        "state_dependent_deviation": True,
    },
]


class Choices(gymnasium.Env):
    """A walk in the plane whose steps are weighted sums of several choices; it ends where it leaves a circle."""

    def __init__(self, action_space):
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._position = self.np_random.standard_normal(2)
        return self._position.astype(np.float32), {}

    def step(self, action):
        choices = np.asarray(action, np.float64)
        self._position += [choices.sum() - 1.0, choices[0] - choices[-1]] + 0.1 * self.np_random.standard_normal(2)
        distance = float(np.hypot(*self._position))
        return self._position.astype(np.float32), -distance, distance > 5.0, False, {}


CHOICES = {"multi_categorical": MultiDiscrete([2, 3, 2]), "bernoulli": MultiBinary(3)}


@pytest.fixture(scope="module", autouse=True)
def worlds_of_choices():
    ids = [f"tests/{policy}-v0" for policy in CHOICES]
    for env_id, space in zip(ids, CHOICES.values(), strict=True):
        gymnasium.register(env_id, functools.partial(Choices, space))
    yield
    for env_id in ids:
        del gymnasium.registry[env_id]


class Replica:
    """The state that one rank trains, as in a `Run`, without its own environments."""

    def __init__(self, config, spaces, indices):
        self.config, self.indices = config, indices
        self.model = build_model(*spaces, config.model, seed=1)
        self.normalizer = RunningMoments()

    def join(self, comm):
        """Make the learner, together with all ranks."""
        self.comm = comm
        self.learner = Learner(
            self.model,
            self.normalizer,
            self.config.ppo,
            comm,
            machine=self.config.machine,
            indices=self.indices,
            seed=SEED,
        )

    def learn(self, rollout, update):
        """Do what the training loop does with a rollout."""
        if not self.model.inputs.waits_for_first_rollout:
            self.learner.update(rollout, update=update, env_steps=64 * update, progress=update / 10)
        self.model.inputs.follow(rollout.observations, self.comm)

    def state(self):
        """Return copies of what is saved."""
        parts = {"model": self.model, "learner": self.learner, "value_normalizer": self.normalizer}
        return {part: {n: t.clone() for n, t in owner.state_dict().items()} for part, owner in parts.items()}

    def running_returns(self):
        return np.concatenate([own["running_return"] for own in self.learner.rewards.environment_states()])

    def load(self, state, running_returns):
        self.model.load_state_dict(state["model"])
        self.learner.load_state_dict(state["learner"])
        self.normalizer.load_state_dict(state["value_normalizer"])
        own = running_returns[self.indices.start : self.indices.stop]
        self.learner.rewards.set_environment_states([{"running_return": number[None]} for number in own])


@dataclasses.dataclass(frozen=True)
class Moment:
    """A point in a training on one rank, and the rollout that is learnt from next."""

    config: Config
    spaces: tuple[gymnasium.Space, gymnasium.Space]
    state: dict[str, dict[str, torch.Tensor]]
    running_returns: np.ndarray
    rollout: Rollout

    def updated_by(self, number):
        """Let a number of ranks make the update; return each rank's state and the running returns of all."""
        blocks = [share(self.config.ppo.num_envs, rank, number) for rank in range(number)]
        # One after the other, since weights are drawn from PyTorch's one generator.
        replicas = [Replica(self.config, self.spaces, indices) for indices in blocks]

        def update(comm):
            replica = replicas[comm.rank]
            replica.join(comm)
            replica.load(self.state, self.running_returns)
            comm.barrier()  # all ranks write to the weights that they share
            replica.learn(part_of(self.rollout, replica.indices), UPDATES_BEFORE)
            return replica.state(), replica.running_returns()

        states, running_returns = zip(*on_ranks(number, update), strict=True)
        return states, np.concatenate(running_returns)


def moment_of(settings):
    """Train on one rank until a third rollout is collected."""
    settings = {**SIZES, "learning_rate_schedule": "constant", **settings}
    config = Config(world=family_of(settings["env_name"]).settings()).replace_settings(settings)
    config.validate()
    indices = range(config.ppo.num_envs)
    envs = make_envs(config.run.env_name, config.world, indices=indices, seed=SEED)
    spaces = (envs.single_observation_space, envs.single_action_space)
    replica = Replica(config, spaces, indices)
    replica.join(Alone())
    collector = collector_of(envs, replica, config.ppo.rollout_steps)
    for update in range(UPDATES_BEFORE):
        replica.learn(collector.collect(update)[0], update)
    rollout, _ = collector.collect(UPDATES_BEFORE)
    envs.close()
    return Moment(config, spaces, replica.state(), replica.running_returns(), rollout)


def collector_of(envs, replica, rollout_steps):
    """Return a collector for a block of environments that have just been reset."""
    model, normalizer, indices = replica.model, replica.normalizer, replica.indices
    collector = Collector(envs, model, normalizer, indices=indices, rollout_steps=rollout_steps, seed=SEED)
    collector.reset()
    return collector


def part_of(rollout, indices):
    """Return the rollout that the owner of a block of environments would have collected."""
    block = slice(indices.start, indices.stop)
    of_steps = {field.name for field in dataclasses.fields(Rollout)} - {"observations", "last_observations", "cuts"}
    return dataclasses.replace(
        rollout,
        **{name: getattr(rollout, name)[:, block] for name in of_steps},
        # Channels of images stay last in memory.
        observations=rollout.observations.movedim(2, -1)[:, block].contiguous().movedim(-1, 2),
        last_observations=rollout.last_observations[block],
        cuts=[(step, n - block.start, final) for step, n, final in rollout.cuts if n in indices],
    )


def vectors_of(state):
    """Return what is compared, by name; the weights are one vector, as the optimiser's moments are."""
    model = dict(state["model"])
    statistics = {name: model.pop(name) for name in ("inputs.moments", "inputs.applied")}
    weights = torch.cat([tensor.flatten() for tensor in model.values()])
    learner = dict(state["learner"])
    del learner["noise_and_signal"]  # one rank has no gradients of others to compare its own with
    everything = {"weights": weights, **statistics, **learner, "value_moments": state["value_normalizer"]["moments"]}
    return {name: tensor.double() for name, tensor in everything.items()}


def assert_the_same_update(settings):
    """Let 1, 2, 3 and 4 ranks make the same update and compare all that is saved."""
    moment = moment_of(settings)
    (alone,), running_returns = moment.updated_by(1)
    expected = vectors_of(alone)
    change = (expected["weights"] - vectors_of(moment.state)["weights"]).abs().max()
    for number in (2, 3, 4):
        states, same_running_returns = moment.updated_by(number)
        assert np.array_equal(same_running_returns, running_returns)
        for got in map(vectors_of, states):
            errors = {name: (got[name] - vector).abs().max() for name, vector in expected.items()}
            for name, vector in expected.items():
                assert errors[name] <= TOLERANCE * vector.abs().max(), f"{name} on {number} ranks"
            # Most of a weight is older than the update.
            assert errors["weights"] < 1e-4 * change, f"{number} ranks"
    return moment


@pytest.mark.parametrize("env_name", FAMILIES)
def test_any_number_of_ranks_makes_the_same_update_in_every_family_of_worlds(env_name):
    require_package_of(env_name)
    assert_the_same_update({"env_name": env_name, **FAMILIES[env_name]})


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: "-".join([*switches][:4]))
def test_any_number_of_ranks_makes_the_same_update_with_every_switch(switches):
    moment = assert_the_same_update({**SHORT_PENDULUM, **switches})
    assert len(moment.rollout.cuts) == 12


@pytest.mark.parametrize("policy", CHOICES)
def test_any_number_of_ranks_makes_the_same_update_of_several_choices_a_step(policy):
    moment = assert_the_same_update({"env_name": f"tests/{policy}-v0", "policy": policy})
    assert moment.rollout.dones.any()


@pytest.mark.parametrize("env_name", FAMILIES)
def test_blocks_of_any_size_collect_what_all_environments_together_collect(env_name):
    require_package_of(env_name)

    def collect(indices):
        config = Config(world=family_of(env_name).settings())
        envs = make_envs(env_name, config.world, indices=indices, seed=SEED)
        replica = Replica(config, (envs.single_observation_space, envs.single_action_space), indices)
        steps = 4 if isinstance(envs.single_action_space, Box) else 16
        rollout, _ = collector_of(envs, replica, steps).collect(0)
        envs.close()
        return rollout

    whole = collect(range(4))
    for number in (2, 3, 4):
        parts = [collect(share(4, rank, number)) for rank in range(number)]
        for name in ("observations", "actions", "rewards", "dones", "game_ends", "log_probs", "values"):
            together, expected = torch.cat([getattr(part, name) for part in parts], 1), getattr(whole, name)
            torch.testing.assert_close(together, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("env_name", FAMILIES)
def test_jobs_of_any_number_of_ranks_take_the_same_three_updates(env_name, tmp_path):
    require_package_of(env_name)
    flags = [f"--env_name={env_name}", "--num_envs=4", "--rollout_steps=4", "--minibatch_size=8", "--num_epochs=2"]
    flags += ["--learning_rate_schedule=constant", "--env_steps=48", ON_PROCESSORS]
    saved = []
    for number in (1, 2, 3, 4):
        name = f"{number}-ranks"
        job = ppo(tmp_path, *flags, f"--model_name={name}", ranks=number)
        assert job.returncode == 0, job.stdout + job.stderr
        saved.append(weights(tmp_path, name, 48))
    for got in saved[1:]:
        for name, expected in saved[0].items():
            np.testing.assert_allclose(got[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def require_package_of(env_name):
    if env_name in PACKAGES:
        pytest.importorskip(PACKAGES[env_name])
