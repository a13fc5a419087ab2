"""How a run begins: folders, lock, engine, environments and network, and the newest checkpoint."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ppo.algorithm import pixels
from ppo.collectives import Collective, decided_by_root
from ppo.config import Config
from ppo.device import Placement
from ppo.envs import Engine, choose_engine
from ppo.machine import keep_freed_memory
from ppo.outputs import checkpoint
from ppo.outputs.folders import move_aside, require_writable
from ppo.outputs.lock import ModelLock
from ppo.run import Run, build_run, resume
from ppo.settings import Refusal
from ppo.supervision.watchdog import Watchdog

# Orphaned ranks exit sooner: each checks for its launcher once a second.
_SECONDS_FOR_ORPHANS = 5.0


@dataclass(frozen=True)
class Start:
    """A run that is ready to train, and the messages about it."""

    run: Run
    about: list[str]
    """The engine, the device and the like."""
    notes: list[str]
    """What happened during the start: folders moved aside, a checkpoint resumed."""


@contextlib.contextmanager
def started(
    config: Config,
    comm: Collective,
    watchdog: Watchdog,
    cores: Sequence[int],
    placement: Placement,
    named: tuple[str, ...] | None = None,
) -> Iterator[Start]:
    """Build a run, resume its newest checkpoint, and close it at the end of the context.

    Args:
        config: the settings.
        comm: the job.
        watchdog: receives a sign of life while episodes are replayed.
        cores: how many cores each rank has to itself.
        placement: where this rank's network acts and learns.
        named: names of the run-identifying settings given on the command line.

    Raises:
        Refusal: on all ranks: the folders, the settings or the checkpoints do not allow it; nothing was written.
    """
    keep_freed_memory()
    lock = ModelLock([config.checkpoint_folder, config.run_folder])
    try:
        notes = decided_by_root(comm, lambda: prepare_folders(config, lock))
        engine = decide_engine(config, comm, cores)
        # With a GPU, the remaining CPU work is shorter than waking threads that compete with emulators for the cores.
        torch.set_num_threads(engine.workers if placement.device.type == "cpu" else 1)
        if placement.device.type == "cuda":
            torch.cuda.set_device(placement.device)
        run = build_run(config, comm, engine, placement, named)
        run.envs.on_replay = lambda: watchdog.enter("resuming", 0)
        watchdog.processes = run.envs.processes
        try:
            notes += resume(run)
            yield Start(run, _about(run, engine, placement), notes)
        except Refusal:  # on all ranks; after a Halt, reporting and exiting is better than waiting for the others
            run.close()
            raise
        run.close()
    finally:
        # All ranks are done, or none could start. Rank 0 took the lock, and rank 0 releases it.
        lock.release()


def prepare_folders(config: Config, lock: ModelLock) -> list[str]:
    """Create the run's folders, lock them and move aside what must not be overwritten; return the messages.

    With --fresh this is the old run, otherwise any logs whose checkpoints are gone or elsewhere.

    Raises:
        Refusal: a folder cannot be written, or another run writes there; nothing was moved.
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
    elif os.path.lexists(logs / "progress.csv") and not checkpoint.list_checkpoints(checkpoints):
        aside = move_aside([logs])
    require_writable("checkpoint_dir", checkpoints)
    require_writable("run_dir", logs)
    return notes + [f"moved aside to {folder}" for folder in aside]


def decide_engine(config: Config, comm: Collective, cores: Sequence[int]) -> Engine:
    """Return this rank's engine; `auto` keeps a run that resumes exactly from becoming one that does not."""

    def engine_before() -> str | None:
        manifest = checkpoint.newest_manifest(config.checkpoint_folder)
        return manifest.config.machine.env_engine if manifest else None

    before = decided_by_root(comm, engine_before)
    return choose_engine(config.run.env_name, config.machine, cores, comm.rank, before)


def uncompiled(run: Run) -> list[str]:
    """Return a message on what is slow because the package was installed without a compiler; none if nothing is."""
    slow = [run.envs.uncompiled] if run.envs.uncompiled else []
    if run.model.device.type == "cpu" and run.model.pixel_layer is not None and not pixels.IS_COMPILED:
        slow.append("minibatches are gathered by PyTorch")
    if not slow:
        return []
    return [f"{' and '.join(slow)}: for faster code, reinstall ppo-mpi with pip where cc and Python.h are available"]


def acquire_patiently(lock: ModelLock, *, take_over: bool) -> list[str]:
    """Acquire a lock, waiting a moment for the orphaned ranks of a killed launcher to release it.

    Raises:
        Refusal: another run still holds it after that.
    """
    deadline = time.monotonic() + _SECONDS_FOR_ORPHANS
    while True:
        try:
            return lock.acquire(take_over=take_over)
        except Refusal:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _about(run: Run, engine: Engine, placement: Placement) -> list[str]:
    """Return the log lines about a run's engine, device and network."""
    used = replace(placement, precision=run.model.precision)  # may differ from what the device supports
    size = sum(parameter.numel() for parameter in run.model.parameters())
    network = f"network: {type(run.model.actor).__name__}, {size:,} parameters"
    about = [engine.describe(), *uncompiled(run), used.describe(), network]
    if run.comm.size > 1 and placement.device.type == "cpu":
        about.append(f"gradients: summed {run.learner.how_gradients_are_summed}")
    return about
