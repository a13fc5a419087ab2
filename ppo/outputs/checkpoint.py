"""Checkpoints: folders that are whole or absent, readable without executing anything in them.

    <checkpoint_dir>/<model_name>/step_000012288/
        model.safetensors       policy weights and value normaliser: all that play and record need
        training.safetensors    optimiser and per-environment state: what an exact resume also needs
        manifest.json           format, config, counters, versions, size and sha256 of each file, sha256 of itself

Nothing in a checkpoint is trusted before it has been checked against what this program writes: hashes detect corruption
by disks and copies, but a forger can make them match.
"""

import contextlib
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from ppo.config import Config
from ppo.outputs.manifest import (
    MODEL_FILE,
    TRAINING_FILE,
    Counters,
    FileEntry,
    Manifest,
    Merit,
    OtherFormatError,
    decode_manifest,
    encode_manifest,
    machine_here,
    rounding_here,
)
from ppo.outputs.tensor_file import (
    Specification,
    Tensors,
    byte_size,
    declared_in,
    encode_tensors,
    misfit,
    read_tensor_file,
    verify_file,
)
from ppo.outputs.untrusted import DamagedCheckpointError, brief, open_regular
from ppo.outputs.whole_folder import PREFIX, remove_folder, remove_scratch, set_aside, write_folder
from ppo.settings import Refusal
from ppo.versions import versions_of_run

KEPT_NEWEST = 5
MANIFEST_FILE = "manifest.json"
_PARTS = {MODEL_FILE: ("model/", "value_normalizer/"), TRAINING_FILE: ("learner/", "environment/")}
_MAX_MANIFEST_BYTES = 1_000_000
# Eight million steps of a replayed episode; the largest tensor of an Atari game has 28 kB.
_MAX_ENVIRONMENT_TENSOR_BYTES = 64 << 20
_ENVIRONMENT = re.compile(r"environment/(0|[1-9][0-9]{0,8})/([a-z0-9_]{1,32})")

T = TypeVar("T")


def folder_name(env_steps: int) -> str:
    """Return the name of the checkpoint folder for a number of steps; names sort by steps."""
    return f"{PREFIX}{env_steps:012d}"


def steps_of(folder: Path) -> int:
    """Return the number of steps in a checkpoint folder's name."""
    return int(folder.name.removeprefix(PREFIX))


@contextlib.contextmanager
def listing(folder: Path) -> Iterator[None]:
    """Guard the listing of a folder, which need not exist.

    Raises:
        Refusal: the folder cannot be read.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise Refusal(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error


def list_checkpoints(parent: Path) -> list[Path]:
    """Return the checkpoint folders in `parent`, oldest first; other entries are ignored.

    Raises:
        Refusal: the folder cannot be read.
    """
    with listing(parent):
        return sorted((p for p in parent.iterdir() if _is_step_name(p.name) and p.is_dir()), key=steps_of)
    return []


def list_models(parent: Path) -> list[Path]:
    """Return the folders in `parent` that have checkpoints, sorted by name; unreadable ones are left out.

    Raises:
        Refusal: `parent` cannot be read.
    """
    models = []
    with listing(parent):
        for folder in sorted(parent.iterdir()):
            with contextlib.suppress(Refusal):
                models += [folder] if list_checkpoints(folder) else []
    return models


def write_checkpoint(
    parent: Path,
    config: Config,
    counters: Counters,
    model: Tensors,
    training: Tensors | None,
    ranks: int = 1,
    logs: Mapping[str, int] | None = None,
    named: tuple[str, ...] | None = None,
) -> Path:
    """Write a checkpoint, whole or not at all, read it back and return its folder.

    A whole checkpoint at these steps with the same tensors is kept. Any other one at these steps, which the resume
    skipped because it was damaged or unreadable at the time, is renamed to `*.damaged`.

    Raises:
        FloatingPointError: a number is non-finite, negative where it cannot be, or out of the bounds checked on
            reading; names the number, and nothing is written.
        OSError: the checkpoint could not be written and nothing is left behind, or it does not read back as written
            and is renamed to `*.damaged`.
    """
    final = parent / folder_name(counters.env_steps)
    contents = {MODEL_FILE: encode_tensors(model)}
    if training is not None:
        contents[TRAINING_FILE] = encode_tensors(training)
    manifest = Manifest(
        config=config,
        counters=counters,
        files={name: FileEntry(len(c), hashlib.sha256(c).hexdigest()) for name, c in contents.items()},
        ranks=ranks,
        versions=versions_of_run(config),
        machine=machine_here() | rounding_here(),
        logs=dict(logs or {}),
        named=named,
    )
    try:
        counters.check()
        encoded = encode_manifest(manifest)
        decode_manifest(encoded)
        for name, content in contents.items():
            _require_own(final / name, name, declared_in(content, final / name), config.ppo.num_envs)
    except (DamagedCheckpointError, Refusal) as error:
        raise FloatingPointError(
            f"a checkpoint at {counters.env_steps} steps would not be readable: {error}"
        ) from error
    if _is_of(final, manifest.files):
        return final
    write_folder(final, {**contents, MANIFEST_FILE: encoded})
    try:
        verify(final)
    except (DamagedCheckpointError, Refusal) as error:
        raise OSError(f"{set_aside(final)} does not read back as it was written: {error}") from error
    return final


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        DamagedCheckpointError: it is missing or is not as this program writes it.
        OtherFormatError: another version of this program wrote it.
    """
    path = folder / MANIFEST_FILE
    with open_regular(path, _MAX_MANIFEST_BYTES) as (file, size):
        content = file.read(size)
    try:
        manifest = decode_manifest(content, path)
    except OtherFormatError as error:
        raise OtherFormatError(f"{path} {error}; training with --fresh moves it aside") from error
    if _is_step_name(folder.name) and steps_of(folder) != manifest.counters.env_steps:
        raise DamagedCheckpointError(f"{path} says {manifest.counters.env_steps} steps, unlike its folder's name")
    return manifest


def read_tensors(folder: Path, manifest: Manifest, file_name: str, expected: Specification | None = None) -> Tensors:
    """Read one of a checkpoint's files.

    The weights of an agent without training state may be saved in 16 bits; they are returned in 32.

    Args:
        folder: the checkpoint.
        manifest: its manifest.
        file_name: MODEL_FILE or TRAINING_FILE.
        expected: types and shapes of all tensors that the settings require, in either file, except those of
            environments; None to accept the tensors of any settings.

    Raises:
        DamagedCheckpointError: the file is missing or is not the one that was written.
        Refusal: the file is intact, but its tensors are not those expected.
    """
    path, entry = folder / file_name, manifest.files.get(file_name)
    if entry is None:
        raise DamagedCheckpointError(f"{folder} was saved without {file_name}")

    def fit(found: Specification) -> str | None:
        _require_own(path, file_name, found, manifest.config.ppo.num_envs)
        if expected is None:
            return None
        learnt = {name: tensor_type for name, tensor_type in found.items() if not name.startswith("environment/")}
        return misfit(learnt, {name: t for name, t in expected.items() if name.startswith(_PARTS[file_name])})

    is_only_played = TRAINING_FILE not in manifest.files
    return read_tensor_file(path, entry.size, entry.sha256, fit, may_be_short=is_only_played)


def verify(folder: Path) -> Manifest:
    """Compare the files of a checkpoint with the sizes and hashes in its manifest, and return the manifest.

    Raises:
        DamagedCheckpointError: a file is missing or is not as this program writes it.
        OtherFormatError: another version of this program wrote it.
    """
    manifest = read_manifest(folder)
    for file_name, entry in manifest.files.items():
        verify_file(folder / file_name, entry.size, entry.sha256)
    return manifest


def is_whole(folder: Path) -> bool:
    """Return whether a checkpoint is intact and of a format that this version reads."""
    try:
        verify(folder)
    except (DamagedCheckpointError, Refusal):
        return False
    return True


def newest_valid(
    parent: Path,
    warn: Callable[[str], None],
    *,
    accept: Callable[[Path, Manifest], None] | None = None,
    expected: Specification | None = None,
) -> tuple[Path, Manifest, Tensors, Tensors] | None:
    """Read the newest whole checkpoint, reporting damaged ones through `warn`.

    Args:
        parent: the folder of the checkpoints.
        warn: receives a line for every damaged checkpoint that is skipped.
        accept: raises a Refusal if a manifest is not of this run; called before any tensor is read.
        expected: see `read_tensors`.

    Returns:
        The folder, its manifest, model and training tensors; None if there is no checkpoint at all.

    Raises:
        Refusal: there are checkpoints but none is whole (starting over would hide the loss), or the newest whole one
            is of another run, network or version of this program.
    """

    def load(folder: Path, manifest: Manifest) -> tuple[Path, Manifest, Tensors, Tensors]:
        if accept is not None:
            accept(folder, manifest)
        model = read_tensors(folder, manifest, MODEL_FILE, expected)
        return folder, manifest, model, read_tensors(folder, manifest, TRAINING_FILE, expected)

    folders = list_checkpoints(parent)
    return _first_whole(reversed(folders), load, warn) if folders else None


def newest_manifest(parent: Path) -> Manifest | None:
    """Return the newest readable manifest, even if its checkpoint is not whole; None if there is none."""
    for folder in reversed(list_checkpoints(parent)):
        with contextlib.suppress(DamagedCheckpointError, OtherFormatError):
            return read_manifest(folder)
    return None


def choose(parent: Path, which: str, load: Callable[[Path, Manifest], T], warn: Callable[[str], None]) -> T:
    """Load the checkpoint that `--checkpoint` names: best, latest or a number of steps.

    Args:
        parent: the folder of the checkpoints.
        which: the setting.
        load: reads a checkpoint; may raise DamagedCheckpointError.
        warn: receives a line for every damaged checkpoint that is skipped for the next best or latest one.

    Raises:
        Refusal: there is no such checkpoint (the message lists those that exist), none is whole, or the one at the
            given number of steps is damaged.
    """
    folders = list_checkpoints(parent)
    if not folders:
        raise Refusal(f"there is no checkpoint in {parent}")
    if which == "latest":
        return _first_whole(reversed(folders), load, warn)
    if which == "best":
        return _first_whole(_by_merit(folders), load, warn)
    for folder in folders:
        if str(steps_of(folder)) == (which.lstrip("0") or "0"):
            try:
                return load(folder, read_manifest(folder))
            except DamagedCheckpointError as error:
                raise Refusal(f"checkpoint {which} is damaged: {error}") from error
    there_are = ", ".join(str(steps_of(folder)) for folder in folders)
    raise Refusal(f"checkpoint must be best, latest or one of the steps {there_are}, got {which}")


def prune(parent: Path, newest: Path | None = None, keep: str = str(KEPT_NEWEST)) -> list[str]:
    """Delete what killed writers left behind, and all checkpoints but those to keep and the best whole one.

    A checkpoint that cannot be deleted stays and does not prevent the deletion of others.

    Args:
        parent: the folder of the checkpoints.
        newest: the checkpoint just written. Newer ones are damaged, so the resume skipped them; they stay, but must
            not displace a whole one. None: the one with the most steps.
        keep: the setting `keep_checkpoints`.

    Returns:
        Messages about what could not be deleted.

    Raises:
        Refusal: the folder cannot be read.
    """
    stays = [
        f"{path} is in the way and cannot be deleted; another name is used instead" for path in remove_scratch(parent)
    ]
    if keep == "all":
        return stays
    folders = [f for f in list_checkpoints(parent) if newest is None or steps_of(f) <= steps_of(newest)]
    kept_newest = int(keep) if keep.isdecimal() else KEPT_NEWEST
    if len(folders) > kept_newest:
        best = next((folder for folder in _by_merit(folders) if is_whole(folder)), None)
        for folder in folders[:-kept_newest]:
            if best and folder != best and not folder.is_symlink() and not _is_one_of_every(keep, folder):
                try:
                    remove_folder(folder)
                except OSError as error:
                    stays.append(f"{folder} could not be deleted: {error.strerror}")
    return stays


def _first_whole(folders: Iterable[Path], load: Callable[[Path, Manifest], T], warn: Callable[[str], None]) -> T:
    damages = []
    for folder in folders:
        try:
            return load(folder, read_manifest(folder))
        except DamagedCheckpointError as error:
            warn(f"WARNING: skipped a damaged checkpoint: {error}")
            damages.append(error)
    raise Refusal(
        f"none of the {len(damages)} checkpoints in {folder.parent} is whole ({damages[0]}); "
        "training with --fresh moves them aside"
    )


def _by_merit(folders: Iterable[Path]) -> list[Path]:
    """Sort checkpoints, best first; those with unreadable manifests precede all, as they may have been better."""

    def merit(folder: Path) -> Merit:
        try:
            return read_manifest(folder).merit
        except (DamagedCheckpointError, OtherFormatError):
            return True, True, math.inf, steps_of(folder)

    return sorted(folders, key=merit, reverse=True)


def _is_one_of_every(keep: str, folder: Path) -> bool:
    """Return whether `every=K` keeps a checkpoint, which depends only on its own update and interval."""
    if keep.isdecimal():
        return False
    try:
        manifest = read_manifest(folder)
    except (DamagedCheckpointError, OtherFormatError):
        return False
    updates = int(keep.removeprefix("every=")) * manifest.config.run.checkpoint_interval
    return manifest.counters.update % updates == 0


def _is_step_name(name: str) -> bool:
    steps = name.removeprefix(PREFIX)
    return name.startswith(PREFIX) and steps.isascii() and steps.isdecimal()


def _is_of(folder: Path, files: Mapping[str, FileEntry]) -> bool:
    """Return whether a checkpoint is whole and has exactly these files."""
    try:
        return verify(folder).files == files
    except (DamagedCheckpointError, Refusal):
        return False


def _require_own(path: Path, file_name: str, found: Specification, num_envs: int) -> None:
    """Require that these tensors belong in a file of this name, whatever the settings."""
    foreign = [name for name in found if not name.startswith(_PARTS[file_name])]
    if foreign:
        raise DamagedCheckpointError(f"{path} holds {brief(foreign[0])}, which does not belong there")
    if file_name == TRAINING_FILE:
        _check_environments(path, found, num_envs)


def _check_environments(path: Path, found: Specification, num_envs: int) -> None:
    """Require one state for every environment of the job, all with the same parts."""
    parts: dict[int, set[str]] = {}
    for name, tensor_type in found.items():
        if name.startswith("environment/"):
            match = _ENVIRONMENT.fullmatch(name)
            if match is None or byte_size(tensor_type) > _MAX_ENVIRONMENT_TENSOR_BYTES:
                raise DamagedCheckpointError(f"{path} holds {brief(name)}, which is no state of an environment")
            parts.setdefault(int(match[1]), set()).add(match[2])
    indices_valid = len(parts) == num_envs and max(parts) < num_envs
    if not indices_valid or any(keys != parts[0] for keys in parts.values()):
        raise DamagedCheckpointError(f"{path} does not hold one state for each of {num_envs} environments")
