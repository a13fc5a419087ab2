"""Gymnasium's Box2D worlds, made deterministic: BipedalWalker, LunarLander and the like."""

from typing import Any

from ppo.envs.gymnasium import GymnasiumEnvironments, GymnasiumWorld
from ppo.envs.making import Environment


class Box2DEnvironments(GymnasiumEnvironments):
    """A block of environments that give every episode a new `b2World`.

    A reused `b2World` keeps its contacts in another order, so that the same seed and actions lead elsewhere in one
    BipedalWalker episode in ten (Gymnasium #728, which fixed only LunarLander).
    """

    def before_reset(self, env: Environment) -> None:
        """Replace the `b2World` with a new one."""
        from Box2D import b2World

        owner: Any = env.unwrapped
        if isinstance(getattr(owner, "world", None), b2World):
            owner._destroy()  # later it would look for the old bodies in the new world
            owner.world = b2World(gravity=owner.world.gravity)


WORLD = GymnasiumWorld(Box2DEnvironments)
