"""Gymnasium's Box2D worlds, made repeatable: BipedalWalker, LunarLander and their like."""

from typing import Any

from ppo.envs.gymnasium import GymnasiumEnvironments, GymnasiumWorld
from ppo.envs.making import Environment


class Box2DEnvironments(GymnasiumEnvironments):
    """A block of environments of which every episode has a `b2World` of its own.

    A world that is used again remembers its contacts in another order, and the same seed and actions end elsewhere:
    in one BipedalWalker episode in ten (Gymnasium #728, which cured LunarLander alone).
    """

    def before_reset(self, env: Environment) -> None:
        """Put a new world in place of the old one."""
        from Box2D import b2World

        owner: Any = env.unwrapped
        if isinstance(getattr(owner, "world", None), b2World):
            owner._destroy()  # with the new world it would look there for the old bodies
            owner.world = b2World(gravity=owner.world.gravity)


WORLD = GymnasiumWorld(Box2DEnvironments)
