import json
import os
from unittest import mock

import numpy as np
import pytest

from ppo.config import Config
from ppo.report import logs as logs_module
from ppo.report.logs import read_facts, read_logs

HEADER = "update,env_steps,time/seconds,rollout/return_mean,update/entropy"


def write(folder, *rows, header=HEADER, name="progress.csv"):
    (folder / name).write_text("\n".join([header, *rows]) + "\n")


def test_a_folder_without_logs_is_empty_and_no_error(tmp_path):
    logs = read_logs(tmp_path / "none")
    assert len(logs.curves["env_steps"]) == logs.num_games == len(logs.newest["return"]) == 0
    assert (logs.facts, logs.messages, logs.evaluation) == ({}, [], None)
    assert logs.settings is None


def test_what_is_no_finite_number_is_nan(tmp_path):
    write(tmp_path, "1,16,0.5,,<script>", "2,32,1.0,nan,1e999", "3,48,1.5,-20,1.25")
    curves = read_logs(tmp_path).curves
    assert curves["env_steps"].tolist() == [16, 32, 48]
    np.testing.assert_array_equal(curves["rollout/return_mean"], [np.nan, np.nan, -20])
    np.testing.assert_array_equal(curves["update/entropy"], [np.nan, np.nan, 1.25])
    assert np.isnan(curves["update/clip_fraction"]).all()


def test_a_row_that_is_still_being_written_does_not_count(tmp_path):
    (tmp_path / "progress.csv").write_text(f"{HEADER}\n1,16,0.5,1,1\n2,3")
    assert read_logs(tmp_path).curves["env_steps"].tolist() == [16]


def test_long_logs_become_few_points_whose_values_are_means_and_whose_places_are_the_last(tmp_path):
    write(tmp_path, *(f"{n},{16 * n},{n / 2},{n},0" for n in range(1, 5001)))
    curves = read_logs(tmp_path).curves
    steps, returns = curves["env_steps"], curves["rollout/return_mean"]
    assert 700 <= len(steps) < 1400
    assert steps[-1] == 16 * 5000
    assert returns[0] == pytest.approx(np.mean(np.arange(1, 5)))
    assert steps[0] == 16 * 4


def test_of_many_games_some_are_kept_and_all_are_counted(tmp_path):
    header = "episode,update,env_steps,environment,return,length,time/seconds"
    write(tmp_path, *(f"{n},1,{n},0,{n},9,1" for n in range(10_000)), header=header, name="episodes.csv")
    logs = read_logs(tmp_path)
    assert logs.num_games == 10_000
    assert len(logs.games["return"]) < 3000
    assert logs.newest["return"].tolist() == list(range(9000, 10_000))
    assert logs.games["return"][[0, -1]].tolist() == [3, 9999]


def test_of_many_games_only_those_that_are_shown_are_parsed(tmp_path, monkeypatch):
    number = mock.Mock(wraps=logs_module._number)
    monkeypatch.setattr(logs_module, "_number", number)
    write(tmp_path, *(f"{n}" for n in range(20_000)), header="return", name="episodes.csv")
    assert read_logs(tmp_path).num_games == 20_000
    assert number.call_count < 4 * 10_000


def test_links_and_folders_in_place_of_logs_are_not_read(tmp_path):
    (tmp_path / "secret").write_text(f"{HEADER}\n1,16,0.5,1,1\n")
    os.symlink(tmp_path / "secret", tmp_path / "progress.csv")
    (tmp_path / "episodes.csv").mkdir()
    os.mkfifo(tmp_path / "messages.txt")
    logs = read_logs(tmp_path)
    assert len(logs.curves["env_steps"]) == 0 and logs.messages == []


def test_only_warnings_are_taken_from_the_messages_in_printable_lines(tmp_path):
    (tmp_path / "messages.txt").write_bytes(b"2026 done\n2026 WARNING: \x1b[31mred\xff\n")
    (message,) = read_logs(tmp_path).messages
    assert message.startswith("2026 WARNING: ?[31mred")


def test_facts_of_a_wrong_type_are_left_out(tmp_path):
    facts = {
        "started": 3,
        "command": "python -m ppo\n--x",
        "hosts": ["a", "a", "b", 7],
        "commit": None,
        "other": "x",
        "ranks": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(facts))
    assert read_logs(tmp_path).facts == {"command": "python -m ppo --x", "hosts": "a (2 ranks), b"}
    (tmp_path / "config.json").write_text(json.dumps({"ranks": 2}))
    assert read_facts(tmp_path) == {"ranks": "2"}
    for ranks in (-2, 0, 10**4000):
        (tmp_path / "config.json").write_text(json.dumps({"ranks": ranks}))
        assert read_facts(tmp_path) == {}
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert read_logs(tmp_path).facts == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"run": 3},
        {"run": {"env_name": ["x"]}},
        {"run": {"env_name": "CartPole-v1", "rng_seed": "<script>"}},
        {"run": {"env_name": "CartPole-v1", "of_another_version": 1}},
        {"ppo": {"num_envs": 1e300}},
        {"world": None},
    ],
)
def test_settings_are_read_whole_or_not_at_all(changes, tmp_path):
    settings = Config().replace_settings({"num_epochs": 9}).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**settings, "command": "python -m ppo"}))
    assert read_logs(tmp_path).settings.ppo.num_epochs == 9
    (tmp_path / "config.json").write_text(json.dumps({**settings, **changes, "command": "python -m ppo"}))
    logs = read_logs(tmp_path)
    assert logs.settings is None and logs.facts == {"command": "python -m ppo"}


def test_an_evaluation_counts_only_if_all_its_numbers_are_numbers(tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"return_mean": 20.5, "episodes": 100, "env_steps": 1000}))
    assert read_logs(tmp_path).evaluation == {"score": 20.5, "games": 100, "steps": 1000}
    path.write_text(json.dumps({"return_mean": "<b>", "episodes": 100, "env_steps": 1000}))
    assert read_logs(tmp_path).evaluation is None
