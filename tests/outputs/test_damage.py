"""Whatever happens to a checkpoint's bytes, reading it gives exactly what was written, or one of two errors."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo.config import Config
from ppo.families import GymnasiumSettings
from ppo.outputs import checkpoint
from ppo.outputs.manifest import MODEL_FILE, TRAINING_FILE, Counters, Manifest, decode_manifest
from ppo.outputs.untrusted import DamagedCheckpointError
from ppo.settings import Refusal
from tests.forgery import MANIFEST, MODEL, TRAINING, edit_manifest, replace_file, taken_apart, tensor_file

Files = dict[str, bytes]
Content = tuple[Manifest, dict[str, torch.Tensor], dict[str, torch.Tensor]]
NAMES = [MANIFEST, MODEL, TRAINING]
FOLDER = checkpoint.folder_name(20)
CONFIG = Config(world=GymnasiumSettings()).replace_settings(
    {"env_name": "CartPole-v1", "num_envs": 2, "minibatch_size": 64}
)
# A hang fails the test; a slow machine does not.
bounded = settings(max_examples=100, deadline=timedelta(seconds=5))


def write(parent: Path, env_steps: int) -> Path:
    tensors = torch.arange(float(env_steps)).reshape(2, -1)
    state = {"emulator": torch.arange(env_steps, dtype=torch.uint8), "episode": torch.tensor([env_steps])}
    training = {"learner/first_moment": -tensors.flatten(), "learner/second_moment": tensors.flatten().square()}
    training |= {f"environment/{index}/{key}": tensor.clone() for index in range(2) for key, tensor in state.items()}
    counters = Counters(env_steps // 10, env_steps, 1.5, 2, (1.0, -21.0))
    return checkpoint.write_checkpoint(parent, CONFIG, counters, {"model/weight": tensors}, training)


def read(folder: Path) -> Content:
    manifest = checkpoint.read_manifest(folder)
    model = checkpoint.read_tensors(folder, manifest, MODEL_FILE)
    return manifest, model, checkpoint.read_tensors(folder, manifest, TRAINING_FILE)


def same(first: Content, second: Content) -> bool:
    return first[0] == second[0] and all(
        ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        for ours, theirs in zip(first[1:], second[1:], strict=True)
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Files, Files, Content]:
    """Return a folder to put damaged files in, the files of it and of an older checkpoint, and what it holds."""
    parent = tmp_path_factory.mktemp("damage")
    folder, older = write(parent, 20), write(parent, 10)
    return folder, *({name: (f / name).read_bytes() for name in NAMES} for f in (folder, older)), read(folder)


def put(folder: Path, files: Files) -> None:
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)
        if name in files:
            (folder / name).write_bytes(files[name])


# ------------------------------------------------------------------------------------------------ damage to the bytes


def truncated(content: bytes, where: int, length: int, text: bytes) -> bytes:
    return content[: where % (len(content) + 1)]


def bit_flipped(content: bytes, where: int, length: int, text: bytes) -> bytes:
    changed = bytearray(content)
    changed[where % len(changed)] ^= 1 << length % 8
    return bytes(changed)


def block_moved(content: bytes, where: int, length: int, text: bytes) -> bytes:
    start = where % len(content)
    block, rest = content[start : start + length], content[:start] + content[start + length :]
    target = length * 31 % (len(rest) + 1)
    return rest[:target] + block + rest[target:]


def block_repeated(content: bytes, where: int, length: int, text: bytes) -> bytes:
    start = where % len(content)
    return content[: start + length] + content[start:]


def zeroed(content: bytes, where: int, length: int, text: bytes) -> bytes:
    start = where % len(content)
    return content[:start] + bytes(min(length, len(content) - start)) + content[start + length :]


def overwritten(content: bytes, where: int, length: int, text: bytes) -> bytes:
    start = where % len(content)
    return content[:start] + text + content[start + len(text) :]


def inserted(content: bytes, where: int, length: int, text: bytes) -> bytes:
    start = where % (len(content) + 1)
    return content[:start] + text + content[start:]


def replaced(content: bytes, where: int, length: int, text: bytes) -> bytes:
    return text


CHANGES = [truncated, bit_flipped, block_moved, block_repeated, zeroed, overwritten, inserted, replaced]
texts = st.one_of(st.binary(max_size=64), st.text(max_size=32).map(lambda text: text.encode("utf-8", "surrogatepass")))
damages = st.tuples(
    st.sampled_from(CHANGES), st.sampled_from(NAMES), st.integers(0, 1 << 16), st.integers(1, 300), texts
)


@bounded
@given(st.lists(damages, min_size=1, max_size=3))
def test_changed_bytes_are_found_or_change_nothing(workplace: Any, changes: list[Any]) -> None:
    folder, files, _, content = workplace
    files = dict(files)
    for change, name, where, length, text in changes:
        if files[name]:
            files[name] = change(files[name], where, length, text)
    put(folder, files)
    try:
        found = read(folder)
    except (DamagedCheckpointError, Refusal) as error:
        assert str(error).isprintable()
    else:
        assert same(found, content)


@bounded
@given(st.dictionaries(st.sampled_from(NAMES), st.tuples(st.booleans(), st.sampled_from([*NAMES, None]))))
def test_files_in_other_places_are_found(workplace: Any, moves: dict[str, tuple[bool, str | None]]) -> None:
    folder, files, older, content = workplace
    mixed = dict(files)
    for name, (from_older, source) in moves.items():
        mixed.pop(name)
        if source is not None:
            mixed[name] = (older if from_older else files)[source]
    put(folder, mixed)
    try:
        found = read(folder)
    except (DamagedCheckpointError, Refusal):
        assert mixed != files
    else:
        assert same(found, content)


def test_every_byte_of_a_manifest_counts(workplace: Any) -> None:
    _, files, _, content = workplace
    for position in range(len(files[MANIFEST])):
        changed = bytearray(files[MANIFEST])
        changed[position] ^= 1 << position % 8
        try:
            assert decode_manifest(bytes(changed)) == content[0]
        except (DamagedCheckpointError, Refusal):
            continue


# ------------------------------------------------------------------------------------------------------ forged hashes

numbers = st.one_of(st.integers(-(2**70), 2**70), st.sampled_from([2**31, 2**62, 10**15]), st.floats())
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


def replace_somewhere(data: Any, path: list[int], value: Any) -> Any:
    """Return JSON data with the member at a path of positions replaced; a path beyond a leaf ends there."""
    if not path or not isinstance(data, dict | list) or not data:
        return value
    if isinstance(data, list):
        position = path[0] % len(data)
        return [*data[:position], replace_somewhere(data[position], path[1:], value), *data[position + 1 :]]
    key = sorted(data)[path[0] % len(data)]
    return {**data, key: replace_somewhere(data[key], path[1:], value)}


def assert_sound(folder: Path) -> None:
    """Read a checkpoint whose hashes fit: what passes must be usable by the rest of the program."""
    try:
        manifest, model, training = read(folder)
    except (DamagedCheckpointError, Refusal) as error:
        assert str(error).isprintable()
        return
    manifest.config.validate()
    assert manifest.counters.env_steps == 20
    assert all(isinstance(value, float) for value in manifest.counters.recent_returns)
    assert {name.partition("/")[0] for name in model} <= {"model", "value_normalizer"}
    assert {name.partition("/")[0] for name in training} <= {"learner", "environment"}
    for tensor in [*model.values(), *training.values()]:
        assert bool(tensor.isfinite().all())


paths = st.lists(st.integers(0, 30), min_size=1, max_size=5)


@bounded
@given(paths, values)
def test_a_forged_manifest_is_refused_or_sound(workplace: Any, path: list[int], value: Any) -> None:
    folder, files, _, _ = workplace
    put(folder, files)
    edit_manifest(folder, lambda data: data.update(replace_somewhere(data, path, value)))
    assert_sound(folder)


@bounded
@given(st.sampled_from([MODEL, TRAINING]), paths, values)
def test_a_forged_header_is_refused_or_sound(workplace: Any, name: str, path: list[int], value: Any) -> None:
    folder, files, _, _ = workplace
    put(folder, files)
    header, data = taken_apart(files[name])
    replace_file(folder, name, tensor_file(replace_somewhere(header, path, value), data))
    assert_sound(folder)


@bounded
@given(st.sampled_from([MODEL, TRAINING]), st.lists(damages, min_size=1, max_size=2))
def test_changed_tensors_with_forged_hashes_are_refused_or_sound(
    workplace: Any, name: str, changes: list[tuple[Callable[..., bytes], str, int, int, bytes]]
) -> None:
    folder, files, _, _ = workplace
    put(folder, files)
    content = files[name]
    for change, _, where, length, text in changes:
        content = change(content, where, length, text) if content else text
    replace_file(folder, name, content)
    assert_sound(folder)


def test_the_forgeries_would_pass_without_a_change(workplace: Any) -> None:
    folder, files, _, content = workplace
    put(folder, files)
    edit_manifest(folder, lambda data: None)
    for name in (MODEL, TRAINING):
        replace_file(folder, name, tensor_file(*taken_apart(files[name])))
    found = read(folder)
    assert same((content[0], *found[1:]), content)
    assert json.loads((folder / MANIFEST).read_text())["counters"]["env_steps"] == 20
