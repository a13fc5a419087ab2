"""Games with a frozen policy: play (watch), record (video) and evaluate (scores).

The protocol is the one the agent was trained with; only what the command line names explicitly differs.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppo.collectives import Collective, decided_by_root, share
from ppo.config import Config, Refusal, default_model_name
from ppo.envs import Environments, FrameListener, atari, make_envs
from ppo.models import distributions
from ppo.models.actor_critic import ActorCritic, build_model
from ppo.outputs import checkpoint
from ppo.outputs.window import GameWindow, WindowClosedError, has_display
from ppo.random_streams import Purpose, derived_seed, stream
from ppo.scores import human_normalised_score

PRETRAINED = "pretrained"
_SHIPPED_FOLDER = Path(__file__).parent.parent / "checkpoints" / PRETRAINED
_MAX_GAMES_AT_ONCE = 16
_UNIFORMS_AT_ONCE = 1024


@dataclass(frozen=True)
class Agent:
    """A policy, the protocol it plays under, and where both came from."""

    name: str
    config: Config
    counters: checkpoint.Counters
    model_tensors: checkpoint.Tensors
    note: str | None
    """What the user should know about the choice."""


@dataclass(frozen=True)
class Game:
    """A whole game played: its number from 0, raw return and agent steps."""

    number: int
    episode_return: float
    episode_length: int


def play(config: Config, comm: Collective, explicit: set[str]) -> int:
    """Play games on rank 0, in a window where there is a display, and print each game's return."""
    agent = decided_by_root(comm, lambda: find_agent(config, explicit))
    if comm.rank == 0:
        announce(agent)
        window: GameWindow | None = None
        if has_display():
            rate = _frames_per_second(agent)
            window = GameWindow(f"{agent.name} at {agent.counters.env_steps:,} steps", rate)
        else:
            print("no display: only the results are shown; --mode=record makes a video", flush=True)
        try:
            for game in play_games(agent, config, range(1), 1, window.show if window else None):
                print(describe(game), flush=True)
        except WindowClosedError:
            print("window closed", flush=True)
        finally:
            if window:
                window.close()
    comm.barrier()
    return 0


def record(config: Config, comm: Collective, explicit: set[str]) -> int:
    """Play games on rank 0 and write them as one mp4 and one gif."""
    from ppo.outputs.video import VideoRecorder

    agent = decided_by_root(comm, lambda: _find_agent_and_folder(config, explicit))
    if comm.rank == 0:
        announce(agent)
        path = config.run.asset_dir / agent.name / checkpoint.folder_name(agent.counters.env_steps)
        with VideoRecorder(path, _frames_per_second(agent)) as video:
            for game in play_games(agent, config, range(1), 1, video.write):
                print(describe(game), flush=True)
        print(f"wrote {path}.mp4 and {path}.gif", flush=True)
    comm.barrier()
    return 0


def evaluate(config: Config, comm: Collective, explicit: set[str]) -> int:
    """Play games on all ranks; write and print the statistics as JSON."""
    agent = decided_by_root(comm, lambda: find_agent(config, explicit))
    if comm.rank == 0:
        announce(agent)
    num_slots = min(config.episodes, _MAX_GAMES_AT_ONCE)
    slots = share(num_slots, comm.rank, comm.size)
    games = list(play_games(agent, config, slots, num_slots)) if slots else []
    gathered = comm.gather(games)
    if gathered is not None:
        everyone = sorted((game for part in gathered for game in part), key=lambda game: game.number)
        result = statistics_of(everyone, agent, config)
        folder = config.run.run_dir / agent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result), flush=True)
    comm.barrier()
    return 0


def play_games(
    agent: Agent, config: Config, slots: range, num_slots: int, on_frame: FrameListener | None = None
) -> Iterator[Game]:
    """Play this rank's share of a fixed set of games, many at once.

    The games are dealt to slots, each an environment with random numbers of its own, and each slot plays all of its
    games to the end: the result does not depend on the number of ranks, and short games are not favoured.

    Args:
        agent: the policy.
        config: the settings of this invocation: games, seed and determinism.
        slots: the slots of this rank.
        num_slots: the slots of all ranks.
        on_frame: receives the screens of the first slot.
    """
    seed = derived_seed(config.run.rng_seed, Purpose.PLAYBACK)
    envs = make_envs(agent.config.run.env_name, agent.config.world, indices=slots, seed=seed, on_frame=on_frame)
    model = restore_model(agent, envs)
    numbers = {slot: iter(range(slot, config.episodes, num_slots)) for slot in slots}
    current = {slot: next(numbers[slot], None) for slot in slots}
    envs.reset()
    actions = _actions(model, envs, slots, seed, deterministic=config.playback.deterministic)
    while any(number is not None for number in current.values()):
        _, _, terminated, truncated, info = envs.step(next(actions))
        for position in np.flatnonzero(terminated | truncated):
            slot = slots[position]
            number = current[slot]
            if number is not None:
                yield Game(number, float(info["episode_return"][position]), int(info["episode_length"][position]))
                current[slot] = next(numbers[slot], None)
    envs.close()


def find_agent(config: Config, explicit: set[str]) -> Agent:
    """Find the agent that the settings name: the user's own, else a shipped one of the same game.

    Args:
        config: the settings of this invocation.
        explicit: the settings its command line names.

    Raises:
        Refusal: there is none; the message lists the agents there are.
    """
    own = config.checkpoint_folder
    note = None
    if checkpoint.list_checkpoints(own):
        folder, manifest = checkpoint.choose(own, config.playback.checkpoint)
        name = config.model_name
    else:
        shipped = None if config.run.model_name else _find_shipped(config)
        if shipped is None:
            raise Refusal(_no_agent(config))
        folder = shipped
        manifest = _read(checkpoint.read_manifest, folder)
        name = default_model_name(manifest.config.run.env_name)
        note = f"no agent of your own for {config.run.env_name} yet: using the shipped one in {folder}"
    if "env_name" in explicit and not same_world(config.run.env_name, manifest.config.run.env_name):
        raise Refusal(f"env_name must be {manifest.config.run.env_name} for {folder}, got {config.run.env_name}")
    world_names = {"sticky_actions", "full_action_space", "noop_max", "fire_reset", "frame_stack", "max_frames"}
    overrides = {setting: getattr(config.world, setting) for setting in explicit & world_names}
    agent_config = manifest.config.replace_settings(overrides)
    tensors = _read(lambda path: checkpoint.read_tensors(path, manifest, checkpoint.MODEL_FILE), folder)
    return Agent(name, agent_config, manifest.counters, tensors, note)


def restore_model(agent: Agent, envs: Environments) -> ActorCritic:
    """Build the agent's network for these environments and load its weights.

    Raises:
        Refusal: the weights are of another network.
    """
    model = build_model(envs.single_observation_space, envs.single_action_space, agent.config.model.model_size, seed=0)
    weights = {n.removeprefix("model/"): t for n, t in agent.model_tensors.items() if n.startswith("model/")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise Refusal(f"the weights of {agent.name} do not fit its environment: {error}") from error
    return model.eval()


def same_world(first: str, second: str) -> bool:
    """Tell whether two ids name the same environment under this program's protocol."""
    if first == second:
        return True
    return (
        atari.is_atari_name(first) and atari.is_atari_name(second) and atari.rom_name(first) == atari.rom_name(second)
    )


def statistics_of(games: Sequence[Game], agent: Agent, config: Config) -> dict[str, Any]:
    """Return the statistics of raw whole-game returns, with the protocol they were played under."""
    returns = [game.episode_return for game in games]
    mean = statistics.fmean(returns)
    deviation = statistics.stdev(returns) if len(returns) > 1 else None
    env_name = agent.config.run.env_name
    rom = atari.rom_name(env_name) if atari.is_atari_name(env_name) else None
    return {
        "env_name": env_name,
        "model_name": agent.name,
        "env_steps": agent.counters.env_steps,
        "episodes": len(returns),
        "return_mean": mean,
        "return_stderr": None if deviation is None else deviation / len(returns) ** 0.5,
        "return_median": statistics.median(returns),
        "return_min": min(returns),
        "return_max": max(returns),
        "human_normalised_score": human_normalised_score(rom, mean) if rom else None,
        "episode_length_mean": statistics.fmean(game.episode_length for game in games),
        "deterministic": config.playback.deterministic,
        "rng_seed": config.run.rng_seed,
        "protocol": agent.config.to_dict()["world"] if rom else {},
    }


def describe(game: Game) -> str:
    """Return a game's line: `game 1: return -20, 1234 steps`."""
    return f"game {game.number + 1}: return {game.episode_return:g}, {game.episode_length} steps"


def announce(agent: Agent) -> None:
    """Say which agent plays."""
    if agent.note:
        print(agent.note)
    print(f"{agent.name}, trained for {agent.counters.env_steps:,} steps", flush=True)


def _actions(
    model: ActorCritic, envs: Environments, slots: range, seed: int, *, deterministic: bool
) -> Iterator[np.ndarray]:
    """Yield the policy's actions for the current observations, with noise addressed by (slot, step)."""
    step = 0
    while True:
        with torch.inference_mode():
            log_probs = distributions.log_probabilities(model(torch.from_numpy(envs.observations))[0])
            block, position = divmod(step, _UNIFORMS_AT_ONCE)
            if position == 0:
                noise = [stream(seed, Purpose.ACTIONS, slot, block).random(_UNIFORMS_AT_ONCE) for slot in slots]
                uniforms = torch.from_numpy(np.stack(noise, axis=1)).float()
            chosen = (
                distributions.mode(log_probs) if deterministic else distributions.sample(log_probs, uniforms[position])
            )
        step += 1
        yield chosen.numpy()


def _frames_per_second(agent: Agent) -> float:
    envs = make_envs(agent.config.run.env_name, agent.config.world, indices=range(1), seed=0)
    rate = envs.frames_per_second
    envs.close()
    return rate


def _find_agent_and_folder(config: Config, explicit: set[str]) -> Agent:
    agent = find_agent(config, explicit)
    folder = config.run.asset_dir / agent.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise Refusal(f"asset_dir must be a folder this user can write to, got {folder}: {error.strerror}") from error
    return agent


def _shipped_folders(config: Config) -> Mapping[Path, checkpoint.Manifest]:
    found = {}
    for parent in dict.fromkeys([config.run.checkpoint_dir / PRETRAINED, _SHIPPED_FOLDER]):
        for manifest_path in sorted(parent.glob(f"*/{checkpoint.MANIFEST_FILE}")):
            found[manifest_path.parent] = _read(checkpoint.read_manifest, manifest_path.parent)
    return found


def _find_shipped(config: Config) -> Path | None:
    for folder, manifest in _shipped_folders(config).items():
        if same_world(manifest.config.run.env_name, config.run.env_name):
            return folder
    return None


def _no_agent(config: Config) -> str:
    """Say that there is no such agent, and which there are."""
    parent = config.run.checkpoint_dir
    own = sorted(p.name for p in parent.iterdir() if checkpoint.list_checkpoints(p)) if parent.is_dir() else []
    shipped = sorted(manifest.config.run.env_name for manifest in _shipped_folders(config).values())
    there_are = [f"--model_name={name}" for name in own] + [f"--env_name={name} (shipped)" for name in shipped]
    listing = ", ".join(dict.fromkeys(there_are)) or "none yet; train one first"
    return f"there is no agent {config.model_name!r} in {parent}; agents: {listing}"


def _read(reader: Any, folder: Path) -> Any:
    try:
        return reader(folder)
    except checkpoint.DamagedCheckpointError as error:
        raise Refusal(f"{folder} is damaged: {error}") from error
