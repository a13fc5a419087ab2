"""Checkpoints: whole or absent, damage reported, the newest or best whole one found."""

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo.config import Config
from ppo.families import GymnasiumSettings
from ppo.outputs import checkpoint, whole_folder
from ppo.outputs.manifest import MODEL_FILE, TRAINING_FILE, Counters, Manifest, OtherFormatError
from ppo.outputs.tensor_file import specification
from ppo.outputs.untrusted import DamagedCheckpointError
from ppo.settings import Refusal
from tests.forgery import edit_manifest, replace_file

MANIFEST_FILE = checkpoint.MANIFEST_FILE
CONFIG = Config(world=GymnasiumSettings()).replace_settings(
    {"env_name": "CartPole-v1", "num_envs": 2, "minibatch_size": 64, "kl_stop": 0.03}
)
MODEL = {
    "model/weight": torch.arange(6.0).reshape(2, 3),
    "value_normalizer/moments": torch.tensor([3.0, 0.1, 2.0], dtype=torch.float64),
}
TRAINING = {
    "learner/second_moment": torch.tensor([7.0]),
    "environment/0/emulator": torch.tensor([1, 255], dtype=torch.uint8),
    "environment/1/emulator": torch.tensor([[3]], dtype=torch.uint8),
}


def counters(env_steps: int, returns: tuple[float, ...] = ()) -> Counters:
    return Counters(
        update=env_steps // 10, env_steps=env_steps, seconds=1.5, episodes=min(1, env_steps), recent_returns=returns
    )


def write(parent: Path, env_steps: int, returns: tuple[float, ...] = ()) -> Path:
    return checkpoint.write_checkpoint(parent, CONFIG, counters(env_steps, returns), MODEL, TRAINING)


def names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def steps(parent: Path) -> list[int]:
    return [checkpoint.steps_of(folder) for folder in checkpoint.list_checkpoints(parent)]


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor)


# ----------------------------------------------------------------------------------------------------- whole or absent


def test_a_written_checkpoint_reads_back_equal(tmp_path: Path) -> None:
    folder = checkpoint.write_checkpoint(tmp_path, CONFIG, counters(120, (1.0, -21.0, 0.1)), MODEL, TRAINING, ranks=3)
    manifest = checkpoint.verify(folder)
    assert (manifest.config, manifest.counters) == (CONFIG, counters(120, (1.0, -21.0, 0.1)))
    assert manifest.ranks == 3
    assert manifest.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert manifest.machine["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
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
    files = json.loads((folder / MANIFEST_FILE).read_text())["files"]
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


class FullDisk:
    """Lets a number of calls of all the patched functions succeed."""

    def __init__(self, successes: int) -> None:
        self.left = successes

    def patch(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        original = getattr(owner, name, open)

        def call(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call, raising=False)


# Two folders are made, three files opened and flushed, the folder is flushed and renamed: ten calls. After that the
# checkpoint is there.
@pytest.mark.parametrize("successes", range(10))
def test_a_disk_that_is_full_at_any_point_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, successes: int
) -> None:
    older = write(tmp_path, 10)
    disk = FullDisk(successes)
    disk.patch(monkeypatch, Path, "mkdir")
    disk.patch(monkeypatch, Path, "rename")
    disk.patch(monkeypatch, os, "fsync")
    disk.patch(monkeypatch, whole_folder, "open")
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 20)
    monkeypatch.undo()
    assert names(tmp_path) == [older.name]
    assert checkpoint.is_whole(older)
    assert disk.left == -1


def test_a_file_system_that_is_really_full_leaves_the_older_checkpoint_alone(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    older = write(tmp_path, 10)
    large = {"model/weight": torch.zeros(100_000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.write_checkpoint(tmp_path, CONFIG, counters(20), large, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == [older.name]
    assert checkpoint.is_whole(older)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model/weight", "learner/first_moment", "environment/0/episode_return"])
def test_numbers_that_are_not_finite_are_named_and_nothing_is_written(tmp_path: Path, name: str, number: float) -> None:
    tensors = {name: torch.tensor([1.0, number])}
    model = MODEL | tensors if name.startswith("model") else MODEL
    training = TRAINING if name.startswith("model") else TRAINING | tensors
    with pytest.raises(FloatingPointError, match=f"{name} is not finite"):
        checkpoint.write_checkpoint(tmp_path / "run", CONFIG, counters(10), model, training)
    assert names(tmp_path) == []


def test_a_return_that_is_not_finite_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"recent_returns must be between -1e\+100 and 1e\+100, got inf"):
        write(tmp_path / "run", 10, (1.0, float("inf")))
    assert names(tmp_path) == []


WRITTEN_IN_VAIN: dict[str, dict[str, Any]] = {
    "counters": {"counters": Counters(2**62, 2**62, 1.5, 3, ())},
    "returns": {"counters": counters(10, (1e308, 1e308))},
    "evaluation": {"counters": dataclasses.replace(counters(10), evaluation_return=-1e200)},
    "time": {"counters": dataclasses.replace(counters(10), seconds=float("nan"))},
    "updates": {"counters": Counters(11, 10, 1.5, 3, ())},
    "settings": {"config": CONFIG.replace_settings({"env_name": "Ünknown-v0"})},
    "ranks": {"ranks": 0},
    "logs": {"logs": {"progress.csv": -1}},
    "tensor of another file": {"model": MODEL | {"learner/first_moment": torch.zeros(1)}},
    "state of an environment": {
        "training": TRAINING | {"environment/1/emulator": torch.zeros(65 << 20, dtype=torch.uint8)}
    },
    "environment": {"training": TRAINING | {"environment/2/emulator": torch.zeros(1)}},
    "name": {
        "training": TRAINING
        | {"environment/0/" + "x" * 40: torch.zeros(1), "environment/1/" + "x" * 40: torch.zeros(1)}
    },
}


@pytest.mark.parametrize("kind", WRITTEN_IN_VAIN)
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, kind: str) -> None:
    given = {"config": CONFIG, "counters": counters(10), "model": MODEL, "training": TRAINING, **WRITTEN_IN_VAIN[kind]}
    with pytest.raises(FloatingPointError, match="would not be readable"):
        checkpoint.write_checkpoint(tmp_path / "run", **given)
    assert names(tmp_path) == []


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_that_does_not_read_back_is_no_checkpoint_and_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = write(tmp_path, 10)
    original = checkpoint.write_folder

    def on_a_bad_disk(folder: Path, files: dict[str, bytes]) -> None:
        original(folder, files)
        flip_a_byte(folder / TRAINING_FILE)

    monkeypatch.setattr(checkpoint, "write_folder", on_a_bad_disk)
    with pytest.raises(OSError, match=r"step_000000000020.damaged does not read back as it was written: .*training"):
        write(tmp_path, 20)
    assert checkpoint.list_checkpoints(tmp_path) == [older]


def test_of_the_damaged_ones_set_aside_only_the_newest_is_kept(tmp_path: Path) -> None:
    for env_steps in (10, 20, 30):
        flip_a_byte(write(tmp_path, env_steps) / MODEL_FILE)
        write(tmp_path, env_steps)
    damaged = [name for name in names(tmp_path) if name.endswith(".damaged")]
    assert damaged == ["step_000000000030.damaged"]
    assert steps(tmp_path) == [10, 20, 30]


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


def test_a_file_in_the_place_of_a_checkpoint_is_set_aside_too(tmp_path: Path) -> None:
    (tmp_path / "step_000000000010").write_text("not a folder")
    write(tmp_path, 10)
    assert newest(tmp_path)[1] == []


def test_other_entries_are_no_checkpoints(tmp_path: Path) -> None:
    write(tmp_path, 20)
    write(tmp_path, 3)
    for name in (".step_000000000030.1.tmp", "step_40.damaged", "step_x", "step_\u0663", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_000000000050").touch()
    assert steps(tmp_path) == [3, 20]


def test_a_folder_that_does_not_exist_has_no_checkpoints(tmp_path: Path) -> None:
    assert checkpoint.list_checkpoints(tmp_path / "none") == []


@pytest.mark.parametrize("call", ["listdir", "stat"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_folder_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    broken, whole = write(tmp_path / "broken", 10), write(tmp_path / "whole", 10)
    broken = broken if call == "stat" else broken.parent
    original = getattr(os, call)

    def fail(path: Any, *arguments: Any, **options: Any) -> Any:
        if Path(path) == broken:
            raise OSError(number, os.strerror(number), str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(Refusal, match=f"{broken} cannot be read: {os.strerror(number)}"):
        checkpoint.list_checkpoints(tmp_path / "broken")
    assert checkpoint.list_models(tmp_path) == [whole.parent]


# -------------------------------------------------------------------------------------------------------------- damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated model": (lambda f: truncate(f / MODEL_FILE), "model.safetensors has .* bytes"),
    "truncated training": (lambda f: truncate(f / TRAINING_FILE), "training.safetensors has .* bytes"),
    "flipped byte in model": (lambda f: flip_a_byte(f / MODEL_FILE), "model.safetensors"),
    "flipped byte in training": (lambda f: flip_a_byte(f / TRAINING_FILE), "training.safetensors"),
    "no model": (lambda f: (f / MODEL_FILE).unlink(), "model.safetensors cannot be read: No such file"),
    "no training": (lambda f: (f / TRAINING_FILE).unlink(), "training.safetensors cannot be read: No such file"),
    "folder for a model": (lambda f: ((f / MODEL_FILE).unlink(), (f / MODEL_FILE).mkdir()), "not a regular file"),
    "pipe for a model": (lambda f: pipe(f / MODEL_FILE), "not a regular file"),
    "pipe for a manifest": (lambda f: pipe(f / MANIFEST_FILE), "not a regular file"),
    "link for a model": (lambda f: link(f / MODEL_FILE), "not a regular file"),
    "link for a manifest": (lambda f: link(f / MANIFEST_FILE), "not a regular file"),
    "training not listed": (
        lambda f: edit_manifest(f, lambda data: data["files"].pop(TRAINING_FILE)),
        "saved without training.safetensors",
    ),
    "text for a model": (lambda f: replace_file(f, MODEL_FILE, b"the weights"), "is not a safetensors file"),
    "empty folder": (lambda f: (shutil.rmtree(f), f.mkdir()), "manifest.json cannot be read"),
    "truncated manifest": (lambda f: truncate(f / MANIFEST_FILE), "manifest.json is not JSON"),
    "endless manifest": (lambda f: (f / MANIFEST_FILE).write_text(" " * 1_000_001), "more than the 1000000 allowed"),
    "other steps": (
        lambda f: edit_manifest(f, lambda data: data["counters"].update(env_steps=19)),
        "says 19 steps, unlike its folder's name",
    ),
    "fewer environments": (
        lambda f: edit_manifest(f, lambda data: data["config"]["ppo"].update(num_envs=1)),
        "one state for each of 1 environments",
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
    with pytest.raises(DamagedCheckpointError, match=f"skipped a damaged checkpoint.*{expected}"):
        raise DamagedCheckpointError(*warnings)


def test_a_renamed_folder_is_not_that_checkpoint(tmp_path: Path) -> None:
    older = write(tmp_path, 10)
    write(tmp_path, 20).rename(tmp_path / "step_000000000030")
    assert newest(tmp_path)[0] == older


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
    with pytest.raises(Refusal, match=r"none of the 2 checkpoints .* is whole \(.*020/model.* bytes.*\); .*--fresh"):
        checkpoint.newest_valid(tmp_path, warnings.append)
    assert len(warnings) == 2


@pytest.mark.parametrize(("version", "age"), [(1, "an older"), (4, "a newer")])
def test_another_format_is_refused_and_not_passed_over(tmp_path: Path, version: int, age: str) -> None:
    write(tmp_path, 10)
    edit_manifest(write(tmp_path, 20), lambda data: data.update(format=version))
    expected = rf"020/manifest.json was written by {age} version of ppo: .* {version}, .* reads format 3; .*--fresh"
    for read in (
        lambda: checkpoint.newest_valid(tmp_path, print),
        lambda: checkpoint.choose(tmp_path, "best", read_model, print),
        lambda: checkpoint.choose(tmp_path, "latest", read_model, print),
        lambda: checkpoint.choose(tmp_path, "20", read_model, print),
    ):
        with pytest.raises(OtherFormatError, match=expected):
            read()


def test_what_another_run_wrote_is_refused_before_its_tensors_are_read(tmp_path: Path) -> None:
    truncate(write(tmp_path, 10) / MODEL_FILE)

    def accept(folder: Path, manifest: Manifest) -> None:
        raise Refusal(f"{folder} is of {manifest.config.run.env_name}")

    with pytest.raises(Refusal, match="is of CartPole-v1"):
        checkpoint.newest_valid(tmp_path, print, accept=accept)


def test_another_network_is_refused_and_damage_to_the_names_is_passed_over(tmp_path: Path) -> None:
    expected = specification(MODEL | {"learner/second_moment": TRAINING["learner/second_moment"]})
    older = write(tmp_path, 10)
    folder = write(tmp_path, 20)
    path = folder / MODEL_FILE
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"model/weight", b"model/weighs"))
    found = checkpoint.newest_valid(tmp_path, print, expected=expected)
    assert found is not None and found[0] == older
    replace_file(folder, MODEL_FILE, whole.replace(b"model/weight", b"model/weighs"))
    with pytest.raises(Refusal, match=r"do not fit these settings: model/weighs is float32 .* instead of absent"):
        checkpoint.newest_valid(tmp_path, print, expected=expected)
    replace_file(folder, MODEL_FILE, whole)
    found = checkpoint.newest_valid(tmp_path, print, expected=expected)
    assert found is not None and found[0] == folder


# -------------------------------------------------------------------------------------------------------------- choose


def read_model(folder: Path, manifest: Manifest) -> int:
    checkpoint.read_tensors(folder, manifest, MODEL_FILE)
    return manifest.counters.env_steps


def chosen(parent: Path, which: str) -> tuple[int, list[str]]:
    warnings: list[str] = []
    return checkpoint.choose(parent, which, read_model, warnings.append), warnings


def test_latest_is_the_one_with_most_steps(tmp_path: Path) -> None:
    for env_steps, mean in ((10, 5.0), (20, 9.0), (30, 1.0)):
        write(tmp_path, env_steps, (mean,) * 100)
    assert chosen(tmp_path, "latest") == (30, [])


def test_best_is_the_one_with_the_highest_mean_return(tmp_path: Path) -> None:
    for env_steps, mean in ((10, 5.0), (20, 9.0), (30, 1.0)):
        write(tmp_path, env_steps, (mean,) * 100)
    assert chosen(tmp_path, "best") == (20, [])


def test_best_prefers_a_full_window_of_100_games(tmp_path: Path) -> None:
    write(tmp_path, 10, (50.0,) * 99)
    write(tmp_path, 20, (1.0,) * 100)
    assert chosen(tmp_path, "best") == (20, [])


def test_best_is_the_later_of_equals(tmp_path: Path) -> None:
    write(tmp_path, 10, (1.0,) * 100)
    write(tmp_path, 20, (1.0,) * 100)
    assert chosen(tmp_path, "best") == (20, [])


def test_best_before_the_first_finished_game_is_the_latest(tmp_path: Path) -> None:
    write(tmp_path, 10)
    write(tmp_path, 20)
    assert chosen(tmp_path, "best") == (20, [])


def test_a_single_finished_game_is_better_than_none(tmp_path: Path) -> None:
    write(tmp_path, 10, (-21.0,))
    write(tmp_path, 20)
    assert chosen(tmp_path, "best") == (10, [])


@pytest.mark.parametrize("which", ["10", "000000000010"])
def test_a_number_of_steps_chooses_that_checkpoint(tmp_path: Path, which: str) -> None:
    write(tmp_path, 10)
    write(tmp_path, 20)
    assert chosen(tmp_path, which) == (10, [])


@pytest.mark.parametrize("which", ["15", "9" * 5000])
def test_a_number_there_is_not_is_refused_with_those_there_are(tmp_path: Path, which: str) -> None:
    write(tmp_path, 10)
    write(tmp_path, 20)
    with pytest.raises(Refusal, match=f"one of the steps 10, 20, got {which}"):
        chosen(tmp_path, which)


def test_choosing_where_there_is_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="there is no checkpoint in"):
        chosen(tmp_path, "best")


@pytest.mark.parametrize("file_name", [MODEL_FILE, MANIFEST_FILE])
@pytest.mark.parametrize(("which", "expected"), [("latest", 20), ("best", 10)])
def test_the_next_whole_one_is_chosen_and_the_damaged_one_named(
    tmp_path: Path, which: str, expected: int, file_name: str
) -> None:
    write(tmp_path, 10, (2.0,) * 100)
    write(tmp_path, 20, (1.0,) * 100)
    flip_a_byte(write(tmp_path, 30, (3.0,) * 100) / file_name)
    steps_chosen, warnings = chosen(tmp_path, which)
    assert steps_chosen == expected
    assert len(warnings) == 1
    assert f"step_000000000030/{file_name}" in warnings[0]


def test_a_number_of_steps_that_names_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 10)
    flip_a_byte(write(tmp_path, 20) / MODEL_FILE)
    with pytest.raises(Refusal, match=r"checkpoint 20 is damaged: .*model\.safetensors"):
        chosen(tmp_path, "20")


@pytest.mark.parametrize("which", ["best", "latest"])
def test_choosing_among_none_that_are_whole_is_refused(tmp_path: Path, which: str) -> None:
    flip_a_byte(write(tmp_path, 10) / MODEL_FILE)
    flip_a_byte(write(tmp_path, 20) / MANIFEST_FILE)
    with pytest.raises(Refusal, match="none of the 2 checkpoints"):
        chosen(tmp_path, which)


def test_playing_does_not_need_the_training_state(tmp_path: Path) -> None:
    (write(tmp_path, 10) / TRAINING_FILE).unlink()
    assert chosen(tmp_path, "best") == (10, [])


# --------------------------------------------------------------------------------------------------------------- prune


def test_pruning_keeps_the_newest_five_and_the_best(tmp_path: Path) -> None:
    for number in range(1, 9):
        write(tmp_path, 10 * number, (99.0 if number == 2 else number,) * 100)
    checkpoint.prune(tmp_path)
    assert steps(tmp_path) == [20, 40, 50, 60, 70, 80]


def test_pruning_keeps_five_if_the_best_is_among_them(tmp_path: Path) -> None:
    for number in range(1, 9):
        write(tmp_path, 10 * number, (float(number),) * 100)
    checkpoint.prune(tmp_path)
    assert steps(tmp_path) == [40, 50, 60, 70, 80]


def test_damaged_ones_that_resuming_passed_over_push_out_no_whole_one(tmp_path: Path) -> None:
    for number in range(1, 13):
        write(tmp_path, 10 * number)
    for number in range(8, 13):
        flip_a_byte(tmp_path / checkpoint.folder_name(10 * number) / TRAINING_FILE)
    resumed, warnings = newest(tmp_path)
    assert (checkpoint.steps_of(resumed), len(warnings)) == (70, 5)
    checkpoint.prune(tmp_path, write(tmp_path, 75))
    assert steps(tmp_path) == [40, 50, 60, 70, 75, 80, 90, 100, 110, 120]
    assert checkpoint.steps_of(newest(tmp_path)[0]) == 75


def test_the_best_that_is_kept_is_a_whole_one(tmp_path: Path) -> None:
    for number in range(1, 9):
        write(tmp_path, 10 * number, ({1: 98.0, 2: 99.0}.get(number, number),) * 100)
    flip_a_byte(tmp_path / checkpoint.folder_name(20) / MODEL_FILE)
    checkpoint.prune(tmp_path)
    assert steps(tmp_path) == [10, 40, 50, 60, 70, 80]


def test_pruning_touches_nothing_but_checkpoints(tmp_path: Path) -> None:
    for number in range(1, 9):
        write(tmp_path, 10 * number)
    (tmp_path / "notes.txt").touch()
    elsewhere = write(tmp_path / "elsewhere", 5)
    (tmp_path / elsewhere.name).symlink_to(elsewhere)
    checkpoint.prune(tmp_path)
    assert {"notes.txt", elsewhere.name} <= set(names(tmp_path))
    assert checkpoint.is_whole(elsewhere)


@pytest.mark.parametrize("number", [0, 5])
def test_pruning_few_checkpoints_deletes_none(tmp_path: Path, number: int) -> None:
    for position in range(number):
        write(tmp_path, 10 * position)
    checkpoint.prune(tmp_path)
    assert len(names(tmp_path)) == number


def test_pruning_removes_what_killed_writers_left_behind(tmp_path: Path) -> None:
    (tmp_path / ".step_000000000010.1.tmp").mkdir()
    checkpoint.prune(tmp_path)
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------------------------- what is in the way


def a_file(path: Path) -> None:
    path.write_text("stray")


def a_link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def a_link_to_a_folder(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    (path.parent / "elsewhere" / "precious").touch()
    path.symlink_to("elsewhere")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder_of_1000_in_each_other(path: Path) -> None:
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)


OBSTACLES = [a_file, a_link_to_nowhere, a_link_to_a_folder, a_pipe]
# The scratch folder of the save, that of the oldest's deletion, another's, and the one a damaged checkpoint is set
# aside to.
NEEDED = [".step_000000000080.PID.tmp", ".step_000000000010.tmp", ".step_1.tmp", "step_000000000080.damaged"]


@pytest.fixture(scope="module")
def damaged_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("run")
    for number in range(1, 9):
        write(parent, 10 * number)
    flip_a_byte(parent / "step_000000000080" / MODEL_FILE)
    return parent


@pytest.mark.parametrize(
    ("put", "name"),
    [*itertools.product(OBSTACLES, NEEDED), (a_folder_of_1000_in_each_other, NEEDED[1])],
)
def test_whatever_is_in_the_way_is_stepped_around_and_named(
    put: Callable[[Path], None], name: str, damaged_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = shutil.copytree(damaged_run, tmp_path / "run")
    name = name.replace("PID", str(os.getpid()))
    put(parent / name)
    newest = write(parent, 80)
    stays = checkpoint.prune(parent, newest)
    assert checkpoint.is_whole(newest)
    assert steps(parent) == [40, 50, 60, 70, 80]
    assert stays == [f"{parent / name} is in the way and cannot be deleted; another name is used instead"]
    assert checkpoint.prune(parent, newest) == stays
    assert {path.name for path in parent.iterdir() if not path.name.startswith("step_")} <= {"elsewhere", name}
    assert put is not a_link_to_a_folder or (parent / "elsewhere" / "precious").exists()
    if put is a_folder_of_1000_in_each_other:
        monkeypatch.chdir(parent / name)
        delete_from_the_innermost_on()


def delete_from_the_innermost_on() -> None:
    """Delete the folder `d`, whose folders within folders are too many for pytest as well."""
    depth = 0
    while os.path.isdir("d"):
        os.chdir("d")
        depth += 1
    for _ in range(depth):
        os.chdir("..")
        os.rmdir("d")


def test_a_checkpoint_that_cannot_be_deleted_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 9):
        write(tmp_path, 10 * number)
    rename = Path.rename

    def busy(self: Path, target: Path) -> Path:
        if self.name == "step_000000000010":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", busy)
    (stays,) = checkpoint.prune(tmp_path)
    assert stays == f"{tmp_path / 'step_000000000010'} could not be deleted: Device or resource busy"
    assert steps(tmp_path) == [10, 40, 50, 60, 70, 80]
