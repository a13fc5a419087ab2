"""The check of every registered id: an id of each kind comes to its outcome, and the check can fail."""

import importlib.util
from pathlib import Path

import gymnasium
import pytest

from scripts.check_every_world import (
    ANEW,
    ENDLESS,
    FAILED,
    LEARNT,
    Options,
    Row,
    all_ids,
    read_rows,
    summary,
    table,
    try_apart,
    try_world,
    write_rows,
)
from tests.jobs import ppo

MODULE = "tests.odd_worlds"


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Try an id within this process; return its row."""
    monkeypatch.chdir(tmp_path)

    def run(flags):
        job = ppo(tmp_path, *flags)
        return job.returncode, job.stdout + job.stderr

    def last_row(env_name: str) -> Row:
        *_, row = try_world(env_name, run)
        return row

    return last_row


@pytest.mark.parametrize(
    "env_name",
    ["CartPole-v1", "Blackjack-v1", "PongNoFrameskip-v4", f"{MODULE}:OddObservations-v0", f"{MODULE}:OddActions-v0"],
)
def test_a_world_of_each_kind_is_learnt_resumed_exactly_and_evaluated(tried, env_name: str) -> None:
    row = tried(env_name)
    assert (row.outcome, row.resumed) == (LEARNT, "exactly"), row.message


def test_text_that_is_left_out_is_named(tried) -> None:
    row = tried(f"{MODULE}:OddObservations-v0")
    assert row.message == "text left out: word"
    assert row.observations == "Dict(Text, Tuple(Discrete(3), MultiBinary(2, 2)))"


@pytest.mark.parametrize(
    ("env_name", "outcome"),
    [
        ("Pong-v4", "refused: Atari id of another protocol"),
        pytest.param(
            "phys2d/CartPole-v1",
            "refused: package missing",
            marks=pytest.mark.skipif(importlib.util.find_spec("jax") is not None, reason="jax is installed"),
        ),
        ("HalfCheetah-v3", "refused: retired version"),
        (f"{MODULE}:Words-v0", "refused: spaces of Text, Graph or Sequence"),
        (f"{MODULE}:Speech-v0", "refused: spaces of Text, Graph or Sequence"),
        (f"{MODULE}:TinyImages-v0", "refused: images too small for the network"),
        (f"{MODULE}:Broken-v0", "refused: constructor fails"),
    ],
)
def test_every_allowed_refusal_is_an_outcome_of_its_own(tried, env_name: str, outcome: str) -> None:
    assert tried(env_name).outcome == outcome


def test_a_refusal_for_another_reason_is_a_fault(tried) -> None:
    row = tried("NoSuchWorld-v0")
    assert row.outcome == FAILED and "is not a known environment" in row.message


def test_a_world_that_does_not_repeat_itself_is_found(tried) -> None:
    row = tried(f"{MODULE}:Forgetful-v0")
    assert (row.outcome, row.resumed) == (ANEW, "with new episodes")


def test_a_world_that_shows_only_later_that_it_was_not_brought_back_is_a_fault(tried) -> None:
    row = tried(f"{MODULE}:Secretive-v0")
    assert row.outcome == FAILED and "step 4 after restoring an environment differs: observation" in row.message


def test_crashes_hangs_and_episodes_without_an_end_are_rows() -> None:
    crashed = try_apart(f"{MODULE}:Crashing-v0", Options())
    assert crashed.outcome == FAILED and "training: the process ended with code 3" in crashed.message
    hung = try_apart(f"{MODULE}:Hanging-v0", Options(seconds=2.0))
    assert hung.outcome == FAILED and hung.message == "training for more than 2 seconds"
    endless = try_apart(f"{MODULE}:Endless-v0", Options(evaluation_seconds=0.5))
    assert endless.outcome == ENDLESS and endless.resumed == "exactly"


def test_ids_of_a_package_are_named_with_it_and_all_ids_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_worlds.py").write_text("import gymnasium\ngymnasium.register('Late-v0', 'late_worlds:Late')\n")
    monkeypatch.syspath_prepend(tmp_path)
    ids = all_ids(["late_worlds", "no_such_package"])
    gymnasium.registry.pop("Late-v0")
    assert "late_worlds:Late-v0" in ids and "ALE/Pong-v5" in ids and "ppo/ReachingDot-v0" in ids
    assert len(ids) == len(set(ids))


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [Row("A-v0", "others", "Dict(Box(2,), Text)", outcome=FAILED, message='a "b", c\nd', cpu_seconds=1.25)]
    assert read_rows(tmp_path / "rows.csv") == {}
    write_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == {"A-v0": rows[0]}


def test_the_table_counts_every_outcome_and_names_only_the_unusual() -> None:
    retired = [
        Row(name, "mujoco", outcome="refused: retired version", message=f"{name} moved") for name in ("A-v2", "B-v3")
    ]
    rows = [Row("CartPole-v1", "control", outcome=LEARNT), *retired]
    text = table(rows)
    assert "**3 of 3 ids are served" in text and "CartPole-v1" not in text
    assert "| mujoco | 2 |  | 2 |" in text and "| **all** | 3 | 1 | 2 |" in text
    assert "| A-v2 and 1 more | mujoco |" in text and "B-v3" not in text
    assert summary(rows).split() == ["1", *LEARNT.split(), "2", *["refused:", "retired", "version"]]
