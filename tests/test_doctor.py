"""What --mode=doctor says of this machine, and of one where something real is broken."""

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ppo import doctor
from ppo.command_line import parse_command_line
from ppo.config import Config
from tests.disks import SmallDisk, small_disk
from tests.faults.running import MPIRUN, ROOT
from tests.jobs import CARTPOLE, MPI_ENVIRONMENT, separately

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
WITH_TWO = pytest.mark.skipif(doctor.cpus_here() < 2, reason="needs two processors")


def config_of(*flags: str) -> Config:
    return parse_command_line(["--mode=doctor", *(flags or CARTPOLE)])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path) as disk:
        yield disk


@pytest.fixture
def own_mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a script in the place of mpirun."""

    def put(script: str) -> None:
        path = tmp_path / "mpirun"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        # What is started by its name is the interpreter of the tests all the same.
        (tmp_path / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n')
        (tmp_path / "python").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    python = sys.executable
    return put


def test_a_machine_that_can_train_is_told_so_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", MPI_ENVIRONMENT["TMPDIR"])
    assert doctor.examine(config_of()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "training can run here"
    signs = {line.split()[1]: line.split()[0] for line in lines[:-1] if not line.startswith(" ")}
    assert list(signs) == [name for name, _ in doctor.checks(config_of())]
    assert "FAILS" not in signs.values()
    assert any("mpi4py" in line and "MPI v" in line for line in lines)
    assert signs["libraries"] == signs["MPI"] == signs["ranks"] == signs["folders"] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_where_torch_and_mpi4py_cannot_be_imported_that_is_what_it_says(tmp_path: Path) -> None:
    for library, reason in (("torch", "libtorch.so is torn"), ("mpi4py", "libmpi.so is torn")):
        (tmp_path / "broken" / library).mkdir(parents=True)
        (tmp_path / "broken" / library / "__init__.py").write_text(f"raise ImportError({reason!r})\n")
    path = os.pathsep.join([str(tmp_path / "broken"), str(ROOT)])
    command = [sys.executable, "-m", "ppo.launcher", "--mode=doctor", *CARTPOLE]
    job = separately(command, tmp_path, PYTHONPATH=path)
    assert job.returncode == 2, job.stderr
    assert "torch cannot be imported: libtorch.so is torn" in job.stdout
    assert "fix: pip install --force-reinstall torch\n" in job.stdout
    assert "mpi4py cannot load an MPI library, so a job has one rank: ImportError: libmpi.so is torn" in job.stdout
    assert job.stdout.splitlines()[-1].startswith("training cannot run here: ")


def test_without_an_mpirun_a_job_has_one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    finding = doctor.check_ranks(2)
    assert finding == doctor.Finding("there is no mpirun, so a job has one rank", "pip install 'ppo-mpi[mpi]'")


def test_an_mpirun_that_starts_nothing_stops_training(own_mpirun: Callable[[str], None]) -> None:
    own_mpirun("echo 'no slots'; exit 1")
    finding = doctor.check_ranks(2)
    assert finding.stops_training
    assert finding.text.endswith("cannot start 2 ranks: no slots")
    assert not doctor.check_ranks(1).stops_training


def test_ranks_that_do_not_meet_are_of_another_mpi(own_mpirun: Callable[[str], None]) -> None:
    own_mpirun('shift 2; "$@"; "$@"')
    finding = doctor.check_ranks(2)
    assert finding.stops_training
    assert "mpi4py is of another MPI" in finding.text


@WITH_TWO
def test_ranks_that_share_a_processor_are_reported(own_mpirun: Callable[[str], None]) -> None:
    if shutil.which("taskset") is None:
        pytest.skip("needs taskset")
    first = min(os.sched_getaffinity(0))
    own_mpirun(f'TMPDIR={MPI_ENVIRONMENT["TMPDIR"]} exec taskset -c {first} {MPIRUN} --bind-to none "$@"')
    finding = doctor.check_ranks(2)
    assert f"binds 2 ranks to 1 of {doctor.cpus_here()} processors ({first})" in finding.text
    assert finding.mend == "export PRTE_MCA_hwloc_default_binding_policy=none"


def test_an_mpirun_that_hangs_is_ended(own_mpirun: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SECONDS", 0.2)
    own_mpirun("sleep 60")
    started = time.monotonic()
    assert "did not end within 0.2 seconds" in doctor.check_ranks(2).text
    assert time.monotonic() - started < 10.0


@pytest.mark.parametrize("setting", ["checkpoint_dir", "run_dir", "asset_dir"])
def test_a_folder_that_cannot_be_written_is_named_and_stops_what_needs_it(setting: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    others = [f"--{name}={tmp_path}" for name in ("checkpoint_dir", "run_dir", "asset_dir") if name != setting]
    finding = doctor.check_folders(config_of(*others, f"--{setting}={tmp_path / 'file' / 'inside'}"))
    assert finding.text.startswith(
        f"{tmp_path / 'file' / 'inside'} cannot be made: {setting} must be a folder this user"
    )
    assert finding.stops_training == (setting != "asset_dir")


def test_a_read_only_disk_stops_training(disk: SmallDisk) -> None:
    disk.set_writable(False)
    finding = doctor.check_folders(config_of(f"--checkpoint_dir={disk.path / 'new'}"))
    assert finding.stops_training
    assert "Read-only file system" in finding.text
    assert "--checkpoint_dir=FOLDER" in str(finding.mend)


def test_little_room_for_a_run_is_reported(disk: SmallDisk, tmp_path: Path) -> None:
    finding = doctor.check_folders(config_of(f"--checkpoint_dir={tmp_path}", f"--run_dir={disk.path}"))
    assert finding.text == "run_dir has 1 MB free, and a run may need more"
    assert not finding.stops_training


def test_messages_of_ranks_need_a_folder_with_room(
    disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_MCA_btl_sm_backing_directory", str(disk.path))
    disk.fill()
    assert f"{disk.path} has 0 MB free, and 4 ranks want 64 MB" in doctor.check_shared_memory(4).text
    monkeypatch.setenv("OMPI_MCA_btl_sm_backing_directory", str(tmp_path / "missing"))
    missing = doctor.check_shared_memory(4)
    assert "No such file or directory" in missing.text
    assert "--shm-size=1g" in str(missing.mend)


def test_a_game_without_its_rom_stops_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pong = config_of("--env_name=PongNoFrameskip-v4")
    assert doctor.check_world(pong).mend is None
    assert doctor.check_roms().text.startswith("108 Atari ROMs in ")
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    assert doctor.check_roms().text.startswith(f"108 of 108 Atari ROMs are not in {tmp_path}: ")
    finding = doctor.check_world(pong)
    assert finding.stops_training
    assert "unset ALE_ROMS_DIR" in str(finding.mend)


def test_a_world_that_does_not_exist_stops_training() -> None:
    finding = doctor.check_world(config_of("--env_name=CartPool-v1"))
    assert finding.stops_training
    assert "did you mean 'CartPole-v1'?" in finding.text


def test_a_missing_ffmpeg_stops_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_ffmpeg().text.startswith("ffmpeg version ")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/no/such/ffmpeg")
    finding = doctor.check_ffmpeg()
    assert finding.text.startswith("--mode=record makes no videos: ")
    assert not finding.stops_training


def test_threads_that_take_the_cores_of_other_ranks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_threads({"OMP_NUM_THREADS": "1"}).mend is None
    finding = doctor.check_threads({"OMP_NUM_THREADS": "8"})
    assert finding == doctor.Finding("OMP_NUM_THREADS=8: ranks take cores from each other", "unset OMP_NUM_THREADS")


@WITH_TWO
@pytest.mark.parametrize(
    "files", [{"cpu.max": "150000 100000\n"}, {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}]
)
def test_less_time_than_processors_asks_for_fewer_ranks(files: dict[str, str], tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    finding = doctor.check_cores(tmp_path)
    assert "but a quota limits them to 1.5" in finding.text
    assert finding.mend == "ppo --ranks=1 ..."


def test_time_without_a_limit_is_no_finding(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert doctor.check_cores(tmp_path).mend is None


def test_clocks_that_are_apart_or_in_the_past_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor.check_clock(time.time()).mend is None
    assert doctor.check_clock(0.0).text == "it is 01 January 1970 by this machine"
    assert doctor.check_clock(time.time() + 60.0).text.startswith("the disk's is -60 seconds")


def test_what_is_not_compiled_is_named_with_what_the_build_lacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = doctor.check_compiled(["ppo.envs.atari._no_such_part"])
    assert finding.text.startswith("ppo.envs.atari._no_such_part not compiled, which is slower; compiler: none, ")
    assert str(finding.mend).startswith("apt install gcc python3-dev && ")


@WITHOUT_GPU
def test_a_gpu_that_is_not_there_stops_only_a_training_that_asks_for_one() -> None:
    assert not doctor.check_gpu(config_of("--env_name=CartPole-v1")).stops_training
    finding = doctor.check_gpu(config_of("--env_name=CartPole-v1", "--device=cuda"))
    assert finding.stops_training
    assert finding.mend == "--device=cpu"
