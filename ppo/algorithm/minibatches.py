"""Which steps a minibatch holds: a function of (seed, update, epoch, environment), not of the number of ranks."""

import numpy as np
import torch
from torch import Tensor

from ppo.config import PPOSettings
from ppo.random_streams import Purpose, stream


def minibatch_indices(settings: PPOSettings, environments: range, *, seed: int, update: int, epoch: int) -> Tensor:
    """Return this rank's flat step indices t * N + n for every minibatch of an epoch, (K, B).

    Each environment's steps are shuffled by a separate stream, and minibatch k takes the k-th share of every
    environment, so that a minibatch of the job holds the same steps at any number of ranks.

    Args:
        settings: sizes for the whole job.
        environments: global indices of this rank's N environments.
        seed: seed of the job.
        update: number of the update.
        epoch: number of the pass over the rollout.
    """
    steps, num_local = settings.rollout_steps, len(environments)
    share = settings.minibatch_size // settings.num_envs
    orders = np.stack([stream(seed, Purpose.SHUFFLE, i, update, epoch).permutation(steps) for i in environments])
    flat = orders * num_local + np.arange(num_local)[:, None]
    shares = flat.reshape(num_local, steps // share, share).transpose(1, 0, 2)
    return torch.from_numpy(shares.reshape(steps // share, num_local * share))
