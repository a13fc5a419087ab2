"""`python -m ppo`: flags -> Config -> mode. A failure on one rank ends the whole job.

Exit codes: 0 done; 2 a setting was refused; 70 training failed in a way that a restart would not fix;
75 saved and exited on SIGUSR1, SIGTERM or SIGHUP; 130 on Ctrl-C; 1 anything else.
"""

import contextlib
import gc
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

# One thread per rank, because the ranks divide the cores. The libraries read these variables on import.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
# If a rank does use several threads, idle ones yield the cores to the emulators instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ppo.collectives import WENT_WRONG, Collective, Halt, decided_by_root, of_all_ranks
from ppo.collectives.abort_guard import AbortGuard
from ppo.collectives.mpi import connect, launched_rank, was_launched
from ppo.command_line import explicit_settings, parse_command_line
from ppo.config import Config
from ppo.settings import REFUSED, Refusal, printable
from ppo.standard_streams import prepare_standard_streams

if TYPE_CHECKING:
    from ppo.envs import Spaces
    from ppo.supervision.signals import StopRequest

# If another rank exited first, the launcher would stop rank 0 before it has printed the reason.
_SECONDS_FOR_ROOT_TO_SPEAK = 5.0


def main(arguments: Sequence[str]) -> int:
    """Run one invocation and return its exit code."""
    prepare_standard_streams()
    launcher = os.getppid()
    speaks = launched_rank() == 0
    explicit = explicit_settings(arguments)
    config: Config | None = None
    refusal: str | None = None
    spaces: Spaces | None = None
    try:
        config = parse_command_line(arguments, speak=speaks)
        if config.run.mode == "doctor":
            from ppo.doctor import examine

            code = examine(config) if speaks else 0
            _end_output()
            return code
        from ppo.outputs.window import keep_drawing_quiet

        keep_drawing_quiet()
        if config.run.mode == "train" or "env_name" in explicit:
            from ppo.envs import check_environment

            spaces = check_environment(config, explicit)
    except Refusal as error:
        refusal = str(error)
    except (SystemExit, BrokenPipeError):  # --help was printed, or its reader (such as `head`) closed the pipe
        _end_output()
        return 0
    try:
        collective = connect()
    except Refusal as error:
        if speaks:
            _say(str(error) if refusal is None else refusal)
        else:
            time.sleep(_SECONDS_FOR_ROOT_TO_SPEAK)
        return REFUSED
    with AbortGuard(collective) as guard:
        try:
            if was_launched():
                from ppo.supervision.watchdog import leave_with

                leave_with(launcher)
            from ppo.supervision.handshake import shake_hands

            hosts = shake_hands(collective, config, refusal)
            assert config is not None
            guard.where = lambda: f"in --mode={config.run.mode}"
            if config.run.mode == "train":
                assert spaces is not None
                return run_training(config, collective, guard, hosts, spaces, explicit)
            if config.run.mode == "compare":
                from ppo.comparison.compare import compare

                runs = (config.playback.runs or "").split(",")
                return decided_by_root(collective, lambda: compare(config, runs))
            return run_playback(config, collective, explicit)
        except (Refusal, Halt) as error:
            if collective.rank == 0:
                _say(str(error))
            collective.barrier()
            return REFUSED if isinstance(error, Refusal) else WENT_WRONG


def _end_output() -> None:
    """Flush standard output, or discard what is left if its reader is gone."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_training(
    config: Config, collective: Collective, guard: AbortGuard, hosts: list[str], spaces: "Spaces", explicit: set[str]
) -> int:
    """Train one run, or with `--seeds` one run per seed in turn and then compare them.

    Returns:
        The exit code of the first run that did not finish, or 0.

    Raises:
        Refusal: on all ranks, before that run has created anything.
        Halt: on all ranks.
    """
    config.require_ranks(collective.size)
    from ppo.supervision.signals import StopRequest

    stop = StopRequest()
    stop.listen()  # before the imports, which take a second
    with _no_garbage_collection():
        import ppo.loop  # noqa: F401
    job = Job(collective, guard, hosts, spaces, explicit, stop)
    runs, names = config.of_each_seed(), []
    for number, run in enumerate(runs, start=1):
        place = [f"run {number} of {len(runs)}: rng_seed {run.run.rng_seed}"] if config.run.seeds else []
        name, code = _train_one(run, job, place)
        names.append(name)
        if not config.run.seeds:
            return code
        # A signal that came too late for the run that just ended must still stop the next one.
        leave = _asked_to_leave(collective, stop)
        if code or leave is not None:
            return code or leave or 0
    decided_by_root(collective, lambda: _compare_seeds(config, names))
    return 0


@dataclass(frozen=True)
class Job:
    """What all runs of a job share."""

    collective: Collective
    guard: AbortGuard
    hosts: list[str]
    spaces: "Spaces"
    explicit: set[str]
    """Names of the settings given on the command line."""
    stop: "StopRequest"


def _train_one(config: Config, job: Job, place: Sequence[str]) -> tuple[str, int]:
    """Train one run under the watchdog; return its name and exit code.

    Args:
        config: the run's settings.
        job: the job that the run belongs to.
        place: log lines that say which run of the job this is.
    """
    from ppo.agents import choose_rule
    from ppo.device import choose_placement
    from ppo.identity import named_settings, settle
    from ppo.loop import train
    from ppo.machine import cores_per_rank
    from ppo.models.actor_critic import build_distribution, check_model
    from ppo.supervision.watchdog import Watchdog

    given, collective, spaces = config, job.collective, job.spaces
    config, kept = decided_by_root(collective, lambda: settle(given, job.explicit))
    if config.world != given.world:
        from ppo.envs import check_environment

        spaces = check_environment(config, job.explicit)
    check_model(spaces.observation_space, spaces.action_space, config.model)
    choose_rule(config.playback.act, "saved", build_distribution(spaces.action_space, config.model))
    cores = cores_per_rank(collective, job.hosts)
    world = f"{config.run.env_name}, rng_seed {config.run.rng_seed}"
    seconds = config.supervision.watchdog_seconds
    with Watchdog(collective, seconds=seconds, hosts=job.hosts) as watchdog:
        job.guard.where = lambda: f"in {watchdog.describe()}, {world}"
        placement = choose_placement(config.machine, collective, job.hosts)
        notes, named = [*place, *spaces.notes, *kept], named_settings(config, job.explicit)
        exit_code = train(config, collective, job.stop, watchdog, cores, placement, notes, named)
    # A run that the launcher stopped on Ctrl-C also exits with 0, like one that finished.
    if exit_code == 0 and config.run.report and _asked_to_leave(collective, job.stop) is None:
        if collective.rank == 0:
            from ppo.report.run_report import report_at_end

            report_at_end(config, goes_on=lambda: job.stop.exit_code is None)
        collective.barrier()  # before the next run's watchdog starts counting
    return config.model_name, exit_code


def _asked_to_leave(collective: Collective, stop: "StopRequest") -> int | None:
    """Return the exit code for a signal received by any rank, equal on all ranks; None without a signal."""
    asked = [asked for asked in of_all_ranks(collective, stop.exit_code) if asked is not None]
    return max(asked, default=None)


def _compare_seeds(config: Config, names: Sequence[str]) -> None:
    """Compare the finished runs of several seeds; an error here does not make the job fail."""
    from ppo.comparison.compare import compare

    try:
        compare(config, [f"{config.run.run_dir}/{name}" for name in names])
    except Exception as error:
        _say(f"no comparison was made: {error if isinstance(error, Refusal) else repr(error)}")


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Skip garbage collection during imports, which saves a tenth of their time, and exempt modules from it later."""
    collects, is_first = gc.isenabled(), "ppo.loop" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if is_first:
            gc.freeze()
        if collects:
            gc.enable()


def run_playback(config: Config, collective: Collective, explicit: set[str]) -> int:
    """Import and run play, watch, record, replay, evaluate or report.

    Raises:
        Refusal: on all ranks.
    """
    import torch

    torch.set_num_threads(1)
    if config.run.mode == "report":
        from ppo.report.run_report import report

        return report(config, collective, explicit)
    if config.run.mode == "watch":
        from ppo.viewer.watch import watch

        return watch(config, collective, explicit)
    if config.playback.checkpoint == "all":
        from ppo.film import record_all

        return record_all(config, collective, explicit)
    from ppo import playback

    modes = {
        "play": playback.play,
        "record": playback.record,
        "replay": playback.replay,
        "evaluate": playback.evaluate,
    }
    return modes[config.run.mode](config, collective, explicit)


def _say(text: str) -> None:
    print(f"ppo: {printable(text)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
