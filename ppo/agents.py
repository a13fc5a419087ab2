"""Trained agents: finding the one that the settings name among the user's own and the shipped ones."""

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppo.collectives.moments import RunningMoments
from ppo.config import SHIPPED, Config, as_flags, default_model_name
from ppo.envs import Environments, check_environment, make_envs, same_world
from ppo.games import Step
from ppo.identity import find_run, from_outside
from ppo.models.actor_critic import ActorCritic, build_model
from ppo.models.decisions import Decision
from ppo.models.distributions import ActionDistribution
from ppo.models.distributions.base import Rule
from ppo.outputs import checkpoint
from ppo.outputs.manifest import MODEL_FILE, Counters, Manifest, OtherFormatError
from ppo.outputs.tensor_file import Specification, Tensors, specification
from ppo.outputs.untrusted import DamagedCheckpointError
from ppo.presets import preset_of
from ppo.settings import Refusal

_SHIPPED_ONE = "shipped"
SHIPPED_FOLDER = Path(__file__).parent / SHIPPED
"""A symbolic link to checkpoints/pretrained in a clone, a folder in a wheel."""


@dataclass(frozen=True)
class Agent:
    """A policy, the protocol it plays under, and where both came from."""

    name: str
    config: Config
    folder: Path
    """Folder of its checkpoint."""
    manifest: Manifest
    model_tensors: Tensors
    rule: Rule
    """Which action it takes: the mean, the mode or a sample of its distribution."""
    frames_per_second: float
    """Frame rate at which its games are shown."""
    action_names: tuple[str, ...] = ()
    """Name of each action category or dimension; empty where unknown."""
    entry_names: tuple[str, ...] = ()
    """Name of each entry of a vector observation; empty where unknown."""
    notes: tuple[str, ...] = ()
    """Messages for the user about the choice of this agent."""
    channels_per_picture: int = 1
    """Of an image observation: 3 if its channels are colours, else 1."""

    @property
    def counters(self) -> Counters:
        """Training progress at its checkpoint."""
        return self.manifest.counters

    @property
    def moments(self) -> RunningMoments:
        """Moments of the returns it learnt from, which normalise its values until `denormalize`."""
        moments = RunningMoments()
        moments.load_state_dict({"moments": self.model_tensors["value_normalizer/moments"]})
        return moments

    @property
    def is_shipped(self) -> bool:
        """Whether it came with the program."""
        return self.folder.parent.name == SHIPPED


def find_agent(config: Config, explicit: set[str]) -> Agent:
    """Find the agent that the settings name: the user's own, else a shipped one of the same game.

    With `--checkpoint=shipped` the agent's name ends in -shipped, so that its outputs do not mix with those of the
    user's own agent.

    Args:
        config: the settings of this invocation.
        explicit: names of the settings given on the command line.

    Raises:
        Refusal: there is no such agent (the message lists those that exist), or it does not fit the settings.
    """
    notes: list[str] = []

    def load(folder: Path, manifest: Manifest) -> Agent:
        shipped = folder.name + ("-shipped" if wants_shipped else "")
        return _load(shipped if own is None else own.name, folder, manifest, config, explicit, notes)

    wants_shipped = config.playback.checkpoint == _SHIPPED_ONE
    own = None if wants_shipped else _find_own(config, explicit)
    if own is not None:
        return checkpoint.choose(own, config.playback.checkpoint, load, notes.append)
    return _choose_shipped(config, explicit, load, notes)


def find_agents(config: Config, explicit: set[str], most: int) -> list[Agent]:
    """Find the whole checkpoints of the user's agent that the settings name, ordered by steps.

    Args:
        config: the settings of this invocation; `checkpoint` is ignored.
        explicit: names of the settings given on the command line.
        most: limit on their number; if there are more, evenly spaced ones are chosen, including the first and the last.

    Raises:
        Refusal: there is none, or they do not fit the settings.
    """
    own = _find_own(config, explicit)
    whole = [folder for folder in checkpoint.list_checkpoints(own) if checkpoint.is_whole(folder)] if own else []
    if not whole:
        raise Refusal(_no_agent(config))
    places = {round(place * (len(whole) - 1) / max(1, most - 1)) for place in range(most)}
    chosen = [str(checkpoint.steps_of(whole[place])) for place in sorted(places)]
    return [find_agent(config.replace_settings({"checkpoint": steps}), explicit) for steps in chosen]


def has_shipped(config: Config) -> bool:
    """Return whether `--checkpoint=shipped` names an agent under these settings."""
    wants = config.replace_settings({"checkpoint": _SHIPPED_ONE})
    return any(_is_meant(wants, folder, manifest) for folder, manifest in _shipped(config, lambda _: None))


def world_in(folder: Path) -> str | None:
    """Return the world of the agent in a folder (a checkpoint, or the checkpoints of a run); None without an agent.

    Raises:
        Refusal: the checkpoint is damaged, or the folder cannot be read.
    """
    if (folder / checkpoint.MANIFEST_FILE).exists():
        with _refused_if_damaged(folder):
            return checkpoint.read_manifest(folder).config.run.env_name
    manifest = checkpoint.newest_manifest(folder)
    return manifest.config.run.env_name if manifest else None


def load_agent(folder: Path, config: Config, explicit: set[str]) -> Agent:
    """Load the agent in a folder, which is a checkpoint or holds the checkpoints of a run.

    Args:
        folder: a folder in which `world_in` found a world.
        config: the playback settings and the world.
        explicit: names of the settings given by the user.

    Raises:
        Refusal: the agent is damaged, does not fit the settings, or needs code that the user did not name.
    """
    notes: list[str] = []

    def load(found: Path, manifest: Manifest) -> Agent:
        return _load(manifest.config.model_name, found, manifest, config, explicit, notes)

    if not (folder / checkpoint.MANIFEST_FILE).exists():
        return checkpoint.choose(folder, config.playback.checkpoint, load, notes.append)
    with _refused_if_damaged(folder):
        return load(folder, checkpoint.read_manifest(folder))


@contextlib.contextmanager
def _refused_if_damaged(folder: Path) -> Iterator[None]:
    try:
        yield
    except DamagedCheckpointError as error:
        raise Refusal(f"the agent in {folder} is damaged: {error}") from error


def restore_model(agent: Agent, envs: Environments) -> ActorCritic:
    """Build the agent's network for these environments and load its weights."""
    model = _build(agent.config, envs)
    model.load_state_dict(
        {n.removeprefix("model/"): t for n, t in agent.model_tensors.items() if n.startswith("model/")}
    )
    return model.eval()


def decision_of(agent: Agent, step: Step) -> Decision:
    """Return what is shown of an agent's step."""
    return Decision(
        observation=step.observation,
        value=agent.moments.denormalize(step.value),
        marginals=step.distribution.marginals(torch.from_numpy(step.outputs)),
        sent=np.asarray(step.action, np.float64).flatten(),
        episode_return=step.episode_return,
        episode_length=step.episode_length,
        channels_per_picture=agent.channels_per_picture,
    )


def choose_rule(wish: str, saved: str, distribution: ActionDistribution) -> Rule:
    """Return how an agent chooses actions: as on the command line, else as saved, else the distribution's default.

    Raises:
        Refusal: the distribution has no such rule.
    """
    if wish == "saved":
        wish = saved
    if wish == "saved":
        return distribution.default_rule
    for rule in distribution.rules:
        if rule == wish:
            return rule
    choices = ", ".join(("saved", *distribution.rules))
    raise Refusal(f"act must be one of {choices} for {distribution.name} actions, got {wish}")


def _load(name: str, folder: Path, manifest: Manifest, config: Config, explicit: set[str], notes: list[str]) -> Agent:
    """Load an agent, making one environment to learn its tensor shapes, frame rate and names."""
    env_name = manifest.config.run.env_name
    _require_named(manifest.config, config, explicit, folder)
    named_by_world = "env_name" in explicit or config.run.model_name is None
    if named_by_world and not same_world(config.run.env_name, env_name):
        raise Refusal(f"env_name must be {env_name} for {folder}, got {config.run.env_name}")
    try:
        check_environment(manifest.config)
    except Refusal as error:
        raise Refusal(f"{folder} cannot be played: {error}") from error
    _require_same_view(manifest.config, config, explicit, folder)
    settings = manifest.config.replace_settings(_changes_for_playback(config, explicit))
    settings = dataclasses.replace(settings, world=settings.world.of_whole_games())
    envs = make_envs(env_name, settings.world, indices=range(1), seed=0)
    model = _build(settings, envs)
    rule, expected = choose_rule(config.playback.act, settings.playback.act, model.distribution), _expected(model)
    envs.close()
    tensors = checkpoint.read_tensors(folder, manifest, MODEL_FILE, expected)
    shape = envs.single_observation_space.shape or ()
    return Agent(
        name=name,
        config=settings,
        folder=folder,
        manifest=manifest,
        model_tensors=tensors,
        rule=rule,
        frames_per_second=envs.frames_per_second,
        action_names=tuple(envs.action_names),
        entry_names=tuple(envs.entry_names),
        notes=tuple(notes),
        channels_per_picture=settings.world.channels_per_picture(shape[0]) if len(shape) == 3 else 1,
    )


def _require_named(saved: Config, config: Config, explicit: set[str], folder: Path) -> None:
    """Refuse code and constructor arguments that a checkpoint names unless the command line names them too."""
    wanted = from_outside(saved)
    given = {**vars(config.run), **vars(config.model), **vars(config.world)}
    if any(name not in explicit or given.get(name) != value for name, value in wanted.items()):
        flags = " ".join(shlex.quote(flag) for flag in as_flags(wanted))
        raise Refusal(f"{folder} needs code or arguments from outside this package; if you trust them, add {flags}")


def _require_same_view(saved: Config, config: Config, explicit: set[str], folder: Path) -> None:
    """Refuse flags that would change what an agent sees and does: it plays as it was trained."""
    for field in dataclasses.fields(config.world):
        old, new = getattr(saved.world, field.name, None), getattr(config.world, field.name)
        fits = field.metadata.get("of_playback") or field.metadata.get("training_only") or old in (None, new)
        if field.name in explicit and not fits:
            raise Refusal(f"{field.name} must be {old}, as the agent in {folder} was trained, got {new}")


def _changes_for_playback(config: Config, explicit: set[str]) -> dict[str, Any]:
    """Return the protocol settings that flags change; weights that do not fit the changes are refused when read."""
    fields = [field for field in dataclasses.fields(config.world) if field.metadata.get("of_playback")]
    return {field.name: getattr(config.world, field.name) for field in fields if field.name in explicit}


def _build(config: Config, envs: Environments) -> ActorCritic:
    return build_model(envs.single_observation_space, envs.single_action_space, config.model, seed=0)


def _expected(model: ActorCritic) -> Specification:
    parts = {"model": model.state_dict(), "value_normalizer": RunningMoments().state_dict()}
    return specification({f"{part}/{name}": t for part, tensors in parts.items() for name, t in tensors.items()})


def _find_own(config: Config, explicit: set[str]) -> Path | None:
    """Return the user's checkpoint folder: of the named run, else of another seed or the id's other spelling.

    A run without a name is meant only if it learnt in the world that is asked for, by arguments or by a preset.
    """

    def is_meant(manifest: Manifest) -> bool:
        return not explicit & {"env_kwargs", "preset"} or own_preset(manifest.config) == own_preset(config)

    named = find_run(config).checkpoint_folder
    if checkpoint.list_checkpoints(named):
        manifest = checkpoint.newest_manifest(named)
        if config.run.model_name is not None or manifest is None or is_meant(manifest):
            return named
    others: list[tuple[bool, int, Path]] = []
    if config.run.model_name is None:
        for folder in checkpoint.list_models(config.run.checkpoint_dir):
            manifest = checkpoint.newest_manifest(folder)
            if manifest is not None:
                env_name, seed = manifest.config.run.env_name, manifest.config.run.rng_seed
                is_default = folder.name in (default_model_name(env_name), default_model_name(env_name, seed))
                if is_default and is_meant(manifest) and same_world(env_name, config.run.env_name):
                    others.append((seed != config.run.rng_seed, seed, folder))
    return min(others)[2] if others else None


def _choose_shipped(
    config: Config, explicit: set[str], load: Callable[[Path, Manifest], Agent], notes: list[str]
) -> Agent:
    damages: list[str] = []
    for folder, manifest in _shipped(config, damages.append):
        wants_shipped = config.playback.checkpoint == _SHIPPED_ONE
        if _is_meant(config, folder, manifest):
            if "checkpoint" in explicit and config.playback.checkpoint.isdecimal():
                raise Refusal(f"checkpoint must not be a number for the shipped agent in {folder}: it has only one")
            own = f"no agent of your own for {config.run.env_name} yet: using the shipped one in {folder}"
            notes[:] = [*damages, *([] if wants_shipped else [own])]
            try:
                return load(folder, manifest)
            except DamagedCheckpointError as error:
                damages.append(f"WARNING: skipped a damaged shipped agent: {error}")
    raise Refusal("; ".join([_no_agent(config), *damages]))


def _is_meant(config: Config, folder: Path, shipped: Manifest) -> bool:
    """Whether a shipped agent is asked for by name, or learnt in the world of the settings, with the same actions."""
    if config.run.model_name is not None:
        return config.playback.checkpoint == _SHIPPED_ONE and config.run.model_name == folder.name
    env_name = shipped.config.run.env_name
    return same_world(env_name, config.run.env_name) and own_preset(shipped.config) == own_preset(config)


def own_preset(config: Config) -> str:
    """Return the preset that the world of these settings starts from; its arguments may make it another world."""
    return preset_of(config.run.env_name, config.family, config.env_kwargs)


def _shipped(config: Config, warn: Callable[[str], None]) -> Iterator[tuple[Path, Manifest]]:
    """Yield the shipped agents with undamaged manifests, starting with those beside the user's checkpoints."""
    for parent in dict.fromkeys([config.run.checkpoint_dir / SHIPPED, SHIPPED_FOLDER]):
        paths: list[Path] = []
        with checkpoint.listing(parent):
            paths = sorted(parent.glob(f"*/{checkpoint.MANIFEST_FILE}"))
        for path in paths:
            try:
                yield path.parent, checkpoint.read_manifest(path.parent)
            except (DamagedCheckpointError, OtherFormatError) as error:
                warn(f"WARNING: skipped a damaged shipped agent: {error}")


def _no_agent(config: Config) -> str:
    """Return a message that there is no such agent, and which agents exist."""
    there_are = [f"--model_name={folder.name}" for folder in checkpoint.list_models(config.run.checkpoint_dir)]
    shipped = _shipped(config, lambda _: None)
    there_are += sorted(f"{_flags_of_world(manifest.config)} (shipped)" for _, manifest in shipped)
    listing = ", ".join(dict.fromkeys(there_are)) or "none yet; train one first"
    return f"there is no agent {config.model_name!r} in {config.run.checkpoint_dir}; agents: {listing}"


def _flags_of_world(config: Config) -> str:
    arguments = {} if config.env_kwargs == "{}" else {"env_kwargs": config.env_kwargs}
    return shlex.join(as_flags({"env_name": config.run.env_name, **arguments}))
