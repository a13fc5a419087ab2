"""Checkpoints: whole or absent, every kind of damage named, the newest or best found."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo.config import Config, Refusal
from ppo.outputs import checkpoint
from ppo.outputs.checkpoint import MANIFEST_FILE, MODEL_FILE, TRAINING_FILE, Counters, DamagedCheckpointError

CONFIG = Config().replace_settings({"env_name": "CartPole-v1", "num_envs": 8, "kl_stop": 0.03})
MODEL = {
    "model/weight": torch.arange(6.0).reshape(2, 3),
    "value_normalizer/mean": torch.tensor(0.1, dtype=torch.float64),
}
TRAINING = {"learner/step": torch.tensor([7]), "environment/0/emulator": torch.tensor([1, 255], dtype=torch.uint8)}


def counters(env_steps: int, returns: tuple[float, ...] = ()) -> Counters:
    return Counters(update=env_steps // 10, env_steps=env_steps, seconds=1.5, episodes=3, recent_returns=returns)


def write(parent: Path, env_steps: int, returns: tuple[float, ...] = ()) -> Path:
    return checkpoint.write_checkpoint(parent, CONFIG, counters(env_steps, returns), MODEL, TRAINING)


def names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=0)


# ----------------------------------------------------------------------------------------------------- whole or absent


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    folder = write(tmp_path, 120, (1.0, -21.0, 0.1))
    manifest = checkpoint.read_manifest(folder)
    assert (manifest.config, manifest.counters) == (CONFIG, counters(120, (1.0, -21.0, 0.1)))
    assert_same(checkpoint.read_tensors(folder, manifest, MODEL_FILE), MODEL)
    assert_same(checkpoint.read_tensors(folder, manifest, TRAINING_FILE), TRAINING)


def test_a_tensor_that_is_a_view_is_saved_by_its_values(tmp_path: Path) -> None:
    view = {"model/weight": torch.arange(6.0).reshape(2, 3).T}
    folder = checkpoint.write_checkpoint(tmp_path, CONFIG, counters(10), view, None)
    assert_same(checkpoint.read_tensors(folder, checkpoint.read_manifest(folder), MODEL_FILE), view)


def test_the_folder_holds_three_files_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = write(tmp_path, 12_288)
    assert names(folder) == ["manifest.json", "model.safetensors", "training.safetensors"]
    assert names(tmp_path) == ["step_000000012288"]


def test_the_manifest_lists_the_size_and_hash_of_each_file(tmp_path: Path) -> None:
    folder = write(tmp_path, 10)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert files == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name in ("model.safetensors", "training.safetensors")
        for content in [(folder / name).read_bytes()]
    }


def test_an_agent_can_be_saved_without_its_training_state(tmp_path: Path) -> None:
    folder = checkpoint.write_checkpoint(tmp_path, CONFIG, counters(10), MODEL, None)
    assert names(folder) == ["manifest.json", "model.safetensors"]
    with pytest.raises(DamagedCheckpointError, match=r"saved without training\.safetensors"):
        checkpoint.read_tensors(folder, checkpoint.read_manifest(folder), TRAINING_FILE)


@pytest.mark.parametrize("calls_that_succeed", [0, 1, 2])
def test_an_error_while_writing_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls_that_succeed: int
) -> None:
    calls = []

    def full_disk(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > calls_that_succeed:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 10)
    assert names(tmp_path) == []


def test_an_error_while_writing_leaves_older_checkpoints_alone(tmp_path: Path) -> None:
    write(tmp_path, 10)
    unwritable = {"model/bad": "not a tensor"}
    with pytest.raises(AttributeError):
        checkpoint.write_checkpoint(tmp_path, CONFIG, counters(20), unwritable, TRAINING)  # type: ignore[arg-type]
    assert names(tmp_path) == ["step_000000000010"]


def test_the_leftovers_of_a_killed_process_with_the_same_id_are_no_obstacle(tmp_path: Path) -> None:
    leftover = tmp_path / f".step_000000000010.{os.getpid()}.tmp"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    write(tmp_path, 10)
    assert names(tmp_path) == ["step_000000000010"]


def test_a_whole_checkpoint_is_not_written_again(tmp_path: Path) -> None:
    folder = write(tmp_path, 10, (1.0,))
    assert write(tmp_path, 10, (2.0,)) == folder
    assert checkpoint.read_manifest(folder).counters.recent_returns == (1.0,)


def test_a_damaged_checkpoint_is_replaced_when_training_comes_there_again(tmp_path: Path) -> None:
    folder = write(tmp_path, 10)
    flip_a_byte(folder / TRAINING_FILE)
    write(tmp_path, 10)
    assert newest(tmp_path) == (folder, [])
    assert names(tmp_path) == ["step_000000000010", "step_000000000010.damaged"]


def test_other_entries_are_no_checkpoints(tmp_path: Path) -> None:
    write(tmp_path, 20)
    write(tmp_path, 3)
    for name in (".step_000000000030.1.tmp", "step_40.damaged", "step_x", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_000000000050").touch()
    assert [checkpoint.steps_of(folder) for folder in checkpoint.list_checkpoints(tmp_path)] == [3, 20]


def test_a_folder_that_does_not_exist_has_no_checkpoints(tmp_path: Path) -> None:
    assert checkpoint.list_checkpoints(tmp_path / "none") == []


# -------------------------------------------------------------------------------------------------------------- damage


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / MANIFEST_FILE
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def not_safetensors(folder: Path) -> None:
    """Replace the weights by text, hash and all."""
    content = b"weights"
    (folder / MODEL_FILE).write_bytes(content)
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(folder, lambda data: data["files"].update({MODEL_FILE: entry}))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated model": (lambda f: truncate(f / MODEL_FILE), "model.safetensors has .* bytes"),
    "truncated training": (lambda f: truncate(f / TRAINING_FILE), "training.safetensors has .* bytes"),
    "flipped byte in model": (lambda f: flip_a_byte(f / MODEL_FILE), "model.safetensors .*sha256"),
    "flipped byte in training": (lambda f: flip_a_byte(f / TRAINING_FILE), "training.safetensors .*sha256"),
    "no model": (lambda f: (f / MODEL_FILE).unlink(), "model.safetensors cannot be read"),
    "no training": (lambda f: (f / TRAINING_FILE).unlink(), "training.safetensors cannot be read"),
    "training not listed": (
        lambda f: edit_manifest(f, lambda data: data["files"].pop(TRAINING_FILE)),
        "saved without training.safetensors",
    ),
    "size not listed": (
        lambda f: edit_manifest(f, lambda data: data["files"][MODEL_FILE].pop("size")),
        "model.safetensors has .* bytes",
    ),
    "text for a model": (not_safetensors, "model.safetensors cannot be read"),
    "empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "manifest.json cannot be read"),
    "no manifest": (lambda f: (f / MANIFEST_FILE).unlink(), "manifest.json cannot be read"),
    "truncated manifest": (lambda f: truncate(f / MANIFEST_FILE), "manifest.json cannot be read"),
    "empty manifest": (lambda f: (f / MANIFEST_FILE).write_text(""), "manifest.json cannot be read"),
    "text for a manifest": (lambda f: (f / MANIFEST_FILE).write_text("hello"), "manifest.json cannot be read"),
    "bytes for a manifest": (lambda f: (f / MANIFEST_FILE).write_bytes(b"\xff\x00"), "manifest.json cannot be read"),
    "list for a manifest": (lambda f: (f / MANIFEST_FILE).write_text("[1]"), "manifest.json cannot be read"),
    "deep manifest": (lambda f: (f / MANIFEST_FILE).write_text("[" * 100_000), "manifest.json cannot be read"),
    "endless manifest": (lambda f: (f / MANIFEST_FILE).write_text(" " * 1_000_001), "larger than any manifest"),
    "newer format": (
        lambda f: edit_manifest(f, lambda data: data.update(format=checkpoint.FORMAT + 1)),
        f"has format {checkpoint.FORMAT + 1}, this version reads {checkpoint.FORMAT}",
    ),
    "unknown setting": (
        lambda f: edit_manifest(f, lambda data: data["config"]["ppo"].update(momentum=1)),
        "manifest.json cannot be read.*momentum",
    ),
    "missing counter": (
        lambda f: edit_manifest(f, lambda data: data["counters"].pop("update")),
        "manifest.json cannot be read.*update",
    ),
    "infinite counter": (
        lambda f: edit_manifest(f, lambda data: data["counters"].update(env_steps=float("inf"))),
        "manifest.json cannot be read",
    ),
}


def newest(parent: Path) -> tuple[Path, list[str]]:
    """Return the folder that a resume would take, and the warnings on the way."""
    warnings: list[str] = []
    found = checkpoint.newest_valid(parent, warnings.append)
    assert found is not None
    return found[0], warnings


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_that_names_the_damage(tmp_path: Path, kind: str) -> None:
    older = write(tmp_path, 10)
    damage, expected = DAMAGE[kind]
    damage(write(tmp_path, 20))
    folder, warnings = newest(tmp_path)
    assert folder == older
    with pytest.raises(DamagedCheckpointError, match=expected):
        raise DamagedCheckpointError(*warnings)


def test_the_newest_checkpoint_is_read_without_a_warning_if_it_is_whole(tmp_path: Path) -> None:
    write(tmp_path, 10)
    newer = write(tmp_path, 20)
    assert newest(tmp_path) == (newer, [])


def test_newest_means_most_steps_whatever_the_width_of_the_number(tmp_path: Path) -> None:
    write(tmp_path, 999_999_999_999)
    newer = write(tmp_path, 1_000_000_000_000)
    assert newest(tmp_path)[0] == newer


def test_no_checkpoint_at_all_is_a_fresh_start(tmp_path: Path) -> None:
    assert checkpoint.newest_valid(tmp_path, print) is None


def test_only_damaged_checkpoints_are_a_refusal_not_a_fresh_start(tmp_path: Path) -> None:
    for env_steps in (10, 20):
        truncate(write(tmp_path, env_steps) / MODEL_FILE)
    warnings: list[str] = []
    with pytest.raises(Refusal, match=r"none of the 2 checkpoints .* --fresh"):
        checkpoint.newest_valid(tmp_path, warnings.append)
    assert len(warnings) == 2


def test_reading_executes_nothing(tmp_path: Path) -> None:
    # A pickle, as torch.load would execute it: safetensors only refuses it.
    folder = write(tmp_path, 10)
    torch.save({"weight": torch.zeros(1)}, folder / MODEL_FILE)
    content = (folder / MODEL_FILE).read_bytes()
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(folder, lambda data: data["files"].update({MODEL_FILE: entry}))
    with pytest.raises(DamagedCheckpointError, match="cannot be read"):
        checkpoint.read_tensors(folder, checkpoint.read_manifest(folder), MODEL_FILE)


# -------------------------------------------------------------------------------------------------------------- choose


def steps_chosen(parent: Path, which: str) -> int:
    return checkpoint.choose(parent, which)[1].counters.env_steps


def test_latest_is_the_one_with_most_steps(tmp_path: Path) -> None:
    for env_steps, mean in ((10, 5.0), (20, 9.0), (30, 1.0)):
        write(tmp_path, env_steps, (mean,) * 100)
    assert steps_chosen(tmp_path, "latest") == 30


def test_best_is_the_one_with_the_highest_mean_return(tmp_path: Path) -> None:
    for env_steps, mean in ((10, 5.0), (20, 9.0), (30, 1.0)):
        write(tmp_path, env_steps, (mean,) * 100)
    assert steps_chosen(tmp_path, "best") == 20


def test_best_prefers_a_full_window_of_100_games(tmp_path: Path) -> None:
    write(tmp_path, 10, (50.0,) * 99)
    write(tmp_path, 20, (1.0,) * 100)
    assert steps_chosen(tmp_path, "best") == 20


def test_best_is_the_later_of_equals(tmp_path: Path) -> None:
    write(tmp_path, 10, (1.0,) * 100)
    write(tmp_path, 20, (1.0,) * 100)
    assert steps_chosen(tmp_path, "best") == 20


def test_best_before_the_first_finished_game_is_the_latest(tmp_path: Path) -> None:
    write(tmp_path, 10)
    write(tmp_path, 20)
    assert steps_chosen(tmp_path, "best") == 20


def test_a_single_finished_game_is_better_than_none(tmp_path: Path) -> None:
    write(tmp_path, 10, (-21.0,))
    write(tmp_path, 20)
    assert steps_chosen(tmp_path, "best") == 10


@pytest.mark.parametrize("which", ["10", "000000000010"])
def test_a_number_of_steps_chooses_that_checkpoint(tmp_path: Path, which: str) -> None:
    write(tmp_path, 10)
    write(tmp_path, 20)
    assert steps_chosen(tmp_path, which) == 10


def test_a_number_there_is_not_is_refused_with_those_there_are(tmp_path: Path) -> None:
    write(tmp_path, 10)
    write(tmp_path, 20)
    with pytest.raises(Refusal, match="one of the steps 10, 20, got 15"):
        checkpoint.choose(tmp_path, "15")


def test_choosing_where_there_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no readable checkpoint"):
        checkpoint.choose(tmp_path, "best")


def test_an_unreadable_manifest_is_never_chosen(tmp_path: Path) -> None:
    write(tmp_path, 10)
    (write(tmp_path, 20) / MANIFEST_FILE).unlink()
    assert steps_chosen(tmp_path, "latest") == 10


# --------------------------------------------------------------------------------------------------------------- prune


def test_pruning_keeps_the_newest_five_and_the_best(tmp_path: Path) -> None:
    for number in range(1, 9):
        write(tmp_path, 10 * number, (99.0 if number == 2 else number,) * 100)
    checkpoint.prune(tmp_path)
    assert [checkpoint.steps_of(folder) for folder in checkpoint.list_checkpoints(tmp_path)] == [20, 40, 50, 60, 70, 80]


def test_pruning_keeps_five_if_the_best_is_among_them(tmp_path: Path) -> None:
    for number in range(1, 9):
        write(tmp_path, 10 * number, (float(number),) * 100)
    checkpoint.prune(tmp_path)
    assert [checkpoint.steps_of(folder) for folder in checkpoint.list_checkpoints(tmp_path)] == [40, 50, 60, 70, 80]


def test_pruning_touches_nothing_but_checkpoints(tmp_path: Path) -> None:
    for number in range(1, 9):
        write(tmp_path, 10 * number)
    (tmp_path / "notes.txt").touch()
    checkpoint.prune(tmp_path)
    assert "notes.txt" in names(tmp_path)


@pytest.mark.parametrize("number", [0, 5])
def test_pruning_few_checkpoints_deletes_none(tmp_path: Path, number: int) -> None:
    for position in range(number):
        write(tmp_path, 10 * position)
    checkpoint.prune(tmp_path)
    assert len(names(tmp_path)) == number
