"""`--keep_checkpoints`: a number of the newest, all, or every K-th; the best always."""

from pathlib import Path

import pytest
import torch

from ppo.config import Config
from ppo.outputs import checkpoint
from ppo.outputs.manifest import MODEL_FILE, Counters
from tests.jobs import CARTPOLE, ppo

CONFIG = Config().replace_settings({"checkpoint_interval": 3})


def write(parent: Path, update: int, evaluation: float | None = None, config: Config = CONFIG) -> Path:
    """Write a checkpoint of an update that is as many steps."""
    counters = Counters(update, update, 1.5, 0, (), evaluation)
    return checkpoint.write_checkpoint(parent, config, counters, {"model/weight": torch.zeros(1)}, None)


def kept(parent: Path, keep: str, newest: Path | None = None) -> list[int]:
    """Prune, and return the updates that are left."""
    checkpoint.prune(parent, newest, keep)
    return [checkpoint.steps_of(folder) for folder in checkpoint.list_checkpoints(parent)]


@pytest.mark.parametrize(("keep", "left"), [("1", [33]), ("3", [27, 30, 33]), ("12", list(range(0, 34, 3)))])
def test_a_number_keeps_so_many_of_the_newest(keep: str, left: list[int], tmp_path: Path) -> None:
    for update in range(0, 34, 3):
        write(tmp_path, update)
    assert kept(tmp_path, keep) == left


@pytest.mark.parametrize(("keep", "left"), [("2", [6, 30, 33]), ("every=4", [0, 6, 12, 21, 24, 27, 30, 33])])
def test_the_best_by_evaluation_is_kept_besides(keep: str, left: list[int], tmp_path: Path) -> None:
    for update in range(0, 34, 3):
        write(tmp_path, update, evaluation={6: 9.0, 12: 8.0}.get(update))
    assert kept(tmp_path, keep) == left


def test_all_keeps_all(tmp_path: Path) -> None:
    for update in range(0, 34, 3):
        write(tmp_path, update)
    (tmp_path / ".step_000000000010.1.tmp").mkdir()
    assert kept(tmp_path, "all") == list(range(0, 34, 3))
    assert not list(tmp_path.glob(".*"))


def test_every_kth_is_the_same_whatever_was_saved_between_or_pruned_before(tmp_path: Path) -> None:
    at_once, one_by_one = tmp_path / "at-once", tmp_path / "one-by-one"
    for update in (*range(0, 61, 3), 5, 25, 50):
        write(at_once, update)
    for update in sorted((*range(0, 61, 3), 5, 25, 50)):
        newest = write(one_by_one, update)
        checkpoint.prune(one_by_one, newest, "every=4")
    expected = [0, 12, 24, 36, 48, 50, 51, 54, 57, 60]
    assert kept(at_once, "every=4") == kept(one_by_one, "every=4") == expected


def test_every_kth_counts_in_the_interval_that_a_checkpoint_was_saved_with(tmp_path: Path) -> None:
    slower = CONFIG.replace_settings({"checkpoint_interval": 5})
    for update in range(0, 31, 3):
        write(tmp_path, update)
    for update in range(35, 76, 5):
        write(tmp_path, update, config=slower)
    assert kept(tmp_path, "every=2") == [0, 6, 12, 18, 24, 30, 40, 50, 55, 60, 65, 70, 75]


def test_a_damaged_one_is_none_of_every_kth_and_the_whole_ones_stay(tmp_path: Path) -> None:
    folders = {update: write(tmp_path, update) for update in range(0, 34, 3)}
    (folders[12] / checkpoint.MANIFEST_FILE).write_text("{}")
    assert kept(tmp_path, "every=4") == [0, 21, 24, 27, 30, 33]


def test_none_is_deleted_while_none_is_whole(tmp_path: Path) -> None:
    folders = [write(tmp_path, update) for update in range(0, 10, 3)]
    for folder in folders:
        (folder / MODEL_FILE).unlink()
    assert kept(tmp_path, "1") == [0, 3, 6, 9]


def test_a_run_keeps_what_its_flag_says(tmp_path: Path) -> None:
    flags = ["--env_steps=512", "--checkpoint_interval=1", "--keep_checkpoints=every=2"]
    assert ppo(tmp_path, *CARTPOLE, *flags).returncode == 0
    steps = [checkpoint.steps_of(path) for path in checkpoint.list_checkpoints(tmp_path / "checkpoints/CartPole-v1")]
    best = checkpoint.choose(tmp_path / "checkpoints/CartPole-v1", "best", lambda folder, _: folder, print)
    updates = {0, 2, 4, 5, 6, 7, 8}
    assert {step // 64 for step in steps} == updates | {checkpoint.steps_of(best) // 64}


def test_a_flag_that_means_nothing_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    job = ppo(tmp_path, *CARTPOLE, "--keep_checkpoints=every")
    assert job.returncode == 2
    assert "keep_checkpoints must be a number from 1 on, all or every=K with such a number K, got 'every'" in job.stderr
    assert list(tmp_path.iterdir()) == []
