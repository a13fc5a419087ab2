"""Every setting of the program: typed, documented, validated; the command line is generated from it.

Settings describe the whole job, never one rank: the same flags mean the same training at any number of ranks.
This module imports neither torch nor gymnasium, so that `--help` and a refused flag answer at once.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro


class Refusal(ValueError):
    """The user's input cannot be served; the message names the setting, the rule and the nearest valid choice.

    The program prints it once for the whole job and ends with exit code 2.
    """


MODEL_NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
SHIPPED = "pretrained"
"""Folder of the shipped agents under checkpoints; no run can have this name."""
MAX_SEED = 2**63 - 1
# Far above what anybody trains with, and low enough that no checkpoint's settings can keep a reader busy.
_MOST = 2**20
# What the header of a checkpoint can name.
_MOST_ENVS = 4096
# A bucket is at least one parameter, and no network here has more.
_MOST_BUCKETS = 64


@dataclass(frozen=True)
class RunSettings:
    """What to do, for how long, and where the results go."""

    env_name: str = "PongNoFrameskip-v4"
    """Gymnasium id of the world. `PongNoFrameskip-v4` and `ALE/Pong-v5` name the same game under the same protocol."""
    mode: Literal["train", "play", "record", "evaluate"] = "train"
    """train; play (watch games); record (write a video); evaluate (score many games)."""
    preset: str | None = None
    """Named settings to start from: atari, paper, cleanrl or classic. Default: chosen from the environment."""
    model_name: str | None = None
    """Folder name of this run under checkpoints, runs and assets. Default: the environment's name."""
    env_steps: int = 10_000_000
    """Length of the training in agent steps over all environments (an Atari step is 4 frames); the last update may pass
    it by less than one rollout."""
    rng_seed: int = 0
    """Seed of every random number of the job."""
    fresh: bool = False
    """Start anew: move an earlier run of this name aside (nothing is deleted) instead of resuming it."""
    checkpoint_interval: int = 25
    """Updates between two checkpoints. One is written at the end and on Ctrl-C too."""
    checkpoint_dir: Path = Path("checkpoints")
    """Where checkpoints live: <checkpoint_dir>/<model_name>/step_<steps>."""
    run_dir: Path = Path("runs")
    """Where logs live: <run_dir>/<model_name>/."""
    asset_dir: Path = Path("assets")
    """Where --mode=record writes: <asset_dir>/<model_name>/."""


@dataclass(frozen=True)
class WorldSettings:
    """The protocol of the environment; saved with the agent, reused by play, record and evaluate."""

    sticky_actions: float = 0.0
    """Probability that an emulated frame repeats the previous action (Machado et al. 2018 use 0.25). Atari only."""
    full_action_space: bool = False
    """Offer all 18 joystick actions instead of those the game uses. Atari only."""
    noop_max: int = 30
    """A game begins with 1 to this many no-op frames; 0 for none. Atari only."""
    fire_reset: bool = True
    """Press FIRE at the start and after a lost life in games that use FIRE. Atari only."""
    episodic_life: bool = True
    """A lost life ends the episode for the learner (the game plays on). Training only, Atari only."""
    clip_rewards: bool = True
    """Train on the sign of the reward. Logged returns are always raw. Training only, Atari only."""
    frame_stack: int = 4
    """Screens an observation holds; 1 to switch stacking off. Atari only."""
    max_frames: int = 108_000
    """Emulated frames after which a game is cut by the time limit (30 minutes of play). Atari only."""


@dataclass(frozen=True)
class ModelSettings:
    """The network."""

    model_size: Literal["small", "large", "impala"] = "small"
    """Images: small is the two-layer CNN of A3C, large the Nature CNN, impala the residual network of IMPALA. Vectors:
    64 or 256 units a layer (small or large)."""


@dataclass(frozen=True)
class PPOSettings:
    """The learning rule; sizes are for the whole job and shared out over the ranks."""

    num_envs: int = 16
    """Environments of the whole job. Another number than the preset's changes rollout_steps, minibatch_size and what
    goes with the batch, where no flag sets them. More ranks than environments is refused."""
    rollout_steps: int = 128
    """Steps of each environment per update."""
    minibatch_size: int = 512
    """Steps per gradient step: a multiple of num_envs whose quotient divides rollout_steps."""
    num_epochs: int = 4
    """Passes over the rollout per update."""
    discount: float = 0.99
    """Discount factor, gamma."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation; of all of training if it is set and gae_lambda_late is not."""
    gae_lambda_late: float | None = None
    """Lambda that training ends with: shorter returns may serve better once values can be trusted. None: no change."""
    gae_lambda_late_steps: int = 800_000
    """Agent steps at which lambda has become gae_lambda_late; it moves in a straight line from half of them on."""
    learning_rate: float = 2.5e-4
    """Adam step size at the start."""
    learning_rate_schedule: Literal["linear", "constant", "kl_adaptive"] = "linear"
    """linear falls to 0 at env_steps; kl_adaptive steers the policy change of an epoch towards kl_target."""
    learning_rate_max: float = 1e-3
    """Upper bound of the kl_adaptive rate."""
    kl_target: float = 0.01
    """KL divergence per epoch that the kl_adaptive rate aims at."""
    kl_factor: float = 1.5
    """The kl_adaptive rate is divided by this above twice kl_target and multiplied by it below half of it."""
    kl_stop: float | None = None
    """End the epochs of an update early once an epoch's KL exceeds this. Default: never."""
    adam_epsilon: float = 1e-5
    """Epsilon of Adam."""
    clip_range: float = 0.2
    """Clip range of the probability ratio."""
    clip_range_schedule: Literal["linear", "constant"] = "constant"
    """linear lets the clip range fall to 0 at env_steps."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus."""
    value_coefficient: float = 0.5
    """Weight of the value loss, which is half the squared error."""
    value_clip_range: float | None = None
    """Clip the change of a value prediction to this (Schulman's code does, the paper does not). Default: no clip."""
    value_normalization: bool = False
    """Learn values in units of the running mean and deviation of the returns."""
    pixel_normalization: bool = False
    """Centre and scale pixels by the running mean and deviation of all of them, instead of dividing by 255."""
    advantage_normalization: Literal["batch", "minibatch", "none"] = "batch"
    """Scale advantages to mean 0 and deviation 1 over the whole rollout of all ranks, or over each minibatch."""
    max_gradient_norm: float | None = 0.5
    """Global norm to which the gradient is clipped, after the average over ranks. None: no clip."""


@dataclass(frozen=True)
class PlaybackSettings:
    """Settings of play, record and evaluate."""

    episodes: int | None = None
    """Games to play. Default: 3 for play, 1 for record, 100 for evaluate."""
    deterministic: bool = False
    """Take the most probable action instead of sampling."""
    checkpoint: str = "best"
    """Which checkpoint of the model: best, latest or a number of steps."""


@dataclass(frozen=True)
class SupervisionSettings:
    """What watches over a training run."""

    watchdog_seconds: float = 300.0
    """A rank that has not come to the next phase of an update after so many seconds ends the job."""
    # Below the 480 s after which mpirun itself gives a lost host up, with an exit code of 0.
    replica_check_interval: int = 10
    """Updates between two comparisons of all ranks' weights and optimiser states; done before every save too. What all
    ranks have in one memory (all_reduce) is not compared with itself."""
    take_over_lock: bool = False
    """Train although another host holds the lock of this model name: only when no run is alive there."""


@dataclass(frozen=True)
class MachineSettings:
    """The hardware that is used; changes speed and not what is learnt (docs/protocol.md has what little differs)."""

    env_engine: Literal["auto", "lean", "processes", "vector"] = "auto"
    """lean: one thread a rank. processes: a process for each core of a rank, the same games. vector: ALE's
    AtariVectorEnv with a thread for each, goes on with new games when resumed. auto: processes for a new run where
    every rank has at least four cores, else lean. Training only, Atari only."""
    all_reduce: Literal["auto", "flat", "hierarchical"] = "auto"
    """How gradients are summed: flat over all ranks at once; hierarchical within each host first, so that only one rank
    a host uses the network. auto: hosts of several ranks first sum in memory that these share, and only one rank a host
    uses the network; else flat. Where every rank has a GPU, NCCL does."""
    gradient_wire: Literal["float32", "bfloat16"] = "float32"
    """Numbers that gradients travel as. bfloat16 halves the bytes and rounds to 8 bits; sums are float32 all the same.
    With auto and hierarchical between hosts only, where a host has several ranks."""
    gradient_buckets: int = 1
    """Pieces in which the gradient is summed. 1: all of it after the backward pass. More: each is begun as soon as the
    backward pass has finished it; flat and float32 only."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network acts and learns. cuda: on GPUs, which the ranks of a host take in turn; resumes, but not bit
    for bit. auto: cuda where every rank sees a GPU, all of one kind, else cpu. Training only."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the convolutions and what is between them and the heads; the rest is float32. bfloat16: on GPUs
    only. auto: bfloat16 on GPUs that have it, else float32. Training only, Atari only."""


@dataclass(frozen=True)
class Config:
    """All settings of one invocation."""

    run: RunSettings = field(default_factory=RunSettings)
    world: WorldSettings = field(default_factory=WorldSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    playback: PlaybackSettings = field(default_factory=PlaybackSettings)
    supervision: SupervisionSettings = field(default_factory=SupervisionSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)

    @property
    def model_name(self) -> str:
        """Name of the run's folders: given, or the environment's name with `/` replaced."""
        return self.run.model_name or default_model_name(self.run.env_name)

    @property
    def steps_per_update(self) -> int:
        """Agent steps over all environments per update."""
        return self.ppo.num_envs * self.ppo.rollout_steps

    @property
    def checkpoint_folder(self) -> Path:
        """Folder of this run's checkpoints."""
        return self.run.checkpoint_dir / self.model_name

    @property
    def run_folder(self) -> Path:
        """Folder of this run's logs."""
        return self.run.run_dir / self.model_name

    @property
    def episodes(self) -> int:
        """Games to play in play, record or evaluate."""
        default = {"play": 3, "record": 1, "evaluate": 100}.get(self.run.mode, 1)
        return default if self.playback.episodes is None else self.playback.episodes

    def validate(self) -> None:
        """Check every bound and combination that needs no other module.

        Raises:
            Refusal: names the setting, the rule, the value and where possible the nearest valid choice.
        """
        _validate_run(self.run)
        _validate_world(self.world)
        _validate_ppo(self.ppo)
        _validate_playback(self.playback)
        _validate_supervision(self.supervision)
        _validate_machine(self.machine)

    def replace_settings(self, settings: Mapping[str, Any]) -> "Config":
        """Return a copy with the named settings changed, whatever section they stand in."""
        sections = {}
        for section in dataclasses.fields(self):
            current = getattr(self, section.name)
            names = {f.name for f in dataclasses.fields(current)}
            sections[section.name] = dataclasses.replace(
                current, **{name: value for name, value in settings.items() if name in names}
            )
        unknown = set(settings) - set(setting_types())
        assert not unknown, f"no such settings: {sorted(unknown)}"
        return Config(**sections)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain JSON data, section by section."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))  # type: ignore[no-any-return]

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Config":
        """Rebuild a config from `to_dict` data, refusing what this version does not know.

        Raises:
            Refusal: an unknown section or setting, a value of the wrong type, or one out of bounds.
        """
        sections = {}
        for section in dataclasses.fields(Config):
            content = data.get(section.name, {})
            if not isinstance(content, Mapping):
                raise Refusal(f"config section {section.name} must be a mapping, got {type(content).__name__}")
            section_class = typing.cast(Any, section.default_factory)
            types = typing.get_type_hints(section_class)
            unknown = sorted(set(content) - set(types))
            if unknown:
                raise Refusal(f"config section {section.name} has settings this version does not know: {unknown}")
            sections[section.name] = section_class(
                **{name: _from_json(name, value, types[name]) for name, value in content.items()}
            )
        unknown = sorted(set(data) - set(sections))
        if unknown:
            raise Refusal(f"config has sections this version does not know: {unknown}")
        config = Config(**sections)
        config.validate()
        return config


def default_model_name(env_name: str) -> str:
    """Return the folder name that stands for an environment when the user gives none."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", env_name).lstrip(".-")[:100] or "unnamed"


def setting_types() -> dict[str, Any]:
    """Return the type of every setting by its flat name, as the flags use it."""
    types: dict[str, Any] = {}
    for section in dataclasses.fields(Config):
        types.update(typing.get_type_hints(typing.cast(Any, section.default_factory)))
    return types


def differences(old: Config, new: Config, sections: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Return the settings of these sections that differ, as name -> (old, new)."""
    changed = {}
    for section in sections:
        before, after = getattr(old, section), getattr(new, section)
        for setting in dataclasses.fields(before):
            pair = getattr(before, setting.name), getattr(after, setting.name)
            if pair[0] != pair[1]:
                changed[setting.name] = pair
    return changed


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Return what to type for these settings, name -> value."""
    return [
        f"--{'' if value else 'no_'}{name}" if isinstance(value, bool) else f"--{name}={value}"
        for name, value in settings.items()
    ]


def explicit_settings(arguments: Sequence[str]) -> set[str]:
    """Return the flat names of the settings that a command line names; unknown names as they are."""
    names = {argument[2:].split("=", 1)[0].replace("-", "_") for argument in arguments if argument.startswith("--")}
    types = setting_types()
    return {name.removeprefix("no_") if types.get(name.removeprefix("no_")) is bool else name for name in names}


def parse_command_line(
    arguments: Sequence[str],
    presets: Mapping[str, Mapping[str, Any]],
    default_preset: typing.Callable[[str], str],
    for_environments: typing.Callable[[Mapping[str, Any], int, int | None], Mapping[str, Any]],
    *,
    speak: bool = True,
) -> Config:
    """Turn flags into a validated Config whose defaults come from the chosen preset, scaled to `--num_envs`.

    With `speak=False` (every rank but the first) --help prints nothing.

    Raises:
        SystemExit: with code 0, after --help.
        Refusal: from tyro or `Config.validate`, or an unknown setting or preset.
    """
    _refuse_unknown_flags(arguments)
    arguments = _spell_out_booleans(arguments)
    chosen = _peek(arguments, ("env_name", "preset", "num_envs", "rollout_steps"))
    env_name = chosen.get("env_name", RunSettings.env_name)
    preset = chosen.get("preset") or default_preset(env_name)
    if preset not in presets:
        raise Refusal(f"preset must be one of {', '.join(presets)}, got {preset!r}{did_you_mean(preset, presets)}")
    settings = presets[preset]
    num_envs, rollout_steps = (
        int(value) if (value := chosen.get(name, "")).isdecimal() else None for name in ("num_envs", "rollout_steps")
    )
    if num_envs:
        settings = for_environments(settings, num_envs, rollout_steps)
    explicit = explicit_settings(arguments)
    if "gae_lambda" in explicit and "gae_lambda_late" not in explicit:
        settings = {**settings, "gae_lambda_late": None}  # who sets one lambda wants no other
    defaults = Config().replace_settings(settings).replace_settings({"env_name": env_name, "preset": preset})
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), _silent_unless(speak):
            config = tyro.cli(
                tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Config]],
                prog="python -m ppo",
                description=(
                    "Train, watch and record agents with PPO. Under mpirun every rank steps its share of the "
                    f"environments. The defaults below are those of the preset {preset!r} (of {', '.join(presets)})."
                ),
                args=list(arguments),
                default=defaults,
            )
    except SystemExit as leave:
        if not leave.code:  # --help
            raise
        raise Refusal(_unboxed(complaint.getvalue())) from leave
    config.validate()
    return config


def did_you_mean(word: str, choices: typing.Iterable[str]) -> str:
    """Return `; did you mean X?` for the nearest choice, or an empty string."""
    lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    return f"; did you mean {lower[close[0]]!r}?" if close else ""


def _silent_unless(speak: bool) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if speak else contextlib.redirect_stdout(io.StringIO())


def _unboxed(text: str) -> str:
    """Turn the framed text in which tyro says what is wrong with a value into one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    words = " ".join(re.sub(r"[\u2500-\u257f]+|-{3,}", " ", plain).split())
    reason = re.split(r" (?:Argument|For full) helptext", words)[0]
    return re.sub(r"^(?:Value error|Invalid choice|Missing argument|Parsing error) ", "", reason)


def _refuse_unknown_flags(arguments: Sequence[str]) -> None:
    known = {*setting_types(), "help"}
    for name in sorted(explicit_settings(arguments) - known):
        raise Refusal(f"there is no setting --{name}{did_you_mean(name, known)}")


def _peek(arguments: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Read a few string flags before the defaults of all others are known."""
    found: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in names:
            if not equals and position + 1 < len(arguments):
                value = arguments[position + 1]
            found[name] = value
    return found


def _spell_out_booleans(arguments: Sequence[str]) -> list[str]:
    """Accept `--flag=True` and `--flag=False` beside tyro's `--flag` and `--no-flag`."""
    types = setting_types()
    spelled = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if equals and types.get(name) is bool and value.lower() in ("true", "false"):
            argument = f"--{name}" if value.lower() == "true" else f"--no_{name}"
        spelled.append(argument)
    return spelled


def _from_json(name: str, value: Any, expected: Any) -> Any:
    """Check a JSON value against a setting's type; the only conversions are str -> Path and int -> float."""
    choices = typing.get_args(expected) or (expected,)
    if typing.get_origin(expected) is Literal:
        if value in choices:
            return value
    elif value is None and type(None) in choices:
        return None
    elif Path in choices and isinstance(value, str):
        return Path(value)
    elif float in choices and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif type(value) in choices:
        return value
    raise Refusal(f"config setting {name} has the value {value!r}, which is not valid for it")


def _require(condition: bool, name: str, rule: str, value: Any) -> None:
    if not condition:
        raise Refusal(f"{name} must be {rule}, got {value}")


def _validate_run(run: RunSettings) -> None:
    _require(run.env_steps >= 1, "env_steps", "at least 1", run.env_steps)
    _require(0 <= run.rng_seed <= MAX_SEED, "rng_seed", f"between 0 and {MAX_SEED}", run.rng_seed)
    _require(run.checkpoint_interval >= 1, "checkpoint_interval", "at least 1", run.checkpoint_interval)
    name = run.model_name
    if name is not None and not MODEL_NAME_PATTERN.fullmatch(name):
        suggestion = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".-")[:100] or "my-agent"
        raise Refusal(
            "model_name must be 1 to 100 letters, digits, '.', '_' or '-' and not start with '.' or '-', "
            f"got {name!r}; try {suggestion!r}"
        )
    if name is not None and name.lower() == SHIPPED:  # disks may not tell the cases apart
        raise Refusal(f"model_name must not be {name!r}, which holds the shipped agents; try 'my-{name}'")


def _validate_world(world: WorldSettings) -> None:
    _require(0.0 <= world.sticky_actions < 1.0, "sticky_actions", "at least 0 and below 1", world.sticky_actions)
    _require(0 <= world.noop_max <= _MOST, "noop_max", f"between 0 and {_MOST}", world.noop_max)
    _require(1 <= world.frame_stack <= 16, "frame_stack", "between 1 and 16", world.frame_stack)
    _require(world.max_frames >= 4, "max_frames", "at least 4", world.max_frames)


def _validate_ppo(ppo: PPOSettings) -> None:
    _require(1 <= ppo.num_envs <= _MOST_ENVS, "num_envs", f"between 1 and {_MOST_ENVS}", ppo.num_envs)
    _require(1 <= ppo.rollout_steps <= _MOST, "rollout_steps", f"between 1 and {_MOST}", ppo.rollout_steps)
    for name in ("minibatch_size", "num_epochs"):
        _require(getattr(ppo, name) >= 1, name, "at least 1", getattr(ppo, name))
    for name in ("discount", "gae_lambda", "gae_lambda_late"):
        value = getattr(ppo, name)
        _require(value is None or 0.0 <= value <= 1.0, name, "between 0 and 1", value)
    _require(ppo.gae_lambda_late_steps >= 1, "gae_lambda_late_steps", "at least 1", ppo.gae_lambda_late_steps)
    positive = (
        "learning_rate", "learning_rate_max", "kl_target", "kl_stop", "adam_epsilon", "clip_range",
        "value_clip_range", "max_gradient_norm",
    )  # fmt: skip
    for name in positive:
        value = getattr(ppo, name)
        _require(value is None or 0.0 < value < float("inf"), name, "above 0", value)
    for name in ("entropy_coefficient", "value_coefficient"):
        _require(0.0 <= getattr(ppo, name) < float("inf"), name, "0 or more", getattr(ppo, name))
    _require(1.0 < ppo.kl_factor < float("inf"), "kl_factor", "above 1", ppo.kl_factor)
    if ppo.learning_rate_schedule == "kl_adaptive":
        rule = f"at most learning_rate_max = {ppo.learning_rate_max} under kl_adaptive"
        _require(ppo.learning_rate <= ppo.learning_rate_max, "learning_rate", rule, ppo.learning_rate)
    _validate_minibatch_size(ppo)


def _validate_minibatch_size(ppo: PPOSettings) -> None:
    valid = [ppo.num_envs * steps for steps in range(1, ppo.rollout_steps + 1) if ppo.rollout_steps % steps == 0]
    if ppo.minibatch_size not in valid:
        nearest = min(valid, key=lambda size: abs(size - ppo.minibatch_size))
        raise Refusal(
            f"minibatch_size must be a multiple of num_envs = {ppo.num_envs} whose quotient divides "
            f"rollout_steps = {ppo.rollout_steps}, got {ppo.minibatch_size}; try {nearest}"
        )


def _validate_playback(playback: PlaybackSettings) -> None:
    _require(playback.episodes is None or playback.episodes >= 1, "episodes", "at least 1", playback.episodes)
    valid = playback.checkpoint in ("best", "latest") or playback.checkpoint.isdecimal()
    _require(valid, "checkpoint", "best, latest or a number of steps", repr(playback.checkpoint))


def _validate_supervision(supervision: SupervisionSettings) -> None:
    seconds, interval = supervision.watchdog_seconds, supervision.replica_check_interval
    _require(1.0 <= seconds <= 1e6, "watchdog_seconds", "between 1 and 1000000", seconds)
    _require(interval >= 1, "replica_check_interval", "at least 1", interval)


def _validate_machine(machine: MachineSettings) -> None:
    buckets = machine.gradient_buckets
    _require(1 <= buckets <= _MOST_BUCKETS, "gradient_buckets", f"between 1 and {_MOST_BUCKETS}", buckets)
    if buckets > 1 and (machine.all_reduce == "hierarchical" or machine.gradient_wire == "bfloat16"):
        raise Refusal(
            f"gradient_buckets must be 1 unless the sum is flat and of float32, got {buckets} with "
            f"all_reduce {machine.all_reduce} and gradient_wire {machine.gradient_wire}; try --gradient_buckets=1"
        )
