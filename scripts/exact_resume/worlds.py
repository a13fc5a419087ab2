"""Compare runs that never stopped with runs that were stopped in the middle of episodes and resumed.

Every part of a run is a separate job, so only its folders carry over.
"""

import csv
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load_file

from ppo.collectives.mpi import find_mpirun
from ppo.families import family_of

# Ids, some with flags of their own.
WORLDS = (
    *("PongNoFrameskip-v4", "BreakoutNoFrameskip-v4", "QbertNoFrameskip-v4"),
    *("CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0", "ppo/ContinuousCartPole-v0", "ppo/ReachingDot-v0"),
    *("LunarLander-v3", "BipedalWalker-v3", "BipedalWalkerHardcore-v3"),
    *("CarRacing-v3", "CarRacing-v3 --preset=car-racing-discrete --noop_frames=5"),
    'CarRacing-v3 --env_kwargs={"domain_randomize":true} --picture=area --colour --grass_penalty=0.05',
    *("HalfCheetah-v5", "Ant-v5", "Humanoid-v5"),
    *("Taxi-v4", "Blackjack-v1", "minigrid:MiniGrid-DoorKey-5x5-v0"),
)
UPDATES, STOPS = 4, (1, 3)
"""The first stop follows the rollout that only initialises the moments of vector observations."""
NUM_ENVS, ROLLOUT_STEPS = 4, 32
FLAGS = (
    *(f"--num_envs={NUM_ENVS}", f"--rollout_steps={ROLLOUT_STEPS}", "--minibatch_size=64", "--num_epochs=2"),
    # A linear schedule would depend on --env_steps, which is how runs are stopped here.
    *("--learning_rate_schedule=constant", "--device=cpu", "--checkpoint_interval=1000"),
    # All running statistics: each environment's running return, and the moments of returns and observations.
    *("--reward_normalization", "--value_normalization", "--pixel_normalization", "--observation_normalization"),
)
EXACT, NONE_RESTARTED = "exact", "no episode restarted"
MPIRUN = find_mpirun() or "mpirun"
_LOGS = ("progress.csv", "episodes.csv")


@dataclass(frozen=True)
class Row:
    """The result for the runs in a world."""

    world: str
    family: str
    within_episodes: int
    """Environments in the middle of an episode when the one-rank run was stopped, summed over all stops."""
    longest_episode: int
    """The largest number of steps since the start of an episode."""
    lean: str
    processes: str
    fewer_ranks: str
    """Result when saved by two ranks and resumed by one."""
    more_ranks: str
    """Result when resumed by three."""

    @property
    def is_exact(self) -> bool:
        """Whether everything was exact."""
        return self.lean == self.processes == EXACT and self.fewer_ranks == self.more_ranks == NONE_RESTARTED


class RunFailed(RuntimeError):
    """A job failed."""


def check(worlds: Sequence[str]) -> list[Row]:
    """Check the worlds one after the other, printing a line each."""
    rows: list[Row] = []
    for world in worlds:
        with tempfile.TemporaryDirectory(prefix="exact-resume-") as folder:
            rows.append(row := check_world(world, Path(folder)))
        findings = f"{row.lean}; processes: {row.processes}; 2 ranks, then 1: {row.fewer_ranks}, 3: {row.more_ranks}"
        print(f"{len(rows)}/{len(worlds)} {world}: {findings}", flush=True)
    return rows


def check_world(world: str, folder: Path) -> Row:
    """Stop runs in a world, resume them and compare them with those that were never stopped."""
    lean, steps_in = stopped_and_never_stopped(world, folder / "lean", "--env_engine=lean")
    processes, _ = stopped_and_never_stopped(world, folder / "processes", "--env_engine=processes")
    fewer, more = continued_by(world, folder / "ranks", (1, 3))
    return Row(
        world=world,
        family=family_of(world.split()[0]).name,
        within_episodes=sum(steps > 0 for steps in steps_in),
        longest_episode=max(steps_in, default=0),
        lean=lean,
        processes=processes,
        fewer_ranks=fewer,
        more_ranks=more,
    )


def stopped_and_never_stopped(world: str, folder: Path, *flags: str) -> tuple[str, list[int]]:
    """Compare a run that is stopped with one that is not.

    Returns:
        exact, or what differs; and how many steps each environment was into its episode at each stop.
    """
    whole, stopped = folder / "whole", folder / "stopped"
    steps_in: list[int] = []
    try:
        train(world, whole, UPDATES, *flags)
        for updates in STOPS:
            train(world, stopped, updates, *flags)
            steps_in += steps_into_episodes(stopped)
        train(world, stopped, UPDATES, *flags)
    except RunFailed as error:
        return str(error), steps_in
    differing = differences(whole, stopped)
    return f"differs: {', '.join(differing[:3])}" if differing else EXACT, steps_in


def continued_by(world: str, folder: Path, numbers: Sequence[int]) -> list[str]:
    """Resume a run of two ranks with other numbers of ranks; return for each whether it resumed where it stopped."""
    found = []
    try:
        train(world, folder / "saved", 2, "--env_engine=lean", ranks=2)
        for ranks in numbers:
            shutil.copytree(folder / "saved", folder / str(ranks))
            log = train(world, folder / str(ranks), 3, "--env_engine=lean", ranks=ranks)
            assert "saved by 2 ranks" in log
            warnings = [line for line in log.splitlines() if "WARNING" in line]
            found.append(warnings[0] if warnings else NONE_RESTARTED)
    except RunFailed as error:
        return [str(error)] * len(numbers)
    return found


def train(world: str, folder: Path, updates: int, *flags: str, ranks: int = 1) -> str:
    """Train or resume in a folder up to a number of updates; return the output.

    Raises:
        RunFailed: the job failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    launcher = [MPIRUN, "-np", str(ranks)] if ranks > 1 else []
    steps = updates * NUM_ENVS * ROLLOUT_STEPS
    name, *own = world.split()
    own += [*FLAGS, f"--env_steps={steps}"]
    command = [*launcher, sys.executable, "-m", "ppo", f"--env_name={name}", *own, *flags]
    job = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if job.returncode:
        last = (job.stderr.strip() or job.stdout.strip()).splitlines()[-1:]
        raise RunFailed(f"ended with {job.returncode}: {' '.join(last)}")
    return job.stdout + job.stderr


def last_checkpoint(folder: Path) -> Path:
    """Return the newest checkpoint of the only run in a folder."""
    return max(folder.glob("checkpoints/*/step_*"))


def steps_into_episodes(folder: Path) -> list[int]:
    """Return how many actions each environment's episode had when the run was saved."""
    state = load_file(last_checkpoint(folder) / "training.safetensors")
    return [len(state[f"environment/{index}/actions"]) for index in range(NUM_ENVS)]


def differences(first: Path, second: Path) -> list[str]:
    """Name the differences between the last checkpoints and the logs of two runs, except times."""
    found = []
    for name in ("model.safetensors", "training.safetensors"):
        files = [last_checkpoint(folder) / name for folder in (first, second)]
        if digest(files[0]) != digest(files[1]):
            old, new = (load_file(file) for file in files)
            found += [key for key in sorted(old.keys() | new.keys()) if not same(old.get(key), new.get(key))] or [name]
    return found + [name for name in _LOGS if rows_of(first, name) != rows_of(second, name)]


def digest(file: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def same(old: NDArray[Any] | None, new: NDArray[Any] | None) -> bool:
    """Return whether two arrays are bit-identical."""
    return old is not None and new is not None and old.tobytes() == new.tobytes()


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    """Return the rows of a log without times."""
    (log,) = folder.glob(f"runs/*/{name}")
    with open(log, newline="") as file:
        return [
            {column: cell for column, cell in row.items() if not column.startswith("time/")}
            for row in csv.DictReader(file)
        ]


def section(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the report."""
    inexact = [row.world for row in rows if not row.is_exact]
    lines = [
        f"**Runs in {len(rows) - len(inexact)} of {len(rows)} worlds resume bit for bit.** "
        f"Exceptions: {', '.join(inexact) or 'none'}.",
        "",
        f"A run of {UPDATES} updates of {NUM_ENVS} x {ROLLOUT_STEPS} steps is stopped after updates "
        f"{' and '.join(map(str, STOPS))}, each time continued by another process, and compared with one that was "
        "never stopped: sha256 of weights, optimiser, running statistics and states of environments, and both logs "
        "except times. All running statistics are on: of observations (the first rollout only initialises them and is "
        "followed by the first stop), of discounted returns and of values. When 2 ranks save and 1 or 3 resume, no "
        "environment may begin a new episode.",
        "",
        "Not every episode is longer than a rollout. The third column has the number of environments, of "
        f"{NUM_ENVS * len(STOPS)}, that were stopped within an episode, and the most steps since its start.",
        "",
        "| family | world | stopped within an episode, longest | lean engine | worker processes | 2 ranks, then 1 "
        "| 2 ranks, then 3 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        stopped = f"{row.within_episodes}, {row.longest_episode}"
        cells = (row.family, row.world, stopped, row.lean, row.processes, row.fewer_ranks, row.more_ranks)
        lines.append(f"| {' | '.join(cells)} |")
    return lines
