"""Checkpoints: folders that are whole or absent, readable without executing anything in them.

    <checkpoint_dir>/<model_name>/step_000012288/
        model.safetensors       policy weights and value normaliser: all that play and record need
        training.safetensors    optimiser and per-environment state: what an exact resume needs besides
        manifest.json           format, config, counters, versions, size and sha256 of each file

A folder is written under another name, flushed to disk and renamed; reading checks every size and hash first.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ppo.config import Config, Refusal

FORMAT = 1
KEPT_NEWEST = 5
MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.safetensors"
MANIFEST_FILE = "manifest.json"
_PREFIX = "step_"
_MAX_MANIFEST_BYTES = 1_000_000
_VERSIONED = ("ppo", "torch", "numpy", "gymnasium", "ale-py", "opencv-python-headless")

Tensors = dict[str, Tensor]


class DamagedCheckpointError(Exception):
    """A checkpoint folder does not hold what its manifest says, or no manifest at all."""


@dataclass(frozen=True)
class Counters:
    """Where the training stood when a checkpoint was written."""

    update: int
    env_steps: int
    seconds: float
    episodes: int
    """Games finished since the run's start."""
    recent_returns: tuple[float, ...]
    """Raw returns of the last games, at most 100, oldest first."""

    @property
    def return_mean(self) -> float | None:
        """Mean of the recent returns; None before the first game ends."""
        return sum(self.recent_returns) / len(self.recent_returns) if self.recent_returns else None


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    config: Config
    counters: Counters
    files: dict[str, dict[str, Any]]

    @property
    def merit(self) -> tuple[bool, float, int]:
        """Sort key of `best`: the mean return over a full window of games, a shorter window only for want of one."""
        mean = self.counters.return_mean
        full = len(self.counters.recent_returns) >= 100
        return full, float("-inf") if mean is None else mean, self.counters.env_steps


def folder_name(env_steps: int) -> str:
    """Return the name of the checkpoint at a number of steps; names sort by steps."""
    return f"{_PREFIX}{env_steps:012d}"


def steps_of(folder: Path) -> int:
    """Return the number of steps in a checkpoint folder's name."""
    return int(folder.name.removeprefix(_PREFIX))


def list_checkpoints(parent: Path) -> list[Path]:
    """Return the checkpoint folders in `parent`, oldest first; other entries are no checkpoints."""
    if not parent.is_dir():
        return []
    named = [p for p in parent.iterdir() if p.name.startswith(_PREFIX) and p.name.removeprefix(_PREFIX).isdecimal()]
    return sorted((p for p in named if p.is_dir()), key=steps_of)


def write_checkpoint(
    parent: Path, config: Config, counters: Counters, model: Tensors, training: Tensors | None
) -> Path:
    """Write a checkpoint whole or not at all and return its folder.

    A whole one of these steps stays as it is; a damaged one, which resuming passed over, is renamed to `*.damaged`.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    final = parent / folder_name(counters.env_steps)
    if final.exists() and _is_whole(final):
        return final
    parent.mkdir(parents=True, exist_ok=True)
    scratch = parent / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed; containers reuse process ids
    try:
        scratch.mkdir()
        _write(scratch / MODEL_FILE, safetensors.torch.save(_contiguous(model)))
        if training is not None:
            _write(scratch / TRAINING_FILE, safetensors.torch.save(_contiguous(training)))
        files = {
            path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(scratch.iterdir())
        }
        manifest = {
            "format": FORMAT,
            "env_name": config.run.env_name,
            "counters": {**vars(counters), "recent_returns": list(counters.recent_returns)},
            "return_mean": counters.return_mean,
            "config": config.to_dict(),
            "versions": {"python": platform.python_version(), **_versions()},
            "files": files,
        }
        _write(scratch / MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
        _sync_folder(scratch)
        if final.exists():
            damaged = parent / f"{final.name}.damaged"
            shutil.rmtree(damaged, ignore_errors=True)
            final.rename(damaged)
        scratch.rename(final)
        _sync_folder(parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        DamagedCheckpointError: it is missing, too large, not JSON or not a manifest of this format.
    """
    path = folder / MANIFEST_FILE
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise DamagedCheckpointError(f"{path} is larger than any manifest")
        data = json.loads(path.read_text())
        if data["format"] != FORMAT:
            raise DamagedCheckpointError(f"{path} has format {data['format']}, this version reads {FORMAT}")
        counters = data["counters"]
        return Manifest(
            config=Config.from_dict(data["config"]),
            counters=Counters(
                update=int(counters["update"]),
                env_steps=int(counters["env_steps"]),
                seconds=float(counters["seconds"]),
                episodes=int(counters["episodes"]),
                recent_returns=tuple(float(value) for value in counters["recent_returns"]),
            ),
            files={str(name): dict(entry) for name, entry in data["files"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error!r}") from error


def read_tensors(folder: Path, manifest: Manifest, file_name: str) -> Tensors:
    """Read one of a checkpoint's files after checking its size and hash.

    Raises:
        DamagedCheckpointError: the file is missing or is not the one that was written.
    """
    path = folder / file_name
    expected = manifest.files.get(file_name)
    if expected is None:
        raise DamagedCheckpointError(f"{folder} was saved without {file_name}")
    try:
        if path.stat().st_size != expected.get("size"):
            raise DamagedCheckpointError(
                f"{path} has {path.stat().st_size} bytes, its manifest says {expected.get('size')}"
            )
        if _sha256(path) != expected.get("sha256"):
            raise DamagedCheckpointError(f"{path} does not have the sha256 of its manifest")
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error


def newest_valid(parent: Path, warn: Any) -> tuple[Path, Manifest, Tensors, Tensors] | None:
    """Read the newest checkpoint that is whole, naming damaged ones through `warn(text)`.

    Returns:
        The folder, its manifest, model and training tensors; None where there is no checkpoint at all.

    Raises:
        Refusal: there are checkpoints but none is whole: starting again would hide the loss.
    """
    folders = list_checkpoints(parent)
    for folder in reversed(folders):
        try:
            manifest = read_manifest(folder)
            return (
                folder,
                manifest,
                read_tensors(folder, manifest, MODEL_FILE),
                read_tensors(folder, manifest, TRAINING_FILE),
            )
        except DamagedCheckpointError as error:
            warn(f"damaged checkpoint passed over: {error}")
    if folders:
        raise Refusal(f"none of the {len(folders)} checkpoints in {parent} is whole; --fresh moves them aside")
    return None


def choose(parent: Path, which: str) -> tuple[Path, Manifest]:
    """Return the checkpoint that `--checkpoint` names: best, latest or a number of steps.

    Raises:
        Refusal: there is none such; the message lists those there are.
    """
    readable = _readable(parent)
    if not readable:
        raise Refusal(f"there is no readable checkpoint in {parent}")
    if which == "latest":
        return readable[-1]
    if which == "best":
        return max(readable, key=lambda pair: pair[1].merit)
    for folder, manifest in readable:
        if steps_of(folder) == int(which):
            return folder, manifest
    there_are = ", ".join(str(steps_of(folder)) for folder, _ in readable)
    raise Refusal(f"checkpoint must be best, latest or one of the steps {there_are}, got {which}")


def prune(parent: Path) -> None:
    """Delete all but the newest checkpoints and the best one, and what killed writers left behind."""
    for scratch in parent.glob(f".{_PREFIX}*.tmp"):
        shutil.rmtree(scratch, ignore_errors=True)
    folders = list_checkpoints(parent)
    if len(folders) <= KEPT_NEWEST:
        return
    best = choose(parent, "best")[0]
    for folder in folders[:-KEPT_NEWEST]:
        if folder != best:
            # Renamed first: a checkpoint that is being deleted is no checkpoint any more.
            shutil.rmtree(folder.rename(parent / f".{folder.name}.tmp"))


def _readable(parent: Path) -> list[tuple[Path, Manifest]]:
    pairs = []
    for folder in list_checkpoints(parent):
        try:
            pairs.append((folder, read_manifest(folder)))
        except DamagedCheckpointError:
            continue
    return pairs


def _is_whole(folder: Path) -> bool:
    try:
        manifest = read_manifest(folder)
        for file_name in manifest.files:
            read_tensors(folder, manifest, file_name)
    except DamagedCheckpointError:
        return False
    return True


def _contiguous(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions() -> dict[str, str]:
    versions = {}
    for package in _VERSIONED:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return versions
