"""The command line: flags -> Config, with a preset's defaults; bad flags are refused before any slow import."""

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import tyro

import ppo
from ppo.config import Config, PPOSettings, RunSettings, as_flags, section_types
from ppo.families import FAMILIES, PROTOCOLS, Family, family_of
from ppo.foreign_flags import FOREIGN_FLAGS
from ppo.presets import PRESETS, for_environments, preset_of
from ppo.settings import Refusal, did_you_mean

_COMMON: Mapping[str, str] = {
    "env_name": "the world: any Gymnasium id, such as HalfCheetah-v5",
    "mode": "train, play, watch (in a browser), record (a video) or one of the others above",
    "env_steps": "training length in agent steps over all environments, such as 2e6",
    "rng_seed": "seed of every random number",
    "seeds": "train several seeds one after another and compare them: 1-5 or 1,3,7",
    "model_name": "name of the run's folders; default: the world's, with -seed<N> for a seed N > 0",
    "preset": "named settings to start from; by default the world's own",
    "num_envs": "environments of the whole job, shared out over the ranks",
    "learning_rate": "Adam's step size at the start",
    "fresh": "begin anew instead of resuming; the earlier run is moved aside",
    "checkpoint": "which checkpoint: best, latest, shipped, a number of steps, or all for a film",
    "act": "which action is played: saved, mean, mode or sample",
    "episodes": "games to play, record or evaluate",
}
"""The settings of the short help."""
_SHORT_HELP = """\
usage: python -m ppo [--env_name=ID] [--mode=train|play|watch|record|replay|evaluate|report|compare|doctor] [flags]

Train, watch and record agents with PPO. Repeating a command resumes its run.

  mpirun -np 2 python -m ppo --env_name=PongNoFrameskip-v4     train on two ranks
  python -m ppo --env_name=CartPole-v1 --mode=watch            watch it in a browser, while it trains or later
  python -m ppo --env_name=CartPole-v1 --mode=evaluate         score 100 games, as JSON
  python -m ppo --mode=compare --runs CartPole-v1 Acrobot-v1   draw their learning curves

{flags}
  --help_all           every setting, with its default for this --env_name and --preset
  --version            the version of this program
"""
_SHORT_NUMBER = re.compile(r"\d{1,20}(\.\d{1,20})?[eE]\+?\d{1,2}")


def setting_types() -> dict[str, Any]:
    """Return the type of every setting of all families by its flat name, as used in flags."""
    types: dict[str, Any] = {}
    for family in FAMILIES:
        for section in section_types(family).values():
            types.update(typing.get_type_hints(section))
    return types


def explicit_settings(arguments: Sequence[str]) -> set[str]:
    """Return the flat names of the settings given on a command line; unknown names are returned unchanged."""
    arguments = _spell_out_protocol(arguments)
    names = {argument[2:].split("=", 1)[0].replace("-", "_") for argument in arguments if argument.startswith("--")}
    types = setting_types()
    return {name.removeprefix("no_") if types.get(name.removeprefix("no_")) is bool else name for name in names}


def parse_command_line(arguments: Sequence[str], *, speak: bool = True) -> Config:
    """Turn flags into a validated Config whose defaults come from the chosen preset, scaled to `--num_envs`.

    With `speak=False` (every rank but the first) --help, --help_all and --version print nothing.

    Raises:
        SystemExit: with code 0, after one of these flags.
        Refusal: an error from tyro or `Config.validate`, or an unknown setting or preset.
    """
    arguments = _join_runs(_replace_old_names(arguments))
    chosen = _peek(arguments, ("protocol", "env_name", "preset"))
    env_name = chosen.get("env_name", PRESETS.get(chosen.get("preset", ""), {}).get("env_name", RunSettings.env_name))
    family = family_of(env_name)
    _check_protocol(chosen.get("protocol"), env_name, family)
    arguments = _spell_out_protocol(arguments)
    explicit = explicit_settings(arguments)
    _refuse_unknown_flags(explicit)
    if {"seeds", "rng_seed"} <= explicit:
        raise Refusal("rng_seed must not be set together with seeds, which lists the seeds of the runs")
    arguments = _spell_out_numbers(_spell_out_booleans(arguments))
    chosen = _peek(arguments, ("env_kwargs", "preset", "mode", "num_envs", "rollout_steps"))
    for name, title in _of_other_families(explicit, family):
        raise Refusal(f"{name} must not be set for {env_name}: it applies to {title} only")
    for name, title in _of_other_families(PRESETS.get(chosen.get("preset", ""), {}), family):
        raise Refusal(f"preset must not be {chosen['preset']} for {env_name}: it sets {name}, of {title} only")
    defaults = _defaults(chosen, family, env_name, explicit)
    if explicit & {"version", "help"} or "-h" in arguments:
        with _silent_unless(speak):
            print(f"ppo {ppo.__version__}" if "version" in explicit else _short_help(defaults), flush=True)
        raise SystemExit(0)
    arguments = ["--help" if argument in ("--help_all", "--help-all") else argument for argument in arguments]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), _silent_unless(speak):
            config = tyro.cli(
                tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Config]],
                prog="python -m ppo",
                description=(
                    "Train, watch and record agents with PPO. Under mpirun every rank steps its share of the "
                    f"environments. The defaults below are those of the preset {defaults.run.preset!r} (of "
                    f"{', '.join(PRESETS)})."
                ),
                args=arguments,
                default=defaults,
                use_underscores=True,
            )
    except SystemExit as leave:
        if not leave.code:  # --help_all
            raise
        raise Refusal(_in_words(complaint.getvalue(), arguments)) from leave
    config.validate()
    return config


def _defaults(chosen: Mapping[str, str], family: Family, env_name: str, explicit: set[str]) -> Config:
    """Return the default settings, given the few flags they depend on."""
    preset = chosen.get("preset") or preset_of(env_name, family, chosen.get("env_kwargs", "{}"))
    if preset not in PRESETS:
        raise Refusal(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}{did_you_mean(preset, PRESETS)}")
    settings = PRESETS[preset]
    num_envs, rollout_steps = (_number_in_bounds(chosen, name) for name in ("num_envs", "rollout_steps"))
    if num_envs:
        settings = for_environments(settings, num_envs, rollout_steps)
    if "gae_lambda" in explicit and "gae_lambda_late" not in explicit:
        settings = {**settings, "gae_lambda_late": None}  # a user who sets one lambda wants it throughout
    if chosen.get("mode", "train") != "train":
        settings = {**settings, "act": "saved"}  # as the agent was saved, not as this preset says
    if chosen.get("mode") == "watch":
        settings = {**settings, "checkpoint": "latest"}
    run = {"env_name": env_name, "preset": preset}
    return dataclasses.replace(Config(), world=family.settings()).replace_settings({**settings, **run})


def _short_help(defaults: Config) -> str:
    """Return a page with the settings that most people need."""
    sections = defaults.to_dict().values()
    values = {name: value for section in sections for name, value in section.items()}
    flags = []
    for name, meaning in _COMMON.items():
        default = "" if values[name] is None or values[name] is False else f" (default: {values[name]})"
        flags.append(f"  --{name:<18} {meaning}{default}")
    return _SHORT_HELP.format(flags="\n".join(flags)).rstrip()


def _flag_name(flag: str) -> str:
    """Return the setting's name for a flag without its value, in either spelling."""
    return flag.removeprefix("--").replace("-", "_")


def _number_in_bounds(chosen: Mapping[str, str], name: str) -> int | None:
    """Return a flag's whole number; None without one or if it will be refused, so that it changes no other default."""
    text = chosen.get(name, "")
    bound = next(field.metadata["bound"] for field in dataclasses.fields(PPOSettings) if field.name == name)
    return int(text) if text.isdecimal() and len(text) < 20 and bound.holds(int(text)) else None


def _silent_unless(speak: bool) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if speak else contextlib.redirect_stdout(io.StringIO())


def _in_words(text: str, arguments: Sequence[str]) -> str:
    """Turn tyro's framed error text into a one-line message that suggests a fix."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    words = " ".join(re.sub(r"[\u2500-\u257f]+|-{3,}", " ", plain).split())
    reason = re.split(r" (?:Argument|For full) helptext", words)[0]
    reason = re.sub(r"^(?:Value error|Invalid choice|Missing argument|Parsing error) ", "", reason)
    if number := re.match(r"Error parsing --(\w+): (?:invalid literal for int|could not convert string)", reason):
        kind = "a whole number" if "for int()" in reason else "a number"
        return f"{number[1]} must be {kind}, got {_peek(arguments, [number[1]])[number[1]]!r}"
    if choice := re.fullmatch(r"invalid choice '(.*)' for argument '--(\w+)'\. Expected one of \((.*)\)\.", reason):
        choices = choice[3].replace("'", "")
        return f"{choice[2]} must be one of {choices}, got {choice[1]!r}"
    if missing := re.match(r"Missing value for argument '--(\w+)'", reason):
        return f"{missing[1]} must have a value, as --{missing[1]}=VALUE"
    if other := re.fullmatch(r"(?:Unrecognized options:? )+(.*)", reason):
        words = other[1].replace(", ", " ")
        ranks = "; the number of ranks is mpirun's: mpirun -np 2 python -m ppo ..." if words.startswith("-n") else ""
        return f"{words!r} must be a setting, as --name=value; a switch is --name or --no_name{ranks}"
    return reason


def _refuse_unknown_flags(explicit: set[str]) -> None:
    known = {*setting_types(), "help", "help_all", "version"}
    for name in sorted(explicit - known):
        foreign = FOREIGN_FLAGS.get(name) or FOREIGN_FLAGS.get(name.removeprefix("no_"))
        if foreign:
            ours = f"here it is --{foreign[0]}: " if foreign[0] else ""
            raise Refusal(f"there is no setting --{name}; {ours}{foreign[1]}")
        raise Refusal(f"there is no setting --{name}{did_you_mean(name, known)}")


def _of_other_families(names: Iterable[str], family: Family) -> Iterator[tuple[str, str]]:
    """Yield each name that is a setting of other families only, with the titles of those families."""
    own = typing.get_type_hints(family.settings)
    for name in sorted(set(names) - set(own)):
        titles = [other.title for other in FAMILIES if name in typing.get_type_hints(other.settings)]
        if titles:
            yield name, ", ".join(titles)


def _peek(arguments: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Read a few flags as strings before the defaults of the others are known."""
    found: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        name = _flag_name(flag)
        if flag.startswith("--") and name in names:
            if not equals and position + 1 < len(arguments):
                value = arguments[position + 1]
            found[name] = value
    return found


def _replace_old_names(arguments: Sequence[str]) -> list[str]:
    """Accept `--deterministic`, which `--act` has replaced."""
    new = {"deterministic": "mode", "deterministic=true": "mode", "deterministic=false": "saved"}
    new |= {"no_deterministic": "saved"}
    replaced = []
    for argument in arguments:
        rule = new.get(argument.removeprefix("--").replace("-", "_").lower()) if argument.startswith("--") else None
        replaced.append(argument if rule is None else f"--act={rule}")
    return replaced


def _check_protocol(protocol: str | None, env_name: str, family: Family) -> None:
    """Refuse an unknown protocol, or any protocol outside Atari."""
    if protocol is None:
        return
    if family.name != "atari":
        raise Refusal(f"protocol must not be set for {env_name}: it applies to Atari only")
    if protocol not in PROTOCOLS:
        words = f"{', '.join(PROTOCOLS)}, got {protocol!r}{did_you_mean(protocol, PROTOCOLS)}"
        raise Refusal(f"protocol must be one of {words}")


def _spell_out_protocol(arguments: Sequence[str]) -> list[str]:
    """Expand `--protocol=machado` into the flags it stands for; flags given explicitly take precedence."""
    settings = PROTOCOLS.get(_peek(arguments, ["protocol"]).get("protocol", ""))
    if settings is None:
        return list(arguments)
    rest = list(arguments)
    while (place := next((n for n, one in enumerate(rest) if one.partition("=")[0] == "--protocol"), None)) is not None:
        del rest[place : place + (1 if "=" in rest[place] else 2)]
    named = {_flag_name(argument.partition("=")[0]).removeprefix("no_") for argument in rest}
    return [*rest, *as_flags({name: value for name, value in settings.items() if name not in named})]


def _join_runs(arguments: Sequence[str]) -> list[str]:
    """Accept `--runs A B` for `--runs=A,B`."""
    joined: list[str] = []
    for argument in arguments:
        before = joined[-1] if joined else ""
        if argument.startswith("-") or not before.startswith("--runs"):
            joined.append(argument)
        else:
            joined[-1] = f"{before}{',' if '=' in before else '='}{argument}"
    return joined


def _spell_out_booleans(arguments: Sequence[str]) -> list[str]:
    """Accept `--flag=True` and `--flag=False` besides tyro's `--flag` and `--no-flag`."""
    types = setting_types()
    spelled = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = _flag_name(flag)
        if equals and types.get(name) is bool and value.lower() in ("true", "false"):
            argument = f"--{name}" if value.lower() == "true" else f"--no_{name}"
        spelled.append(argument)
    return spelled


def _spell_out_numbers(arguments: Sequence[str]) -> list[str]:
    """Accept 1e6 and 2.5e6 for whole numbers."""
    whole = {name for name, kind in setting_types().items() if int in (kind, *typing.get_args(kind))}
    spelled: list[str] = []
    for argument in arguments:
        before, equals, value = argument.rpartition("=")
        flag = before if equals else "".join(spelled[-1:])
        if _flag_name(flag) in whole and _SHORT_NUMBER.fullmatch(value):
            number = Decimal(value)
            value = f"{number:f}" if number == number.to_integral_value() else value
        spelled.append(f"{before}{equals}{value}")
    return spelled
