"""A collector and a learner on one network, as a training run has them."""

import torch

from ppo.algorithm.minibatches import minibatch_indices
from ppo.algorithm.rollout import Collector
from ppo.algorithm.samples import prepare
from ppo.algorithm.update import Learner
from ppo.collectives import Alone
from ppo.collectives.moments import RunningMoments
from ppo.config import MachineSettings, ModelSettings, PPOSettings
from ppo.envs import make_envs
from ppo.families import family_of
from ppo.models.actor_critic import build_model

SETTINGS = PPOSettings(
    num_envs=3, rollout_steps=8, minibatch_size=12, num_epochs=2, learning_rate=1e-2, learning_rate_schedule="constant"
)
SEED = 5


def build(
    settings=SETTINGS,
    *,
    env_name="CartPole-v1",
    world=None,
    model=ModelSettings(),  # noqa: B008  # it is frozen
    indices=None,
    comm=None,
    device=torch.device("cpu"),  # noqa: B008
    precision=torch.float32,
):
    """Return a model, a collector that has been reset and a learner, for `world` or else a block of `env_name`."""
    indices = range(settings.num_envs) if indices is None else indices
    envs = world or make_envs(env_name, family_of(env_name).settings(), indices=indices, seed=3)
    network = build_model(
        envs.single_observation_space, envs.single_action_space, model, seed=1, precision=precision
    ).to(device)
    sharpen(network, 100.0)
    normalizer = RunningMoments()
    collector = Collector(envs, network, normalizer, indices=indices, rollout_steps=settings.rollout_steps, seed=SEED)
    learner = Learner(
        network, normalizer, settings, comm or Alone(), machine=MachineSettings(), indices=indices, seed=SEED
    )
    collector.reset()
    return network, collector, learner


def sharpen(model, factor):
    """Multiply the policy head's weights, so that the policy is far from uniform and a wrong observation shows."""
    with torch.no_grad():
        for parameter in model.policy_head.parameters():
            if parameter.dim() == 2:
                parameter.mul_(factor)


def samples_of(learner, rollout, *, gae_lambda=0.95):
    """Return the samples that an update computes from a rollout."""
    return prepared(learner, rollout, gae_lambda=gae_lambda)[0]


def prepared(learner, rollout, *, gae_lambda=0.95):
    """Return the samples that an update computes from a rollout, and the explained variance."""
    return prepare(
        rollout,
        learner.rewards(rollout, learner._moments),
        learner._value_normalizer,
        learner._settings,
        learner._moments,
        gae_lambda=gae_lambda,
    )


def indices_of(learner, update, epoch):
    """Return the minibatches of an epoch, (K, B)."""
    indices = minibatch_indices(learner._settings, learner._indices, seed=SEED, update=update, epoch=epoch)
    return indices.to(learner._device)


def weights_of(model):
    """Return all parameters as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
