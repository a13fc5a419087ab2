import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.benchmarking.jobs import ROOT, Job, JobError, mpirun
from scripts.benchmarking.processes import available_cores, descendants, describe, is_running, numbers_in, variable_of
from tests.jobs import MPI_ENVIRONMENT


def wait_for(path):
    while not path.exists() or not path.read_text().endswith("\n"):
        time.sleep(0.01)
    return path.read_text()


def test_nothing_that_a_job_has_started_outlives_it(tmp_path):
    # The grandchild ignores SIGTERM, and its parent has ended before the block ends.
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    script = f'"{sys.executable}" -c "{stubborn}" > ready & echo $! > pid; wait'
    with Job(["sh", "-c", script], tmp_path):
        pid = int(wait_for(tmp_path / "pid"))
        wait_for(tmp_path / "ready")
        assert is_running(pid)
    assert not is_running(pid)


def test_a_failed_job_s_error_has_its_output(tmp_path):
    with Job(["sh", "-c", "echo broken >&2; exit 4"], tmp_path) as job, pytest.raises(JobError) as error:
        job.wait()
    assert "failed with exit code 4" in str(error.value)
    assert "broken" in str(error.value)


def test_a_job_decides_on_its_threads_itself_and_imports_this_package_wherever_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    script = "import os, ppo; open('said', 'w').write(f'{os.environ.get(\"OMP_NUM_THREADS\")} {ppo.__file__}')"
    for variables, threads in (({}, "None"), ({"OMP_NUM_THREADS": "1"}, "1")):
        with Job([sys.executable, "-c", script], tmp_path, **variables) as job:
            job.wait()
        assert (tmp_path / "said").read_text() == f"{threads} {ROOT / 'ppo/__init__.py'}"


def test_every_rank_runs_on_the_core_named_for_it_whatever_mpirun_would_choose(tmp_path, monkeypatch):
    for name, value in MPI_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    cores = [available_cores()[-1], available_cores()[0]]
    program = "import os, time; open(os.environ['OMPI_COMM_WORLD_RANK'], 'w').write('here\\n'); time.sleep(60)"
    with Job(mpirun(cores, ["-c", program]), tmp_path) as job:
        # A rank is pinned before its program allocates any memory.
        for rank in range(len(cores)):
            wait_for(tmp_path / str(rank))
        assert [rank.cores for rank in job.ranks()] == [[core] for core in cores]
        assert all(1.0 < rank.pss <= rank.peak_rss < 1000.0 for rank in job.ranks())


def test_memory_is_in_units_of_a_million_bytes():
    program = "x = b'1' * 400_000_000; del x; print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    found = describe(process.pid)
    process.communicate(b"\n")
    assert 400 < found.peak_rss < 440  # it is gone, and has been there
    assert found.pss < 100


def test_descendants_are_found_over_generations():
    process = subprocess.Popen(["sh", "-c", "sh -c 'sleep 60 & wait' & wait"])
    while len(found := descendants(process.pid)) < 2:
        time.sleep(0.01)
    assert set(found) < set(descendants(os.getpid()))
    for pid in found:
        os.kill(pid, 9)
    process.wait()


def test_lists_of_cores_are_read_as_linux_writes_them():
    assert numbers_in("0-2,5,8-9\n") == [0, 1, 2, 5, 8, 9]


def test_an_environment_variable_of_another_process_is_found_by_its_whole_name():
    variables = {"RANK": "3", "RANKED": "4"}
    process = subprocess.Popen(["sleep", "60"], env={**os.environ, **variables})
    while b"sleep" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        time.sleep(0.01)
    assert [variable_of(process.pid, name) for name in ("RANK", "RANKED", "RAN")] == ["3", "4", None]
    process.kill()
    process.wait()


def test_the_first_threads_of_cores_come_before_the_second_ones(monkeypatch):
    siblings = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr("pathlib.Path.exists", lambda self: True)
    monkeypatch.setattr("pathlib.Path.read_text", lambda self: siblings[int(self.parts[5].removeprefix("cpu"))])
    assert available_cores() == [0, 2, 1, 3]
