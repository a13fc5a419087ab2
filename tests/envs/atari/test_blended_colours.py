"""Loading ROMs without the table of blended colours is faster and changes nothing that a game shows."""

import functools
import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ale_py
import pytest

from ppo.envs.atari import blended_colours
from ppo.envs.atari.blended_colours import KNOWN_VERSIONS, leave_out_blended_colours

IS_COMPILED = importlib.util.find_spec("ppo.envs.atari._blended_colours") is not None
NEEDS_IT = pytest.mark.skipif(
    not IS_COMPILED or sys.platform != "linux" or ale_py.__version__ not in KNOWN_VERSIONS,
    reason="needs Linux, a C compiler where the package is installed, and a version of ALE that is known",
)
# One for the PAL standard (air_raid) and one with a screen of another height (journey_escape) among them.
ROMS = ("pong", "breakout", "ms_pacman", "air_raid", "journey_escape", "turmoil", "entombed", "human_cannonball")
PROGRAM = """
import hashlib, importlib, json, sys, time
importlib.import_module(sys.argv[1])
import ale_py
import numpy as np

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
seconds, shown = [], {}
for rom in sys.argv[2].split(","):
    ale = ale_py.ALEInterface()
    ale.setInt("random_seed", 3)
    started = time.process_time()
    ale.loadROM(ale_py.roms.get_rom_path(rom))
    seconds.append(time.process_time() - started)
    actions, digest = ale.getLegalActionSet(), hashlib.sha256()
    for choice in np.random.default_rng(5).integers(len(actions), size=300):
        digest.update(str(ale.act(actions[choice])).encode())
        for screen in (ale.getScreen(), ale.getScreenGrayscale(), ale.getScreenRGB(), ale.getRAM()):
            digest.update(screen.tobytes())
        if ale.game_over():
            ale.reset_game()
    digest.update(ale.cloneState().serialize())
    shown[rom] = digest.hexdigest()
print(json.dumps({"seconds": sorted(seconds)[len(seconds) // 2], "shown": shown}))
"""


@functools.cache
def play(module: str) -> dict[str, Any]:
    """Load and play all ROMS in a process of their own that has imported this module before ALE."""
    job = subprocess.run(
        [sys.executable, "-c", PROGRAM, module, ",".join(ROMS)], check=True, capture_output=True, text=True
    )
    answer: dict[str, Any] = json.loads(job.stdout)
    return answer


@NEEDS_IT
def test_roms_load_in_a_fraction_of_the_time_and_games_are_those_of_ale_as_it_is() -> None:
    as_it_is, without = play("ale_py"), play("ppo.envs.atari")
    assert without["shown"] == as_it_is["shown"]
    assert without["seconds"] < as_it_is["seconds"] / 3


@NEEDS_IT
@pytest.mark.parametrize("module", ["ppo.envs.atari.vector", "ppo.envs.atari.block"])
def test_no_module_of_the_package_imports_ale_before(module: str) -> None:
    assert play(module)["seconds"] < play("ale_py")["seconds"] / 3


def test_what_serves_all_worlds_leaves_ale_to_the_package_of_atari() -> None:
    general = "ppo.envs.worker, ppo.envs.processes, ppo.envs.gymnasium, ppo.agents, ppo.loop"
    program = f"import sys, {general}; sys.exit('ale_py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.fixture
def not_imported_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ale_py")


def found(monkeypatch: pytest.MonkeyPatch, origin: str | None) -> None:
    spec = None if origin is None else importlib.machinery.ModuleSpec("library", None, origin=origin)
    monkeypatch.setattr(blended_colours.importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setattr(blended_colours.importlib.metadata, "version", lambda _: KNOWN_VERSIONS[0])


@NEEDS_IT
def test_it_is_done_for_a_known_version_only(monkeypatch: pytest.MonkeyPatch, not_imported_yet: None) -> None:
    assert leave_out_blended_colours()
    monkeypatch.setattr(blended_colours.importlib.metadata, "version", lambda _: "0.13.0")
    assert not leave_out_blended_colours()


def test_it_is_too_late_once_ale_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, "/a/library")
    monkeypatch.setattr(blended_colours.ctypes, "CDLL", lambda path, mode: (path, mode))
    assert not leave_out_blended_colours()


@pytest.mark.parametrize(("system", "is_done"), [("linux", True), ("darwin", False), ("win32", False)])
def test_it_is_done_on_linux_only(
    monkeypatch: pytest.MonkeyPatch, not_imported_yet: None, system: str, is_done: bool
) -> None:
    found(monkeypatch, "/a/library")
    monkeypatch.setattr(blended_colours.sys, "platform", system)
    monkeypatch.setattr(blended_colours.ctypes, "CDLL", lambda path, mode: (path, mode))
    assert leave_out_blended_colours() is is_done


def test_without_compiled_code_roms_load_as_usual(monkeypatch: pytest.MonkeyPatch, not_imported_yet: None) -> None:
    found(monkeypatch, None)
    assert not leave_out_blended_colours()


def test_a_library_that_cannot_be_loaded_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, not_imported_yet: None, tmp_path: Path
) -> None:
    (tmp_path / "library.so").write_bytes(b"not a library")
    found(monkeypatch, str(tmp_path / "library.so"))
    assert not leave_out_blended_colours()
