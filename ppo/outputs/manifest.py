"""The manifest that describes a checkpoint, as JSON with a sha256 of itself.

The hash detects corruption by disks, copies and editors. It is not a signature, since a forger can make it match, so
every member is also checked against what this program writes.
"""

import dataclasses
import hashlib
import json
import math
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from ppo.algorithm import pixels
from ppo.config import Config, section_types
from ppo.families import Family, family_named
from ppo.outputs.tensor_file import MAX_FILE_BYTES
from ppo.outputs.untrusted import DamagedCheckpointError, brief, only_damage, parse_json
from ppo.settings import MOST_STEPS, Bound, Refusal, check_bounds, require, setting

FORMAT = 3
MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.safetensors"
LOGS = ("progress.csv", "episodes.csv")
"""Names of the logs that grow with a run and resume with it."""
LARGEST_RETURN = 1e100
"""Bound on returns: far above those of any environment, yet their mean and deviation are finite."""
_MAX_RETURNS = 100
_RETURNS = Bound(at_least=-LARGEST_RETURN, at_most=LARGEST_RETURN)
_SEAL = "manifest_sha256"
_KEYS = {
    *("format", "env_name", "family", "counters", "return_mean", "config", "ranks", "versions", "machine", "files"),
    *("logs", _SEAL),
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9_]{1,64}")

Merit = tuple[bool, bool, float, int]


class OtherFormatError(Refusal):
    """Another version of this program wrote a checkpoint, in a format that this one does not read."""


@dataclass(frozen=True)
class Counters:
    """Progress of the training run when a checkpoint was written."""

    update: int = setting(at_least=0)
    # The last update may exceed the setting env_steps by a rollout.
    env_steps: int = setting(at_least=0, at_most=2 * MOST_STEPS)
    seconds: float = setting(at_least=0.0)
    episodes: int = setting(at_least=0)
    """Games finished since the run's start."""
    recent_returns: tuple[float, ...] = setting()
    """Raw returns of the last games, at most 100, oldest first."""
    evaluation_return: float | None = setting(None, at_least=-LARGEST_RETURN, at_most=LARGEST_RETURN)
    """Mean raw return of the evaluation at this update; None if there was none."""

    def check(self) -> None:
        """Refuse numbers that no training run reaches, and those from which it could not continue.

        Raises:
            Refusal: a number is out of bounds; names it.
        """
        check_bounds(self)
        for value in self.recent_returns:
            require(_RETURNS.holds(value), "recent_returns", str(_RETURNS), value)
        require(len(self.recent_returns) <= _MAX_RETURNS, "recent_returns", f"at most {_MAX_RETURNS}", "more")
        # Every update and every game takes at least one step, so these counts stay within bounds if the steps do.
        for name in ("update", "episodes"):
            require(
                getattr(self, name) <= self.env_steps, name, f"at most env_steps = {self.env_steps}", vars(self)[name]
            )

    @property
    def return_mean(self) -> float | None:
        """Mean of the recent returns; None before the first game ends."""
        return sum(self.recent_returns) / len(self.recent_returns) if self.recent_returns else None


@dataclass(frozen=True)
class FileEntry:
    """Size and hash of a checkpoint's file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The description of a checkpoint."""

    config: Config
    counters: Counters
    files: dict[str, FileEntry]
    ranks: int
    """Number of ranks of the job that wrote the checkpoint."""
    versions: dict[str, str]
    """Version of each library used."""
    machine: dict[str, str]
    """What `machine_here` and `rounding_here` returned when the checkpoint was written."""
    logs: dict[str, int]
    """Length in bytes of each log when the checkpoint was written."""
    named: tuple[str, ...] | None = None
    """Names of the run-distinguishing settings that were given on the command line; None if unknown."""

    @property
    def merit(self) -> Merit:
        """Sort key of `best`: the mean return of the evaluation, or of the recent games if there was none.

        A mean over a full window of recent games ranks above any over a shorter one.
        """
        counters = self.counters
        if counters.evaluation_return is not None:
            return True, True, counters.evaluation_return, counters.env_steps
        full = len(counters.recent_returns) >= _MAX_RETURNS
        mean = -math.inf if counters.return_mean is None else counters.return_mean
        return False, full, mean, counters.env_steps


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest as the content of its file."""
    counters = manifest.counters
    data = {
        "format": FORMAT,
        "env_name": manifest.config.run.env_name,
        "family": manifest.config.family.name,
        "counters": {**vars(counters), "recent_returns": list(counters.recent_returns)},
        "return_mean": counters.return_mean,
        "config": manifest.config.to_dict(),
        "ranks": manifest.ranks,
        "versions": manifest.versions,
        "machine": manifest.machine,
        "files": {name: vars(entry) for name, entry in sorted(manifest.files.items())},
        "logs": manifest.logs,
    }
    if manifest.named is not None:
        data["named"] = list(manifest.named)
    return json.dumps({**data, _SEAL: seal(data)}, indent=1, allow_nan=False).encode()


def seal(data: dict[str, Any]) -> str:
    """Return the sha256 of everything in a manifest but the sha256 itself, independent of the JSON layout."""
    rest = {key: value for key, value in data.items() if key != _SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def decode_manifest(content: bytes, path: Path = Path("manifest.json")) -> Manifest:
    """Decode the content of a manifest's file.

    Args:
        content: the content.
        path: path of the file, for messages.

    Raises:
        DamagedCheckpointError: the content is not as this program writes it.
        OtherFormatError: another version of this program wrote it.
    """
    with only_damage(path):
        data = parse_json(content)
        _check_format(data)
        return _manifest_of(data)


def machine_here() -> dict[str, str]:
    """Return this machine's architecture, and the processor instruction set that torch uses."""
    return {"architecture": platform.machine(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}


def rounding_here() -> dict[str, str]:
    """Return what else affects rounding in this process: the number of torch threads, and whether code is compiled."""
    return {"threads": str(torch.get_num_threads()), "compiled": str(pixels.IS_COMPILED)}


def _check_format(data: Any) -> None:
    """Check a manifest against its own hash, unless its format may hash differently."""
    version = _member(data, "format", int)
    sealed = _member(data, _SEAL, str) if _SEAL in data else None
    # If only the format number was corrupted, that is damage, not another format.
    if version != FORMAT and sealed != seal({**data, "format": FORMAT}):
        age = "a newer" if version > FORMAT else "an older"
        raise OtherFormatError(
            f"was written by {age} version of ppo: it has format {version}, this version reads format {FORMAT}"
        )
    if sealed != seal(data):
        raise DamagedCheckpointError(f"does not match its {_SEAL}")


def _manifest_of(data: Any) -> Manifest:
    if data.keys() - {"named"} != _KEYS:  # the first manifests of this format lack "named"
        raise DamagedCheckpointError(f"has unknown or missing keys: {brief(sorted(data.keys() ^ _KEYS))}")
    family = family_named(_member(data, "family", str))
    if family is None:
        raise OtherFormatError(
            f"was written by another version of ppo: unknown environment family {brief(data['family'])}"
        )
    config = _config_of(_member(data, "config", dict), family)
    counters = _counters_of(_member(data, "counters", dict))
    if config.run.env_name != data["env_name"] or config.family != family:
        raise DamagedCheckpointError("names two environments")
    if _member(data, "ranks", int) < 1:
        raise DamagedCheckpointError("has no valid ranks")
    files = _member(data, "files", dict)
    if not {MODEL_FILE} <= files.keys() <= {MODEL_FILE, TRAINING_FILE}:
        raise DamagedCheckpointError(f"lists other files than a checkpoint has: {brief(sorted(files))}")
    return Manifest(
        config=config,
        counters=counters,
        files={name: _file_entry_of(name, files) for name in files},
        ranks=data["ranks"],
        versions=_texts(data, "versions"),
        machine=_texts(data, "machine"),
        logs=_lengths(data, "logs"),
        named=_names(data, "named") if "named" in data else None,
    )


def _config_of(data: dict[str, Any], family: Family) -> Config:
    known = section_types(family)
    for section in data:
        names = {field.name for field in dataclasses.fields(known[section])} if section in known else set()
        for name in _member(data, section, dict):
            if name not in names:
                raise OtherFormatError(
                    f"was written by another version of ppo: it has the setting {brief(f'{section}.{name}')}"
                )
    try:
        config = Config.from_dict(data, family)
    except (ValueError, TypeError) as error:
        raise DamagedCheckpointError(f"has no valid config: {brief(error)}") from error
    return config


def _counters_of(data: dict[str, Any]) -> Counters:
    if data.keys() != {field.name for field in dataclasses.fields(Counters)}:
        raise DamagedCheckpointError("has no valid counters")
    returns = _member(data, "recent_returns", list)
    if not all(type(value) in (int, float) for value in returns):
        raise DamagedCheckpointError("has no valid recent_returns")
    evaluated = _member(data, "evaluation_return", int, float, NoneType)
    counters = Counters(
        **{name: _member(data, name, int) for name in ("update", "env_steps", "episodes")},
        seconds=float(_member(data, "seconds", int, float)),
        recent_returns=tuple(map(float, returns)),
        evaluation_return=None if evaluated is None else float(evaluated),
    )
    try:
        counters.check()
    except Refusal as error:
        raise DamagedCheckpointError(f"has no valid counters: {brief(error)}") from error
    return counters


def _file_entry_of(name: str, files: dict[str, Any]) -> FileEntry:
    data = _member(files, name, dict)
    entry = FileEntry(_member(data, "size", int), _member(data, "sha256", str))
    if not 0 < entry.size <= MAX_FILE_BYTES or not _SHA256.fullmatch(entry.sha256) or len(data) != 2:
        raise DamagedCheckpointError(f"has no valid size or sha256 of {name}")
    return entry


def _texts(data: dict[str, Any], key: str) -> dict[str, str]:
    texts = _member(data, key, dict)
    if not all(isinstance(text, str) and brief(f"{name}{text}") == f"{name}{text}" for name, text in texts.items()):
        raise DamagedCheckpointError(f"has no valid {key}")
    return dict(texts)


def _names(data: dict[str, Any], key: str) -> tuple[str, ...]:
    names = _member(data, key, list)
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise DamagedCheckpointError(f"has no valid {key}")
    return tuple(names)


def _lengths(data: dict[str, Any], key: str) -> dict[str, int]:
    lengths = _member(data, key, dict)
    if not lengths.keys() <= set(LOGS) or not all(type(n) is int and n >= 0 for n in lengths.values()):
        raise DamagedCheckpointError(f"has no valid {key}")
    return dict(lengths)


def _member(data: Any, key: str, *types: type) -> Any:
    """Return a member of a JSON object, whose type must be exactly one of these: true is not an int."""
    if not isinstance(data, dict) or type(data.get(key)) not in types:
        raise DamagedCheckpointError(f"has no valid {brief(key)}")
    return data[key]
