"""Every setting of the program: typed, documented and bounded; the command line is generated from them.

Settings describe the whole job, never one rank: the same flags mean the same training at any number of ranks.
This module imports neither torch nor gymnasium, so that `--help` and refused flags respond immediately.
"""

import dataclasses
import itertools
import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ppo.families import AtariSettings, Family, WorldSettings, family_of
from ppo.settings import MOST_STEPS, Refusal, check_bounds, require, setting

ENV_NAME_PATTERN = re.compile(r"[A-Za-z0-9_./:-]{1,100}")
MODEL_NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
KEEP_CHECKPOINTS_PATTERN = re.compile(r"all|(every=)?[1-9][0-9]{0,8}")
SHIPPED = "pretrained"
"""Folder of the shipped agents, under checkpoints and in the package; no run can have this name."""
MAX_SEED = 2**63 - 1
# Far above any real training, and low enough that no checkpoint's settings can keep the program busy.
_MOST = 2**20
_LARGEST = 1e6
_LARGEST_GOAL = 1e12
# Twice the weights between two layers of 2,048 units; orthogonal initialisation of more would take minutes.
_MOST_WEIGHTS = 2**23
# As many as the header of a checkpoint's file can list.
_MOST_ENVS = 4096
_MOST_SEEDS = 1000
_RUNS_RULE = "names of runs for --mode=compare, and unset in other modes"


@dataclass(frozen=True)
class RunSettings:
    """What to do, for how long, and where the results go."""

    env_name: str = "PongNoFrameskip-v4"
    """Gymnasium id of the world. `PongNoFrameskip-v4` and `ALE/Pong-v5` name the same game under the same protocol."""
    mode: Literal["train", "play", "watch", "record", "replay", "evaluate", "report", "compare", "doctor"] = "train"
    """train; play (games in a window); watch (in a browser, during training or later); record (write a video); replay
    (write a video of a training game); evaluate (score many games); report (write a page about a run); compare (draw
    the curves of several runs); doctor (check this machine)."""
    preset: str | None = None
    """Named settings to start from: atari, paper, cleanrl, ppo1, classic, continuous, car-racing, car-racing-discrete,
    coordconv-000, convnet-000, or a world with a preset of its own, such as CartPole. Default: the world's own, else
    that of its family."""
    model_name: str | None = None
    """Folder name of this run under checkpoints, runs and assets. Default: the environment's name, followed by -seed<N>
    where rng_seed is not 0."""
    env_steps: int = setting(10_000_000, at_least=1, at_most=MOST_STEPS)
    """Length of the training in agent steps over all environments (an Atari step is 4 frames); the last update may
    exceed it by less than one rollout."""
    rng_seed: int = setting(0, at_least=0, at_most=MAX_SEED)
    """Seed of every random number of the job."""
    seeds: str | None = None
    """Seeds to train one after another and then compare, as 1-5 or 1,3,7; repeating the command skips finished runs."""
    stop_at_return: float | None = setting(None, at_least=-_LARGEST_GOAL, at_most=_LARGEST_GOAL)
    """End training, with a checkpoint, once the mean return of the last 100 games reaches this; comparisons mark it."""
    fresh: bool = False
    """Start over: move an earlier run of this name aside (nothing is deleted) instead of resuming it."""
    change_settings: bool = False
    """Resume with learning-rule settings that differ from the checkpoint's, or with world settings that leave the
    meaning of the weights unchanged; without this flag such changes are refused."""
    checkpoint_interval: int = setting(25, at_least=1, at_most=MOST_STEPS)
    """Updates between checkpoints; one is also written at the end and on Ctrl-C."""
    keep_checkpoints: str = "5"
    """Checkpoints to keep: a number (that many of the newest, and the best), all, or every=K (the newest 5, the best,
    and those whose update is a multiple of K times checkpoint_interval)."""
    evaluation_interval: int | None = setting(None, at_least=1, at_most=MOST_STEPS)
    """Updates between evaluations, in which the current policy plays whole games on separate environments, scored by
    raw return. Each writes a checkpoint, and the best checkpoint is the one with the highest mean. None: no
    evaluations."""
    evaluation_episodes: int = setting(10, at_least=1, at_most=_MOST)
    """Games per evaluation, the same ones every time; a game is cut after max_game_steps."""
    clip_interval: int | None = setting(None, at_least=1, at_most=MOST_STEPS)
    """Updates between clips in TensorBoard, each of the first 15 seconds of a game played by the current policy. None:
    no clips."""
    track: Literal["none", "wandb"] = "none"
    """Also log to Weights & Biases: wandb (pip install wandb; WANDB_MODE=offline needs no account)."""
    checkpoint_dir: Path = Path("checkpoints")
    """Where checkpoints live: <checkpoint_dir>/<model_name>/step_<steps>."""
    run_dir: Path = Path("runs")
    """Where logs live: <run_dir>/<model_name>/."""
    replay_megabytes: int = setting(100, at_least=0, at_most=_MOST)
    """Megabytes of training games to log for --mode=replay; beyond that the oldest are deleted. 0: log none."""
    report: bool = True
    """Write <run_dir>/<model_name>/report.html at the end of a training that took ten seconds or more."""
    asset_dir: Path = Path("assets")
    """Where record, replay and compare write: <asset_dir>/<model_name>/."""


@dataclass(frozen=True)
class ModelSettings:
    """The agent's network, action distribution and input statistics; saved with it."""

    model_size: Literal["small", "large", "impala"] = "small"
    """Images: small is the two-layer CNN of A3C, large the Nature CNN, impala the residual network of IMPALA. Vectors:
    small has 64 units per layer, large 256."""
    network: str = "auto"
    """The encoder: auto (chosen by the observations and model_size), a3c, nature, impala, convnet, coordconv, mlp, or
    module:Name for a class of your own."""
    hidden_sizes: str = "auto"
    """Units of each layer of an mlp, as 64,64. auto: two layers of 64 or 256 units (model_size small or large)."""
    activation: Literal["tanh", "relu", "leaky_relu"] = "tanh"
    """Nonlinearity of an mlp."""
    head_units: int | None = setting(None, at_least=1, at_most=9999)
    """Units of an extra ReLU layer before the policy's outputs, and of another before the value. None: neither."""
    trunk: Literal["auto", "shared", "separate"] = "auto"
    """Whether policy and values share one encoder. auto: shared for images, separate for vectors."""
    initialization: Literal["orthogonal", "default"] = "orthogonal"
    """Initial weights: orthogonal with a small policy head, or PyTorch's default for every layer."""
    policy: str = "auto"
    """The action distribution: auto (chosen by the action space), categorical, multi_categorical, bernoulli, gaussian,
    beta (bounded boxes), composite (Dict and Tuple), or module:Name for a class of your own."""
    log_deviation_init: float = setting(0.0, at_least=-10.0, at_most=10.0)
    """Logarithm of a gaussian policy's initial standard deviation."""
    state_dependent_deviation: bool = False
    """Let a gaussian policy's standard deviation depend on the observation instead of being one parameter per
    dimension."""
    action_start: str = "0.5"
    """Initial mean of a gaussian or beta policy as a fraction of the actions' range: one number, or one per dimension,
    as 0.5,0.5,0.1."""
    pixel_normalization: bool = False
    """Centre and scale pixels by the running mean and standard deviation of all pixels, instead of dividing by 255."""
    observation_normalization: bool = False
    """Centre and scale each entry of a vector by its running mean and standard deviation; a new run's first rollout
    only initialises these."""
    observation_clip: float | None = setting(10.0, above=0.0, at_most=_LARGEST)
    """Clip normalised entries to this magnitude. None: no clip."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of each layer of an mlp."""
        if self.hidden_sizes == "auto":
            return (256, 256) if self.model_size == "large" else (64, 64)
        return tuple(int(width) for width in self.hidden_sizes.split(","))

    @property
    def action_starts(self) -> float | tuple[float, ...]:
        """`action_start` as one number, or one per dimension."""
        numbers = tuple(float(number) for number in self.action_start.split(","))
        return numbers[0] if len(numbers) == 1 else numbers


@dataclass(frozen=True)
class PPOSettings:
    """The learning rule; sizes are for the whole job and divided among the ranks."""

    num_envs: int = setting(16, at_least=1, at_most=_MOST_ENVS)
    """Environments of the whole job, at least one per rank. A number other than the preset's also changes
    rollout_steps, minibatch_size, learning_rate and gae_lambda_late_steps to suit, unless flags set them."""
    rollout_steps: int = setting(128, at_least=1, at_most=_MOST)
    """Steps of each environment per update."""
    minibatch_size: int = setting(512, at_least=1, at_most=_MOST_ENVS * _MOST)
    """Environment steps per gradient step: num_envs times a divisor of rollout_steps."""
    num_epochs: int = setting(4, at_least=1, at_most=_MOST)
    """Passes over the rollout per update."""
    discount: float = setting(0.99, at_least=0.0, at_most=1.0)
    """Discount factor, gamma."""
    gae_lambda: float = setting(0.95, at_least=0.0, at_most=1.0)
    """Lambda of generalised advantage estimation; constant if it is set without gae_lambda_late."""
    gae_lambda_late: float | None = setting(None, at_least=0.0, at_most=1.0)
    """Lambda from gae_lambda_late_steps on: shorter returns may work better once values are accurate. None: no
    change."""
    gae_lambda_late_steps: int = setting(800_000, at_least=1, at_most=MOST_STEPS)
    """Agent steps after which lambda is gae_lambda_late; it changes linearly over the second half of them, whatever
    env_steps is."""
    clip_rewards: bool = False
    """Train on the sign of the reward. Logged returns are always raw."""
    reward_scale: float = setting(1.0, above=0.0, at_most=_LARGEST)
    """Train on rewards multiplied by this."""
    reward_normalization: bool = False
    """Train on rewards divided by the running standard deviation of the discounted return."""
    reward_clip: float | None = setting(None, above=0.0, at_most=_LARGEST)
    """Train on rewards clipped to this magnitude, after scaling. None: no clip."""
    learning_rate: float = setting(2.5e-4, above=0.0, at_most=_LARGEST)
    """Adam step size at the start."""
    learning_rate_schedule: Literal["linear", "inverse_time", "constant", "kl_adaptive"] = "linear"
    """linear: falls to 0 at env_steps; a run continued to more steps resumes at the value of the longer run.
    inverse_time: divided by 1 + steps / learning_rate_decay_steps. kl_adaptive: adjusted so that the KL divergence of
    an epoch stays near kl_target. constant, inverse_time and kl_adaptive do not depend on env_steps."""
    learning_rate_decay_steps: int = setting(50_000, at_least=1, at_most=MOST_STEPS)
    """Agent steps after which the inverse_time rate is half its initial value."""
    learning_rate_max: float = setting(1e-3, above=0.0, at_most=_LARGEST)
    """Upper bound of the kl_adaptive rate."""
    kl_target: float = setting(0.01, above=0.0, at_most=_LARGEST)
    """KL divergence per epoch that the kl_adaptive rate aims at."""
    kl_factor: float = setting(1.5, above=1.0, at_most=_LARGEST)
    """Divide the kl_adaptive rate by this when the KL is above twice kl_target; multiply by it below half of
    kl_target."""
    kl_stop: float | None = setting(None, above=0.0, at_most=_LARGEST)
    """End the epochs of an update early once an epoch's KL exceeds this. Default: never."""
    adam_epsilon: float = setting(1e-5, above=0.0, at_most=_LARGEST)
    """Epsilon of Adam."""
    clip_range: float = setting(0.2, above=0.0, at_most=_LARGEST)
    """Clip range of the probability ratio."""
    clip_range_schedule: Literal["linear", "constant"] = "constant"
    """linear: the clip range falls to 0 at env_steps; a run continued to more steps resumes at the value of the longer
    run."""
    entropy_coefficient: float = setting(0.01, at_least=0.0, at_most=_LARGEST)
    """Weight of the entropy bonus."""
    value_coefficient: float = setting(0.5, at_least=0.0, at_most=_LARGEST)
    """Weight of the value loss, which is half the squared error (or the smooth_l1 loss, of the same curvature)."""
    value_loss: Literal["squared", "smooth_l1"] = "squared"
    """smooth_l1 (the Huber loss) grows linearly where an error exceeds 1."""
    value_clip_range: float | None = setting(None, above=0.0, at_most=_LARGEST)
    """Clip the change of a value prediction to this (as in Schulman's code, not in the paper). Default: no clip."""
    value_normalization: bool = False
    """Learn values normalised by the running mean and standard deviation of the returns."""
    advantage_normalization: Literal["batch", "minibatch", "none"] = "batch"
    """Normalise advantages to mean 0 and standard deviation 1 over the rollouts of all ranks (batch) or over each
    minibatch."""
    recompute_advantages: bool = False
    """Re-estimate advantages and returns before each epoch with the network's current values."""
    l2_penalty: float = setting(0.0, at_least=0.0, at_most=_LARGEST)
    """Weight of half the squared norm of all parameters in the loss; its gradient is added after gradient clipping."""
    max_gradient_norm: float | None = setting(0.5, above=0.0, at_most=_LARGEST)
    """Global norm to which the gradient is clipped, after averaging over ranks. None: no clip."""


@dataclass(frozen=True)
class PlaybackSettings:
    """Settings of play, watch, record, replay, evaluate and report."""

    episodes: int | None = setting(None, at_least=1, at_most=_MOST)
    """Games to play, each of at most max_game_steps, which bounds a video and an evaluation. Default: 3 for play, 1 for
    record, 100 for evaluate."""
    max_game_steps: int = setting(27_000, at_least=1, at_most=MOST_STEPS)
    """Agent steps after which a game of playback or of an evaluation is cut and counted with its return so far,
    whatever its world or the checkpoint's settings allow. The default is an Atari game's 108,000 frames."""
    act: Literal["saved", "mean", "mode", "sample"] = "saved"
    """Which action to take: the mean, the mode or a sample of the policy; saved: the choice saved with the agent (of a
    run trained with --act=mean, say), else the policy's default. --deterministic is --act=mode."""
    overlay: bool = False
    """Draw the return so far, the value, and the probabilities or densities of the actions beside the pictures of a
    video. Record and replay only."""
    view: Literal["auto", "window", "terminal"] = "auto"
    """Where play and watch show games: window (play only); terminal (half blocks of 24-bit colour, with the agent's
    observations and outputs); auto (for play a window if there is a display, for watch a browser)."""
    record_games: int | None = setting(None, at_least=2, at_most=_MOST)
    """Play this many games and record the best and the worst, each with its return in the file name. Record only."""
    episode: int | None = setting(None, at_least=1, at_most=MOST_STEPS)
    """Number in episodes.csv of the training game that --mode=replay records."""
    checkpoint: str = "best"
    """Which checkpoint of the model: best, latest or a number of steps; shipped: the agent that comes with the program,
    even if you have one of your own; all: the same game played by each kept checkpoint, side by side (record only).
    Default for watch: latest."""
    port: int = setting(8765, at_least=1024, at_most=65535)
    """Port where --mode=watch serves its page, to this machine only: http://127.0.0.1:<port>/."""
    runs: str | None = None
    """Runs to compare, by name (without a seed: all seeds of that name) or by folder: --runs A B or --runs=A,B."""


@dataclass(frozen=True)
class SupervisionSettings:
    """What watches over a training run."""

    # Below the 480 s after which mpirun itself gives up on a lost host, with exit code 0.
    watchdog_seconds: float = setting(300.0, at_least=1.0, at_most=_LARGEST)
    """Seconds after which a rank that has not reached the next phase of an update ends the job."""
    replica_check_interval: int = setting(10, at_least=1, at_most=MOST_STEPS)
    """Updates between comparisons of all ranks' weights and optimiser states, which also precede every save. State in
    memory that all ranks share (all_reduce) is not compared."""
    take_over_lock: bool = False
    """Train although another host holds the lock of this model name; use it only when no run is alive there."""


@dataclass(frozen=True)
class MachineSettings:
    """The hardware to use; changes speed, not what is learnt (docs/protocol.md lists the small differences)."""

    env_engine: Literal["auto", "lean", "processes", "vector"] = "auto"
    """lean: one thread per rank. processes: one process per core of a rank, with the same environments. vector: ALE's
    AtariVectorEnv with one thread per core, which begins new games when resumed; Atari only. auto: processes for a new
    run if every rank has at least four cores, else lean; always lean for classic control. Training only."""
    all_reduce: Literal["auto", "flat", "hierarchical"] = "auto"
    """How gradients are summed. flat: over all ranks together. hierarchical: within each host first, so that only one
    rank per host uses the network. auto: by NCCL if every rank has its own GPU; else within each host first, in shared
    memory, then over the network by one rank per host, or flat if no host has several ranks."""
    gradient_wire: Literal["float32", "bfloat16"] = "float32"
    """Number format in which gradients are sent. bfloat16 halves the bytes and rounds to 8 bits; sums stay float32.
    Under auto and hierarchical it applies only between hosts if a host has several ranks."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network acts and learns. cuda: on GPUs, assigned to the ranks of a host in turn; a resumed run is not
    bit-identical. auto: cuda if every rank sees a GPU, all of one kind, else cpu. Training only."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the convolutions and of the layers between them and the heads; the rest is float32. bfloat16: on
    GPUs that support it and on processors with AMX. auto: bfloat16 on such GPUs, else float32. Training only, images
    only."""


@dataclass(frozen=True)
class Config:
    """All settings of one invocation."""

    run: RunSettings = field(default_factory=RunSettings)
    world: WorldSettings = field(default_factory=AtariSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    playback: PlaybackSettings = field(default_factory=PlaybackSettings)
    supervision: SupervisionSettings = field(default_factory=SupervisionSettings)
    machine: MachineSettings = field(default_factory=MachineSettings)

    @property
    def model_name(self) -> str:
        """Name of the run's folders: as given, or made from the environment's name and the seed."""
        return self.run.model_name or default_model_name(self.run.env_name, self.run.rng_seed)

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

    @property
    def env_kwargs(self) -> str:
        """Arguments of the environment's constructor as JSON; `{}` for a family that takes none."""
        kwargs: str = getattr(self.world, "env_kwargs", "{}")
        return kwargs

    def require_ranks(self, num_ranks: int) -> None:
        """Refuse more ranks than environments."""
        num_envs = self.ppo.num_envs
        if num_ranks > num_envs:
            raise Refusal(
                f"num_envs must be at least the number of ranks, got {num_envs} environments for {num_ranks} ranks; "
                f"try -np {num_envs} or --num_envs={num_ranks}"
            )

    def of_each_seed(self) -> list["Config"]:
        """Return one config for each seed in `seeds`; without `seeds`, this config alone."""
        if self.run.seeds is None:
            return [self]
        name = self.run.model_name
        return [
            self.replace_settings(
                {"seeds": None, "rng_seed": seed, "model_name": name and default_model_name(name, seed)}
            )
            for seed in seeds_of(self.run.seeds)
        ]

    @property
    def family(self) -> Family:
        """The family of the world to train in or play."""
        return family_of(self.run.env_name)

    def validate(self) -> None:
        """Check every bound and combination that needs no other module.

        Raises:
            Refusal: names the setting, the rule, the value and where possible the nearest valid choice.
        """
        for section in dataclasses.fields(self):
            check_bounds(getattr(self, section.name))
        self.world.check()
        named = ENV_NAME_PATTERN.fullmatch(self.run.env_name) is not None
        require(named, "env_name", "1 to 100 letters, digits, '_', '.', '/', ':' or '-'", repr(self.run.env_name))
        _check_model_name(self.run.model_name)
        _check_seeds(self.run)
        require((self.playback.runs is None) == (self.run.mode != "compare"), "runs", _RUNS_RULE, self.playback.runs)
        _check_learning_rate(self.ppo)
        _check_minibatch_size(self.ppo)
        _check_hidden_sizes(self.model.hidden_sizes)
        _check_action_start(self.model.action_start)
        keep = self.run.keep_checkpoints
        valid = KEEP_CHECKPOINTS_PATTERN.fullmatch(keep) is not None
        require(valid, "keep_checkpoints", "a number from 1 on, all or every=K with such a number K", repr(keep))
        view, mode = self.playback.view, self.run.mode
        valid = view == "auto" or mode == "play" or (mode == "watch" and view == "terminal")
        require(valid, "view", "auto except for play, and terminal for watch", view)
        episode = self.playback.episode
        replays = self.run.mode == "replay"
        rule = "the number of a game in episodes.csv for --mode=replay, and unset in other modes"
        require((episode is not None) == replays, "episode", rule, episode)
        games, alone = self.playback.record_games, self.run.mode == "record" and self.playback.episodes is None
        rule = "the number of games for --mode=record without --episodes, and must not be set otherwise"
        require(games is None or alone, "record_games", rule, games)
        which = self.playback.checkpoint
        valid = which in ("best", "latest", "shipped", "all") or which.isdecimal()
        require(valid, "checkpoint", "best, latest, shipped or a number of steps", which)
        is_film = which == "all"
        alone = self.run.mode == "record" and not (self.playback.overlay or self.playback.record_games)
        rule = (
            "best, latest, shipped or a number of steps; all is for --mode=record without --overlay and --record_games"
        )
        require(not is_film or alone, "checkpoint", rule, which)

    def replace_settings(self, settings: Mapping[str, Any]) -> "Config":
        """Return a copy with the named settings changed, whatever section they are in."""
        sections, names = {}, set()
        for section in dataclasses.fields(self):
            current = getattr(self, section.name)
            own = {f.name for f in dataclasses.fields(current)}
            names |= own
            sections[section.name] = dataclasses.replace(
                current, **{name: value for name, value in settings.items() if name in own}
            )
        unknown = set(settings) - names
        assert not unknown, f"no such settings: {sorted(unknown)}"
        return Config(**sections)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain JSON data, section by section."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))  # type: ignore[no-any-return]

    @staticmethod
    def from_dict(data: Mapping[str, Any], family: Family) -> "Config":
        """Rebuild a config from `to_dict` data, refusing what this version does not know.

        Args:
            data: settings by section.
            family: the family whose settings the section `world` holds.

        Raises:
            Refusal: an unknown section or setting, a value of the wrong type, or one out of bounds.
        """
        sections = {}
        for name, section_class in section_types(family).items():
            content = data.get(name, {})
            if not isinstance(content, Mapping):
                raise Refusal(f"config section {name} must be a mapping, got {type(content).__name__}")
            types = typing.get_type_hints(section_class)
            unknown = sorted(set(content) - set(types))
            if unknown:
                raise Refusal(f"config section {name} has settings this version does not know: {unknown}")
            sections[name] = section_class(**{key: _from_json(key, content[key], types[key]) for key in content})
        unknown = sorted(set(data) - set(sections))
        if unknown:
            raise Refusal(f"config has sections this version does not know: {unknown}")
        config = Config(**sections)
        config.validate()
        return config


def section_types(family: Family) -> dict[str, Any]:
    """Return the class of every section of a config, by name, for a family of worlds."""
    sections = {section.name: typing.cast(Any, section.default_factory) for section in dataclasses.fields(Config)}
    return {**sections, "world": family.settings}


def default_model_name(env_name: str, rng_seed: int = 0) -> str:
    """Return the default folder name of a run: `<env>`, or `<env>-seed<N>` for a seed N other than 0."""
    seed = f"-seed{rng_seed}" if rng_seed else ""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", env_name).lstrip(".-") or "unnamed"
    return name[: 100 - len(seed)] + seed


def seeds_of(seeds: str) -> list[int]:
    """Return the seeds of a valid list: 1-3,7 -> 1, 2, 3, 7."""
    return list(dict.fromkeys(seed for seeds in _ranges(seeds) for seed in seeds))


def _ranges(seeds: str) -> list[range]:
    ends = [[int(end) for end in part.split("-")] for part in seeds.split(",")]
    return [range(both[0], both[-1] + 1) for both in ends]


def outside_names(config: Config) -> dict[str, str]:
    """Return the settings that name code outside this package, as module:Name; using one imports its module."""
    settings = {"env_name": config.run.env_name, "network": config.model.network, "policy": config.model.policy}
    return {setting: name for setting, name in settings.items() if ":" in name}


def differences(old: Config, new: Config, sections: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Return the settings of these sections that differ, as name -> (old, new); skip worlds of different families."""
    changed = {}
    for section in sections:
        before, after = getattr(old, section), getattr(new, section)
        if type(before) is not type(after):
            continue
        for field_ in dataclasses.fields(before):
            pair = getattr(before, field_.name), getattr(after, field_.name)
            if pair[0] != pair[1]:
                changed[field_.name] = pair
    return changed


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Return settings, given as name -> value, as command-line flags."""
    return [
        f"--{'' if value else 'no_'}{name}" if isinstance(value, bool) else f"--{name}={value}"
        for name, value in settings.items()
    ]


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


def _check_model_name(name: str | None) -> None:
    if name is not None and not MODEL_NAME_PATTERN.fullmatch(name):
        suggestion = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".-")[:100] or "my-agent"
        raise Refusal(
            "model_name must be 1 to 100 letters, digits, '.', '_' or '-' and not start with '.' or '-', "
            f"got {name!r}; try {suggestion!r}"
        )
    if name is not None and name.lower() == SHIPPED:  # file systems may be case-insensitive
        raise Refusal(f"model_name must not be {name!r}, which holds the shipped agents; try 'my-{name}'")


def _check_seeds(run: RunSettings) -> None:
    if run.seeds is None:
        return
    require(run.mode == "train", "seeds", "used with --mode=train only; use --rng_seed in other modes", run.seeds)
    require(not run.fresh, "seeds", "used without --fresh, which would retrain finished seeds every time", run.seeds)
    valid = re.fullmatch(r"\d{1,19}(-\d{1,19})?(,\d{1,19}(-\d{1,19})?)*", run.seeds) is not None
    # By subtraction, because len() fails on a range whose length does not fit into 64 bits.
    counts = [part.stop - part.start for part in _ranges(run.seeds) if part.stop - 1 <= MAX_SEED] if valid else []
    valid = valid and len(counts) == 1 + run.seeds.count(",") and min(counts) > 0 and sum(counts) <= _MOST_SEEDS
    rule = f"one to {_MOST_SEEDS} different numbers up to {MAX_SEED} as 1-5 or 1,3,7"
    require(valid, "seeds", rule, repr(run.seeds))


def _check_hidden_sizes(sizes: str) -> None:
    widths = sizes.split(",")
    valid = len(widths) <= 16 and all(re.fullmatch(r"[1-9][0-9]{0,3}", width) for width in widths)
    require(sizes == "auto" or valid, "hidden_sizes", "auto or up to 16 numbers below 10000, as 64,64", repr(sizes))
    numbers = [int(width) for width in widths] if sizes != "auto" else []
    weights = sum(before * after for before, after in itertools.pairwise(numbers))
    require(
        weights <= _MOST_WEIGHTS, "hidden_sizes", f"layers with at most {_MOST_WEIGHTS} weights between them", sizes
    )


def _check_action_start(start: str) -> None:
    # Few digits, so that no number is rounded to 0 or 1.
    valid = len(start) <= 1000 and all(re.fullmatch(r"0?\.[0-9]{1,9}", number) for number in start.split(","))
    valid = valid and all(float(number) > 0.0 for number in start.split(","))
    require(valid, "action_start", "numbers above 0 and below 1, as 0.5 or 0.5,0.5,0.1", repr(start))


def _check_learning_rate(ppo: PPOSettings) -> None:
    if ppo.learning_rate_schedule == "kl_adaptive":
        rule = f"at most learning_rate_max = {ppo.learning_rate_max} under kl_adaptive"
        require(ppo.learning_rate <= ppo.learning_rate_max, "learning_rate", rule, ppo.learning_rate)


def _check_minibatch_size(ppo: PPOSettings) -> None:
    valid = [ppo.num_envs * steps for steps in range(1, ppo.rollout_steps + 1) if ppo.rollout_steps % steps == 0]
    if ppo.minibatch_size not in valid:
        nearest = min(valid, key=lambda size: abs(size - ppo.minibatch_size))
        raise Refusal(
            f"minibatch_size must be a multiple of num_envs = {ppo.num_envs} whose quotient divides "
            f"rollout_steps = {ppo.rollout_steps}, got {ppo.minibatch_size}; try {nearest}"
        )
