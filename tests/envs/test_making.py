"""Ids that cannot be made as they are: the refusal names the id to use, or what is broken."""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.spaces import Box, Discrete

from ppo.command_line import parse_command_line
from ppo.envs import check_environment
from ppo.envs.atari import other_protocol
from ppo.envs.making import find_spec
from ppo.settings import Refusal
from tests.jobs import CARTPOLE, ppo


@pytest.mark.parametrize(
    "env_name",
    ["Pong-v4", "Pong-v0", "PongDeterministic-v4", "Pong-ram-v0", "Pong-ramNoFrameskip-v4", "ale_py:ALE/Pong-v5"],
)
def test_a_game_under_another_protocol_is_refused_with_the_id_to_use(env_name: str) -> None:
    with pytest.raises(Refusal, match=r"id for Atari, got \S*Pong.*; try PongNoFrameskip-v4 "):
        find_spec(env_name)


def test_a_game_that_only_the_new_ids_have_is_named_by_one_of_them() -> None:
    refusal = other_protocol("Casino-ram-v4")
    assert refusal is not None and "; try ALE/Casino-v5 " in str(refusal)


def test_an_id_that_has_the_form_of_an_atari_id_but_names_no_game_is_simply_unknown() -> None:
    with pytest.raises(Refusal, match="'Poong-v4' is not a known environment; did you mean 'ALE/Pong-v5'"):
        find_spec("Poong-v4")


def test_a_custom_world_may_have_the_name_of_a_game(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gymnasium.envs.registration.EnvSpec("Pong-v4", "my_pong:Pong")
    monkeypatch.setitem(gymnasium.registry, "Pong-v4", spec)
    assert find_spec("Pong-v4") is spec


# ---------------------------------------------------------------------------------------------------- worlds that break


class Breaks(gymnasium.Env[Any, Any]):
    """A world that raises at one stage of its life."""

    observation_space, action_space = Box(-1.0, 1.0, (2,)), Discrete(2)

    def __init__(self, stage: str, error: BaseException) -> None:
        self._stage, self._error = stage, error
        self._come_to("constructor")

    def _come_to(self, stage: str) -> None:
        if stage == self._stage:
            raise self._error

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        self._come_to("reset")
        return self.observation_space.sample(), {}

    def close(self) -> None:
        self._come_to("close")


class WithoutSpaces(Breaks):
    @property
    def observation_space(self) -> Any:  # type: ignore[override]
        self._come_to("space")


ERRORS = [AttributeError("no b2World"), OSError("no file"), RuntimeError("no world"), SystemExit(3), SystemExit(0)]


@pytest.mark.parametrize("stage", ["constructor", "space", "reset", "close"])
@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_world_that_breaks_before_its_first_step_is_refused_in_one_line(
    stage: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = WithoutSpaces if stage == "space" else Breaks
    spec = gymnasium.envs.registration.EnvSpec("Breaks-v0", world, kwargs={"stage": stage, "error": error})
    monkeypatch.setitem(gymnasium.registry, "Breaks-v0", spec)
    with pytest.raises(Refusal, match=r"^env_name 'Breaks-v0' cannot be \w+ here: .*test_making\.py:\d+\)$") as refusal:
        check_environment(parse_command_line(["--env_name=Breaks-v0"]))
    assert f"{type(error).__name__}: {error}" in str(refusal.value)


BREAKING = ["raise AttributeError('no b2World')", "import sys; sys.exit()", "raise OSError('no file')", "1 +"]


@pytest.mark.parametrize("where", ["the id's module", "the world's module", "a library of the family"])
@pytest.mark.parametrize("code", BREAKING)
def test_a_module_that_breaks_when_it_is_imported_is_named_in_one_line(
    where: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = "ale_py" if where == "a library of the family" else "breaking"
    (tmp_path / f"{library}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    env_name = {"the id's module": "breaking:Any-v0", "the world's module": "Any-v0"}.get(where, "PongNoFrameskip-v4")
    for module in [name for name in sys.modules if name.startswith((library, "ppo.envs.atari"))]:
        monkeypatch.delitem(sys.modules, module)
    spec = gymnasium.envs.registration.EnvSpec("Any-v0", "breaking:World")
    monkeypatch.setitem(gymnasium.registry, "Any-v0", spec)
    job = ppo(tmp_path, *CARTPOLE, f"--env_name={env_name}")
    assert job.returncode == 2
    (line,) = job.stderr.splitlines()
    assert line.startswith(f"ppo: env_name '{env_name}' ") and f"{library}.py" in line
    assert not (tmp_path / "runs").exists()
