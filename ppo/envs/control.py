"""Small worlds with vector observations: Gymnasium's classic control, and the two that come with this package."""

from ppo.envs.gymnasium import GymnasiumEnvironments, GymnasiumWorld

WORLD = GymnasiumWorld(GymnasiumEnvironments)
