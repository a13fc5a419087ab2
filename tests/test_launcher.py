"""The launcher behind scripts/train, run as a user would."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ppo.launcher
from ppo.collectives.mpi import OPEN_MPI_VARIABLES, find_mpirun, launching_environment
from ppo.command_line import parse_command_line
from ppo.config import Config
from ppo.launcher import Launch, take_launch
from ppo.outputs.checkpoint import write_checkpoint
from ppo.outputs.manifest import Counters
from ppo.settings import Refusal
from tests.faults.running import ENDLESS, ROOT, RunningJob
from tests.jobs import CARTPOLE, MPI_ENVIRONMENT, rows, separately

LAUNCHER = Path(ppo.launcher.__file__)
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def launch(folder, *flags):
    return separately([sys.executable, str(LAUNCHER), *flags], folder)


def test_a_job_has_one_rank_per_core(tmp_path):
    job = launch(tmp_path, *CARTPOLE, "--env_steps=64")
    assert job.returncode == 0, job.stderr
    assert f'"ranks": {min(CORES, 4)}' in (tmp_path / "runs/CartPole-v1/config.json").read_text()


def test_a_job_has_no_more_ranks_than_environments(tmp_path):
    flags = [*CARTPOLE, "--num_envs=1", "--rollout_steps=64", "--env_steps=64"]
    job = launch(tmp_path, *flags)
    assert job.returncode == 0, job.stderr
    assert '"ranks": 1' in (tmp_path / "runs/CartPole-v1/config.json").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_one_rank_ignores_the_hangup_that_its_launcher_was_set_to_ignore(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        job = launched(tmp_path, "--num_envs=1", "--rollout_steps=64")
    finally:
        signal.signal(signal.SIGHUP, before)
    with job:
        job.wait_for_updates(1)
        status = Path(f"/proc/{job.process.pid}/status").read_text().splitlines()
        ignored = next(int(line.split()[1], 16) for line in status if line.startswith("SigIgn"))
        assert ignored >> (signal.SIGHUP - 1) & 1


def as_a_module():
    spec = importlib.util.spec_from_file_location("launch", LAUNCHER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    """The launcher on a machine with a driver, whose GPUs the tests count."""
    launcher = as_a_module()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher.shutil, "which", {"nvidia-smi": "/usr/bin/nvidia-smi"}.get)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    return launcher


def command(launcher, cores, flags):
    """Return ranks and flags of mpirun that a machine with hardware threads, two a core, gets."""
    launcher.cores_here, launcher.cpus_here = lambda: range(cores), lambda: 2 * cores
    words = launcher.job_command(parse_command_line(flags), flags)
    return (1, []) if words[0] == sys.executable else (int(words[2]), words[3 : words.index(sys.executable)])


UNBOUND = ["--bind-to", "none"]


@pytest.mark.parametrize(
    ("cores", "gpus", "flags", "ranks", "bound"),
    [
        pytest.param(8, 0, [], 16, [], id="no GPU"),
        pytest.param(16, 1, [], 1, [], id="one"),
        pytest.param(16, 2, [], 2, UNBOUND, id="two"),
        pytest.param(15, 4, [], 30, [], id="too few cores a GPU"),
        pytest.param(2, 1, [], 4, [], id="a laptop"),
        pytest.param(8, 2, ["--env_engine=lean"], 16, [], id="one thread a rank"),
        pytest.param(8, 2, ["--device=cpu"], 16, [], id="not wanted"),
        pytest.param(8, 2, ["--mode=evaluate", "--episodes=10"], 10, [], id="evaluate"),
        pytest.param(8, 2, ["--env_name=CartPole-v1"], 16, [], id="no emulators"),
    ],
)
def test_a_gpu_has_one_rank_if_that_keeps_the_cores_busy(cores, gpus, flags, ranks, bound, launcher, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert command(launcher, cores, flags) == (ranks, bound)


def test_gpus_of_several_kinds_are_left_alone_as_the_program_does(launcher, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", ["NVIDIA H200", "NVIDIA T4"].__getitem__)
    assert command(launcher, 8, []) == (16, [])


@pytest.mark.parametrize(
    ("flags", "ranks"), [([], 16), (["--fresh"], 2), (["--env_engine=vector"], 2), (["--model_name=another"], 2)]
)
def test_a_run_with_one_thread_a_rank_keeps_its_ranks(flags, ranks, launcher, monkeypatch):
    flags = ["--env_name=PongNoFrameskip-v4", *flags]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = Config().replace_settings({"env_engine": "lean"})
    write_checkpoint(
        config.checkpoint_folder, config, Counters(1, 64, 1.0, 0, ()), {"model/weight": torch.zeros(1)}, None
    )
    assert command(launcher, 8, flags)[0] == ranks


def test_pytorch_is_not_asked_for_gpus_where_there_is_no_driver(launcher, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launcher.shutil, "which", {}.get)
    assert command(launcher, 16, [])[0] == 32
    assert command(launcher, 16, ["--device=cuda"])[0] == 2


def test_a_folder_that_cannot_be_read_is_left_for_the_ranks_to_refuse(launcher, monkeypatch, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/HalfCheetah-v5").symlink_to("HalfCheetah-v5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    flags = ["--env_name=HalfCheetah-v5", "--device=cuda", f"--checkpoint_dir={tmp_path}/checkpoints"]
    config = parse_command_line(flags)
    assert ppo.launcher.gpus_with_threads(config, 16) == 1


def test_a_wrong_setting_is_refused_before_mpirun_starts(tmp_path):
    job = launch(tmp_path, "--minibatch_size=100")
    assert job.returncode == 2
    assert job.stderr.count("try 128") == 1
    assert "prterun" not in job.stderr


def launched(folder, *flags):
    return RunningJob(folder, *CARTPOLE, ENDLESS, *flags, launcher=[sys.executable, str(LAUNCHER)], program=None)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_to_the_launcher_saves_on_all_ranks(number, code, tmp_path):
    with launched(tmp_path) as job:
        job.wait_for_updates(2)
        job.process.send_signal(number)
        assert job.end(within=30)[0] == code, job.log
        if number == signal.SIGINT:  # mpirun comments on any other code than 0, and 75 has to come from the ranks
            assert "prterun" not in job.log
    steps = int(rows(tmp_path / "runs/CartPole-v1/progress.csv")[-1]["env_steps"])
    assert (tmp_path / f"checkpoints/CartPole-v1/step_{steps:012d}/manifest.json").exists()


def test_a_job_that_died_is_started_again_as_often_as_asked(tmp_path):
    with launched(tmp_path, "--max_restarts=1", "--checkpoint_interval=2") as job:
        job.wait_for_updates(5)
        os.kill(job.rank(1), signal.SIGKILL)
        job.wait_until(lambda: "restart 1 of 1" in job.log)
        job.wait_until(lambda: "resuming CartPole-v1 at" in job.log)
        updates = len(rows(tmp_path / "runs/CartPole-v1/progress.csv"))
        job.wait_for_updates(updates + 5)
        os.kill(job.rank(0), signal.SIGKILL)
        code, _ = job.end(within=20, since=time.time())
        assert code not in (0, 2, 75)
        assert job.log.count("the job died") == 1


STANDS_IN_FOR_A_JOB = """
import os, pathlib, sys
model = pathlib.Path("checkpoints/CartPole-v1")
with open("started", "a") as started:
    print(*sys.argv[1:], file=started)
if os.path.exists("lives") and len(open("started").readlines()) == 2:
    sys.exit(0)
if sys.argv[1] == "dies at once":
    sys.exit(9)
if "--fresh" in sys.argv and model.exists():
    model.rename(f"{model}.before")
model.mkdir(parents=True, exist_ok=True)
if sys.argv[1] == "saves":
    (model / "step_000000000000").mkdir(exist_ok=True)
    os.utime(model / "step_000000000000", (1, 1))  # the disk's clock is another one
sys.exit(9)
"""


@pytest.mark.parametrize("there_before", [True, False])
@pytest.mark.parametrize("job", ["saves", "dies at once", "dies before its first save"])
def test_a_restart_begins_anew_only_until_the_run_has_a_checkpoint_whatever_clocks_say(
    job, there_before, launcher, tmp_path, monkeypatch
):
    (tmp_path / "lives").touch()
    if there_before:
        (tmp_path / "checkpoints/CartPole-v1/step_000000000064").mkdir(parents=True)
    (tmp_path / "job.py").write_text(STANDS_IN_FOR_A_JOB)
    monkeypatch.setattr(launcher, "job_command", lambda config, flags, ranks: [sys.executable, "job.py", job, *flags])
    monkeypatch.setattr(launcher.Signals, "wait", lambda signals, seconds: None)
    monkeypatch.setattr(sys, "argv", ["launcher", "--env_name=CartPole-v1", "--fresh", "--max_restarts=1"])
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    assert launcher.main() == 0
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    starts = (tmp_path / "started").read_text().splitlines()
    assert ["--fresh" in start for start in starts] == [True, job != "saves"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks its home up as Linux does")
def test_ranks_start_where_the_environment_has_no_home():
    mpirun = Path(sys.executable).with_name("mpirun")
    allowed = [f"{name}={value}" for name, value in MPI_ENVIRONMENT.items()]
    script = f". scripts/environment.sh; exec {mpirun} -np 2 bash -c 'echo $HOME'"
    command = ["env", "-i", "PATH=/usr/bin:/bin", *allowed, "bash", "-euc", script]
    job = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert job.returncode == 0, job.stderr
    assert job.stdout.splitlines() == [os.path.expanduser("~")] * 2


@pytest.mark.parametrize(
    ("named", "code", "said"),
    [
        (
            "/bin/false",
            2,
            "PYTHON must be Python 3.10 or newer with its venv module, got /bin/false; unset it to search",
        ),
        ("no such python", 2, "got no such python; unset it"),
        (sys.executable, 0, ""),
    ],
)
def test_a_python_that_is_named_is_used_or_refused_and_no_other_is_taken(named, code, said, tmp_path):
    script = f". {ROOT}/scripts/environment.sh; python=$(find_python) || exit; echo $python"
    job = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env={**os.environ, "PYTHON": named}, capture_output=True, text=True
    )
    assert (job.returncode, job.stdout) == (code, "" if code else f"{named}\n")
    assert said in job.stderr
    assert job.stderr.count("\n") == bool(said)


def test_a_job_whose_launcher_is_killed_saves_and_leaves(tmp_path):
    with launched(tmp_path, "--checkpoint_interval=1000") as job:
        job.wait_for_updates(3)
        job.process.kill()
        job.process.wait()
        deadline = time.monotonic() + 30
        while job.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert job.processes() == []
    steps = int(rows(tmp_path / "runs/CartPole-v1/progress.csv")[-1]["env_steps"])
    assert (tmp_path / f"checkpoints/CartPole-v1/step_{steps:012d}/manifest.json").exists()


def test_a_job_has_as_many_ranks_as_it_is_told():
    launch, flags = take_launch(["--ranks=3", *CARTPOLE])
    assert flags == CARTPOLE
    command = ppo.launcher.job_command(parse_command_line(flags), flags, launch.ranks)
    assert command == [find_mpirun(), "-np", "3", sys.executable, "-m", "ppo", *CARTPOLE]


@pytest.mark.parametrize("flags", [["--ranks=0"], ["--ranks", "two"]])
def test_a_number_of_ranks_that_is_none_is_refused(flags):
    with pytest.raises(Refusal, match=r"ranks must be a number of ranks, 1 or more, got '(0|two)'"):
        take_launch([*CARTPOLE, *flags])


@pytest.mark.parametrize("flag", ["--ranks", "--max_restarts"])
@pytest.mark.parametrize("value", ["9999999", "9" * 400, "9" * 5000])
def test_a_number_of_the_launcher_beyond_its_bound_is_refused_before_it_is_read(flag, value):
    with pytest.raises(Refusal, match=f"{flag.removeprefix('--')} must be at most (4096|1000000), got 9+"):
        take_launch([*CARTPOLE, f"{flag}={value}"])
    assert take_launch([f"{flag}=0000000000003"])[0] in (Launch(ranks=3), Launch(max_restarts=3))


def test_more_ranks_than_environments_are_refused_before_any_is_started(launcher, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ppo", *CARTPOLE, "--ranks=4000"])
    monkeypatch.setattr(launcher, "job_command", None)
    assert launcher.main() == 2
    assert "environments for 4000 ranks; try -np" in capsys.readouterr().err


@pytest.fixture
def without_mpirun(tmp_path, monkeypatch):
    """A Python without an mpirun beside it, on a PATH without one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))


def test_mpirun_is_the_one_of_this_python_or_else_that_of_the_path(without_mpirun, tmp_path, monkeypatch):
    assert find_mpirun() is None
    (tmp_path / "cluster").mkdir()
    for place in (tmp_path / "cluster/mpirun", tmp_path / "mpirun"):
        place.touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "cluster"))
        assert find_mpirun() == str(place)


def test_mpirun_gets_what_it_needs_and_keeps_what_the_user_has_set(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    for name in OPEN_MPI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMPI_MCA_btl", "tcp,self")
    environment = launching_environment()
    assert environment["HOME"] == os.path.expanduser("~")
    assert environment["PRTE_MCA_rmaps_default_mapping_policy"] == "slot:oversubscribe"
    assert environment["OMPI_MCA_btl"] == "tcp,self"


def test_without_an_mpirun_there_is_one_rank_and_a_line_that_says_how_to_get_more(without_mpirun, launcher, capsys):
    assert command(launcher, 8, CARTPOLE) == (1, [])
    assert capsys.readouterr().err == (
        "there is no mpirun: one rank instead of 4; pip install 'ppo-mpi[mpi]' brings one\n"
    )


def test_several_ranks_without_an_mpirun_are_refused(without_mpirun, launcher, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ppo", *CARTPOLE, "--ranks=2"])
    assert launcher.main() == 2
    assert "ranks must be 1 where there is no mpirun, got 2" in capsys.readouterr().err


def test_a_number_of_restarts_that_is_none_is_refused(tmp_path):
    job = launch(tmp_path, *CARTPOLE, "--max_restarts=often")
    assert job.returncode == 2
    assert "max_restarts must be a number of restarts, 0 or more, got 'often'" in job.stderr
