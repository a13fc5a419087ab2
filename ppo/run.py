"""A training run on one rank: its parts, and how it is saved and resumed.

All ranks save and resume together: rank 0 handles the files, every rank the states of its environments.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo.algorithm.rewards import RUNNING_RETURN
from ppo.algorithm.rollout import Collector
from ppo.algorithm.schedules import Schedules
from ppo.algorithm.update import Learner
from ppo.collectives import Collective, Halt, decided_by_root, done_by_all, done_by_each, share
from ppo.collectives.moments import RunningMoments
from ppo.config import Config, MachineSettings, differences
from ppo.device import CPU, Placement
from ppo.envs import LEAN, Engine, Environments, make_envs
from ppo.evaluation import Evaluator
from ppo.identity import SECTIONS, refuse_other_run
from ppo.models.actor_critic import ActorCritic, build_model
from ppo.outputs import checkpoint
from ppo.outputs.manifest import Counters, Manifest, machine_here, rounding_here
from ppo.outputs.tensor_file import specification
from ppo.outputs.untrusted import brief
from ppo.random_streams import Purpose, derived_seed
from ppo.settings import Refusal
from ppo.versions import versions_of_run


@dataclass
class Progress:
    """How far the run has come; equal on all ranks."""

    update: int = 0
    env_steps: int = 0
    seconds: float = 0.0
    """Wall seconds of training since the run's first start."""
    episodes: int = 0
    recent_returns: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    evaluation_return: float | None = None
    """Mean return of the evaluation at this update; None without one."""
    logs: dict[str, int] = field(default_factory=dict)
    """Length of each log in bytes, including data still to be written; kept up to date by the log writers on rank 0."""

    def counters(self) -> Counters:
        """Return the counters that a checkpoint stores."""
        returns = tuple(self.recent_returns)
        return Counters(self.update, self.env_steps, self.seconds, self.episodes, returns, self.evaluation_return)

    def restore(self, manifest: Manifest) -> None:
        """Restore the progress of a checkpoint."""
        counters, self.logs = manifest.counters, dict(manifest.logs)
        self.update, self.env_steps, self.seconds = counters.update, counters.env_steps, counters.seconds
        self.episodes, self.evaluation_return = counters.episodes, counters.evaluation_return
        self.recent_returns = deque(counters.recent_returns, maxlen=100)


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
    evaluator: Evaluator | None
    """None without evaluations."""
    progress: Progress
    named: tuple[str, ...] | None = None
    """See `Manifest.named`."""
    warnings: set[str] = field(default_factory=set)
    """Warnings about the checkpoint folder that were already given; each is given once, not at every save."""

    def model_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that playing needs, by their names in a checkpoint; equal on all ranks."""
        return _named("model", self.model.state_dict()) | _named("value_normalizer", self.value_normalizer.state_dict())

    def learner_tensors(self) -> dict[str, Tensor]:
        """Return the other tensors that training needs, without the environments' states; equal on all ranks."""
        return _named("learner", self.learner.state_dict())

    def replicated_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of which every rank has a copy, leaving out those that all ranks share."""
        tensors = self.model_tensors()
        if self.learner.is_one_replica:
            for name, _ in self.model.named_parameters():
                del tensors[f"model/{name}"]
        return {**tensors, **_named("learner", self.learner.replicated_state())}

    def close(self) -> None:
        """Release all resources; called by all ranks together."""
        self.learner.close()
        if self.evaluator:
            self.evaluator.close()
        self.envs.close()
        self.comm.barrier()


def build_run(
    config: Config,
    comm: Collective,
    engine: Engine = LEAN,
    placement: Placement = CPU,
    named: tuple[str, ...] | None = None,
) -> Run:
    """Make this rank's environments and, equal on all ranks, the network and its learner.

    Raises:
        Refusal: on all ranks: the world cannot be made on one of them.
    """
    indices, seed = share(config.ppo.num_envs, comm.rank, comm.size), config.run.rng_seed
    env_name, world = config.run.env_name, config.world
    # A world may refuse a further copy of itself on one rank only.
    envs = done_by_each(comm, lambda: make_envs(env_name, world, indices=indices, seed=seed, engine=engine))
    envs.keep_games(config.run.replay_megabytes > 0)
    model = build_model(
        envs.single_observation_space,
        envs.single_action_space,
        config.model,
        seed=derived_seed(seed, Purpose.WEIGHTS),
        precision=placement.precision,
    ).to(placement.device)
    # Checkpoints record the settings that were used, with `auto` resolved.
    config = config.replace_settings(
        {**placement.settings(), "env_engine": engine.name, "precision": model.precision_name}
    )
    value_normalizer = RunningMoments()
    learner = Learner(
        model,
        value_normalizer,
        config.ppo,
        comm,
        machine=config.machine,
        indices=indices,
        seed=seed,
        meeting_host=placement.meeting_host,
    )
    collector = Collector(
        envs,
        model,
        value_normalizer,
        indices=indices,
        rollout_steps=config.ppo.rollout_steps,
        seed=seed,
    )
    evaluates = config.run.evaluation_interval is not None
    evaluator = done_by_each(comm, lambda: Evaluator(config, comm, model)) if evaluates else None
    return Run(config, comm, indices, envs, model, value_normalizer, collector, learner, evaluator, Progress(), named)


def resume(run: Run) -> list[str]:
    """Bring every rank to the newest checkpoint, or to the beginning if there is none; return the messages.

    Raises:
        Refusal: there are checkpoints, but none can be resumed with these settings.
    """
    notes, manifest, arrays = decided_by_root(run.comm, lambda: _read_for_resume(run))
    if manifest is None or arrays is None:
        run.collector.reset()
        return notes
    run.progress.restore(manifest)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        parts.setdefault(part, {})[rest] = torch.from_numpy(array)
    restarted = done_by_all(run.comm, lambda: _restore(run, parts))
    environments = sorted(index for indices in restarted for index in indices)
    if environments:
        every = len(environments) == run.config.ppo.num_envs
        which = "all environments" if every else f"environments {', '.join(map(str, environments))}"
        notes.append(
            f"WARNING: restored weights, optimiser and counters, but {which} could not be restored and began a new "
            "episode: this is not an exact resume"
        )
    return notes


def save(run: Run, say: Callable[[str], None]) -> bool:
    """Write a checkpoint with the state of every rank's environments and prune old ones; return whether it was saved.

    Raises:
        Halt: on all ranks: a value to be saved is non-finite.
    """
    states = zip(run.envs.get_states(), run.learner.rewards.environment_states(), strict=True)
    gathered = run.comm.gather([{**world, **learner} for world, learner in states])
    return decided_by_root(run.comm, lambda: _write_and_prune(run, merge(gathered), say))


def merge(parts: list[list[Any]] | None) -> list[Any]:
    """Join what was gathered from all ranks into one list; empty off rank 0."""
    return [item for part in parts or [] for item in part]


def _named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a part of a run, in CPU memory, by their names in a checkpoint."""
    return {f"{part}/{name}": tensor.cpu() for name, tensor in tensors.items()}


def _restore(run: Run, parts: dict[str, dict[str, Tensor]]) -> list[int]:
    """Restore this rank's share of a checkpoint; return the environments that had to begin a new episode.

    Raises:
        Refusal: the tensors do not fit this run.
    """
    try:
        run.model.load_state_dict(parts["model"])
        run.value_normalizer.load_state_dict(parts["value_normalizer"])
        run.learner.load_state_dict(parts["learner"])
        states: dict[int, dict[str, NDArray[Any]]] = {}
        for name, tensor in parts["environment"].items():
            index, _, key = name.partition("/")
            states.setdefault(int(index), {})[key] = tensor.numpy()
        own = [states[index] for index in run.indices]
        run.learner.rewards.set_environment_states(own)
        of_worlds = [{name: array for name, array in state.items() if name != RUNNING_RETURN} for state in own]
        return run.envs.set_states(of_worlds)
    except (OSError, MemoryError):  # faults of this machine, not of the checkpoint
        raise
    except Exception as error:  # a library or a world may raise anything for numbers from an untrusted checkpoint
        raise Refusal(
            f"the checkpoint at {run.progress.env_steps} steps in {run.config.checkpoint_folder} does not hold the "
            f"state of this run: {brief(error)}; --fresh moves it aside"
        ) from error


def _write_and_prune(run: Run, states: list[dict[str, NDArray[Any]]], say: Callable[[str], None]) -> bool:
    training = run.learner_tensors()
    for index, state in enumerate(states):
        training |= {f"environment/{index}/{key}": torch.from_numpy(array) for key, array in state.items()}
    folder, counters = run.config.checkpoint_folder, run.progress.counters()
    try:
        written = checkpoint.write_checkpoint(
            folder,
            run.config,
            counters,
            run.model_tensors(),
            training,
            ranks=run.comm.size,
            logs=run.progress.logs,
            named=run.named,
        )
    except OSError as error:
        say(f"WARNING: the checkpoint at {run.progress.env_steps:,} steps was not saved: {error}")
        return False
    except FloatingPointError as error:
        raise Halt(f"{error}; it was not saved and the last checkpoint is intact") from error
    try:
        stays = checkpoint.prune(folder, written, run.config.run.keep_checkpoints)
    except (OSError, Refusal) as error:
        stays = [f"old checkpoints could not be deleted: {error}"]
    for words in dict.fromkeys(stays):
        if words not in run.warnings:
            say(f"WARNING: {words}")
    run.warnings.update(stays)
    return True


def _read_for_resume(
    run: Run,
) -> tuple[list[str], Manifest | None, dict[str, NDArray[Any]] | None]:
    """Read the newest whole checkpoint on rank 0 and compare it with the settings of this run."""
    notes: list[str] = []
    config = run.config
    found = checkpoint.newest_valid(
        config.checkpoint_folder,
        notes.append,
        accept=lambda folder, manifest: refuse_other_run(config, manifest, folder),
        expected=specification({**run.model_tensors(), **run.learner_tensors()}),
    )
    if found is None:
        return notes, None, None
    _, manifest, model, training = found
    saved = manifest.config
    if saved.machine.device == "auto":  # saved by a version without this choice
        saved = saved.replace_settings({"device": "cpu", "precision": "float32"})
    changed = differences(saved, config, (*SECTIONS, "machine"))
    notes += [f"changed since the checkpoint: {name} {old} -> {new}" for name, (old, new) in changed.items()]
    if changed.keys() & {"learning_rate", "learning_rate_schedule"}:  # a rate that was adapted is adapted anew
        training |= _named("learner", Schedules(config.ppo).state_dict())
    notes += _what_is_not_exact(manifest, saved.machine, config, run.comm.size)
    notes.append(f"resuming {config.model_name} at {manifest.counters.env_steps} steps")
    return notes, manifest, {name: tensor.numpy() for name, tensor in {**model, **training}.items()}


def _what_is_not_exact(manifest: Manifest, saved: MachineSettings, config: Config, ranks: int) -> list[str]:
    """Return messages on what prevents a bit-identical resume: other ranks, versions, engines, CPUs, or a GPU."""
    notes, machine = [], config.machine
    if manifest.ranks != ranks:
        before = f"{manifest.ranks} rank" + ("s" if manifest.ranks > 1 else "")
        notes.append(
            f"saved by {before}, resumes with {ranks}: the same environments continue where they stopped, "
            "redistributed over the ranks; equal to an uninterrupted run up to the order of sums, but not bit-identical"
        )
    there = {**manifest.versions, **manifest.machine}
    here = {**versions_of_run(config), **machine_here(), **rounding_here()}
    not_recorded = {*rounding_here(), *config.family.simulators} - there.keys()  # by older checkpoints
    changed = [
        f"{name} {there.get(name)} -> {now}"
        for name, now in here.items()
        if there.get(name) != now and name not in not_recorded
    ]
    if changed:
        notes.append(f"not bit-identical to an uninterrupted run, because these changed: {', '.join(changed)}")
    for before, now, matters in (
        (saved.device, machine.device, "cuda" in (saved.device, machine.device)),
        (saved.precision, machine.precision, saved.precision != machine.precision),
        (saved.env_engine, machine.env_engine, saved.env_engine != machine.env_engine),
    ):
        if matters:
            notes.append(f"saved with {before}, resumes with {now}: not bit-identical to an uninterrupted run")
    return notes
