"""Ids that cannot be made as they are: the refusal names the id to use."""

import gymnasium
import pytest

from ppo.envs.atari import other_protocol
from ppo.envs.making import find_spec
from ppo.settings import Refusal


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
