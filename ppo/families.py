"""Families of worlds as data: which ids belong to a family, its settings, and the preset it starts from.

The behaviour of a family is in the module or package of `ppo.envs` with its name.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ppo.settings import require, setting

_MOST_FRAMES = 2**40
_MOST_CHARACTERS = 10_000
_MOST_BRACKETS = 100
_LARGEST_PENALTY = 1e6
_Settings = TypeVar("_Settings", bound="WorldSettings")

ChannelAxis = Literal["auto", "first", "last"]


@dataclass(frozen=True)
class WorldSettings:
    """The protocol of an environment; saved with the agent, reused by play, record and evaluate."""

    def check(self) -> None:
        """Refuse invalid values that bounds do not exclude.

        Raises:
            Refusal: names the setting and the rule.
        """

    def channels_per_picture(self, channels: int) -> int:
        """Return 3 if the channels of an image are those of colours, one picture of a stack after the other, else 1."""
        return 3 if channels % 3 == 0 else 1

    def of_whole_games(self: _Settings) -> _Settings:
        """Return the protocol of games outside training, with all training-only settings off."""
        off = {
            field.name: False if field.type is bool else None
            for field in dataclasses.fields(self)
            if field.metadata.get("training_only")
        }
        return dataclasses.replace(self, **off)


@dataclass(frozen=True)
class AtariSettings(WorldSettings):
    """The protocol of Atari 2600 games."""

    sticky_actions: float = setting(0.0, at_least=0.0, below=1.0, of_playback=True)
    """Probability that an emulated frame repeats the previous action (Machado et al. 2018 use 0.25). Atari only.
    --protocol=nature, machado or v5 sets this, full_action_space and episodic_life together."""
    full_action_space: bool = setting(False, of_playback=True)
    """Offer all 18 joystick actions instead of those the game uses. Atari only."""
    noop_max: int = setting(30, at_least=0, at_most=10_000, of_playback=True)
    """A game begins with 1 to this many no-op frames; 0 for none. Atari only."""
    fire_reset: bool = setting(True, of_playback=True)
    """Press FIRE at the start and after a lost life in games that use FIRE. Atari only."""
    episodic_life: bool = setting(True, training_only=True)
    """A lost life ends the episode for the learner (the game plays on). Training only, Atari only."""
    frame_stack: int = setting(4, at_least=1, at_most=16, of_playback=True)
    """Screens per observation; 1 turns stacking off. Atari only."""
    max_frames: int = setting(108_000, at_least=4, at_most=_MOST_FRAMES, of_playback=True)
    """Time limit of a game in emulated frames; the default is 30 minutes of play. Atari only."""

    def channels_per_picture(self, channels: int) -> int:
        """Return 1: screens are grey, however many are stacked."""
        return 1


PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    # Mnih et al. 2015 (doi:10.1038/nature14236), also the protocol of the PPO paper and of ...NoFrameskip-v4.
    "nature": {"sticky_actions": 0.0, "full_action_space": False, "episodic_life": True},
    # Machado et al. 2018 (arXiv:1709.06009).
    "machado": {"sticky_actions": 0.25, "full_action_space": True, "episodic_life": False},
    # The arguments with which Gymnasium registers ALE/...-v5.
    "v5": {"sticky_actions": 0.25, "full_action_space": False, "episodic_life": False},
}
"""The settings that each value of `--protocol` stands for."""


def describe_protocol(world: AtariSettings) -> str:
    """Return the name of an Atari protocol, if it has one, and its settings in words."""
    given = {name: getattr(world, name) for name in PROTOCOLS["nature"]}
    name = next((name for name, settings in PROTOCOLS.items() if settings == given), "your own")
    sticky = f"sticky actions {world.sticky_actions:g}" if world.sticky_actions else "no sticky actions"
    actions = "all 18 actions" if world.full_action_space else "the game's own actions"
    life = "a lost life ends a training episode" if world.episodic_life else "a lost life ends nothing"
    return f"{name} ({sticky}, {actions}, {life})"


@dataclass(frozen=True)
class GymnasiumSettings(WorldSettings):
    """The protocol of worlds made by `gymnasium.make`."""

    env_kwargs: str = setting("{}", of_playback=True)
    """Arguments of the environment's constructor as JSON, such as '{"continuous": true}'. Not for Atari."""
    channel_axis: ChannelAxis = "auto"
    """Axis of an image's channels; auto: the smaller of the first and the last, the last if they are equal. Not for
    Atari."""

    def check(self) -> None:
        """Refuse constructor arguments that are not a JSON object."""
        is_object = constructor_arguments(self.env_kwargs) is not None
        require(is_object, "env_kwargs", 'a JSON object such as {"continuous": true}', repr(self.env_kwargs))


def constructor_arguments(env_kwargs: str) -> dict[str, Any] | None:
    """Return the arguments in the JSON of `env_kwargs`, or None if it is not an object or is too large to read."""
    # How many nested brackets Python can parse depends on the depth of its call stack.
    if len(env_kwargs) > _MOST_CHARACTERS or env_kwargs.count("[") + env_kwargs.count("{") > _MOST_BRACKETS:
        return None
    try:
        arguments = json.loads(env_kwargs)
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None


@dataclass(frozen=True)
class CarRacingSettings(GymnasiumSettings):
    """The protocol of CarRacing; `env_kwargs` may hold {"continuous": false} and {"domain_randomize": true}."""

    action_repeat: int = setting(8, at_least=1, at_most=1000)
    """Frames for which an action is held; the agent sees the last of them. CarRacing only."""
    picture: Literal["full", "area", "maximum", "cropped"] = "maximum"
    """full: 96x96 pixels, as the world draws them. area, maximum: 48x48, the mean or the maximum of each 2x2 pixels.
    cropped: 84x84, without the bottom 12 rows (the indicators) and 6 columns on each side. CarRacing only."""
    colour: bool = False
    """Show red, green and blue instead of grey. CarRacing only."""
    frame_stack: int = setting(4, at_least=1, at_most=16)
    """Pictures per observation, one per action; 1 turns stacking off. CarRacing only."""
    noop_frames: int = setting(0, at_least=0, at_most=999, of_playback=True)
    """Frames without an action at the start of an episode. They count as frames, and their rewards towards the logged
    return, but the learner does not see them. CarRacing only."""
    give_up_frames: int | None = setting(100, at_least=1, at_most=_MOST_FRAMES, training_only=True)
    """End an episode, as if the car had crashed, after this many frames without a new road tile. None: never. Training
    only, CarRacing only."""
    grass_penalty: float | None = setting(None, above=0.0, at_most=_LARGEST_PENALTY, training_only=True)
    """Subtract this from the learner's reward, never from logged returns, at every frame whose mean green is above 180
    of 255; every frame is drawn for this. None: no penalty. Training only, CarRacing only."""

    def channels_per_picture(self, channels: int) -> int:
        """Return 3 for pictures in colour, else 1, however many are stacked."""
        return 3 if self.colour else 1


@dataclass(frozen=True)
class Family:
    """A kind of world."""

    name: str
    """Also the name of its module in `ppo.envs`; stored in checkpoints."""
    title: str
    """Its worlds in words, for refusals."""
    ids: str
    """Regular expression that matches the whole id of each of its worlds."""
    settings: type[WorldSettings]
    preset: str
    """The preset its worlds start from."""
    engines: tuple[str, ...]
    """The values of `env_engine` that can step its worlds."""
    auto_engine: Literal["lean", "processes"] = "processes"
    """Engine for `--env_engine=auto` if every rank has several cores; lean for worlds that step in microseconds."""
    extra: str = ""
    """The extra of setup.py that its worlds need."""
    simulators: tuple[str, ...] = ()
    """Distributions, some of which it needs, whose version can change what its worlds do or show."""
    tuned_presets: tuple[str, ...] = ()
    """Presets that were found for all of its worlds; others were found for one world or for other families."""


FAMILIES = (
    Family(
        "atari",
        "Atari games",
        r"ALE/.*|.*NoFrameskip.*",
        AtariSettings,
        "atari",
        ("lean", "processes", "vector"),
        tuned_presets=("atari", "paper", "cleanrl", "ppo1"),
    ),
    Family(
        "control",
        "classic control",
        r"(CartPole|MountainCar|MountainCarContinuous|Pendulum|Acrobot)-v\d+|ppo/(ContinuousCartPole|ReachingDot)-v\d+",
        GymnasiumSettings,
        "classic",
        ("lean", "processes"),
        auto_engine="lean",
    ),
    Family(
        "car_racing",
        "CarRacing",
        r"CarRacing-v\d+",
        CarRacingSettings,
        "car-racing",
        ("lean", "processes"),
        extra="box2d",
        simulators=("box2d", "pygame-ce", "pygame"),
        tuned_presets=("car-racing", "coordconv-000", "convnet-000"),
    ),
    Family(
        "box2d",
        "Box2D worlds",
        r"(LunarLander|LunarLanderContinuous|BipedalWalker|BipedalWalkerHardcore)-v\d+",
        GymnasiumSettings,
        "continuous",
        ("lean", "processes"),
        extra="box2d",
        simulators=("box2d",),
    ),
    Family(
        "mujoco",
        "MuJoCo worlds",
        r"(Reacher|Pusher|InvertedPendulum|InvertedDoublePendulum|HalfCheetah|Hopper|Swimmer|Walker2d|Ant|Humanoid"
        r"|HumanoidStandup)-v\d+",
        GymnasiumSettings,
        "continuous",
        ("lean", "processes"),
        extra="mujoco",
        simulators=("mujoco",),
    ),
    # The general family comes last because it matches every id.
    Family("gymnasium", "worlds made by gymnasium.make", r".*", GymnasiumSettings, "classic", ("lean", "processes")),
)


def family_of(env_name: str) -> Family:
    """Return the family of an id: the first whose pattern matches."""
    return next(family for family in FAMILIES if re.fullmatch(family.ids, env_name, re.DOTALL))


def family_named(name: str) -> Family | None:
    """Return the family with this name, as stored in checkpoints; None if this version knows no such family."""
    return next((family for family in FAMILIES if family.name == name), None)
