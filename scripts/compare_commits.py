"""Train five updates with two commits on this machine and compare everything they save, bit for bit.

    python scripts/compare_commits.py [OLD] [NEW]        default: HEAD~1 and the working tree

Compared by sha256: weights, optimiser state and input statistics of the last checkpoint, and the columns of
progress.csv except times. The same name with different content is a difference; the same content under a new name is a
rename and counts as equal. Exit code 1 if a case differs. Hashes are never stored, since processors round differently.
Needs the environment of scripts/environment.sh, whose variables mpirun reads.
"""

import argparse
import csv
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ppo.collectives.mpi import find_mpirun

ROOT = Path(__file__).resolve().parent.parent
MPIRUN = find_mpirun() or "mpirun"

# Both commits must accept these flags. Five updates of 8 * 16 steps, four gradient steps an epoch.
COMMON = (
    *("--device=cpu", "--rng_seed=1", "--env_steps=640"),
    *("--num_envs=8", "--rollout_steps=16", "--minibatch_size=32"),
)
PONG = ("--env_name=PongNoFrameskip-v4", "--env_engine=lean")
PRESETS = {
    "atari": (*PONG, "--preset=atari"),
    "paper": (*PONG, "--preset=paper"),
    "cleanrl": (*PONG, "--preset=cleanrl"),
    "classic": ("--env_name=CartPole-v1", "--preset=classic"),
}
CASES = {f"{preset}-{ranks}": (ranks, (*flags, *COMMON)) for preset, flags in PRESETS.items() for ranks in (1, 2)}
"""Number of ranks and flags by name."""
ENVIRONMENTS = "environment/"
"""Prefix of the environments' states in a checkpoint."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass
class Comparison:
    """How the arrays of one commit correspond to those of another."""

    num_equal: int = 0
    """Equal arrays, renamed ones included."""
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Renames, and names that only the new commit has."""


def compare(old: Arrays, new: Arrays) -> Comparison:
    """Compare arrays by name, or by content where only one side has the name."""
    result = Comparison()
    unmatched = {name: digest(new[name]) for name in new if name not in old}
    for name, array in old.items():
        if name in new:
            if digest(array) == digest(new[name]):
                result.num_equal += 1
            else:
                result.differences.append(f"{name} {difference(array, new[name])}")
            continue
        content = digest(array)
        other = next((candidate for candidate in unmatched if unmatched[candidate] == content), None)
        if other is None:
            result.differences.append(f"{name} is only in the old commit")
        else:
            result.num_equal += 1
            result.notes.append(f"{name} is now {other}")
            del unmatched[other]
    result.notes += [f"{name} is only in the new commit" for name in unmatched]
    return result


def digest(array: NDArray[Any]) -> str:
    """Return the sha256 of an array's type, shape and bytes."""
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()


def difference(old: NDArray[Any], new: NDArray[Any]) -> str:
    """Describe how two arrays differ."""
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return f"was {old.dtype} {list(old.shape)} and is {new.dtype} {list(new.shape)}"
    # NaN equals NaN here.
    gap = np.where(np.isnan(old) & np.isnan(new), 0.0, np.abs(new.astype(np.float64) - old.astype(np.float64)))
    return f"by up to {gap.max():.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train every case with both commits and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", nargs="?", default="HEAD~1")
    parser.add_argument("new", nargs="?", help="default: the working tree, uncommitted changes included")
    parser.add_argument("--cases", type=lambda text: text.split(","), default=list(CASES), help=",".join(CASES))
    options = parser.parse_args(arguments)
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"cases must be of {', '.join(CASES)}, got {', '.join(sorted(unknown))}")
    all_equal = True
    notes: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="compare-") as folder:
        trees = [Path(folder) / "old", Path(folder) / "new"]
        for tree, commit in zip(trees, (options.old, options.new), strict=True):
            copy_tree(tree, commit)
            build(tree)
        for case in options.cases:
            result = compare(*train(case, trees))
            found = f"equal ({result.num_equal} arrays)"
            if result.differences:
                found = f"DIFFERENT: {result.differences[0]}"
                others = len(result.differences) - 1
                found += f" ({others} more differ, {result.num_equal} are equal)"
            print(f"{case}: {found}", flush=True)
            all_equal &= not result.differences
            for note in result.notes:
                notes.setdefault(note, []).append(case)
    for note, cases in notes.items():
        print(f"{note} ({', '.join(cases)})")
    return 0 if all_equal else 1


def copy_tree(tree: Path, commit: str | None) -> None:
    """Copy a commit to a new folder; None means the working tree with uncommitted and untracked files."""
    tree.mkdir()
    if commit is not None:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "--extract"], cwd=tree, input=archive, check=True)
        return
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    for name in names.split("\0"):
        if (ROOT / name).is_file():  # deleted files are listed too
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def build(tree: Path) -> None:
    """Compile the extensions in place."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=tree, stdout=subprocess.DEVNULL, check=True)
    # Missing extensions would be taken from an editable installation of another tree.
    sources, built = (len(list((tree / "ppo").rglob(pattern))) for pattern in ("_*.c", "_*.so"))
    if built < sources:
        raise SystemExit(f"only {built} of {sources} extensions could be compiled; is there a C compiler?")


def train(case: str, trees: Iterable[Path]) -> list[Arrays]:
    """Train a case with both trees at the same time, and return what each saved."""
    ranks, flags = CASES[case]
    command = [MPIRUN, "-np", str(ranks), sys.executable, "-m", "ppo", *flags]
    jobs = []
    for tree in trees:
        folder = tree.parent / f"{case}-{tree.name}"
        folder.mkdir()
        variables = {**os.environ, "PYTHONPATH": str(tree)}
        with open(folder / "log", "wb") as log:
            jobs.append((folder, subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)))
    for folder, code in [(folder, job.wait()) for folder, job in jobs]:
        if code:
            raise SystemExit(f"{folder.name} ended with {code}:\n{(folder / 'log').read_text()[-3000:]}")
    return [read(folder) for folder, _ in jobs]


def read(folder: Path) -> Arrays:
    """Return what a run saved: tensors except those of environments, and columns of progress.csv except times."""
    last = max(folder.glob("checkpoints/*/step_*"))
    tensors = {**load_file(last / "model.safetensors"), **load_file(last / "training.safetensors")}
    arrays = {name: tensors[name] for name in sorted(tensors) if not name.startswith(ENVIRONMENTS)}
    (log,) = folder.glob("runs/*/progress.csv")
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    for column in rows[0]:
        if not column.startswith("time/"):
            arrays[f"column {column}"] = np.array([float(row[column] or "nan") for row in rows])
    return arrays


if __name__ == "__main__":
    sys.exit(main())
