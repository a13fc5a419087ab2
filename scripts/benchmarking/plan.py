"""What a benchmark measures: its settings, and the cases that follow from them.

A case is a preset, or a small world, on a number of ranks, one core each. In weak scaling the environments and the
minibatch grow with the ranks, so that each rank does the work of a one-rank run.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ppo.command_line import explicit_settings, parse_command_line
from ppo.config import Config, RunSettings, as_flags
from ppo.presets import PRESETS
from ppo.settings import Refusal, did_you_mean

_FEW_CORES = 4
# Enough that no run ends during its measurement.
_ENV_STEPS = 1_000_000_000
SHARE_OF_TIME_FOR_A_TRIAL = 0.5
"""Share of the measurement time used to find the fastest way to run a program."""
# The benchmark sets where a run writes and how long it trains; the user may set only these RunSettings.
_LEFT_TO_THE_USER = {"env_name", "rng_seed"}

SettingsName = Literal["cleanrl", "published"]
"""Settings of Stable-Baselines3: those of our preset, or its own for Atari games."""
RIVALS: Mapping[str, SettingsName] = {"atari": "published", "cleanrl": "cleanrl"}
"""The settings of Stable-Baselines3 with which a preset is compared."""
SMALL_WORLDS = ("CartPole-v1", "LunarLander-v3", "HalfCheetah-v5")
_SMALL_MINIBATCH = 256


@dataclass(frozen=True)
class Settings:
    """Settings of a measurement."""

    quick: bool = False
    """Take about two minutes on two cores: measure once and briefly the default preset on 1 rank and on all cores, and
    what a block adds to the steps of small worlds, without weak scaling or Stable-Baselines3."""
    presets: tuple[str, ...] = ("atari", "paper", "cleanrl")
    """Presets to measure; weak scaling is measured for the first."""
    worlds: tuple[str, ...] = SMALL_WORLDS
    """Small worlds with vector observations to measure: what a block adds to their steps and, if Stable-Baselines3 is
    measured, training."""
    ranks: tuple[int, ...] | None = None
    """Numbers of ranks, one core each. Default: 1, 2, ... up to the number of cores (above 4 cores, powers of two and
    all); with --quick, 1 and all."""
    repeats: int = 3
    """Rounds; each measures everything once."""
    seconds: float = 20.0
    """Seconds for which a program is measured in each round, rounded to whole updates."""
    warm_up_seconds: float = 4.0
    """Seconds between the end of a program's first update and its measurement, rounded up to whole updates."""
    limit_seconds: float = 1.5
    """Seconds for which each limit of the machine is measured in each round."""
    stable_baselines3: bool = True
    """Measure Stable-Baselines3 too; its virtual environment is created on first use."""
    output: Path | None = Path("docs")
    """Folder for benchmark.md, measurements/benchmark.json and figures/benchmark.png."""


QUICK = Settings(
    quick=True,
    presets=("atari",),
    repeats=1,
    seconds=8.0,
    warm_up_seconds=2.0,
    limit_seconds=0.7,
    stable_baselines3=False,
    output=None,
)
"""The defaults with --quick."""


@dataclass(frozen=True)
class Case:
    """A preset on a number of ranks."""

    preset: str
    """Or the id of a small world, trained with the preset of its family."""
    ranks: int
    weak: bool
    """Whether the work grows with the ranks."""
    flags: tuple[str, ...]
    """Flags of `python -m ppo`."""
    config: Config
    """The settings that result from the flags."""

    @property
    def name(self) -> str:
        """The case's name in reports."""
        return case_name(self.preset, self.ranks, weak=self.weak)


def case_name(preset: str, ranks: int, *, weak: bool = False) -> str:
    """Return a case's name in reports."""
    return f"{preset} -np {ranks}{', weak' if weak else ''}"


def judged_cases(cases: Iterable[Case]) -> dict[str, Case]:
    """Return, by preset, the case on the most ranks, which is compared with the targets."""
    return {case.preset: case for case in sorted(cases, key=lambda case: case.ranks) if not case.weak}


def make_cases(settings: Settings, num_cores: int, flags: Sequence[str]) -> list[Case]:
    """Return the cases in the order in which they are measured.

    Args:
        settings: names the presets and perhaps the ranks.
        num_cores: available cores.
        flags: further flags of `python -m ppo`, for all cases.

    Raises:
        Refusal: a setting cannot be measured.
    """
    _validate(settings, num_cores)
    _refuse_flags_of_its_own(flags)
    if settings.stable_baselines3:
        _require_rivals(settings, flags)
    cases = []
    for preset in dict.fromkeys(settings.presets):
        single = _case(preset, 1, flags)
        num_envs = single.config.ppo.num_envs
        numbers = sorted({*settings.ranks}) if settings.ranks else _default_ranks(settings, min(num_cores, num_envs))
        if max(numbers) > num_envs:
            raise Refusal(
                f"ranks must be at most num_envs = {num_envs} of preset {preset}, got {max(numbers)}; "
                f"try --ranks {min(num_envs, num_cores)}"
            )
        cases += [replace(single, ranks=ranks) for ranks in numbers]
        if not settings.quick and preset == settings.presets[0] and 1 in numbers:
            cases += [_case(preset, ranks, flags, weak=True) for ranks in numbers if ranks > 1]
    return cases


def make_world_cases(settings: Settings, num_cores: int) -> dict[str, list[Case]]:
    """Return the cases of each small world, one per number of ranks, by the world's id.

    Raises:
        Refusal: a world cannot be measured.
    """
    cases = {}
    for env_name in dict.fromkeys(settings.worlds):
        flags = as_flags({"env_name": env_name, "minibatch_size": _SMALL_MINIBATCH, "env_steps": _ENV_STEPS})
        config = parse_command_line(flags)
        _require_small_world(config)
        numbers = sorted({*settings.ranks}) if settings.ranks else _default_ranks(settings, num_cores)
        cases[env_name] = [
            Case(env_name, ranks, False, tuple(flags), config) for ranks in numbers if ranks <= config.ppo.num_envs
        ]
    return cases


def _case(preset: str, ranks: int, flags: Sequence[str], *, weak: bool = False) -> Case:
    flags = [f"--preset={preset}", *flags]
    config = parse_command_line(flags)
    _require_atari(config.run.env_name)
    if weak:
        sizes = config.ppo
        grown = {
            "num_envs": sizes.num_envs * ranks,
            # Fixed, since more environments would change it and with it the work of a rank.
            "rollout_steps": sizes.rollout_steps,
            "minibatch_size": sizes.minibatch_size * ranks,
        }
        flags = [*flags, *as_flags(grown)]
        config = parse_command_line(flags)
    return Case(preset, ranks, weak, tuple(flags), config)


def _default_ranks(settings: Settings, num_cores: int) -> list[int]:
    if settings.quick:
        return sorted({1, num_cores})
    if num_cores <= _FEW_CORES:
        return list(range(1, num_cores + 1))
    return sorted({*(2**power for power in range(num_cores.bit_length())), num_cores})


def _validate(settings: Settings, num_cores: int) -> None:
    if not settings.presets:
        raise Refusal("presets must name at least one preset")
    for preset in settings.presets:
        if preset not in PRESETS:
            raise Refusal(f"presets must be of {', '.join(PRESETS)}, got {preset!r}{did_you_mean(preset, PRESETS)}")
    if settings.ranks is not None:
        wrong = [ranks for ranks in settings.ranks if not 1 <= ranks <= num_cores]
        if wrong:
            raise Refusal(
                f"ranks must be between 1 and the {num_cores} cores at hand, got {wrong[0]}; try --ranks {num_cores}"
            )
    if settings.repeats < 1:
        raise Refusal(f"repeats must be at least 1, got {settings.repeats}")
    for name in ("seconds", "limit_seconds"):
        if not 0.0 < getattr(settings, name) <= 3600.0:
            raise Refusal(f"{name} must be above 0 and at most 3600, got {getattr(settings, name)}")
    if not 0.0 <= settings.warm_up_seconds <= 3600.0:
        raise Refusal(f"warm_up_seconds must be between 0 and 3600, got {settings.warm_up_seconds}")


def _require_rivals(settings: Settings, flags: Sequence[str]) -> None:
    if flags:
        raise Refusal(
            "stable_baselines3 must be off when flags follow --: it trains with the unchanged presets; "
            "add --no-stable_baselines3"
        )
    if not settings.worlds and not RIVALS.keys() & {*settings.presets}:
        raise Refusal(
            f"stable_baselines3 is compared with {' and '.join(RIVALS)} and in small worlds, got presets "
            f"{', '.join(settings.presets)} and no worlds; add --no-stable_baselines3"
        )


def _require_atari(env_name: str) -> None:
    from ppo.envs import check_environment

    config = Config().replace_settings({"env_name": env_name})
    if config.family.name != "atari":
        raise Refusal(f"env_name must be an Atari game in a benchmark, got {env_name}; try {RunSettings.env_name}")
    check_environment(config)


def _require_small_world(config: Config) -> None:
    from gymnasium.spaces import Box, Discrete

    from ppo.envs import check_environment

    spaces = check_environment(config)
    if len(spaces.observation_space.shape) != 1 or not isinstance(spaces.action_space, Discrete | Box):
        raise Refusal(
            f"worlds must have vectors as observations and Discrete or Box actions, got {config.run.env_name}; "
            f"try {SMALL_WORLDS[0]}"
        )


def _refuse_flags_of_its_own(flags: Sequence[str]) -> None:
    own = {*RunSettings.__dataclass_fields__} - _LEFT_TO_THE_USER
    for name in sorted(explicit_settings(flags) & own):
        raise Refusal(f"{name} must not be among the flags after --: the benchmark sets it")
