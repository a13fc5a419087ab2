import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ppo
from ppo.command_line import parse_command_line
from ppo.versions import commit_here, version_of, versions_here, versions_of_run


def code_version_of(package: Path) -> str:
    command = [sys.executable, "-c", "from ppo.versions import code_version; print(code_version())"]
    return subprocess.run(
        command, cwd=package.parent, env={"PYTHONPATH": str(package.parent)}, check=True, capture_output=True, text=True
    ).stdout


def test_the_code_version_changes_with_any_file_and_with_nothing_else(tmp_path):
    copy = tmp_path / "ppo"
    shutil.copytree(Path(ppo.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_version_of(copy)
    assert code_version_of(copy) == before
    with open(copy / "algorithm" / "equations.py", "a") as file:
        file.write("# changed\n")
    assert code_version_of(copy) != before


def test_a_package_that_is_not_installed_has_no_version():
    assert version_of("no-such-package") == "unknown"
    assert "unknown" not in versions_here().values()


@pytest.mark.parametrize(
    ("env_name", "installed", "expected"),
    [
        (
            "CarRacing-v3",
            {"box2d": "2.3", "pygame-ce": "2.5", "mujoco": "4.0"},
            {"box2d": "2.3", "pygame-ce": "2.5", "pygame": "unknown"},
        ),
        ("Hopper-v5", {"box2d": "2.3", "mujoco": "4.0"}, {"mujoco": "4.0"}),
        ("CartPole-v1", {"box2d": "2.3", "pygame": "2.6", "mujoco": "4.0"}, {}),
    ],
)
def test_a_run_s_versions_are_those_of_what_its_world_may_need(env_name, installed, expected, monkeypatch):
    config, always = parse_command_line([f"--env_name={env_name}"]), versions_here()
    monkeypatch.setattr("ppo.versions.version_of", lambda package: installed.get(package, "unknown"))
    found = versions_of_run(config)
    assert {name: version for name, version in found.items() if name not in always} == expected


def test_the_commit_is_that_of_the_clone_however_its_name_is_stored(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    (tmp_path / "ppo").mkdir()
    monkeypatch.setattr(ppo, "__file__", str(tmp_path / "ppo" / "__init__.py"))
    assert commit_here() is None
    subprocess.run([*git, "init", "-q"], check=True)
    assert commit_here() is None
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert commit_here() == commit
    subprocess.run([*git, "pack-refs", "--all"], check=True)
    assert commit_here() == commit
    subprocess.run([*git, "checkout", "-q", "--detach"], check=True)
    assert commit_here() == commit
    (tmp_path / ".git" / "HEAD").write_bytes(b"\xff<script>")
    assert commit_here() is None
