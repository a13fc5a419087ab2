"""The worlds that come with this package, by their Gymnasium ids."""

import gymnasium

# Id, class and time limit in steps.
_WORLDS = (
    ("ppo/ContinuousCartPole-v0", "ppo.envs.continuous_cartpole:ContinuousCartPole", 500),
    ("ppo/ReachingDot-v0", "ppo.envs.reaching_dot:ReachingDot", 100),
)


def register_own_worlds() -> None:
    """Register the ids with Gymnasium, which imports a world's module when the world is made."""
    for env_id, entry_point, max_episode_steps in _WORLDS:
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point, max_episode_steps=max_episode_steps)
