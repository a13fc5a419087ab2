"""The comparison of two speeds, with a program in place of trainings whose updates take a known time."""

import re
from pathlib import Path

import pytest

from scripts import compare_speed

# Started as mpirun would be. Its child, like a rank, adds a line to the log after each update, which takes as many
# naps as a file in the clone says, or a flag. A nap ends while its process is stopped, so no work is done then.
LAUNCHER = """#!/usr/bin/env bash
shift 5  # -np 1 PYTHON -m ppo
python - "$@" <<'END' &
import os, sys, time
from pathlib import Path
flags = [flag.removeprefix("--naps=") for flag in sys.argv if flag.startswith("--naps=")]
naps = int(flags[-1] if flags else (Path(os.environ["PYTHONPATH"]) / "naps").read_text())
if not naps:
    sys.exit("naps must be at least 1, got 0")
Path("runs").mkdir()
with Path("runs/progress.csv").open("w", buffering=1) as log:
    print("update", file=log)
    while True:
        for _ in range(naps):
            time.sleep(0.002)
        print("1", file=log)
END
wait
"""
SECONDS = ["--seconds=1", "--slice_seconds=0.1"]


@pytest.fixture
def clones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Two clones; an update takes half as long in the second one."""
    launcher = tmp_path / "launcher"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    monkeypatch.setattr(compare_speed, "MPIRUN", str(launcher))
    for name, naps in (("old", 16), ("new", 8)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "naps").write_text(str(naps))
    return str(tmp_path / "old"), str(tmp_path / "new")


def printed_ratio(capsys: pytest.CaptureFixture[str]) -> float:
    return float(re.findall(r"old / new (\S+) \+- ", capsys.readouterr().out)[0])


def test_a_new_clone_that_takes_half_the_time_has_a_ratio_of_two(clones, capsys):
    compare_speed.main([*clones, *SECONDS])
    assert printed_ratio(capsys) == pytest.approx(2.0, rel=0.25)


def test_flags_for_the_new_one_change_nothing_in_the_old_one(clones, capsys):
    compare_speed.main([clones[0], clones[0], *SECONDS, "--new_flags=--naps=32"])
    assert printed_ratio(capsys) == pytest.approx(0.5, rel=0.25)


def test_a_job_that_ends_shows_what_it_said(clones):
    with pytest.raises(SystemExit, match="naps must be at least 1, got 0"):
        compare_speed.main([*clones, *SECONDS, "--", "--naps=0"])


def test_too_few_updates_are_refused(clones):
    with pytest.raises(SystemExit, match="use more --seconds"):
        compare_speed.main([*clones, "--seconds=0.2", "--slice_seconds=0.2", "--", "--naps=40"])
