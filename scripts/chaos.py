"""Kill -9 a Pong run at random moments, restarting it each time, then compare it with one never killed.

Each start of the run ends with SIGKILL of a rank, of mpirun or of everything, at a random moment between the launch and
2.5 times the time to the first update, so also during start-up and resume. Every fourth kill waits from that moment
until a checkpoint is being written. In the end weights, optimiser state and logs must equal those of a run that was
never killed; otherwise the exit code is 1.
"""

import argparse
import collections
import contextlib
import csv
import hashlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from ppo.collectives.mpi import find_mpirun

FLAGS = [
    *("--env_name=PongNoFrameskip-v4", "--num_envs=4", "--rollout_steps=16", "--minibatch_size=32", "--num_epochs=2"),
    *("--sticky_actions=0.25", "--checkpoint_interval=1", "--device=cpu"),
]
NAME = "PongNoFrameskip-v4"
STEPS_PER_UPDATE = 64
LIFE_IN_STARTS = 2.5
MPIRUN = find_mpirun() or "mpirun"


def main() -> int:
    """Run the chaos, then the undisturbed run; print and write the result and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Further flags go to the program, for example --env_engine=processes.",
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="seed for the moments and targets of the kills")
    parser.add_argument("--output", type=Path, help="write the result to this JSON file")
    arguments, flags = parser.parse_known_args()
    command = [MPIRUN, "-np", str(arguments.ranks), sys.executable, "-m", "ppo", *FLAGS, *flags]
    targets = [*(f"rank {rank}" for rank in range(arguments.ranks)), "mpirun", "everything"]
    choose = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder) / "killed", Path(folder) / "whole"
        killed.mkdir()
        whole.mkdir()
        longest = LIFE_IN_STARTS * seconds_to_the_first_update(command, Path(folder) / "start")
        lives = [live(command, killed, choose, targets, number, longest) for number in range(arguments.kills)]
        steps = max(newest_steps(killed), 0) + 20 * STEPS_PER_UPDATE
        for run in (killed, whole):
            code = start(command, run, steps).wait()
            assert code == 0, f"the run in {run} ended with {code}:\n{(run / 'log').read_text()[-3000:]}"
        first, second = outcome(killed, steps), outcome(whole, steps)
    result = {
        "date": date.today().isoformat(),
        "command": shlex.join(["./scripts/chaos", *sys.argv[1:]]),
        "kills": dict(collections.Counter(target for target, _, _ in lives)),
        "kills while a checkpoint was being written": sum(saving for _, saving, _ in lives),
        "lives in which no update was finished": sum(updates == 0 for _, _, updates in lives),
        "updates": steps // STEPS_PER_UPDATE,
        "killed": first,
        "never killed": second,
        "equal": first == second,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0 if result["equal"] else 1


def live(
    command: Sequence[str], folder: Path, choose: random.Random, targets: Sequence[str], number: int, longest: float
) -> tuple[str, bool, int]:
    """Start the run and kill it; return the target, whether it was killed during a save, and the updates saved."""
    target, at_save, before = choose.choice(targets), number % 4 == 3, newest_steps(folder)
    moment = time.monotonic() + choose.uniform(0.0, longest)
    left_before = saving(folder)
    job = start(command, folder, 10**9)
    while time.monotonic() < moment or (at_save and time.monotonic() < moment + 60):
        assert job.poll() is None, f"the run ended by itself:\n{(folder / 'log').read_text()[-3000:]}"
        if at_save and time.monotonic() > moment and saving(folder) - left_before:
            break
        time.sleep(0.0005 if at_save else 0.01)
    in_save = bool(saving(folder) - left_before)
    target, pids = victims(job.pid, target)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    job.wait()
    updates = (newest_steps(folder) - before) // STEPS_PER_UPDATE
    print(f"kill {number + 1}: {target}{' in a save' if in_save else ''}, {updates} updates in this life", flush=True)
    return target, in_save, updates


def seconds_to_the_first_update(command: Sequence[str], folder: Path) -> float:
    """Return the seconds that a run of one update takes."""
    folder.mkdir()
    began = time.monotonic()
    job = start(command, folder, STEPS_PER_UPDATE)
    assert job.wait() == 0, (folder / "log").read_text()
    return time.monotonic() - began


def start(command: Sequence[str], folder: Path, steps: int) -> "subprocess.Popen[bytes]":
    """Start or resume the run; only its last step differs between commands."""
    with open(folder / "log", "ab") as log:
        whole = [*command, f"--env_steps={steps}"]
        return subprocess.Popen(whole, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def victims(mpirun: int, target: str) -> tuple[str, list[int]]:
    """Return what is killed, and its processes; mpirun instead of a rank that does not exist yet."""
    ranks = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == mpirun:
                variables = (path / "environ").read_bytes().split(b"\0")
                rank = next(v for v in variables if v.startswith(b"OMPI_COMM_WORLD_RANK=")).partition(b"=")[2]
                ranks[f"rank {int(rank)}"] = int(path.name)
    if target == "everything":
        return target, [mpirun, *ranks.values()]
    return (target, [ranks[target]]) if target in ranks else ("mpirun", [mpirun])


def saving(folder: Path) -> set[str]:
    """Return the temporary folders of checkpoints that are being written or were left by a killed writer."""
    return {path.name for path in (folder / "checkpoints" / NAME).glob(".step_*.*.tmp")}


def newest_steps(folder: Path) -> int:
    """Return the steps of the newest checkpoint, or 0."""
    steps = [int(p.name[5:]) for p in (folder / "checkpoints" / NAME).glob("step_*") if p.name[5:].isdecimal()]
    return max(steps, default=0)


def outcome(folder: Path, steps: int) -> dict[str, str]:
    """Return sha256 of the last checkpoint's tensors and of the logs without their times."""
    last = folder / "checkpoints" / NAME / f"step_{steps:012d}"
    files = ("model.safetensors", "training.safetensors")
    result = {name: hashlib.sha256((last / name).read_bytes()).hexdigest() for name in files}
    for log in ("progress.csv", "episodes.csv"):
        with open(folder / "runs" / NAME / log, newline="") as file:
            rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]
        result[f"{log} without times"] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return result


if __name__ == "__main__":
    sys.exit(main())
