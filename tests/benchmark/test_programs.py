import time

import pytest

from scripts.benchmarking import programs
from scripts.benchmarking.jobs import Job, JobError
from scripts.benchmarking.programs import PHASES, Follower, Window, phases, summarize, watch


def row(env_steps=0, **columns):
    """A row of progress.csv: half a second in every phase unless said otherwise."""
    spent = {f"time/{phase}": "0.5" for phase in ("env", "inference", "learn", "communicate", "wait", "save")}
    given = {f"time/{phase}": str(seconds) for phase, seconds in columns.items()}
    return {"env_steps": str(env_steps), "update/epochs": "3", **spent, **given}


def test_rows_are_read_once_and_only_when_they_are_whole(tmp_path):
    path = tmp_path / "progress.csv"
    follower = Follower(path)
    assert follower.new_rows() == []
    with open(path, "w") as file:
        for text, rows in (
            ("update,env_", []),
            ("steps\n", []),
            ("1,10\n2,2", [{"update": "1", "env_steps": "10"}]),
            ("0\n3,30\n", [{"update": "2", "env_steps": "20"}, {"update": "3", "env_steps": "30"}]),
            ("", []),
        ):
            file.write(text)
            file.flush()
            assert follower.new_rows() == rows


def test_a_program_that_ends_before_its_first_row_is_an_error_with_its_output(tmp_path):
    with (
        Job(["sh", "-c", "echo the emulator is on fire; exit 3"], tmp_path) as job,
        pytest.raises(JobError, match="ended by itself with exit code 3:\nthe emulator is on fire"),
    ):
        Follower(tmp_path / "progress.csv").next_rows(job)


class Program:
    """Stands in for a follower: an update of 10 steps each `seconds`, on a clock of its own."""

    def __init__(self, monkeypatch, seconds):
        self._now, self._seconds, self._steps = 100.0, iter(seconds), 0
        monkeypatch.setattr(programs.time, "monotonic", lambda: self._now)

    def next_rows(self, job):
        self._now += next(self._seconds)
        self._steps += 10
        return [row(self._steps)]


def test_the_window_begins_with_the_row_after_the_warm_up_and_holds_the_updates_asked_for(monkeypatch):
    # Rows at 9, 11, 13 (warm), 14, 15 and 17 s: three updates in 4 s.
    program = Program(monkeypatch, [9.0, 2.0, 2.0, 1.0, 1.0, 2.0, 50.0])
    window = watch(None, program, 3.0, lambda updates, _: updates >= 3)
    assert (window.seconds, window.steps, len(window.rows)) == (4.0, 30, 3)
    assert window.steps_per_second == 7.5


def test_a_window_can_be_asked_for_in_seconds_and_is_rounded_up_to_updates(monkeypatch):
    program = Program(monkeypatch, [9.0, 2.0, 2.0, 2.0, 50.0])
    window = watch(None, program, 0.0, lambda _, seconds: seconds >= 5.0)
    assert (window.seconds, window.steps) == (6.0, 30)


def test_waiting_is_separated_from_communication_and_what_no_clock_measured_from_both():
    rows = [row(env=1.0, communicate=0.3, wait=0.2, save=0.0), row(env=2.0, communicate=0.5, wait=0.1, save=0.4)]
    spent = phases(rows, update_seconds=3.5)
    expected = {"env": 1.5, "inference": 0.5, "learn": 0.5, "communicate": 0.25, "wait": 0.15, "save": 0.2, "else": 0.4}
    assert list(spent) == list(PHASES)
    assert spent == pytest.approx(expected)


def test_a_run_is_the_average_over_its_window():
    rows = [row(update) for update in (2048, 4096)]
    run = summarize(Window(8.0, 4096, rows), [])
    assert (run.steps_per_second, run.updates, run.update_seconds, run.epochs) == (512.0, 2, 4.0, 3.0)
    assert sum(run.phases.values()) == pytest.approx(run.update_seconds)


def test_waiting_for_a_row_returns_when_it_appears(tmp_path):
    script = "sleep 0.3; printf 'env_steps\\n10\\n' > progress.csv; sleep 60"
    with Job(["sh", "-c", script], tmp_path) as job:
        rows = Follower(tmp_path / "progress.csv").next_rows(job)
        assert 0.3 <= time.monotonic() - job.started < 5.0
    assert rows == [{"env_steps": "10"}]
