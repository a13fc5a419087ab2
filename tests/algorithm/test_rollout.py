import importlib.util

import numpy as np
import pytest
import torch

from ppo.algorithm.rollout import Collector, Rollout
from ppo.collectives.moments import Moments, RunningMoments
from ppo.models import distributions
from ppo.models.actor_critic import build_model
from tests.algorithm.worlds import ScriptedWorld, WorldInGroups


def collect(
    *,
    steps=7,
    seed=0,
    updates=1,
    episodic_life=True,
    clip_rewards=False,
    normalizer=None,
    indices=range(3),
    kind=ScriptedWorld,
):
    world = kind()
    model = build_model(world.single_observation_space, world.single_action_space, "small", seed=1)
    with torch.no_grad():
        model.policy_head.weight.mul_(300.0)  # far from uniform, so that a wrong observation would show
    collector = Collector(
        world,
        model,
        normalizer or RunningMoments(),
        indices=indices,
        rollout_steps=steps,
        clip_rewards=clip_rewards,
        episodic_life=episodic_life,
        seed=seed,
    )
    collector.reset()
    for update in range(updates):
        rollout, episodes = collector.collect(update)
    return world, model, rollout, episodes


def values_of(model, observations):
    with torch.no_grad():
        return model(torch.as_tensor(observations))[1]


def test_a_row_holds_the_observation_its_action_was_taken_in():
    world, model, rollout, _ = collect()
    assert rollout.observations[:, 0, 0].tolist() == list(range(7))
    with torch.no_grad():
        log_probs = distributions.log_probabilities(model(rollout.observations.flatten(0, 1))[0])
    expected = distributions.log_prob(log_probs, rollout.actions.flatten())
    torch.testing.assert_close(rollout.log_probs.flatten(), expected)
    assert np.array_equal(rollout.actions.numpy(), np.stack(world.actions))


def test_a_row_holds_the_reward_its_action_earned():
    _, _, rollout, _ = collect()
    torch.testing.assert_close(rollout.rewards, 100.0 * rollout.observations[..., 0] + rollout.actions)


def test_every_kind_of_end_is_stored_on_the_step_that_led_to_it():
    _, _, rollout, _ = collect()
    for environment in range(3):
        assert rollout.dones[:, environment].tolist() == [False, False, True, False, False, True, False]


def test_next_values_are_zero_at_an_end_and_the_final_observations_value_at_a_cut():
    _, model, rollout, _ = collect()
    assert rollout.next_values[2].tolist()[0] == 0.0
    assert rollout.next_values[2].tolist()[2] == 0.0
    # The cut episode's last observation has clock 3 in episode 0; the row after it is already episode 1.
    torch.testing.assert_close(rollout.next_values[2, 1], values_of(model, [[3.0, 1.0, 0.0]])[0])
    assert rollout.observations[3, 1].tolist() == [3.0, 1.0, 1.0]


def test_nothing_of_the_rollout_before_is_left_at_an_end():
    world = ScriptedWorld()
    model = build_model(world.single_observation_space, world.single_action_space, "small", seed=1)
    collector = Collector(
        world,
        model,
        RunningMoments(),
        indices=range(3),
        rollout_steps=7,
        clip_rewards=False,
        episodic_life=True,
        seed=0,
    )
    collector.reset()
    collector._rollout.next_values.fill_(1000.0)
    rollout, _ = collector.collect(0)
    assert rollout.next_values[2, 0] == rollout.next_values[2, 2] == 0.0
    assert rollout.next_values.abs().max() < 100.0


def test_next_values_are_the_next_rows_values_elsewhere_and_after_the_last_row():
    _, model, rollout, _ = collect()
    torch.testing.assert_close(rollout.next_values[0], rollout.values[1])
    after = values_of(model, [[7.0, 0.0, 2.0], [7.0, 1.0, 2.0], [7.0, 2.0, 0.0]])
    torch.testing.assert_close(rollout.next_values[6], after)


def test_without_episodic_life_a_lost_life_ends_nothing():
    _, _, rollout, _ = collect(episodic_life=False)
    assert not rollout.dones[:, 2].any()
    torch.testing.assert_close(rollout.next_values[2, 2], rollout.values[3, 2])


def test_a_lost_life_is_no_finished_game():
    _, _, _, episodes = collect()
    assert [(e.environment, e.step, e.episode_return) for e in episodes] == [
        (0, 2, 10.0),
        (1, 2, 20.0),
        (0, 5, 10.0),
        (1, 5, 20.0),
    ]


def test_rewards_are_clipped_to_their_sign():
    _, _, rollout, _ = collect(clip_rewards=True)
    assert set(rollout.rewards.unique().tolist()) <= {0.0, 1.0}
    assert rollout.rewards[1:].eq(1.0).all()


def test_values_are_stored_in_raw_units():
    normalizer = RunningMoments()
    normalizer.update(Moments(np.array(1.0), np.array(50.0), np.array(100.0)))
    _, model, rollout, _ = collect(normalizer=normalizer)
    torch.testing.assert_close(rollout.values, values_of(model, rollout.observations) * 10.0 + 50.0)
    torch.testing.assert_close(rollout.next_values[2, 1], values_of(model, [[3.0, 1.0, 0.0]])[0] * 10.0 + 50.0)
    assert rollout.next_values[2, 0] == 0.0


def test_actions_are_addressed_by_environment_and_update():
    _, _, first, _ = collect()
    _, _, again, _ = collect()
    _, _, second_update, _ = collect(updates=2)
    _, _, elsewhere, _ = collect(indices=range(3, 6))
    assert torch.equal(first.actions, again.actions)
    assert not torch.equal(first.actions, second_update.actions)
    assert not torch.equal(first.actions, elsewhere.actions)


def test_groups_of_environments_give_the_rollout_of_one_group():
    # Two updates: the second begins where the groups of the first stood.
    _, _, whole, whole_episodes = collect(updates=2)
    _, _, parts, part_episodes = collect(updates=2, kind=WorldInGroups)
    for name in ("observations", "actions", "rewards", "dones"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name
    for name in ("log_probs", "values", "next_values"):  # a product of other shapes may round differently
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    in_order = sorted(part_episodes, key=lambda episode: (episode.step, episode.environment))
    assert in_order == whole_episodes


def test_a_group_gets_its_actions_before_another_is_waited_for():
    world, *_ = collect(steps=3, kind=WorldInGroups)
    assert world.calls == [
        *("send 0", "send 1"),
        *("recv 0", "send 0", "recv 1", "send 1"),
        *("recv 0", "send 0", "recv 1", "send 1"),
        *("recv 0", "recv 1"),
    ]


@pytest.mark.parametrize(("is_compiled", "threads"), [(True, 1), (False, 1), (True, 2)])
def test_gathered_images_are_those_of_their_indices_whatever_the_memory_order(is_compiled, threads, monkeypatch):
    if not is_compiled:
        monkeypatch.setattr("ppo.algorithm.compiled.code", None)
    elif importlib.util.find_spec("ppo.algorithm._minibatch") is None:
        pytest.skip("needs a C compiler where the package is installed")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    steps, num_envs = 5, 2
    pixels = torch.randint(0, 255, (steps, num_envs, 84, 84, 4), dtype=torch.uint8)
    images = pixels.permute(0, 1, 4, 2, 3)
    nothing = torch.zeros(steps, num_envs)
    rollout = Rollout(images, nothing, nothing, nothing, nothing, nothing, nothing)
    gathered = rollout.observations_at(torch.tensor([7, 0, 7] * 24))  # more than are gathered at once
    assert gathered.dtype == torch.float32
    assert torch.equal(gathered, torch.stack([images[3, 1], images[0, 0], images[3, 1]] * 24).float())
    assert gathered.is_contiguous(memory_format=torch.channels_last)
