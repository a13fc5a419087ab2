"""The training loop: start reading here.

    Config -> make_envs -> collect -> update -> log -> save, until env_steps are reached or a signal asks to stop.

All ranks run this code in step. Rank 0 also has trackers that write and a folder to save to.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from datetime import datetime

import numpy as np
import torch

from ppo.algorithm import minibatch
from ppo.algorithm.rollout import Episode
from ppo.collectives import Collective, decided_by_root
from ppo.config import Config, Refusal
from ppo.device import CPU, Placement
from ppo.envs import Engine, atari, choose_engine, screens
from ppo.machine import keep_freed_memory
from ppo.outputs import checkpoint
from ppo.outputs.display import make_display, tell
from ppo.outputs.folders import move_aside, require_writable
from ppo.outputs.lock import ModelLock
from ppo.outputs.trackers import CsvFiles, FinishedEpisode, TensorBoard, Trackers, write_config
from ppo.run import Run, build_run, merge, resume, save
from ppo.supervision.replicas import compare_replicas
from ppo.supervision.signals import StopRequest
from ppo.supervision.stragglers import StragglerWatch, waiting_seconds
from ppo.supervision.watchdog import Watchdog

SAVE_FAILED = 1
# A rank looks for its launcher once a second.
_SECONDS_FOR_ORPHANS = 5.0
_FINISHED = "{name} is finished: {done:,} of {wanted:,} steps; a larger --env_steps goes on from there"


class Stopwatch:
    """Wall seconds between laps; saving and logging count with the update they delay."""

    def __init__(self) -> None:
        """Start the first lap."""
        self._last = time.perf_counter()

    def lap(self) -> float:
        """End a lap, start the next and return the seconds of the one that ended."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last


class Loop:
    """A run together with what watches over it."""

    def __init__(self, run: Run, trackers: Trackers, stop: StopRequest, watchdog: Watchdog) -> None:
        """Go on from where `run` stands."""
        self.run, self._trackers, self._stop, self._watchdog = run, trackers, stop, watchdog
        self._stragglers = StragglerWatch(watchdog.hosts)
        self._stopwatch = Stopwatch()
        self._tried_update = -1
        self._save_seconds = 0.0
        self.saved = True
        """Whether the last save succeeded."""

    def save(self) -> None:
        """Compare the replicas and write a checkpoint, unless one of this update has been tried already."""
        progress = self.run.progress
        if self._tried_update == progress.update:
            return
        self._watchdog.enter("saving", progress.update)
        started = time.perf_counter()
        self._compare_replicas()
        self._trackers.sync()  # after a power cut, the logs hold what the checkpoint says
        with self._stop.saving():
            self.saved = save(self.run, self._trackers.say)
        self._tried_update = progress.update
        self._save_seconds = time.perf_counter() - started

    def resumed(self) -> None:
        """Note that the checkpoint of this update exists."""
        self._tried_update = self.run.progress.update

    def start_clock(self) -> None:
        """Count time from now on."""
        self._stopwatch.lap()
        self._save_seconds = 0.0

    def advance(self) -> int | None:
        """Collect a rollout, learn from it, count, log, and save when it is time.

        Returns:
            An exit code if all ranks shall leave.
        """
        run, progress, config = self.run, self.run.progress, self.run.config
        steps_before = progress.env_steps
        self._watchdog.enter("collecting", progress.update + 1)
        rollout, episodes = run.collector.collect(progress.update)
        self._watchdog.enter("learning", progress.update + 1)
        update_metrics = run.learner.update(
            rollout,
            update=progress.update,
            env_steps=steps_before,
            progress=steps_before / config.run.env_steps,
        )
        self._watchdog.enter("logging", progress.update + 1)
        everyone = run.comm.broadcast(merge(run.comm.gather(episodes)))
        seconds, phases, exit_code = self._agree()
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
        self._trackers.log(metrics, finished)
        if progress.update % config.run.checkpoint_interval == 0:
            self.save()
        elif progress.update % config.supervision.replica_check_interval == 0:
            self._compare_replicas()
        return exit_code

    def _compare_replicas(self) -> None:
        compare_replicas(self.run.replicated_tensors(), self.run.comm, self._watchdog.hosts)

    def _agree(self) -> tuple[float, dict[str, float], int | None]:
        """Exchange clocks and stop requests in one all-reduce.

        Returns:
            Mean wall seconds since the last call, mean seconds per phase (`wait` is a part of `communicate`), and the
            exit code that any rank asks for.
        """
        comm, codes = self.run.comm, self._stop.codes
        # A save counts with the update that it delays: the next one.
        phases = {**self.run.collector.seconds, **self.run.learner.seconds, "save": self._save_seconds}
        self._save_seconds = 0.0
        of_each_rank = np.zeros((2, comm.size))
        of_each_rank[0, comm.rank] = sum(phases[phase] for phase in ("env", "inference", "learn"))
        of_each_rank[1, comm.rank] = phases["communicate"]
        asked = [float(self._stop.exit_code == code) for code in codes]
        shared = np.array([self._stopwatch.lap(), *phases.values(), *asked, *of_each_rank.flat])
        comm.sum_in_place(shared)
        seconds, *means = (shared[: 1 + len(phases)] / comm.size).tolist()
        votes = shared[1 + len(phases) : -of_each_rank.size]
        busy, communicating = shared[-of_each_rank.size :].reshape(of_each_rank.shape).tolist()
        warning = self._stragglers.notice(busy)
        if warning:
            self._trackers.say(warning)
        exit_code = max((code for code, count in zip(codes, votes, strict=True) if count), default=None)
        spent = {**dict(zip(phases, means, strict=True)), "wait": waiting_seconds(communicating)}
        return seconds, spent, exit_code


def train(
    config: Config,
    comm: Collective,
    stop: StopRequest,
    watchdog: Watchdog,
    cores: Sequence[int] | None = None,
    placement: Placement = CPU,
) -> int:
    """Train until `env_steps`, resuming the newest checkpoint of this name.

    Args:
        config: the settings.
        comm: the job.
        stop: the signals that ask to stop.
        watchdog: is told of every phase.
        cores: how many cores each rank has to itself; default: one each.
        placement: where this rank's network acts and learns.

    Returns:
        The exit code: 0 at the end, that of the signal after an early stop, SAVE_FAILED without a last checkpoint.

    Raises:
        Refusal: the folders, the settings or the checkpoints do not allow it; on all ranks, nothing written.
        Halt: the training went wrong in a way that all ranks see alike.
    """
    keep_freed_memory()
    lock = ModelLock([config.checkpoint_folder, config.run_folder])
    try:
        notes = decided_by_root(comm, lambda: prepare_folders(config, lock))
        engine = decide_engine(config, comm, cores or [1] * comm.size)
        # Beside a GPU, what is left to do takes less time than waking threads that the emulators keep from the cores.
        torch.set_num_threads(engine.workers if placement.device.type == "cpu" else 1)
        about = [engine.describe()]
        if not atari.is_atari_name(config.run.env_name):
            about.clear()
            placement = dataclasses.replace(placement, precision=torch.float32)  # as its network is
        else:
            about += uncompiled(engine, placement)
        if placement.device.type == "cuda":
            torch.cuda.set_device(placement.device)
        # What is saved names what was used, not the wish.
        config = config.replace_settings({"env_engine": engine.name, **placement.settings()})
        run = build_run(config, comm, engine, placement)
        try:
            about.append(placement.describe())
            if comm.size > 1 and placement.device.type == "cpu":
                about.append(f"gradients: summed {run.learner.how_gradients_are_summed}")
            exit_code = _train(run, stop, watchdog, about, notes)
        except Refusal:  # on all ranks alike; after a Halt it is better to say why and leave than to wait for others
            run.close()
            raise
        run.close()
        return exit_code
    finally:
        # Everybody has done his part, or nobody could begin: rank 0 took the lock, and rank 0 lets go of it.
        lock.release()


def _train(run: Run, stop: StopRequest, watchdog: Watchdog, about: list[str], notes: list[str]) -> int:
    run.envs.on_replay = lambda: watchdog.enter("resuming", 0)
    notes += resume(run)
    config, progress = run.config, run.progress
    if progress.env_steps >= config.run.env_steps:
        if run.comm.rank == 0:
            done = _FINISHED.format(name=config.model_name, done=progress.env_steps, wanted=config.run.env_steps)
            for line in (*notes, done):
                tell(line)
        return 0
    trackers = make_trackers(run)
    for line in (*about, *notes):
        trackers.say(line)
    loop = Loop(run, trackers, stop, watchdog)
    if progress.update:
        loop.resumed()
    else:
        loop.save()  # a full disk shows now, and not after the first hour
    loop.start_clock()
    exit_code: int | None = None
    while progress.env_steps < config.run.env_steps and exit_code is None:
        exit_code = loop.advance()
    loop.save()
    trackers.say(farewell(run, saved=loop.saved, stopped_early=exit_code is not None))
    trackers.close()
    return (exit_code or 0) if loop.saved else SAVE_FAILED


def prepare_folders(config: Config, lock: ModelLock) -> list[str]:
    """Create the run's folders, lock them and move aside what must not be overwritten; return what to tell.

    With --fresh that is the old run, and otherwise logs whose checkpoints are gone or elsewhere.

    Raises:
        Refusal: a folder cannot be written, or another run writes there; nothing has been moved then.
    """
    require_writable("checkpoint_dir", config.run.checkpoint_dir)
    require_writable("run_dir", config.run.run_dir)
    notes = acquire_patiently(lock, take_over=config.supervision.take_over_lock)
    checkpoints, logs = config.checkpoint_folder, config.run_folder
    for setting, folder in (("checkpoint_dir", checkpoints), ("run_dir", logs)):
        if os.path.lexists(folder):
            require_writable(setting, folder)
    aside = []
    if config.run.fresh:
        aside = move_aside([checkpoints, logs])
    elif (logs / "progress.csv").exists() and not checkpoint.list_checkpoints(checkpoints):
        aside = move_aside([logs])
    require_writable("checkpoint_dir", checkpoints)
    require_writable("run_dir", logs)
    return notes + [f"moved aside to {folder}" for folder in aside]


def decide_engine(config: Config, comm: Collective, cores: Sequence[int]) -> Engine:
    """Return this rank's engine: a run that resumes exactly is not turned into one that does not."""

    def engine_before() -> str | None:
        manifest = checkpoint.newest_manifest(config.checkpoint_folder)
        return manifest.config.machine.env_engine if manifest else None

    before = decided_by_root(comm, engine_before)
    return choose_engine(config.run.env_name, config.machine, cores, comm.rank, before)


def uncompiled(engine: Engine, placement: Placement) -> list[str]:
    """Return what to tell of pixels where the package was installed without a compiler."""
    shrinks_screens = engine.name != "vector" and not screens.IS_COMPILED
    gathers = placement.device.type == "cpu" and not minibatch.IS_COMPILED
    slow = ["screens are shrunk by OpenCV"] * shrinks_screens + ["minibatches are gathered by PyTorch"] * gathers
    return [f"{' and '.join(slow)}: pip install -e . where cc and Python.h are makes faster code"] if slow else []


def acquire_patiently(lock: ModelLock, *, take_over: bool) -> list[str]:
    """Acquire a lock that the ranks of a job whose launcher was killed may hold for a moment longer.

    Raises:
        Refusal: another run still has it after that time.
    """
    deadline = time.monotonic() + _SECONDS_FOR_ORPHANS
    while True:
        try:
            return lock.acquire(take_over=take_over)
        except Refusal:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def make_trackers(run: Run) -> Trackers:
    """Return the trackers of rank 0; the other ranks have none."""
    if run.comm.rank != 0:
        return Trackers([])
    config, progress = run.config, run.progress
    folder = config.run_folder
    notes = write_config(folder, config, ranks=run.comm.size, started=datetime.now().isoformat(timespec="seconds"))
    ranks = "1 rank" if run.comm.size == 1 else f"{run.comm.size} ranks"
    title = f"{config.model_name}: {config.ppo.num_envs} environments on {ranks}, preset {config.run.preset}"
    trackers = Trackers(
        [
            CsvFiles(folder, progress.update),
            TensorBoard(folder, progress.env_steps),
            make_display(title, config.run.env_steps),
        ]
    )
    for note in notes:
        trackers.say(note)
    return trackers


def farewell(run: Run, *, saved: bool, stopped_early: bool) -> str:
    """Return the last line of a run."""
    steps, folder = run.progress.env_steps, run.config.checkpoint_folder
    if not saved:
        return f"ended at {steps:,} steps WITHOUT a last checkpoint; the same command goes on from the one before"
    end = "stopped; the same command goes on from here" if stopped_early else "done"
    return f"{end}: {run.config.model_name} at {steps:,} steps, saved in {folder / checkpoint.folder_name(steps)}"


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
