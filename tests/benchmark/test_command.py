"""The benchmark's command line."""

import json
import signal
import subprocess
import sys
import time

import pytest

from scripts.benchmarking.__main__ import main
from scripts.benchmarking.jobs import ROOT
from scripts.benchmarking.processes import available_cores, descendants, is_running
from tests.jobs import environment, separately

COMMAND = [sys.executable, "-m", "scripts.benchmarking"]
TINY = ["--", "--num_envs=2", "--rollout_steps=16", "--minibatch_size=32", "--num_epochs=1"]
SHORT = ["--seconds=0.5", "--warm_up_seconds=0", "--limit_seconds=0.02"]


@pytest.mark.parametrize(
    "extent",
    [
        ("--quick",),
        pytest.param(("--presets", "atari", "--repeats=1", "--no-stable_baselines3"), marks=pytest.mark.slow),
    ],
)
def test_a_run_measures_and_writes_what_it_measured(tmp_path, extent):
    ranks = min(2, len(available_cores()))
    flags = [*extent, f"--ranks={ranks}", *SHORT, "--worlds=CartPole-v1", f"--output={tmp_path}/results", *TINY]
    job = separately([*COMMAND, *flags], ROOT)
    assert job.returncode == 0, job.stderr
    assert "| steps per second over the ideal" in job.stdout
    assert "| added to a step of a bare environment, 64 of CartPole-v1 | at most 15 us |" in job.stdout
    assert sorted(str(p.relative_to(tmp_path / "results")) for p in (tmp_path / "results").rglob("*.*")) == [
        "benchmark.md", "figures/benchmark.png", "measurements/benchmark.json",
    ]  # fmt: skip
    data = json.loads((tmp_path / "results/measurements/benchmark.json").read_text())
    (measured,) = data["rounds"]
    case = measured["cases"][f"atari -np {ranks}"]
    assert [rank["cores"] for rank in case["program"]["ranks"]] == [[core] for core in available_cores()[:ranks]]
    rates = [of_ranks for m in ("before", "after") for ways in case[m]["ways"].values() for of_ranks in ways.values()]
    assert (case["before"] == case["after"]) == ("--quick" in extent)
    assert all(len(of_ranks) == ranks and min(of_ranks) > 0 for of_ranks in rates)
    assert case["program"]["steps_per_second"] == pytest.approx(32 / case["program"]["update_seconds"])
    assert sum(case["program"]["phases"].values()) == pytest.approx(case["program"]["update_seconds"])
    assert case["program"]["phases"]["save"] > 0
    assert len(measured["seconds_to_first_update"]) == 2
    assert 0 < measured["block_costs"]["CartPole-v1"]["bare"] < 1000
    assert (
        f"{data['summary'][f'atari -np {ranks}']['steps_per_second']['median']:,.1f}"
        in (tmp_path / "results/benchmark.md").read_text()
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ranks=99999"], "ranks must be between 1 and the"),
        (["--presets=atarri"], "did you mean 'atari'?"),
        (["--quick", "--", "--run_dir=elsewhere"], "run_dir must not be among the flags after --"),
        (["--quick", "--output=notes"], "output must be a folder whose benchmark.md"),
        (["--quick", "--output=notes/benchmark.md"], "output must be a folder"),
    ],
)
def test_a_wrong_flag_is_refused_once_with_code_2_and_nothing_is_made(flags, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/benchmark.md").write_text("# My own notes\n")
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count(message) == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["benchmark.md", "notes"]


def test_a_flag_that_there_is_not_is_refused_with_code_2():
    job = separately([*COMMAND, "--repeat=3"], ROOT)
    assert job.returncode == 2
    assert "--repeat" in job.stderr


def test_a_program_that_fails_ends_the_benchmark_with_its_output():
    broken = {"PRTE_MCA_rmaps_default_mapping_policy": "nonsense"}
    job = separately([*COMMAND, "--quick", "--ranks=1", *TINY], ROOT, **broken)
    assert job.returncode == 1
    assert "ended by itself" in job.stderr
    assert "nonsense" in job.stderr
    assert "Traceback" not in job.stderr


def test_a_benchmark_that_is_ended_leaves_no_job_behind():
    process = subprocess.Popen(
        [*COMMAND, "--quick", "--ranks=1", *TINY],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while not (family := descendants(process.pid)):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=40)
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(is_running(pid) for pid in family)
