"""CarRacing: pictures against Gymnasium's own, and what is done for an action."""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("Box2D")

from gymnasium.envs.box2d.car_racing import PLAYFIELD

from ppo.envs import Engine, Environments, make_envs
from ppo.envs.car_racing import Drive
from ppo.envs.car_racing_drawing import Drawing
from ppo.envs.making import make_environment
from ppo.families import CarRacingSettings
from scripts.measure_car_racing import Options, measure

NAME = "CarRacing-v3"
STRAIGHT = np.array([0.0, 0.5, 0.0], np.float32)
STILL = np.zeros(3, np.float32)
# A protocol that shows every frame as Gymnasium does.
AS_IT_IS = CarRacingSettings(action_repeat=1, picture="full", colour=True, frame_stack=1, give_up_frames=None)


def gymnasium_world(**kwargs: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(NAME, disable_env_checker=True, **kwargs)


def drive_of(settings: CarRacingSettings, render_mode: str | None = None) -> Drive:
    return Drive(make_environment(NAME, json.loads(settings.env_kwargs), render_mode), settings)


def block_of(settings: CarRacingSettings, number: int = 1) -> Environments:
    return make_envs(NAME, settings, indices=range(number), seed=0)


def along_the_road(world: Any) -> NDArray[np.float32]:
    """Return an action that keeps a car on the road."""
    x, y = world.car.hull.position
    track = np.array([(tile_x, tile_y) for _, _, tile_x, tile_y in world.track])
    nearest = int(np.hypot(track[:, 0] - x, track[:, 1] - y).argmin())
    ahead_x, ahead_y = track[(nearest + 4) % len(track)]
    wanted = math.atan2(-(ahead_x - x), ahead_y - y)
    turn = math.remainder(wanted - world.car.hull.angle, 2.0 * math.pi)
    gas = 0.5 if world.car.hull.linearVelocity.length < 35.0 else 0.0
    return np.array([np.clip(-1.5 * turn, -1.0, 1.0), gas, 0.0], np.float32)


def straight_on(world: Any) -> NDArray[np.float32]:
    """Return an action of a car that soon leaves the field; with more gas it would turn around itself."""
    return np.array([0.0, 0.5 if world.car.hull.linearVelocity.length < 80.0 else 0.0, 0.0], np.float32)


def assert_drawn_for_people(drawing: Drawing, stock: Any) -> None:
    np.testing.assert_array_equal(drawing.draw_for_people(), stock.unwrapped._render("rgb_array"))


def play_beside_gymnasium(seed: int, driver: Any, frames_apart: int = 5, **kwargs: Any) -> tuple[Any, bool]:
    """Play a whole episode in two worlds and compare the agent's pictures, and every few frames those for people.

    Returns:
        The second world, and whether it was left.
    """
    stock, ours = gymnasium_world(**kwargs), gymnasium_world(**kwargs)
    drawing, world = Drawing(ours.unwrapped), ours.unwrapped
    observation, _ = stock.reset(seed=seed)
    ours.reset(seed=seed)
    np.testing.assert_array_equal(drawing.draw(), observation)
    assert_drawn_for_people(drawing, stock)
    terminated = truncated = False
    for frame in itertools.count(1):
        action = driver(world)
        observation, reward, terminated, truncated, _ = stock.step(action)
        drawn, *same = ours.step(action)
        assert drawn is None
        assert same[:3] == [reward, terminated, truncated]
        np.testing.assert_array_equal(drawing.draw(), observation)
        if frame % frames_apart == 0:
            assert_drawn_for_people(drawing, stock)
        if terminated or truncated:
            break
    stock.close()
    return world, terminated


def test_pictures_are_those_of_gymnasium_over_a_whole_episode_on_the_road() -> None:
    world, has_left = play_beside_gymnasium(3, along_the_road)
    assert world.t == pytest.approx(20.0, abs=0.03)  # 1,000 frames
    assert not has_left
    assert world.tile_visited_count > 100


def test_pictures_are_those_of_gymnasium_until_the_car_leaves_the_field() -> None:
    world, has_left = play_beside_gymnasium(0, straight_on)
    assert has_left
    assert max(map(abs, world.car.hull.position)) > PLAYFIELD


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 15))
def test_pictures_are_those_of_gymnasium_on_other_tracks(seed: int) -> None:
    random = np.random.default_rng(seed)

    def not_quite_along_the_road(world: Any) -> NDArray[np.float32]:
        noise = random.normal(0.0, 0.3, 3).astype(np.float32)
        return np.clip(along_the_road(world) + noise, (-1.0, 0.0, 0.0), 1.0).astype(np.float32)

    world, _ = play_beside_gymnasium(seed, not_quite_along_the_road, frames_apart=2, domain_randomize=seed % 2 == 1)
    assert world.tile_visited_count > 20


def test_pictures_are_those_of_gymnasium_in_random_colours_and_with_wheels_that_fill_the_bar() -> None:
    stock, ours = (gymnasium_world(domain_randomize=True) for _ in range(2))
    drawing = Drawing(ours.unwrapped)
    for seed in (1, 2):
        observation, _ = stock.reset(seed=seed)
        ours.reset(seed=seed)
        np.testing.assert_array_equal(drawing.draw(), observation)
        for omega in (None, 380.0, 700.0, -50.0):
            if omega is not None:
                for world in (stock.unwrapped, ours.unwrapped):
                    world.car.wheels[2].omega = omega  # type: ignore[attr-defined]
            observation = stock.step(STRAIGHT)[0]
            ours.step(STRAIGHT)
            np.testing.assert_array_equal(drawing.draw(), observation)
            assert_drawn_for_people(drawing, stock)
    stock.close()


@pytest.mark.slow
def test_frames_take_a_fraction_of_gymnasium_s_time() -> None:
    # 16 to 20 times where it was measured; both are timed in turns, in processor time.
    theirs, ours, _ = measure(Options(episodes=1, frames=400))
    assert ours > 12.0 * theirs


def test_an_action_is_held_and_only_the_last_frame_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    stock, ours = gymnasium_world(), drive_of(dataclasses.replace(AS_IT_IS, action_repeat=5))
    number_drawn, draw = [0], Drawing.draw

    def counted(drawing: Drawing) -> NDArray[np.uint8]:
        number_drawn[0] += 1
        return draw(drawing)

    monkeypatch.setattr(Drawing, "draw", counted)
    np.testing.assert_array_equal(ours.reset(seed=5)[0], stock.reset(seed=5)[0])
    for _ in range(3):
        expected = sum(float(stock.step(STRAIGHT)[1]) for _ in range(4))
        observation, reward, *_ = stock.step(STRAIGHT)
        shown, total, terminated, truncated, _ = ours.step(STRAIGHT)
        np.testing.assert_array_equal(shown, observation)
        assert total == pytest.approx(expected + float(reward), abs=1e-9)
        assert not terminated
        assert not truncated
    assert number_drawn == [4]
    stock.close()


@pytest.mark.parametrize("colour", [False, True])
def test_pictures_are_made_smaller_in_four_ways(colour: bool) -> None:
    shown: dict[str, NDArray[np.int64]] = {}
    for picture in ("full", "area", "maximum", "cropped"):
        settings = dataclasses.replace(AS_IT_IS, picture=picture, colour=colour)
        shown[picture] = drive_of(settings).reset(seed=2)[0].astype(np.int64)
    full = shown["full"]
    assert full.shape == (96, 96, 3 if colour else 1)
    if not colour:
        drawn = drive_of(AS_IT_IS).reset(seed=2)[0]
        assert np.abs(full[..., 0] - drawn @ (0.299, 0.587, 0.114)).max() <= 0.51
    four = full.reshape(48, 2, 48, 2, -1)
    np.testing.assert_array_equal(shown["maximum"], four.max((1, 3)))
    np.testing.assert_array_equal(shown["area"], (four.sum((1, 3)) + 2) // 4)
    np.testing.assert_array_equal(shown["cropped"], full[:84, 6:90])


def test_the_stack_begins_full_of_the_first_picture_and_ends_with_the_newest() -> None:
    drive = drive_of(CarRacingSettings(frame_stack=3))
    stack = drive.reset(seed=1)[0].copy()
    assert stack.shape == (48, 48, 3)
    np.testing.assert_array_equal(stack[..., 0], stack[..., 2])
    newest = drive_of(CarRacingSettings(frame_stack=1))
    newest.reset(seed=1)
    picture = newest.step(STRAIGHT)[0]
    after = drive.step(STRAIGHT)[0]
    np.testing.assert_array_equal(after, np.concatenate([stack[..., 1:], picture], axis=2))


def test_the_time_limit_counts_frames_and_cuts_an_action_short() -> None:
    settings = CarRacingSettings(env_kwargs='{"max_episode_steps": 20}')
    envs = block_of(settings)
    envs.reset()
    first = envs.observations.copy()
    for step in range(3):
        _, _, terminated, truncated, info = envs.step(STRAIGHT[np.newaxis])
        assert not terminated.any()
        assert truncated.all() == (step == 2)
    assert info["episode_length"][0] == 3
    assert (info["final_obs"] != first).any()
    assert (envs.observations == envs.observations[:, :1]).all()  # a new episode has begun
    envs.close()


def test_training_gives_up_where_no_tile_is_reached_and_games_are_played_to_their_ends() -> None:
    drive = drive_of(CarRacingSettings(action_repeat=10))
    drive.reset(seed=0)
    ends = [drive.step(STILL)[2:4] for _ in range(11)]
    # The first frame has the reward of the tiles that the car stands on.
    assert ends == [(False, False)] * 10 + [(True, False)]
    whole_game = drive_of(CarRacingSettings(action_repeat=10).of_whole_games())
    whole_game.reset(seed=0)
    ends = [whole_game.step(STILL)[2:4] for _ in range(100)]
    assert ends == [(False, False)] * 99 + [(False, True)]


def test_frames_without_an_action_count_for_the_return_and_not_for_the_learner() -> None:
    plain = CarRacingSettings(action_repeat=4, env_kwargs='{"max_episode_steps": 14}')
    returns, learnt = {}, {}
    for noops in (0, 6):
        envs = block_of(dataclasses.replace(plain, noop_frames=noops))
        envs.reset()
        rewards = [envs.step(STILL[np.newaxis])[1][0] for _ in range(4 if noops == 0 else 2)]
        returns[noops], learnt[noops] = envs.arrays.episode_return[0], rewards  # type: ignore[attr-defined]
        envs.close()
    assert returns[0] == pytest.approx(returns[6], abs=1e-9)
    assert sum(learnt[0]) == pytest.approx(returns[0], abs=1e-9)
    # The tiles that the car begins on are reached in the frames without an action.
    assert learnt[6] == pytest.approx([-0.4, -0.4], abs=1e-9)


def test_grass_costs_the_learner_and_not_the_return() -> None:
    settings = CarRacingSettings(env_kwargs='{"max_episode_steps": 160}', give_up_frames=None)
    results = {}
    for penalty in (None, 0.05):
        envs = block_of(dataclasses.replace(settings, grass_penalty=penalty))
        envs.reset()
        rewards = [envs.step(STRAIGHT[np.newaxis])[1][0] for _ in range(20)]
        results[penalty] = np.array(rewards), envs.arrays.episode_return[0]  # type: ignore[attr-defined]
        envs.close()
    (plain, plain_return), (punished, punished_return) = results.values()
    assert punished_return == plain_return
    frames_on_grass = (plain - punished) / 0.05
    np.testing.assert_allclose(frames_on_grass, frames_on_grass.round(), atol=1e-6)
    assert frames_on_grass.min() == pytest.approx(0.0, abs=1e-6)
    assert frames_on_grass.max() == pytest.approx(8.0)


def test_discrete_actions_are_those_of_gymnasium() -> None:
    kind = {"continuous": False}
    stock = gymnasium_world(**kind)
    ours = drive_of(dataclasses.replace(AS_IT_IS, env_kwargs=json.dumps(kind)))
    stock.reset(seed=4)
    ours.reset(seed=4)
    for action in (3, 3, 1, 2, 4, 0):
        observation, reward, *_ = stock.step(action)
        shown, same, *_ = ours.step(action)
        np.testing.assert_array_equal(shown, observation)
        assert same == reward
    stock.close()


@pytest.mark.parametrize("engine", [Engine("lean", 1), Engine("processes", 2)])
def test_an_episode_goes_on_where_it_was_saved(engine: Engine) -> None:
    settings = CarRacingSettings(action_repeat=3, noop_frames=2)
    original, restored = (make_envs(NAME, settings, indices=range(2), seed=0, engine=engine) for _ in range(2))
    original.reset()
    restored.reset()
    actions = np.random.default_rng(0).uniform((-1, 0, 0), (1, 1, 0.1), (11, 2, 3)).astype(np.float32)
    for batch in actions[:7]:
        original.step(batch)
    assert restored.set_states(original.get_states()) == []
    np.testing.assert_array_equal(restored.observations, original.observations)
    for batch in actions[7:]:
        for got, expected in zip(restored.step(batch)[:4], original.step(batch)[:4], strict=True):
            np.testing.assert_array_equal(got, expected)
    original.close()
    restored.close()


def test_an_episode_that_is_played_again_draws_its_stack_and_nothing_before(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = block_of(CarRacingSettings(action_repeat=2))
    envs.reset()
    for _ in range(9):
        envs.step(STRAIGHT[np.newaxis])
    states, drawn, draw = envs.get_states(), [], Drawing.draw
    monkeypatch.setattr(Drawing, "draw", lambda drawing: drawn.append(1) or draw(drawing))  # type: ignore[func-returns-value]
    assert envs.set_states(states) == []
    assert len(drawn) == 1 + 4
    envs.close()


@pytest.fixture
def filmed() -> Iterator[tuple[Environments, list[NDArray[np.uint8]]]]:
    frames: list[NDArray[np.uint8]] = []
    settings = CarRacingSettings(action_repeat=3)
    envs = make_envs(NAME, settings, indices=range(1), seed=0, on_frame=frames.append)
    yield envs, frames
    envs.close()


def test_a_recording_shows_every_frame_as_gymnasium_draws_it(
    filmed: tuple[Environments, list[NDArray[np.uint8]]],
) -> None:
    envs, frames = filmed
    assert envs.frames_per_second == 50.0
    envs.reset()
    stock = gymnasium_world(render_mode="rgb_array")
    stock.reset(seed=envs._episode_seed(0))  # type: ignore[attr-defined]
    for _ in range(2):
        envs.step(STRAIGHT[np.newaxis])
    assert len(frames) == 6
    for frame in frames:
        stock.step(STRAIGHT)
        np.testing.assert_array_equal(frame, stock.render())
    stock.close()
