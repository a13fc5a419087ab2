"""Names of actions and observation entries, for worlds whose own code does not name them."""

import math
import re
from collections.abc import Sequence
from typing import Any

from gymnasium import Space
from gymnasium.spaces import Discrete

_LANDER = ("x", "y", "speed in x", "speed in y", "angle", "angular speed", "left leg touches", "right leg touches")
_POLE = ("cart position", "cart speed", "pole angle", "pole angular speed")
_CAR = ("position", "speed")
_WALKER = (
    *("hull angle", "hull angular speed", "speed in x", "speed in y"),
    *(
        name
        for leg in ("1", "2")
        for name in (
            f"hip {leg} angle",
            f"hip {leg} speed",
            f"knee {leg} angle",
            f"knee {leg} speed",
            f"leg {leg} touches",
        )
    ),
    *(f"lidar {number}" for number in range(1, 11)),
)
_LEGS = ("hip 1 torque", "knee 1 torque", "hip 2 torque", "knee 2 torque")
_NAMES: Sequence[tuple[str, Sequence[str], Sequence[str]]] = (
    (r"CartPole-v\d+", ("push left", "push right"), _POLE),
    (r"ppo/ContinuousCartPole-v\d+", ("force",), _POLE),
    (r"MountainCar-v\d+", ("push left", "coast", "push right"), _CAR),
    (r"MountainCarContinuous-v\d+", ("force",), _CAR),
    (r"Pendulum-v\d+", ("torque",), ("cos angle", "sin angle", "angular speed")),
    (
        r"Acrobot-v\d+",
        ("torque -1", "no torque", "torque +1"),
        ("cos angle 1", "sin angle 1", "cos angle 2", "sin angle 2", "angular speed 1", "angular speed 2"),
    ),
    (r"LunarLander-v\d+", ("engines off", "left engine", "main engine", "right engine"), _LANDER),
    (r"LunarLander(Continuous)?-v\d+", ("main engine", "side engines"), _LANDER),
    (r"BipedalWalker(Hardcore)?-v\d+", _LEGS, _WALKER),
    (r"CarRacing-v\d+", ("steering", "gas", "brake"), ()),
    (r"CarRacing-v\d+", ("nothing", "steer right", "steer left", "gas", "brake"), ()),
    (r"ppo/ReachingDot-v\d+", ("move in x", "move in y"), ("x", "y", "way in x", "way in y")),
)


def names_of(env_name: str, actions_of: Space[Any], num_entries: int) -> tuple[Sequence[str], Sequence[str]]:
    """Return the names of actions and of observation entries; empty if unknown or if their number differs.

    Args:
        env_name: a Gymnasium id.
        actions_of: its action space.
        num_entries: number of entries of its observations.
    """
    num_actions = int(actions_of.n) if isinstance(actions_of, Discrete) else math.prod(actions_of.shape or ())
    rows = [row for row in _NAMES if re.fullmatch(row[0], env_name)]
    actions = next((names for _, names, _ in rows if len(names) == num_actions), ())
    entries = next((names for _, _, names in rows if len(names) == num_entries), ())
    return actions, entries
