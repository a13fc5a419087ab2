"""Every shipped agent scores what its card says."""

import dataclasses
import functools
import json
import math
import shutil
import statistics

import pytest

from ppo import playback
from ppo.agents import SHIPPED_FOLDER, find_agent
from ppo.command_line import explicit_settings, parse_command_line
from ppo.config import SHIPPED
from ppo.families import family_of
from ppo.outputs import checkpoint
from ppo.outputs.manifest import encode_manifest
from ppo.settings import Refusal
from scripts.stored_games import NUM_GAMES, kind_of_machine, play

CARDS = {path.parent.name: json.loads(path.read_text()) for path in sorted(SHIPPED_FOLDER.glob("*/card.json"))}
_MODULES = {"box2d": "Box2D", "mujoco": "mujoco"}
"""What to import for an extra."""


@functools.cache
def first_games(name):
    if extra := family_of(CARDS[name]["env_name"]).extra:
        pytest.importorskip(_MODULES[extra])
    return play(SHIPPED_FOLDER / name, NUM_GAMES)


def is_the_score(card, returns):
    """Whether the mean of these returns is within four standard errors of the card's."""
    expected = card["evaluation"]
    deviation = expected["return_stderr"] * math.sqrt(expected["episodes"])
    error = math.hypot(expected["return_stderr"], deviation / math.sqrt(len(returns)))
    return abs(statistics.fmean(returns) - expected["return_mean"]) <= 4.0 * error + 1e-6


def test_every_shipped_agent_has_a_card():
    assert {path.name for path in SHIPPED_FOLDER.iterdir()} == CARDS.keys()


@pytest.mark.parametrize("name", CARDS)
def test_an_agent_plays_the_games_of_its_card_again_to_the_last_bit(name):
    stored = CARDS[name]["games"]
    games, agent, _ = first_games(name)
    changed = sorted(stored["machine"].items() ^ kind_of_machine(agent.config).items())
    if changed:
        pytest.skip(f"these games were stored on another kind of machine: {changed}")
    assert [game.episode_return for game in games] == stored["returns"]
    assert [game.episode_length for game in games] == stored["lengths"]


@pytest.mark.parametrize("name", CARDS)
def test_the_games_of_a_card_have_its_score_on_any_machine(name):
    assert is_the_score(CARDS[name], [game.episode_return for game in first_games(name)[0]])


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_the_games_of_an_evaluation_score_what_the_card_says(name):
    expected = CARDS[name]["evaluation"]
    games, agent, config = play(SHIPPED_FOLDER / name, expected["episodes"], f"--rng_seed={expected['rng_seed']}")
    assert agent.rule == expected["act"]
    assert playback.statistics_of(games, agent, config)["protocol"] == expected["protocol"]
    assert is_the_score(CARDS[name], [game.episode_return for game in games])


def test_a_world_that_an_argument_changes_has_a_shipped_agent_of_its_own(tmp_path):
    folder = tmp_path / SHIPPED / "LunarLander-v3-continuous"
    shutil.copytree(SHIPPED_FOLDER / "LunarLanderContinuous-v3", folder)
    manifest = checkpoint.read_manifest(folder)
    config = manifest.config.replace_settings({"env_name": "LunarLander-v3", "env_kwargs": '{"continuous": true}'})
    (folder / checkpoint.MANIFEST_FILE).write_bytes(encode_manifest(dataclasses.replace(manifest, config=config)))

    def found(*flags):
        flags = [*flags, "--mode=play", f"--checkpoint_dir={tmp_path}"]
        return find_agent(parse_command_line(flags), explicit_settings(flags)).name

    world = "--env_name=LunarLander-v3"
    assert found(world) == "LunarLander-v3"
    assert found(world, '--env_kwargs={"continuous": true}') == folder.name
    assert found(world, '--env_kwargs={"gravity": -9.0, "continuous": true}') == folder.name
    assert found(f"--model_name={folder.name}", "--checkpoint=shipped") == f"{folder.name}-shipped"


def test_an_agent_plays_in_the_world_that_is_asked_for_and_sees_what_it_saw(tmp_path):
    def found(*flags):
        flags = [*flags, "--mode=evaluate", f"--checkpoint_dir={tmp_path}"]
        return find_agent(parse_command_line(flags), explicit_settings(flags))

    windy = '{"enable_wind": true}'
    assert found("--env_name=LunarLander-v3", f"--env_kwargs={windy}").config.world.env_kwargs == windy
    with pytest.raises(Refusal, match=r"picture must be maximum, as the agent in .* was trained, got full"):
        found("--env_name=CarRacing-v3", "--picture=full")
    assert found("--env_name=CarRacing-v3", "--give_up_frames=50").config.world.give_up_frames is None
