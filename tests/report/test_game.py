import numpy as np
import pytest
import torch

from ppo.agents import find_agent
from ppo.command_line import explicit_settings, parse_command_line
from ppo.config import ModelSettings
from ppo.models.actor_critic import build_model
from ppo.report.game import Film, play_game, saliency
from tests.jobs import ppo


def settings(*flags):
    return parse_command_line(flags), explicit_settings(flags)


def game_of(*flags, goes_on=lambda: True):
    config, explicit = settings(*flags, "--mode=report")
    return play_game(find_agent(config, explicit), config, goes_on)


@pytest.fixture(scope="module")
def dot():
    return game_of("--env_name=ppo/ReachingDot-v0")


def test_it_is_the_first_game_of_play_with_the_same_seed(tmp_path):
    game, _ = game_of("--env_name=MountainCar-v0", "--rng_seed=7")
    job = ppo(tmp_path, "--env_name=MountainCar-v0", "--rng_seed=7", "--mode=play", "--episodes=1")
    assert f"return {game.rewards.sum():g}, {game.num_steps} steps" in job.stdout
    assert game.is_over


def test_every_step_has_all_its_parts(dot):
    game, _ = dot
    steps = game.num_steps
    assert len(game.observations) == len(game.outputs) == len(game.values) == len(game.rewards) == steps
    assert len(game.film.pictures) == steps
    assert game.action_names == ["move in x", "move in y"] and len(game.entry_names) == 4
    assert game.steps_per_second == 30.0


def test_outputs_and_values_are_those_of_what_was_seen(dot):
    game, model = dot
    with torch.inference_mode():
        expected = model(torch.from_numpy(game.observations[5:6]))
    np.testing.assert_allclose(game.outputs[5], expected.action[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(game.values[5], expected.values[0].numpy(), atol=1e-5)


def test_actions_are_what_the_world_was_sent(dot):
    game, model = dot
    means = model.distribution.to_environment(model.distribution.mean(torch.from_numpy(game.outputs)).numpy())
    np.testing.assert_allclose(game.actions, means, atol=1e-5)


def test_a_game_ends_after_the_step_in_which_it_must_not_go_on():
    answers = iter([True, True, True, False])
    game, _ = game_of("--env_name=CartPole-v1", goes_on=lambda: next(answers))
    assert game.num_steps == 3 and not game.is_over and len(game.film.pictures) == 3


def test_a_game_has_one_step_however_little_time_there_is():
    game, _ = game_of("--env_name=CartPole-v1", goes_on=lambda: False)
    assert game.num_steps == 1


def test_screens_of_atari_are_one_a_step_at_the_games_speed_and_actions_have_names():
    answers = iter([True] * 5 + [False])
    game, _ = game_of("--env_name=PongNoFrameskip-v4", goes_on=lambda: next(answers))
    assert game.steps_per_second == 15.0
    assert {picture.shape for picture in game.film.pictures} == {(210, 160)}
    assert game.action_names == ["noop", "fire", "right", "left", "right fire", "left fire"]


def test_a_film_keeps_every_pixel_of_up_to_256_colours():
    film, generator = Film(), np.random.default_rng(0)
    colours = generator.integers(0, 256, (200, 3)).astype(np.uint8)
    frames = [colours[generator.integers(0, 200, (20, 30))] for _ in range(3)]
    for channel in range(3):  # a pixel changes in one colour alone
        frames.append(frames[-1].copy())
        frames[-1][3, 4, channel] ^= 128
    for frame in frames:
        film.add(frame)
    for frame, picture in zip(frames, film.pictures, strict=True):
        np.testing.assert_array_equal(np.array(film.palette, np.uint8)[picture], frame)


def test_further_colours_become_the_nearest():
    film = Film()
    film.add(np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 256, 3))
    film.add(np.full((1, 256, 3), (100, 101, 99), np.uint8))
    assert len(film.palette) == 256
    assert film.palette[film.pictures[1][0, 0]] == (100, 100, 100)


def test_large_frames_are_made_smaller_in_proportion():
    film = Film()
    film.add(np.zeros((400, 600, 3), np.uint8))
    assert film.pictures[0].shape == (213, 320)


def test_saliency_is_the_gradient_of_the_value_and_is_found_where_the_network_looks():
    from gymnasium.spaces import Box, Discrete

    model = build_model(Box(0, 255, (4, 84, 84), np.uint8), Discrete(4), ModelSettings(), seed=0)
    with torch.no_grad():  # only the upper left corner of the last layer's maps counts
        weight = model.actor[5].weight.view(256, 32, 9, 9)
        weight[:, :, 3:] = weight[:, :, :, 3:] = 0.0
    maps = saliency(model, np.full((3, 4, 84, 84), 90, np.uint8), 21, lambda: True)
    assert maps.shape == (3, 21, 21) and maps.max() == 255
    assert maps[:, :10, :10].any() and not maps[:, 12:].any() and not maps[:, :, 12:].any()


def test_saliency_is_0_from_where_its_time_is_over():
    from gymnasium.spaces import Box, Discrete

    model = build_model(Box(0, 255, (1, 36, 36), np.uint8), Discrete(2), ModelSettings(), seed=0)
    answers = iter([True, False, False])
    maps = saliency(model, np.full((130, 1, 36, 36), 90, np.uint8), 7, lambda: next(answers))
    assert maps.shape == (130, 7, 7) and maps[:64].any((1, 2)).all() and not maps[64:].any()
