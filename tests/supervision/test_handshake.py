import dataclasses

import pytest

from ppo.collectives import Alone
from ppo.config import Config
from ppo.settings import Refusal
from ppo.supervision.handshake import Introduction, described, disagreement, refusals, shake_hands


def rank(number, refusal=None, **settings):
    return Introduction(number, f"host{number}", refusal, settings)


def test_ranks_that_agree_raise_nothing():
    everyone = [rank(0, learning_rate=0.1), rank(1, learning_rate=0.1)]
    assert refusals(everyone) is None
    assert disagreement(everyone) is None


def test_the_first_rank_that_differs_is_named_with_every_difference():
    everyone = [rank(0, a=1, b=2, c=3), rank(1, a=1, b=2, c=3), rank(2, a=1, b=5, c="x")]
    text = disagreement(everyone)
    assert text.startswith("rank 2 on host2 was started differently from rank 0 on host0: b 5 instead of 2, c 'x' inst")


def test_a_refusal_of_all_ranks_is_reported_once_and_without_ranks():
    assert refusals([rank(0, "num_envs must be at least 1"), rank(1, "num_envs must be at least 1")]) == (
        "num_envs must be at least 1"
    )


def test_a_refusal_of_some_ranks_names_them():
    assert refusals([rank(0), rank(1, "no"), rank(2, "no"), rank(3, "never")]) == "ranks 1, 2: no; rank 3: never"


def test_every_setting_and_version_is_compared():
    names = described(Config()).keys()
    assert {field.name for field in dataclasses.fields(Config().ppo)} <= names
    assert {"env_name", "env_engine", "version of ppo", "version of torch", "version of ale-py"} <= names


def test_a_rank_alone_is_refused_with_its_own_reason():
    with pytest.raises(Refusal, match=r"^such is life$"):
        shake_hands(Alone(), None, "such is life")
    assert len(shake_hands(Alone(), Config(), None)) == 1
