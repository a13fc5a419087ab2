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


# Whose games take the least time: some 500 short steps each, without a simulator of bodies.
QUICK = ("CartPole-v1", "ppo-ContinuousCartPole-v0", "ppo-ReachingDot-v0", "MountainCarContinuous-v0")


@functools.cache
def played(name, episodes):
    if extra := family_of(CARDS[name]["env_name"]).extra:
        pytest.importorskip(_MODULES[extra])
    return play(SHIPPED_FOLDER / name, episodes)


def changes_of_machine(name, config):
    """What differs between this machine and the one that stored the games of a card."""
    return sorted(CARDS[name]["games"]["machine"].items() ^ kind_of_machine(config).items())


def is_the_score(card, returns):
    """Whether the mean of these returns is within four standard errors of the card's."""
    expected = card["evaluation"]
    deviation = expected["return_stderr"] * math.sqrt(expected["episodes"])
    error = math.hypot(expected["return_stderr"], deviation / math.sqrt(len(returns)))
    return abs(statistics.fmean(returns) - expected["return_mean"]) <= 4.0 * error + 1e-6


def test_every_shipped_agent_has_a_card():
    assert {path.name for path in SHIPPED_FOLDER.iterdir()} == CARDS.keys()
    assert {*QUICK} <= CARDS.keys()


@pytest.mark.parametrize("name", CARDS)
def test_an_agent_plays_the_games_of_its_card_again_to_the_last_bit(name):
    stored = CARDS[name]["games"]
    games, agent, _ = played(name, NUM_GAMES)
    if changed := changes_of_machine(name, agent.config):
        pytest.skip(f"these games were stored on another kind of machine: {changed}")
    assert [game.episode_return for game in games] == stored["returns"]
    assert [game.episode_length for game in games] == stored["lengths"]


@pytest.mark.parametrize("name", CARDS)
def test_a_few_games_score_what_a_card_says_on_any_machine(name):
    games, _, _ = played(name, 10 if name in QUICK else NUM_GAMES)
    assert is_the_score(CARDS[name], [game.episode_return for game in games])


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_the_games_of_an_evaluation_score_the_same(name):
    expected = CARDS[name]["evaluation"]
    assert expected["rng_seed"] == CARDS[name]["games"]["rng_seed"]
    games, agent, config = played(name, expected["episodes"])
    result = playback.statistics_of(games, agent, config)
    assert (result["act"], result["protocol"]) == (expected["act"], expected["protocol"])
    errors = 4.0 if changes_of_machine(name, agent.config) else 1.0
    assert abs(result["return_mean"] - expected["return_mean"]) <= max(1e-6, errors * expected["return_stderr"])


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
