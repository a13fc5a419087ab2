import csv
from importlib import resources

import gymnasium
from ale_py import roms

from ppo.envs import world_of
from ppo.envs.names import names_of
from ppo.envs.own_worlds import register_own_worlds


def scores(env_name):
    return {reference.label: reference.score for reference in world_of(env_name).references(env_name)}


def test_an_atari_game_is_compared_under_each_of_its_names():
    expected = {"random": -20.7, "human": 14.6, "PPO paper": 20.7, "best published PPO": 20.99}
    assert scores("PongNoFrameskip-v4") == scores("ALE/Pong-v5") == expected


def test_a_world_of_gymnasium_is_compared_with_what_its_authors_call_solved():
    assert scores("CartPole-v1") == {"solved": 475.0, "random": 23.68, "best published PPO": 500.0}


def test_a_world_that_nobody_has_published_scores_of_has_none():
    assert scores("tests.odd_worlds:Endless-v0") == {}


def test_every_row_names_a_world_that_there_is_and_a_source():
    register_own_worlds()
    with resources.files("ppo.envs").joinpath("references.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["world"] in gymnasium.registry or roms.get_rom_path(row["world"]), row
        assert row["source"] and float(row["score"]) == float(row["score"]), row
    assert len({(row["world"], row["label"]) for row in rows}) == len(rows)


def test_names_are_left_out_where_their_number_is_another():
    lander = gymnasium.spaces.Discrete(4)
    assert names_of("LunarLander-v3", lander, 8)[0][2] == "main engine"
    assert names_of("LunarLander-v3", gymnasium.spaces.Box(-1.0, 1.0, (2,)), 8)[0] == ("main engine", "side engines")
    assert names_of("LunarLander-v3", gymnasium.spaces.Box(-1.0, 1.0, (3,)), 8)[0] == ()
    assert names_of("CarRacing-v3", gymnasium.spaces.Box(-1.0, 1.0, (3,)), 0)[0][0] == "steering"
    assert names_of("CarRacing-v3", gymnasium.spaces.Discrete(5), 0)[0][3] == "gas"
    assert names_of("LunarLander-v3", lander, 9)[1] == ()
    assert names_of("Other-v0", lander, 8) == ((), ())
