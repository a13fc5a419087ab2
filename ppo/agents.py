"""Trained agents: finding the one that the settings name, among the user's own and the shipped ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ppo.config import SHIPPED, Config, Refusal, default_model_name
from ppo.envs import Environments, atari, make_envs
from ppo.models.actor_critic import ActorCritic, build_model
from ppo.outputs import checkpoint

# What a flag may change for playback; weights that do not fit the change are refused when they are tried.
_PROTOCOL = {"sticky_actions", "noop_max", "fire_reset", "max_frames", "full_action_space", "frame_stack"}
_SHIPPED_FOLDER = Path(__file__).parent.parent / "checkpoints" / SHIPPED


@dataclass(frozen=True)
class Agent:
    """A policy, the protocol it plays under, and where both came from."""

    name: str
    config: Config
    counters: checkpoint.Counters
    model_tensors: checkpoint.Tensors
    frames_per_second: float
    """Speed of the game on a screen."""
    note: str | None = None
    """What the user should know about the choice."""


def find_agent(config: Config, explicit: set[str]) -> Agent:
    """Find the agent that the settings name: the user's own, else a shipped one of the same game.

    Args:
        config: the settings of this invocation.
        explicit: the settings its command line names.

    Raises:
        Refusal: there is none (the message lists the agents there are), or it does not fit the settings.
    """
    own = _find_own(config)
    note = None
    if own is not None:
        folder, manifest = checkpoint.choose(own, config.playback.checkpoint)
        name = own.name
    else:
        folder, manifest = _choose_shipped(config, explicit)
        name = default_model_name(manifest.config.run.env_name)
        note = f"no agent of your own for {config.run.env_name} yet: using the shipped one in {folder}"
    if "env_name" in explicit and not same_world(config.run.env_name, manifest.config.run.env_name):
        raise Refusal(f"env_name must be {manifest.config.run.env_name} for {folder}, got {config.run.env_name}")
    overrides = {setting: getattr(config.world, setting) for setting in explicit & _PROTOCOL}
    try:
        tensors = checkpoint.read_tensors(folder, manifest, checkpoint.MODEL_FILE)
    except checkpoint.DamagedCheckpointError as error:
        raise Refusal(f"{folder} is damaged: {error}") from error
    agent = Agent(name, manifest.config.replace_settings(overrides), manifest.counters, tensors, 0.0, note)
    return _tried(agent)


def restore_model(agent: Agent, envs: Environments) -> ActorCritic:
    """Build the agent's network for these environments and load its weights.

    Raises:
        Refusal: the weights are of another network.
    """
    size = agent.config.model.model_size
    model = build_model(envs.single_observation_space, envs.single_action_space, size, seed=0)
    weights = {n.removeprefix("model/"): t for n, t in agent.model_tensors.items() if n.startswith("model/")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise Refusal(f"the weights of {agent.name} do not fit these settings: {reason}") from error
    return model.eval()


def same_world(first: str, second: str) -> bool:
    """Tell whether two ids name the same environment under this program's protocol."""
    if first == second:
        return True
    return (
        atari.is_atari_name(first) and atari.is_atari_name(second) and atari.rom_name(first) == atari.rom_name(second)
    )


def _tried(agent: Agent) -> Agent:
    """Make one environment to see that the weights fit it and how fast its screens follow each other."""
    envs = make_envs(agent.config.run.env_name, agent.config.world, indices=range(1), seed=0)
    restore_model(agent, envs)
    rate = envs.frames_per_second
    envs.close()
    return replace(agent, frames_per_second=rate)


def _find_own(config: Config) -> Path | None:
    """Return the folder of the user's checkpoints: by name, or trained under the game's other spelling."""
    named = config.checkpoint_folder
    if checkpoint.list_checkpoints(named):
        return named
    if config.run.model_name is None:
        for folder in _own_folders(config):
            try:
                _, manifest = checkpoint.choose(folder, "latest")
            except Refusal:
                continue
            is_default = folder.name == default_model_name(manifest.config.run.env_name)
            if is_default and same_world(manifest.config.run.env_name, config.run.env_name):
                return folder
    return None


def _own_folders(config: Config) -> list[Path]:
    parent = config.run.checkpoint_dir
    return sorted(p for p in parent.iterdir() if checkpoint.list_checkpoints(p)) if parent.is_dir() else []


def _choose_shipped(config: Config, explicit: set[str]) -> tuple[Path, checkpoint.Manifest]:
    if config.run.model_name is None:
        for folder, manifest in _shipped(config).items():
            if same_world(manifest.config.run.env_name, config.run.env_name):
                if "checkpoint" in explicit and config.playback.checkpoint.isdecimal():
                    raise Refusal(f"checkpoint must be best or latest for the shipped agent in {folder}: it has one")
                return folder, manifest
    raise Refusal(_no_agent(config))


def _shipped(config: Config) -> Mapping[Path, checkpoint.Manifest]:
    """Return the readable shipped agents, those beside the user's checkpoints first."""
    found = {}
    for parent in dict.fromkeys([config.run.checkpoint_dir / SHIPPED, _SHIPPED_FOLDER]):
        for path in sorted(parent.glob(f"*/{checkpoint.MANIFEST_FILE}")):
            try:
                found[path.parent] = checkpoint.read_manifest(path.parent)
            except checkpoint.DamagedCheckpointError:
                continue
    return found


def _no_agent(config: Config) -> str:
    """Say that there is no such agent, and which there are."""
    there_are = [f"--model_name={folder.name}" for folder in _own_folders(config)]
    shipped = sorted(manifest.config.run.env_name for manifest in _shipped(config).values())
    there_are += [f"--env_name={name} (shipped)" for name in shipped]
    listing = ", ".join(dict.fromkeys(there_are)) or "none yet; train one first"
    return f"there is no agent {config.model_name!r} in {config.run.checkpoint_dir}; agents: {listing}"
