"""What a wheel holds, what a build does without a compiler, and that an installed wheel trains and plays."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import ppo
from ppo.collectives.mpi import OPEN_MPI_VARIABLES
from tests.jobs import MPI_ENVIRONMENT

ROOT = Path(__file__).parent.parent
# An interpreter of another environment must not see this clone, nor what this environment says of Open MPI.
BARE = {
    name: value
    for name, value in os.environ.items()
    if name != "PYTHONPATH" and not name.startswith(("OMPI_", "PRTE_"))
}
NETWORK = """
from torch import nn


class Wide(nn.Module):
    def __init__(self, shape, settings):
        super().__init__()
        self.num_features = 96
        self.layers = nn.Sequential(nn.Linear(shape[0], 96), nn.Tanh())

    def forward(self, observations):
        return self.layers(observations)
"""


def run(*command, folder, **variables):
    """Run a command to its end and return what it printed."""
    job = subprocess.run(
        [*map(str, command)], cwd=folder, env={**BARE, **variables}, capture_output=True, text=True, check=False
    )
    assert job.returncode == 0, f"{command}: {job.stdout}{job.stderr}"
    return job.stdout + job.stderr


def tracked(*folders):
    """Return the files of the clone that are in git, or may come to be."""
    return run("git", "ls-files", "--cached", "--others", "--exclude-standard", *folders, folder=ROOT).splitlines()


def in_a_wheel(path):
    """Return where a wheel has a file of the clone."""
    return path.replace("checkpoints/pretrained/", "ppo/pretrained/")


@pytest.fixture
def sources(tmp_path):
    """A copy of the files that are in git, so that no build leaves anything in the clone."""
    copy = tmp_path / "sources"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


def test_a_build_has_every_file_of_the_package_and_the_shipped_agents(tmp_path):
    run(sys.executable, "setup.py", "-q", "build_py", f"--build-lib={tmp_path}", folder=ROOT)
    built = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    wanted = {in_a_wheel(name) for name in tracked("ppo", "checkpoints/pretrained")} - {"ppo/pretrained"}
    assert built == wanted


@pytest.mark.parametrize(("must_compile", "succeeds"), [("", True), ("1", False)])
def test_a_failed_compiler_fails_the_build_only_where_it_is_told_to(must_compile, succeeds, sources, tmp_path):
    command = [sys.executable, "setup.py", "build_ext", f"--build-lib={tmp_path / 'built'}", f"--build-temp={tmp_path}"]
    variables = {**BARE, "CC": "false", "PPO_MUST_COMPILE": must_compile}
    job = subprocess.run(command, cwd=sources, env=variables, capture_output=True, text=True, check=False)
    assert (job.returncode == 0) is succeeds, job.stderr
    assert job.stdout.count("ppo: installed without compiled code, which is slower") == succeeds


def test_an_activated_environment_and_the_launcher_tell_open_mpi_the_same():
    script = (ROOT / "scripts/environment.sh").read_text()
    exported = " ".join(re.findall(r"^export (.*)$", script, re.MULTILINE))
    values = dict(word.split("=", 1) for word in exported.split())
    assert values == {**OPEN_MPI_VARIABLES, "OMPI_MCA_btl": '"${OMPI_MCA_btl:-^ofi}"'}


def test_the_citation_is_of_this_version_and_names_what_it_must():
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    keys = dict(line.split(": ", 1) for line in lines if re.match(r"[a-z-]+: ", line))
    assert keys["cff-version"] == "1.2.0"
    assert keys["version"] == ppo.__version__
    assert {"message", "title"} <= keys.keys() and "authors:" in lines


@pytest.mark.slow
def test_a_wheel_from_the_sdist_trains_and_plays_outside_the_clone(sources, tmp_path):
    run(sys.executable, "setup.py", "-q", "sdist", f"--dist-dir={tmp_path}", folder=sources)
    (sdist,) = tmp_path.glob("ppo_mpi-*.tar.gz")
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv/bin"
    python, command = binaries / "python", binaries / "ppo"
    run(
        python,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        f"--wheel-dir={tmp_path}",
        sdist,
        folder=tmp_path,
        PPO_MUST_COMPILE="1",
    )
    (wheel,) = tmp_path.glob("ppo_mpi-*.whl")
    constraints = ROOT / "scripts/constraints.txt"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, f"{wheel}[mpi]", folder=tmp_path)
    away = tmp_path / "away"
    away.mkdir()

    assert run(command, "--version", folder=away) == f"ppo {ppo.__version__}\n"
    temporary = {"TMPDIR": MPI_ENVIRONMENT["TMPDIR"]}
    found = run(command, "--mode=doctor", folder=away, **temporary)
    assert f" in {tmp_path / 'venv'}" in found and "ok    compiled" in found and "ok    ranks" in found

    (away / "wide.py").write_text(NETWORK)
    own = ["--env_name=CartPole-v1", "--network=wide:Wide"]
    run(command, *own, "--ranks=2", "--env_steps=2000", folder=away, **temporary)
    assert json.loads((away / "runs/CartPole-v1/config.json").read_text())["ranks"] == 2
    run(command, *own, "--mode=evaluate", "--episodes=2", folder=away, **temporary)

    program = (
        "import ppo\n"
        "job = ppo.train('CartPole-v1', model_name='other', ranks=2, env_steps=2000)\n"
        "assert job.wait(120) == 0, job.output\n"
        "print(ppo.evaluate(ppo.load('other'), 2)['env_steps'])"
    )
    assert run(python, "-c", program, folder=away, **temporary).splitlines()[-1] == "2048"

    shipped = run(command, "--env_name=PongNoFrameskip-v4", "--mode=evaluate", "--episodes=1", folder=away, **temporary)
    assert f"using the shipped one in {tmp_path / 'venv'}" in shipped
    assert '"return_mean": ' in shipped
