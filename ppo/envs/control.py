"""Small worlds of vectors: Gymnasium's classic control, and the two that come with this package."""

from ppo.envs.gymnasium import GymnasiumEnvironments, GymnasiumWorld

WORLD = GymnasiumWorld(GymnasiumEnvironments)
