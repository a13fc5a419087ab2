import os

import numpy as np
import pytest

from ppo.viewer import progress as progress_module
from ppo.viewer.progress import Progress

HEADER = "update,env_steps,time/seconds,rollout/return_mean\n"


def row(number, mean="1.5"):
    return f"{number},{16 * number},{number / 2},{mean}\n"


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text(HEADER)
    return path


def append(path, text):
    with open(path, "a") as file:
        file.write(text)


def steps(progress):
    columns = progress.columns
    return columns["env_steps"].tolist() if columns else []


def test_rows_are_followed_as_they_come(log):
    progress = Progress()
    progress.poll(log)
    for number in range(1, 6):
        append(log, row(number))
        assert progress.poll(log)
        assert steps(progress) == [16 * n for n in range(1, number + 1)]
    assert not progress.poll(log)


def test_only_what_is_new_is_read(log, monkeypatch):
    progress, taken = Progress(), []
    append(log, "".join(map(row, range(1, 100))))
    progress.poll(log)
    monkeypatch.setattr(progress, "_take", taken.append)
    append(log, row(100))
    progress.poll(log)
    assert taken == [row(100).strip().encode()]


def test_a_row_that_is_still_being_written_waits_for_its_end(log):
    progress = Progress()
    append(log, row(1) + "2,3")
    progress.poll(log)
    assert steps(progress) == [16]
    append(log, "2,1.0,7\n")
    assert progress.poll(log)
    assert steps(progress) == [16, 32]
    assert progress.columns["rollout/return_mean"].tolist() == [1.5, 7.0]


def test_a_file_that_a_fresh_run_has_put_there_is_read_from_its_beginning(log):
    progress = Progress()
    append(log, row(1) + row(2))
    progress.poll(log)
    os.replace(log, log.with_suffix(".old"))
    log.write_text(HEADER + row(7) + row(8) + row(9))
    assert progress.poll(log)
    assert steps(progress) == [112, 128, 144]


@pytest.mark.parametrize("others", [1, 5], ids=["shorter", "longer than before"])
def test_a_file_that_a_resumed_run_has_cut_and_written_on_is_read_from_its_beginning(log, others):
    progress = Progress()
    append(log, "".join(map(row, range(1, 5))))
    progress.poll(log)
    kept = HEADER + row(1) + row(2)
    with open(log, "r+") as file:
        file.truncate(len(kept))
        file.seek(len(kept))
        file.write("".join(row(n, "-3") for n in range(3, 3 + others)))
    assert progress.poll(log)
    assert steps(progress) == [16 * n for n in range(1, 3 + others)]
    assert progress.columns["rollout/return_mean"][2] == -3


def test_a_file_that_goes_and_comes_is_no_error(log):
    progress = Progress()
    append(log, row(1))
    progress.poll(log)
    log.unlink()
    assert progress.poll(log) and progress.columns == {} and progress.seconds_since == 0.0
    assert not progress.poll(log)
    log.write_text(HEADER + row(3))
    assert progress.poll(log) and steps(progress) == [48]


def test_a_long_log_is_read_in_parts_and_takes_little_memory(log, monkeypatch):
    monkeypatch.setattr(progress_module, "_BYTES_AT_ONCE", 1000)
    append(log, "".join(map(row, range(1, 3001))))
    progress, calls = Progress(), 0
    while progress.poll(log):
        calls += 1
    assert calls > 30
    assert len(steps(progress)) < 700 and steps(progress)[-1] == 48_000


def test_a_link_is_not_followed(log, tmp_path):
    append(log, row(1))
    (tmp_path / "link.csv").symlink_to(log)
    progress = Progress()
    assert not progress.poll(tmp_path / "link.csv") and progress.columns == {}


@pytest.mark.parametrize("size", [70_000, 3_000_000])
def test_nothing_is_read_of_a_file_behind_a_line_without_an_end(log, size):
    progress = Progress()
    append(log, row(1) + "x" * size)
    progress.poll(log)
    assert steps(progress) == [16]
    append(log, "\n" + row(2))
    for _ in range(5):
        progress.poll(log)
    assert steps(progress) == [16]


def test_a_file_that_replaces_rubbish_is_followed(log):
    log.write_bytes(b"x" * 70_000)
    progress = Progress()
    progress.poll(log)
    os.replace(log, log.with_suffix(".old"))
    log.write_text(HEADER + row(1))
    assert progress.poll(log) and steps(progress) == [16]


def test_what_is_no_number_is_no_number(log):
    progress = Progress()
    append(log, '1,16,0.5,<script>\n"2",32\n\n3,48,1,nan\n')
    progress.poll(log)
    assert np.isnan(progress.columns["rollout/return_mean"]).all()


def test_it_says_how_long_ago_the_training_wrote(log):
    progress = Progress()
    append(log, row(1))
    before = os.stat(log).st_mtime - 100.0
    os.utime(log, (before, before))
    progress.poll(log)
    assert 100.0 <= progress.seconds_since < 110.0


def test_bytes_of_any_kind_are_no_error(log):
    generator = np.random.default_rng(0)
    progress = Progress()
    for _ in range(200):
        kind = generator.integers(4)
        if kind == 0:
            log.write_bytes(generator.bytes(int(generator.integers(2000))))
        elif kind == 1:
            with open(log, "ab") as file:
                file.write(generator.bytes(int(generator.integers(300))).replace(b"\x00", b"\n"))
        elif kind == 2:
            append(log, row(int(generator.integers(10**12))))
        else:
            os.truncate(log, int(generator.integers(log.stat().st_size + 1)))
        progress.poll(log)
        columns = progress.columns
        assert len({len(column) for column in columns.values()}) <= 1
        assert not any(np.isinf(column).any() for column in columns.values())


def test_another_log_is_read_from_its_beginning(log, tmp_path):
    progress = Progress()
    append(log, row(1) + row(2))
    progress.poll(log)
    other = tmp_path / "other.csv"
    other.write_text(HEADER + row(7))
    assert progress.poll(other) and steps(progress) == [112]
    assert progress.poll(log) and steps(progress) == [16, 32]
