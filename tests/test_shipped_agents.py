"""Every shipped agent scores what its card says."""

import dataclasses
import json
import math
import shutil

import pytest

from ppo import playback
from ppo.agents import SHIPPED_FOLDER, find_agent
from ppo.command_line import explicit_settings, parse_command_line
from ppo.config import SHIPPED
from ppo.games import number_of_slots
from ppo.outputs import checkpoint
from ppo.outputs.manifest import encode_manifest
from ppo.settings import Refusal

CARDS = {path.parent.name: json.loads(path.read_text()) for path in sorted(SHIPPED_FOLDER.glob("*/card.json"))}
# Whose games take the least time: some 500 short steps each, without a simulator of bodies.
QUICK = ("CartPole-v1", "ppo-ContinuousCartPole-v0", "ppo-ReachingDot-v0", "MountainCarContinuous-v0")


def evaluate(card, episodes, tmp_path):
    """Play an agent's games as its card says and return the statistics."""
    protocol = card["evaluation"]["protocol"]
    flags = [f"--env_name={card['env_name']}", "--mode=evaluate", f"--episodes={episodes}"]
    if protocol.get("env_kwargs", "{}") != "{}":
        flags.append(f"--env_kwargs={protocol['env_kwargs']}")
    flags += [f"--rng_seed={card['evaluation']['rng_seed']}", f"--checkpoint_dir={tmp_path}"]
    config = parse_command_line(flags)
    agent = find_agent(config, explicit_settings(flags))
    slots = number_of_slots(episodes)
    return playback.statistics_of(list(playback.play_games(agent, config, range(slots), slots)), agent, config)


def same_score(card, result):
    """Whether the mean of a result is within four standard errors of the card's."""
    expected, spread = (
        card["evaluation"],
        card["evaluation"]["return_stderr"] * math.sqrt(card["evaluation"]["episodes"]),
    )
    error = math.hypot(expected["return_stderr"], spread / math.sqrt(result["episodes"]))
    return abs(result["return_mean"] - expected["return_mean"]) <= 4.0 * error + 1e-6


@pytest.mark.parametrize("name", [name for name in CARDS if name in QUICK])
def test_a_few_games_of_a_quick_agent_score_what_its_card_says(name, tmp_path):
    assert same_score(CARDS[name], evaluate(CARDS[name], 10, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_the_same_games_score_the_same(name, tmp_path):
    expected = CARDS[name]["evaluation"]
    result = evaluate(CARDS[name], expected["episodes"], tmp_path)
    assert result["act"] == expected["act"]
    assert abs(result["return_mean"] - expected["return_mean"]) <= max(1e-6, expected["return_stderr"])


def test_the_quick_agents_are_shipped():
    assert {*QUICK} <= CARDS.keys()


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
