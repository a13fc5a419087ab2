"""CSV files that read, after a stop and a resume, like those of a run that was never stopped."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo.config import Config
from ppo.outputs.trackers import CsvFiles, FinishedEpisode, Metrics, TensorBoard, Trackers, write_config


def metrics(update: int, **others: float | None) -> dict[str, float | int | None]:
    return {"update": update, "env_steps": update * 10, "rollout/return_mean": None, "update/entropy": 1.25, **others}


def game(episode: int, update: int) -> FinishedEpisode:
    return FinishedEpisode(
        episode=episode,
        update=update,
        env_steps=update * 10 - 3,
        environment=2,
        episode_return=-21.0,
        episode_length=764,
        seconds=12.34567,
    )


def log_updates(folder: Path, updates: Sequence[int], *, resumed_update: int = 0) -> None:
    """Log updates with one finished game each."""
    files = CsvFiles(folder, resumed_update)
    for update in updates:
        files.log(metrics(update), [game(update, update)])
    files.close()


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_progress_has_a_row_per_update_under_the_names_of_the_metrics(tmp_path: Path) -> None:
    log_updates(tmp_path, [1, 2])
    first, second = rows(tmp_path / "progress.csv")
    assert first == {"update": "1", "env_steps": "10", "rollout/return_mean": "", "update/entropy": "1.25"}
    assert second["update"] == "2"


def test_what_is_not_known_yet_is_an_empty_cell(tmp_path: Path) -> None:
    log_updates(tmp_path, [1])
    assert (tmp_path / "progress.csv").read_text().splitlines()[1] == "1,10,,1.25"


@pytest.mark.parametrize("value", [np.float64(0.1), np.float32(0.5), np.int64(3)])
def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path, value: float) -> None:
    files = CsvFiles(tmp_path, 0)
    files.log({"update": 1, "update/entropy": value}, [])
    files.close()
    assert float(rows(tmp_path / "progress.csv")[0]["update/entropy"]) == value


def test_floats_are_written_without_loss(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    files = CsvFiles(tmp_path, 0)
    files.log(metrics(1, other=value), [])
    files.close()
    assert float(rows(tmp_path / "progress.csv")[0]["other"]) == value


def test_episodes_has_a_row_per_game(tmp_path: Path) -> None:
    files = CsvFiles(tmp_path, 0)
    files.log(metrics(1), [game(1, 1), game(2, 1)])
    files.log(metrics(2), [])
    files.close()
    first, second = rows(tmp_path / "episodes.csv")
    assert first == {
        "episode": "1",
        "update": "1",
        "env_steps": "7",
        "environment": "2",
        "return": "-21.0",
        "length": "764",
        "time/seconds": "12.346",
    }
    assert second["episode"] == "2"


def test_before_the_first_game_episodes_has_a_header_and_no_rows(tmp_path: Path) -> None:
    CsvFiles(tmp_path, 0).close()
    assert (tmp_path / "episodes.csv").read_text().startswith("episode,update,env_steps,")
    assert rows(tmp_path / "episodes.csv") == []


def test_rows_are_on_disk_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    files = CsvFiles(tmp_path, 0)
    files.log(metrics(1), [game(1, 1)])
    assert len(rows(tmp_path / "progress.csv")) == len(rows(tmp_path / "episodes.csv")) == 1
    files.close()


# ------------------------------------------------------------------------------------------------------------- resume


FILES = ("progress.csv", "episodes.csv")


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def test_a_resumed_run_leaves_the_bytes_of_a_run_that_was_never_stopped(tmp_path: Path) -> None:
    log_updates(tmp_path / "whole", [1, 2, 3, 4])
    log_updates(tmp_path / "stopped", [1, 2, 3])  # killed after update 3, last saved after update 2
    log_updates(tmp_path / "stopped", [3, 4], resumed_update=2)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_torn_last_line_is_dropped_on_resume(tmp_path: Path, cut: int) -> None:
    log_updates(tmp_path / "whole", [1, 2, 3, 4])
    log_updates(tmp_path / "torn", [1, 2, 3])
    for name in FILES:
        path = tmp_path / "torn" / name
        path.write_bytes(path.read_bytes()[:-cut])
    log_updates(tmp_path / "torn", [3, 4], resumed_update=2)
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_a_torn_line_whose_number_reads_as_an_earlier_update_is_dropped_too(tmp_path: Path) -> None:
    log_updates(tmp_path / "whole", range(1, 13))
    log_updates(tmp_path / "torn", range(1, 12))
    for name in FILES:
        with open(tmp_path / "torn" / name, "a") as file:
            file.write("1")  # the first digit of 12
    log_updates(tmp_path / "torn", [12], resumed_update=11)
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_a_line_that_lacks_its_end_is_dropped_rather_than_joined_with_the_next(tmp_path: Path) -> None:
    log_updates(tmp_path, [1, 2, 3])
    for name in FILES:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    log_updates(tmp_path, [4], resumed_update=3)
    assert [[row["update"] for row in rows(tmp_path / name)] for name in FILES] == [["1", "2", "4"]] * 2


def test_a_run_that_starts_anew_starts_new_files(tmp_path: Path) -> None:
    log_updates(tmp_path, [1, 2, 3])
    log_updates(tmp_path, [1])
    assert [len(rows(tmp_path / name)) for name in FILES] == [1, 1]


def test_resuming_without_the_files_starts_new_ones(tmp_path: Path) -> None:
    log_updates(tmp_path, [6], resumed_update=5)
    assert [rows(tmp_path / name)[0]["update"] for name in FILES] == ["6", "6"]


def test_resuming_leaves_no_other_files(tmp_path: Path) -> None:
    log_updates(tmp_path, [1, 2])
    log_updates(tmp_path, [2], resumed_update=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


# ------------------------------------------------------------------------------------------------------ other trackers


class Recorder:
    """A tracker that remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        self.heard.append(f"log {metrics['update']} {len(episodes)}")

    def say(self, text: str) -> None:
        self.heard.append(f"say {text}")

    def close(self) -> None:
        self.heard.append("close")


def test_several_trackers_all_hear_everything() -> None:
    first, second = Recorder(), Recorder()
    both = Trackers([first, second])
    both.say("hello")
    both.log(metrics(1), [game(1, 1)])
    both.close()
    assert first.heard == second.heard == ["say hello", "log 1 1", "close"]


def test_tensorboard_receives_what_is_known(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path, 0)
    board.log(metrics(1), [game(1, 1)])
    board.log({**metrics(2), "rollout/return_mean": -21.0}, [])
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert curves == {
        "update/entropy": [(10, 1.25), (20, 1.25)],
        "rollout/return_mean": [(20, -21.0)],
        "episode/return": [(7, -21.0)],
        "episode/length": [(7, 764.0)],
    }


def test_config_json_holds_the_settings_and_facts(tmp_path: Path) -> None:
    write_config(tmp_path / "run", Config(), ranks=4)
    data = json.loads((tmp_path / "run" / "config.json").read_text())
    assert data.pop("ranks") == 4
    assert Config.from_dict(data) == Config()
