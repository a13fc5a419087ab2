"""The training loop: start reading here.

    collect -> learn -> evaluate -> count -> log -> save, until env_steps are reached or a signal asks to stop.

All ranks run this code in lockstep. Rank 0 also has trackers that write and a folder to save to.
"""

import time
from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from ppo.algorithm.rollout import Episode
from ppo.collectives import Collective, decided_by_root, of_all_ranks
from ppo.config import Config
from ppo.device import CPU, Placement
from ppo.envs import ArrayState
from ppo.evaluation import Evaluation
from ppo.outputs import checkpoint
from ppo.outputs.display import describe_return, print_line
from ppo.outputs.trackers import FinishedEpisode, Metrics, Trackers
from ppo.outputs.weights_and_biases import require_installed
from ppo.run import Run, merge, save
from ppo.run_trackers import make_trackers
from ppo.start import started
from ppo.supervision.replicas import compare_replicas
from ppo.supervision.signals import StopRequest
from ppo.supervision.stragglers import StragglerWatch, waiting_seconds
from ppo.supervision.watchdog import Watchdog

SAVE_FAILED = 1
_FINISHED = "{name} is finished: {done:,} of {wanted:,} steps; a larger --env_steps resumes from there"
_REACHED = "{name} is finished: its return has reached --stop_at_return={goal:g} at {done:,} steps, {words}"


def train(
    config: Config,
    comm: Collective,
    stop: StopRequest,
    watchdog: Watchdog,
    cores: Sequence[int] | None = None,
    placement: Placement = CPU,
    notes: Sequence[str] = (),
    named: tuple[str, ...] | None = None,
) -> int:
    """Train until `env_steps` or `stop_at_return`, resuming the newest checkpoint of this name.

    Args:
        config: the settings.
        comm: the job.
        stop: the signals that ask to stop.
        watchdog: notified of every phase.
        cores: how many cores each rank has to itself; default: one each.
        placement: where this rank's network acts and learns.
        notes: messages for the log about the world and the settings.
        named: names of the run-identifying settings given on the command line.

    Returns:
        The exit code: 0 at the end, the signal's after an early stop, SAVE_FAILED without a last checkpoint.

    Raises:
        Refusal: on all ranks: the folders, the settings or the checkpoints do not allow it; nothing was written.
        Halt: on all ranks: training has failed.
    """
    if config.run.track == "wandb":
        decided_by_root(comm, require_installed)
    with started(config, comm, watchdog, cores or [1] * comm.size, placement, named) as start:
        run = start.run
        if is_finished(run):
            _tell_that_it_is_finished(run, start.notes)
            return 0

        def goes_on() -> bool:
            watchdog.enter("logging", run.progress.update)
            return stop.exit_code is None

        trackers = make_trackers(run, watchdog.hosts, goes_on)
        for line in (*start.about, *notes, *start.notes):
            trackers.say(line)
        loop = Loop(run, trackers, stop, watchdog)
        exit_code: int | None = None
        while exit_code is None and not is_finished(run):
            exit_code = loop.advance()
        loop.save()
        trackers.close()
        trackers.say(farewell(run, saved=loop.saved, stopped_early=exit_code is not None))
        return (exit_code or 0) if loop.saved else SAVE_FAILED


def is_finished(run: Run) -> bool:
    """Return whether a run has reached `env_steps`, or `stop_at_return` as the mean of its last 100 games."""
    progress, goal = run.progress, run.config.run.stop_at_return
    if progress.env_steps >= run.config.run.env_steps:
        return True
    mean = progress.counters().return_mean
    has_all = len(progress.recent_returns) == progress.recent_returns.maxlen
    return goal is not None and has_all and mean is not None and mean >= goal


class Loop:
    """A run with its trackers and its supervision."""

    def __init__(self, run: Run, trackers: Trackers, stop: StopRequest, watchdog: Watchdog) -> None:
        """Start where `run` stands; a new run is saved first, so that a full disk shows now and not an hour later."""
        self.run, self._trackers, self._stop, self._watchdog = run, trackers, stop, watchdog
        self._stragglers = StragglerWatch(watchdog.hosts)
        self._last_tried = -1
        self.saved = True
        """Whether the last save succeeded."""
        if run.progress.update:
            self._last_tried = run.progress.update  # this is the checkpoint that was resumed
        else:
            self.save()
        self._save_seconds = 0.0
        self._stopwatch = Stopwatch()

    def advance(self) -> int | None:
        """Collect a rollout, learn from it, evaluate when it is time, count, log, and save when it is time.

        Returns:
            An exit code if all ranks should exit, else None.
        """
        run, progress, config = self.run, self.run.progress, self.run.config
        steps_before = progress.env_steps
        self._watchdog.enter("collecting", progress.update + 1)
        rollout, episodes = run.collector.collect(progress.update)
        self._watchdog.enter("learning", progress.update + 1)
        if run.model.inputs.waits_for_first_rollout:
            learnt = run.learner.no_update()
        else:
            learnt = run.learner.update(
                rollout,
                update=progress.update,
                env_steps=steps_before,
                progress=steps_before / config.run.env_steps,
            )
        run.model.inputs.follow(rollout.observations, run.comm)
        evaluation, evaluation_seconds = self._evaluate()
        self._watchdog.enter("logging", progress.update + 1)
        games = merge(run.comm.gather(run.envs.take_games()))
        everyone = merge(of_all_ranks(run.comm, episodes))
        seconds, phases, exit_code = self._agree(evaluation_seconds)
        finished = self._count(seconds, everyone, games, evaluation)
        self._trackers.log(self._metrics(seconds, phases, learnt, evaluation), finished)
        if evaluation or progress.update % config.run.checkpoint_interval == 0:
            self.save()
        elif progress.update % config.supervision.replica_check_interval == 0:
            self._compare_replicas()
        return exit_code

    def save(self) -> None:
        """Compare the replicas and write a checkpoint, unless that was already tried at this update."""
        progress = self.run.progress
        if self._last_tried == progress.update:
            return
        self._watchdog.enter("saving", progress.update)
        started_at = time.perf_counter()
        self._compare_replicas()
        self._trackers.sync()  # so that after a power cut the logs hold all that the checkpoint counts
        with self._stop.saving():
            self.saved = save(self.run, self._trackers.say)
        self._last_tried = progress.update
        self._save_seconds = time.perf_counter() - started_at

    def _evaluate(self) -> tuple[Evaluation | None, float]:
        """Evaluate the policy after this update if that is due; return the result and the seconds it took."""
        run, update = self.run, self.run.progress.update + 1
        if run.evaluator is None or not run.evaluator.is_due(update):
            return None, 0.0

        def stops() -> bool:
            self._watchdog.enter("evaluating", update)
            return self._stop.exit_code is not None

        started_at = time.perf_counter()
        evaluation = run.evaluator.evaluate(stops)
        return evaluation, time.perf_counter() - started_at

    def _count(
        self,
        seconds: float,
        episodes: Sequence[Episode],
        games: Sequence[Sequence[ArrayState | None]],
        evaluation: Evaluation | None,
    ) -> list[FinishedEpisode]:
        """Advance the counters by one update and return the games that ended in it, numbered.

        Args:
            seconds: duration of the update.
            episodes: the games that ended in it on any rank.
            games: how to replay them, by environment; empty off rank 0.
            evaluation: the one at the end of the update, if any.
        """
        run, progress = self.run, self.run.progress
        steps_before = progress.env_steps
        progress.update += 1
        progress.env_steps += run.config.steps_per_update
        progress.seconds += seconds
        progress.evaluation_return = evaluation.return_mean if evaluation else None
        finished, states = [], [iter(own) for own in games]
        for episode in sorted(episodes, key=lambda e: (e.step, e.environment)):
            progress.episodes += 1
            progress.recent_returns.append(episode.episode_return)
            state = next(states[episode.environment], None) if states else None
            finished.append(_numbered(episode, steps_before, run, state))
        return finished

    def _metrics(
        self, seconds: float, phases: dict[str, float], learnt: Metrics, evaluation: Evaluation | None
    ) -> Metrics:
        """Return the log's row for this update."""
        progress = self.run.progress
        return {
            "update": progress.update,
            "env_steps": progress.env_steps,
            "time/seconds": round(progress.seconds, 3),
            "time/steps_per_second": round(self.run.config.steps_per_update / seconds, 2),
            **{f"time/{phase}": round(spent, 4) for phase, spent in phases.items()},
            "rollout/return_mean": progress.counters().return_mean,
            "rollout/episodes": progress.episodes,
            **{f"evaluation/{field.name}": getattr(evaluation, field.name, None) for field in fields(Evaluation)},
            **learnt,
        }

    def _compare_replicas(self) -> None:
        compare_replicas(self.run.replicated_tensors(), self.run.comm, self._watchdog.hosts)

    def _agree(self, evaluation_seconds: float) -> tuple[float, dict[str, float], int | None]:
        """Exchange clocks and stop requests in one all-reduce.

        Args:
            evaluation_seconds: duration of this update's evaluation.

        Returns:
            Mean wall seconds since the last call, mean seconds per phase (`wait` is a part of `communicate`), and the
            exit code requested on any rank, if any.
        """
        comm, codes = self.run.comm, self._stop.codes
        # A save counts towards the update that it delays: the next one.
        phases = {**self.run.collector.seconds, **self.run.learner.seconds}
        phases |= {"evaluation": evaluation_seconds, "save": self._save_seconds}
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


class Stopwatch:
    """Wall seconds between laps; saving and logging count towards the update they delay."""

    def __init__(self) -> None:
        """Start the first lap."""
        self._last = time.perf_counter()

    def lap(self) -> float:
        """End a lap, start the next and return the seconds of the one that ended."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last


def farewell(run: Run, *, saved: bool, stopped_early: bool) -> str:
    """Return the last line of a run."""
    steps, folder = run.progress.env_steps, run.config.checkpoint_folder
    if not saved:
        return f"ended at {steps:,} steps WITHOUT a last checkpoint; the same command resumes from the one before"
    end = "stopped; the same command resumes from here" if stopped_early else "done"
    saved_in = folder / checkpoint.folder_name(steps)
    return f"{end}: {run.config.model_name} at {steps:,} steps, saved in {saved_in}; return {_return_in_words(run)}"


def _tell_that_it_is_finished(run: Run, notes: Sequence[str]) -> None:
    if run.comm.rank == 0:
        run_settings, done = run.config.run, run.progress.env_steps
        facts = {"name": run.config.model_name, "done": done, "words": _return_in_words(run)}
        words = _FINISHED if done >= run_settings.env_steps else _REACHED
        finished = words.format(**facts, wanted=run_settings.env_steps, goal=run_settings.stop_at_return)
        for line in (*notes, finished):
            print_line(line)


def _return_in_words(run: Run) -> str:
    counters = run.progress.counters()
    return describe_return({"rollout/return_mean": counters.return_mean, "rollout/episodes": counters.episodes})


def _numbered(episode: Episode, steps_before: int, run: Run, state: ArrayState | None) -> FinishedEpisode:
    progress = run.progress
    return FinishedEpisode(
        episode=progress.episodes,
        update=progress.update,
        env_steps=steps_before + (episode.step + 1) * run.config.ppo.num_envs,
        environment=episode.environment,
        episode_return=episode.episode_return,
        episode_length=episode.episode_length,
        seconds=progress.seconds,
        state=state,
    )
