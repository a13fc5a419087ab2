"""The Atari family: its ids, and how its engines make a block of games."""

import re
from typing import Any

from ppo.envs.atari.blended_colours import leave_out_blended_colours

leave_out_blended_colours()  # before any module of this package imports ALE

import ale_py
import gymnasium
import numpy as np
from ale_py import roms
from gymnasium.spaces import Box, Discrete

from ppo.envs import LEAN, Engine, Environments, FrameListener, Spaces, unknown_environment
from ppo.envs.arrays import StepArrays
from ppo.envs.atari.scores import human_normalised_score, random_and_human
from ppo.envs.atari.screens import SCREEN_SIZE
from ppo.envs.references import Reference, references_of
from ppo.families import AtariSettings, WorldSettings, describe_protocol
from ppo.settings import Refusal

_NUM_JOYSTICK_ACTIONS = 18
_TABLE = "the table of google-deepmind/dqn_zoo"

gymnasium.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)


class AtariWorld:
    """The family's behaviour; see `ppo.envs.World`."""

    def check(self, env_name: str, world: WorldSettings) -> Spaces:
        """Return the spaces, or refuse an id that names no game of this version of ALE.

        The action space is an upper bound: the game's own is known only once it is loaded.
        """
        rom_name(env_name)
        settings = _atari(world)
        notes = [f"protocol: {describe_protocol(settings)}"]
        if env_name.startswith("ALE/") and not settings.sticky_actions:
            notes.append(
                f"Gymnasium's {env_name} has sticky actions, but this run has none; "
                "use --protocol=v5 for Gymnasium's settings"
            )
        return Spaces(screen_space(settings.frame_stack), Discrete(_NUM_JOYSTICK_ACTIONS), tuple(notes))

    def make_block(
        self,
        env_name: str,
        world: WorldSettings,
        *,
        indices: range,
        seed: int,
        engine: Engine = LEAN,
        on_frame: FrameListener | None = None,
        arrays: StepArrays | None = None,
    ) -> Environments:
        """Make a block of games, stepped in this thread or by ALE's."""
        assert engine.name in ("lean", "vector")
        from ppo.envs.atari.block import AtariEnvironments
        from ppo.envs.atari.vector import AtariVectorEnvironments

        rom, settings = rom_name(env_name), _atari(world)
        if engine.name == "vector":
            return AtariVectorEnvironments(rom, settings, indices=indices, seed=seed, threads=engine.workers)
        return AtariEnvironments(rom, settings, indices=indices, seed=seed, on_frame=on_frame, arrays=arrays)

    def same_world(self, first: str, second: str) -> bool:
        """Return whether two ids name the same game; the protocol does not depend on the id."""
        try:
            return rom_name(first) == rom_name(second)
        except Refusal:  # one of them names no game at all
            return False

    def facts(self, env_name: str, return_mean: float) -> dict[str, Any]:
        """Return the human-normalised score, None for a game without published scores."""
        return {"human_normalised_score": human_normalised_score(rom_name(env_name), return_mean)}

    def references(self, env_name: str) -> list[Reference]:
        """Return the scores of random play, of humans and of published PPO."""
        rom = rom_name(env_name)
        both = random_and_human(rom)
        own = (
            []
            if both is None
            else [Reference(*row) for row in zip(("random", "human"), both, (_TABLE, _TABLE), strict=True)]
        )
        return own + references_of(rom)


WORLD = AtariWorld()


def _atari(world: WorldSettings) -> AtariSettings:
    assert isinstance(world, AtariSettings)
    return world


def screen_space(frame_stack: int) -> Box:
    """Return the space of stacked screens."""
    return Box(0, 255, (frame_stack, SCREEN_SIZE, SCREEN_SIZE), np.uint8)


def accepted_names() -> list[str]:
    """Return the registered Atari ids that can be played with this package's protocol."""
    games = [i for i, spec in gymnasium.registry.items() if str(spec.entry_point).startswith("ale_py")]
    return [i for i in games if (i.endswith("NoFrameskip-v4") and "-ram" not in i) or i.startswith("ALE/")]


def rom_name(env_name: str) -> str:
    """Return the ROM of `PongNoFrameskip-v4` or `ALE/Pong-v5`; the protocol is this package's for both.

    Raises:
        Refusal: an unknown id, one whose own protocol (frame skip, RAM) would be ignored, or a game that ALE cannot
            load (it would end the process without an exception).
    """
    accepted = accepted_names()
    if env_name not in accepted:
        raise other_protocol(env_name) or unknown_environment(env_name, accepted)
    rom = str(gymnasium.registry[env_name].kwargs["game"])
    path = roms.get_rom_path(rom)
    if path is None or ale_py.ALEInterface.isSupportedROM(path) is None:
        raise Refusal(f"env_name {env_name!r} names the ROM {rom!r}, which this version of ALE cannot load")
    return rom


def other_protocol(env_name: str) -> Refusal | None:
    """Return the refusal of an Atari id whose own protocol is not this package's; it names the id to use.

    Such ids are `Pong`, `Pong-v4`, `PongDeterministic-v0`, `Pong-ram-v4` and the like, whether or not this version of
    ALE registers them.

    Args:
        env_name: any id; the result is None if it does not have the form of an Atari id, or names no game.
    """
    parts = re.fullmatch(r"(?:ale_py:)?(?:ALE/)?(\w+?)(?:-ram)?(?:Deterministic|NoFrameskip)?(?:-v\d+)?", env_name)
    accepted = accepted_names()
    same_game = [i for i in (f"{parts[1]}NoFrameskip-v4", f"ALE/{parts[1]}-v5") if i in accepted] if parts else []
    if not same_game:
        return None
    return Refusal(
        f"env_name must be a ...NoFrameskip-v4 or ALE/...-v5 id for Atari, got {env_name}; try {same_game[0]} "
        "(for sticky actions add --protocol=v5)"
    )
