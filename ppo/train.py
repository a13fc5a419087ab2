"""The training loop: start reading here.

    Config -> make_envs -> collect -> update -> log -> save, until env_steps are reached or a signal asks to stop.

All ranks run this code in step. Rank 0 also has trackers that write and a folder to save to.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo.algorithm.normalization import RunningMoments
from ppo.algorithm.rollout import Collector, Episode
from ppo.algorithm.update import Learner
from ppo.collectives import Collective, decided_by_root, share
from ppo.config import Config, Refusal, differences
from ppo.envs import Environments, make_envs
from ppo.models.actor_critic import ActorCritic, build_model
from ppo.outputs import checkpoint
from ppo.outputs.display import make_display
from ppo.outputs.folders import move_aside, require_writable
from ppo.outputs.trackers import CsvFiles, FinishedEpisode, TensorBoard, Trackers, write_config
from ppo.random_streams import Purpose, derived_seed
from ppo.supervision import StopRequest

SAVE_FAILED = 1
_FINISHED = "{name} is finished: {done:,} of {wanted:,} steps; a larger --env_steps goes on from there"


@dataclass
class Progress:
    """How far the run has come; equal on all ranks."""

    update: int = 0
    env_steps: int = 0
    seconds: float = 0.0
    """Wall seconds of training since the run's first start."""
    episodes: int = 0
    recent_returns: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    def counters(self) -> checkpoint.Counters:
        """Return what a checkpoint stores of this."""
        return checkpoint.Counters(self.update, self.env_steps, self.seconds, self.episodes, tuple(self.recent_returns))

    def restore(self, counters: checkpoint.Counters) -> None:
        """Go on from a checkpoint's counters."""
        self.update, self.env_steps, self.seconds = counters.update, counters.env_steps, counters.seconds
        self.episodes = counters.episodes
        self.recent_returns = deque(counters.recent_returns, maxlen=100)


class Stopwatch:
    """Wall seconds between laps; saving and logging count with the update they delay."""

    def __init__(self) -> None:
        """Start the first lap."""
        self._last = time.perf_counter()

    def lap(self) -> float:
        """End a lap, start the next and return the seconds of the one that ended."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last


@dataclass(frozen=True)
class Run:
    """Everything a training run consists of on one rank."""

    config: Config
    comm: Collective
    indices: range
    envs: Environments
    model: ActorCritic
    value_normalizer: RunningMoments
    collector: Collector
    learner: Learner
    progress: Progress
    stopwatch: Stopwatch


def train(config: Config, comm: Collective, stop: StopRequest) -> int:
    """Train until `env_steps`, resuming the newest checkpoint of this name.

    Returns:
        The exit code: 0 at the end, that of the signal after an early stop, SAVE_FAILED without a last checkpoint.

    Raises:
        Refusal: the folders, the settings or the checkpoints do not allow it; on all ranks, nothing written.
    """
    stop.listen()
    notes = decided_by_root(comm, lambda: prepare_folders(config))
    run = build_run(config, comm)
    notes += resume(run)
    progress = run.progress
    if progress.env_steps >= config.run.env_steps:
        if comm.rank == 0:
            print(_FINISHED.format(name=config.model_name, done=progress.env_steps, wanted=config.run.env_steps))
        return 0
    trackers = make_trackers(run)
    for note in notes:
        trackers.say(note)
    tried_update = progress.update
    saved = True
    exit_code: int | None = None
    run.stopwatch.lap()
    while progress.env_steps < config.run.env_steps and exit_code is None:
        metrics, episodes, exit_code = advance(run, stop)
        trackers.log(metrics, episodes)
        if progress.update - tried_update >= config.run.checkpoint_interval:
            saved = save(run, trackers.say)
            tried_update = progress.update
    if tried_update != progress.update:
        saved = save(run, trackers.say)
    trackers.say(farewell(run, saved=saved, stopped_early=exit_code is not None))
    trackers.close()
    run.envs.close()
    comm.barrier()
    return (exit_code or 0) if saved else SAVE_FAILED


def build_run(config: Config, comm: Collective) -> Run:
    """Make this rank's environments and, equal on all ranks, the network and what trains it."""
    indices, seed = share(config.ppo.num_envs, comm.rank, comm.size), config.run.rng_seed
    envs = make_envs(config.run.env_name, config.world, indices=indices, seed=seed)
    model = build_model(
        envs.single_observation_space,
        envs.single_action_space,
        config.model.model_size,
        seed=derived_seed(seed, Purpose.WEIGHTS),
    )
    value_normalizer = RunningMoments()
    learner = Learner(model, value_normalizer, config.ppo, comm, indices=indices, seed=seed)
    collector = Collector(
        envs,
        model,
        value_normalizer,
        indices=indices,
        rollout_steps=config.ppo.rollout_steps,
        clip_rewards=config.world.clip_rewards and len(envs.observations.shape) == 4,
        episodic_life=config.world.episodic_life,
        seed=seed,
    )
    return Run(config, comm, indices, envs, model, value_normalizer, collector, learner, Progress(), Stopwatch())


def advance(run: Run, stop: StopRequest) -> tuple[dict[str, float | int | None], list[FinishedEpisode], int | None]:
    """Collect a rollout, learn from it and count; return metrics, games and an exit code if all shall leave."""
    progress, config = run.progress, run.config
    steps_before = progress.env_steps
    rollout, episodes = run.collector.collect(progress.update)
    update_metrics = run.learner.update(rollout, update=progress.update, progress=steps_before / config.run.env_steps)
    everyone = run.comm.broadcast(_merge(run.comm.gather(episodes)))
    seconds, phases, exit_code = _agree(run, stop)
    progress.update += 1
    progress.env_steps += config.steps_per_update
    progress.seconds += seconds
    finished = []
    for episode in sorted(everyone, key=lambda e: (e.step, e.environment)):
        progress.episodes += 1
        progress.recent_returns.append(episode.episode_return)
        finished.append(_numbered(episode, steps_before, run))
    metrics = {
        "update": progress.update,
        "env_steps": progress.env_steps,
        "time/seconds": round(progress.seconds, 3),
        "time/steps_per_second": round(config.steps_per_update / seconds, 2),
        **{f"time/{phase}": round(spent, 4) for phase, spent in phases.items()},
        "rollout/return_mean": progress.counters().return_mean,
        "rollout/episodes": progress.episodes,
        **update_metrics,
    }
    return metrics, finished, exit_code


def prepare_folders(config: Config) -> list[str]:
    """Create the run's folders and move aside what must not be overwritten; return what to tell.

    With --fresh that is the old run, and otherwise logs whose checkpoints are gone or elsewhere.

    Raises:
        Refusal: a folder cannot be written; nothing has been moved then.
    """
    require_writable("checkpoint_dir", config.run.checkpoint_dir)
    require_writable("run_dir", config.run.run_dir)
    checkpoints, logs = config.checkpoint_folder, config.run_folder
    aside = []
    if config.run.fresh:
        aside = move_aside([checkpoints, logs])
    elif (logs / "progress.csv").exists() and not checkpoint.list_checkpoints(checkpoints):
        aside = move_aside([logs])
    require_writable("checkpoint_dir", checkpoints)
    require_writable("run_dir", logs)
    return [f"moved aside to {folder}" for folder in aside]


def resume(run: Run) -> list[str]:
    """Bring every rank to the newest checkpoint, or to the beginning where there is none; return what to tell.

    Raises:
        Refusal: there are checkpoints but none can be continued with these settings.
    """
    notes, manifest, tensors = decided_by_root(run.comm, lambda: _read_for_resume(run))
    if manifest is None or tensors is None:
        run.collector.reset()
        return notes
    run.progress.restore(manifest.counters)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, array in tensors.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = torch.from_numpy(array)
    run.model.load_state_dict(parts["model"])
    run.value_normalizer.load_state_dict(parts["value_normalizer"])
    run.learner.load_state_dict(parts["learner"])
    states: dict[int, dict[str, NDArray[Any]]] = {}
    for name, tensor in parts["environment"].items():
        index, _, key = name.partition("/")
        states.setdefault(int(index), {})[key] = tensor.numpy()
    run.envs.set_states([states[index] for index in run.indices])
    return notes


def save(run: Run, say: Callable[[str], None]) -> bool:
    """Write a checkpoint with the state of every rank's environments and prune old ones; tell whether it was saved."""
    states = _merge(run.comm.gather(run.envs.get_states()))
    return run.comm.broadcast(run.comm.rank == 0 and _write_and_prune(run, states, say))


def _write_and_prune(run: Run, states: list[dict[str, NDArray[Any]]], say: Callable[[str], None]) -> bool:
    model = {f"model/{name}": tensor for name, tensor in run.model.state_dict().items()}
    model |= {f"value_normalizer/{name}": t for name, t in run.value_normalizer.state_dict().items()}
    training = {f"learner/{name}": tensor for name, tensor in run.learner.state_dict().items()}
    for index, state in enumerate(states):
        training |= {f"environment/{index}/{key}": torch.from_numpy(array) for key, array in state.items()}
    folder = run.config.checkpoint_folder
    try:
        checkpoint.write_checkpoint(folder, run.config, run.progress.counters(), model, training)
    except OSError as error:
        say(f"WARNING: the checkpoint at {run.progress.env_steps:,} steps was not saved: {error}")
        return False
    try:
        checkpoint.prune(folder)
    except OSError as error:
        say(f"WARNING: old checkpoints could not be deleted: {error}")
    return True


def make_trackers(run: Run) -> Trackers:
    """Return the trackers of rank 0; the other ranks have none."""
    if run.comm.rank != 0:
        return Trackers([])
    config, progress = run.config, run.progress
    folder = config.run_folder
    write_config(folder, config, ranks=run.comm.size, started=datetime.now().isoformat(timespec="seconds"))
    ranks = "1 rank" if run.comm.size == 1 else f"{run.comm.size} ranks"
    title = f"{config.model_name}: {config.ppo.num_envs} environments on {ranks}, preset {config.run.preset}"
    return Trackers(
        [
            CsvFiles(folder, progress.update),
            TensorBoard(folder, progress.env_steps),
            make_display(title, config.run.env_steps),
        ]
    )


def farewell(run: Run, *, saved: bool, stopped_early: bool) -> str:
    """Return the last line of a run."""
    steps, folder = run.progress.env_steps, run.config.checkpoint_folder
    if not saved:
        return f"ended at {steps:,} steps WITHOUT a last checkpoint; the same command goes on from the one before"
    end = "stopped; the same command goes on from here" if stopped_early else "done"
    return f"{end}: {run.config.model_name} at {steps:,} steps, saved in {folder / checkpoint.folder_name(steps)}"


def _agree(run: Run, stop: StopRequest) -> tuple[float, dict[str, float], int | None]:
    """Exchange clocks and stop requests in one all-reduce.

    Returns:
        Mean wall seconds since the last call, mean seconds per phase, and the exit code that any rank asks for, if any.
    """
    phases = {**run.collector.seconds, **run.learner.seconds}
    asked = [float(stop.exit_code == code) for code in stop.codes]
    shared = np.array([run.stopwatch.lap(), *phases.values(), *asked])
    run.comm.sum_in_place(shared)
    seconds, *means = (shared[: 1 + len(phases)] / run.comm.size).tolist()
    votes = shared[1 + len(phases) :]
    exit_code = max((code for code, count in zip(stop.codes, votes, strict=True) if count), default=None)
    return seconds, dict(zip(phases, means, strict=True)), exit_code


def _read_for_resume(
    run: Run,
) -> tuple[list[str], checkpoint.Manifest | None, dict[str, NDArray[Any]] | None]:
    """Read the newest whole checkpoint on rank 0 and hold it against the settings of this run."""
    notes: list[str] = []
    config = run.config
    found = checkpoint.newest_valid(config.checkpoint_folder, notes.append)
    if found is None:
        return notes, None, None
    folder, manifest, model, training = found
    _refuse_other_run(config, manifest, folder)
    _refuse_other_network(run.model, model, folder)
    for name, (old, new) in differences(manifest.config, config, ("ppo",)).items():
        notes.append(f"changed since the checkpoint: {name} {old} -> {new}")
    notes.append(f"resuming {config.model_name} at {manifest.counters.env_steps} steps")
    return notes, manifest, {name: tensor.numpy() for name, tensor in {**model, **training}.items()}


def _refuse_other_run(config: Config, manifest: checkpoint.Manifest, folder: Path) -> None:
    old = manifest.config
    changed = differences(old, config, ("world", "model"))
    pairs = (
        ("env_name", old.run.env_name, config.run.env_name),
        ("rng_seed", old.run.rng_seed, config.run.rng_seed),
        ("num_envs", old.ppo.num_envs, config.ppo.num_envs),
        # What the network's inputs and outputs mean.
        ("pixel_normalization", old.ppo.pixel_normalization, config.ppo.pixel_normalization),
        ("value_normalization", old.ppo.value_normalization, config.ppo.value_normalization),
    )
    changed |= {name: (before, now) for name, before, now in pairs if before != now}
    if changed:
        listing = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changed.items())
        raise Refusal(
            f"{folder} is of another run ({listing}); "
            "use the old settings, another --model_name, or --fresh to move it aside"
        )


def _refuse_other_network(model: ActorCritic, tensors: checkpoint.Tensors, folder: Path) -> None:
    expected = {f"model/{name}": tuple(t.shape) for name, t in model.state_dict().items()}
    saved = {name: tuple(t.shape) for name, t in tensors.items() if name.startswith("model/")}
    if expected != saved:
        names = sorted(name for name in expected.keys() | saved.keys() if expected.get(name) != saved.get(name))
        raise Refusal(f"{folder} holds another network than this run's: {', '.join(names[:3])} differ")


def _merge(parts: list[list[Any]] | None) -> list[Any]:
    return [item for part in parts or [] for item in part]


def _numbered(episode: Episode, steps_before: int, run: Run) -> FinishedEpisode:
    progress = run.progress
    return FinishedEpisode(
        episode=progress.episodes,
        update=progress.update,
        env_steps=steps_before + (episode.step + 1) * run.config.ppo.num_envs,
        environment=episode.environment,
        episode_return=episode.episode_return,
        episode_length=episode.episode_length,
        seconds=progress.seconds,
    )
