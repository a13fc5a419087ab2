"""The actor-critic network: a policy head and a value head over an encoder.

Images share one encoder between actor and critic, as in the PPO paper's Atari experiments; vectors have one each.
"""

from typing import Literal

import gymnasium
import torch
from torch import Tensor, nn

from ppo.models.encoders import MLP, ImpalaResNet, NatureCNN, PixelConv2d, SmallCNN, orthogonal

_ENCODERS: dict[str, type[SmallCNN | NatureCNN | ImpalaResNet]] = {
    "small": SmallCNN,
    "large": NatureCNN,
    "impala": ImpalaResNet,
}
_WIDTHS = {"small": 64, "large": 256}


class ActorCritic(nn.Module):
    """Policy logits and state values."""

    def __init__(self, actor: nn.Module, critic: nn.Module | None, num_features: int, num_actions: int) -> None:
        """Put heads on an actor's encoder and a critic's; None lets both share the actor's."""
        super().__init__()
        self.actor = actor
        self.critic = critic
        # A nearly uniform first policy, and values near 0 (Andrychowicz et al. 2021, arXiv:2006.05990, section 3.2).
        self.policy_head = orthogonal(nn.Linear(num_features, num_actions), gain=0.01)
        self.value_head = orthogonal(nn.Linear(num_features, 1), gain=1.0)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Map observations (B, ...) to logits (B, A) and values (B,); values are in the value normaliser's units."""
        features = self.actor(observations)
        value_features = features if self.critic is None else self.critic(observations)
        return self.policy_head(features), self.value_head(value_features).squeeze(-1)

    @property
    def pixel_layer(self) -> PixelConv2d | None:
        """The layer that sees pixels; None for vector observations."""
        return next((module for module in self.modules() if isinstance(module, PixelConv2d)), None)


def build_model(
    observation_space: gymnasium.Space[object],
    action_space: gymnasium.Space[object],
    model_size: Literal["small", "large", "impala"],
    *,
    seed: int,
) -> ActorCritic:
    """Build the network for a pair of spaces; its weights depend on the seed alone.

    Raises:
        ValueError: no network is known for these spaces.
    """
    if not isinstance(observation_space, gymnasium.spaces.Box):
        raise ValueError(f"no network for observations of {observation_space}")
    if not isinstance(action_space, gymnasium.spaces.Discrete):
        raise ValueError(f"no network for actions of {action_space}")
    shape, num_actions = observation_space.shape, int(action_space.n)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if len(shape) == 3 and shape[1:] == (84, 84):
            cnn = _ENCODERS[model_size](shape[0])
            return ActorCritic(cnn, None, cnn.num_features, num_actions)
        if len(shape) == 1 and model_size in _WIDTHS:
            width = _WIDTHS[model_size]
            return ActorCritic(MLP(shape[0], width), MLP(shape[0], width), width, num_actions)
    raise ValueError(f"no network for observations of shape {shape} of size {model_size}")
