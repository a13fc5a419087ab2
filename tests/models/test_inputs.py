"""Statistics of observations compared with numpy's over all of them."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from ppo.collectives import Alone, share
from ppo.config import ModelSettings
from ppo.models.actor_critic import build_model
from ppo.models.encoders import PixelConv2d, orthogonal
from ppo.models.inputs import PixelStatistics, VectorStatistics, sums_of_powers
from tests.ranks import on_ranks

SCREENS = spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTIONS = spaces.Discrete(6)


def vectors(number=0, *, offset=0.0, steps=5, num_envs=4):
    generator = np.random.default_rng(number)
    scale = np.array([1.0, 100.0, 0.01])
    return torch.from_numpy(generator.normal(offset, scale, (steps, num_envs, 3))).float()


def pixels(number=0, *, steps=130, num_envs=3, size=8):
    generator = torch.Generator().manual_seed(number)
    return torch.randint(0, 200 + 10 * number, (steps, num_envs, 2, size, size), dtype=torch.uint8, generator=generator)


def entries(rollouts):
    """Return all vectors as numpy's float64, (S, 3)."""
    return np.concatenate([rollout.flatten(0, 1).double().numpy() for rollout in rollouts])


def follow(statistics, rollouts, comm=None):
    for rollout in rollouts:
        statistics.follow(rollout, comm or Alone())
    return statistics


def vector_statistics(*, follows=True, clip=None):
    return VectorStatistics(3, follows=follows, clip=clip)


def assert_applied(statistics, mean, deviation):
    expected = torch.from_numpy(np.stack([mean, deviation])).float()
    torch.testing.assert_close(statistics.applied, expected, rtol=1e-6, atol=1e-7)


def test_each_entry_of_a_vector_has_the_mean_and_deviation_of_all_that_was_seen():
    rollouts = [vectors(0), vectors(1, offset=3.0), vectors(2, steps=1)]
    statistics = follow(vector_statistics(), rollouts)
    seen = entries(rollouts)
    assert_applied(statistics, seen.mean(0), seen.std(0))
    assert statistics.moments[0].tolist() == [len(seen)] * 3
    scaled = statistics(rollouts[1][0])
    torch.testing.assert_close(
        scaled.double(), torch.from_numpy((entries(rollouts[1:2])[:4] - seen.mean(0)) / seen.std(0))
    )


def test_all_pixels_of_every_64th_step_have_one_mean_and_deviation():
    rollouts = [pixels(0), pixels(1)]
    statistics = follow(PixelStatistics(follows=True), rollouts)
    seen = np.concatenate([rollout[[0, 64, 128]].flatten().numpy() for rollout in rollouts]).astype(np.float64)
    assert_applied(statistics, seen.mean(), seen.std())
    scaled = statistics(rollouts[0][0])
    assert scaled.dtype == torch.float32 and scaled.shape == (3, 2, 8, 8)
    torch.testing.assert_close(scaled, ((rollouts[0][0].double() - seen.mean()) / seen.std()).float())


def test_digits_behind_a_large_mean_are_kept_over_many_rollouts():
    rollouts = [vectors(number, offset=1e6) for number in range(50)]
    statistics = follow(vector_statistics(), rollouts)
    assert statistics.moments.dtype == torch.float64
    seen = entries(rollouts)
    mean, deviation = statistics.moments[1].numpy(), np.sqrt((statistics.moments[2] / statistics.moments[0]).numpy())
    np.testing.assert_allclose(mean, seen.mean(0), rtol=1e-13)
    # Squares of 1e6 in float32, or sums of squares, would leave nothing of a deviation of 1.
    np.testing.assert_allclose(deviation[:2], seen.std(0)[:2], rtol=1e-9)
    assert seen.std(0)[0] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_have_the_statistics_of_one_with_all_data(ranks):
    kinds = (
        (vector_statistics, [vectors(0), vectors(1, offset=3.0)]),
        (lambda: PixelStatistics(follows=True), [pixels(0), pixels(1)]),
    )
    for make, rollouts in kinds:

        def work(comm, make=make, rollouts=rollouts):
            own = share(rollouts[0].shape[1], comm.rank, comm.size)
            return follow(make(), [rollout[:, own.start : own.stop] for rollout in rollouts], comm)

        alone, everyone = follow(make(), rollouts), on_ranks(ranks, work)
        for one in everyone:
            assert torch.equal(one.moments, everyone[0].moments) and torch.equal(one.applied, everyone[0].applied)
        torch.testing.assert_close(everyone[0].moments, alone.moments, rtol=1e-12, atol=0.0)
        torch.testing.assert_close(everyone[0].applied, alone.applied, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("clip", [1.5, None])
def test_scaled_vectors_are_clipped_on_both_sides(clip):
    statistics = follow(vector_statistics(clip=clip), [vectors()])
    mean, deviation = statistics.applied
    far = torch.stack([mean + 40.0 * deviation, mean - 40.0 * deviation, mean + deviation])
    limit = 40.0 if clip is None else clip
    expected = torch.tensor([limit, -limit, 1.0]).unsqueeze(1).expand(3, 3)
    torch.testing.assert_close(statistics(far), expected, rtol=1e-3, atol=1e-3)


def test_an_entry_that_never_changes_becomes_zero_and_not_nan():
    constant = torch.tensor([2.5, -1.0, 0.0]).expand(5, 4, 3)
    statistics = follow(vector_statistics(), [constant])
    assert not statistics(constant[0]).any()
    black = follow(PixelStatistics(follows=True), [torch.zeros(1, 1, 2, 8, 8, dtype=torch.uint8)])
    assert not black(torch.zeros(1, 2, 8, 8, dtype=torch.uint8)).any()


@pytest.mark.parametrize("kind", ["vectors", "pixels"])
def test_statistics_that_do_not_follow_stay_as_they_are(kind):
    statistics = vector_statistics(follows=False, clip=1.0) if kind == "vectors" else PixelStatistics(follows=False)
    before = {name: tensor.clone() for name, tensor in statistics.state_dict().items()}
    rollout = vectors(offset=50.0) if kind == "vectors" else pixels()
    follow(statistics, [rollout])
    assert all(torch.equal(tensor, before[name]) for name, tensor in statistics.state_dict().items())
    expected = rollout[0] if kind == "vectors" else rollout[0] / 255.0
    torch.testing.assert_close(statistics(rollout[0]), expected, rtol=1e-6, atol=0.0)


def test_before_the_first_rollout_vectors_are_as_they_are_and_pixels_divided_by_255():
    assert torch.equal(vector_statistics()(vectors()[0]), vectors()[0])
    torch.testing.assert_close(PixelStatistics(follows=True)(pixels()[0]), pixels()[0] / 255.0, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("kind", ["vectors", "pixels"])
def test_restored_statistics_continue_bit_for_bit(kind):
    def make():
        return vector_statistics(clip=3.0) if kind == "vectors" else PixelStatistics(follows=True)

    rollouts = [vectors(0), vectors(1)] if kind == "vectors" else [pixels(0), pixels(1)]
    whole, restored = follow(make(), rollouts[:1]), make()
    restored.load_state_dict(whole.state_dict())
    assert torch.equal(restored(rollouts[1][0]), whole(rollouts[1][0]))
    for statistics in (whole, restored):
        follow(statistics, rollouts[1:])
    assert torch.equal(restored.moments, whole.moments) and torch.equal(restored.applied, whole.applied)
    assert whole.state_dict().keys() == {"moments", "applied"}


def test_only_new_statistics_of_vectors_that_follow_wait_for_a_first_rollout():
    new = vector_statistics()
    assert new.waits_for_first_rollout
    restored = vector_statistics()
    follow(new, [vectors()])
    assert not new.waits_for_first_rollout
    restored.load_state_dict(new.state_dict())
    assert not restored.waits_for_first_rollout
    assert not vector_statistics(follows=False).waits_for_first_rollout
    assert not PixelStatistics(follows=True).waits_for_first_rollout


def seen_by(model, observations):
    """Return the input of a network's encoder, by a hook."""
    given = []
    handle = model.actor.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    model(observations)
    handle.remove()
    return given[0]


# Of a CNN the first layer absorbs them; an MLP sees pixels that are scaled already.
@pytest.mark.parametrize(
    ("network", "is_absorbed"), [("a3c", True), ("nature", True), ("impala", True), ("mlp", False)]
)
def test_pixel_statistics_are_absorbed_by_a_cnn_and_applied_in_front_of_another_network(network, is_absorbed):
    settings = ModelSettings(network=network, pixel_normalization=True)
    model = build_model(SCREENS, ACTIONS, settings, seed=0)
    screens = pixels(size=84)[:2, 0].repeat(1, 2, 1, 1)
    model.inputs.follow(torch.randint(30, 60, (1, 2, 4, 84, 84), dtype=torch.uint8), Alone())
    assert torch.equal(seen_by(model, screens), screens if is_absorbed else model.inputs(screens))
    # Either way it equals the network for pixels / 255 applied to scaled pixels.
    reference = build_model(SCREENS, ACTIONS, dataclasses.replace(settings, pixel_normalization=False), seed=0)
    expected = reference(model.inputs(screens) * 255.0)
    for got, value in zip(model(screens), expected, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kernel", "padding"), [(8, 0), (3, 1)])
def test_a_convolution_that_absorbs_statistics_is_one_behind_them_and_stays_so(kernel, padding):
    statistics = PixelStatistics(follows=True)
    layer = orthogonal(PixelConv2d(2, 4, kernel, stride=1, padding=padding))
    nn.init.normal_(layer.bias)
    layer.absorb(statistics)
    for rollout in (pixels(0), pixels(1), torch.full((1, 1, 2, 8, 8), 250, dtype=torch.uint8)):
        expected = nn.functional.conv2d(statistics(rollout[0]), layer.weight, layer.bias, padding=padding)
        torch.testing.assert_close(layer(rollout[0]), expected, rtol=1e-4, atol=1e-3)
        statistics.follow(rollout, Alone())
    assert "moments" not in " ".join(layer.state_dict())


def test_actor_and_critic_with_an_encoder_each_absorb_the_same_statistics():
    settings = ModelSettings(pixel_normalization=True, trunk="separate")
    model = build_model(SCREENS, ACTIONS, settings, seed=0)
    model.inputs.follow(torch.randint(100, 110, (1, 2, 4, 84, 84), dtype=torch.uint8), Alone())
    screens = torch.randint(100, 110, (2, 4, 84, 84), dtype=torch.uint8)
    reference = build_model(SCREENS, ACTIONS, dataclasses.replace(settings, pixel_normalization=False), seed=0)
    for got, value in zip(model(screens), reference(model.inputs(screens) * 255.0), strict=True):
        torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("space", [SCREENS, VECTOR])
def test_statistics_are_saved_with_the_weights_once(space):
    settings = ModelSettings(pixel_normalization=True, observation_normalization=True)
    saved, restored = (build_model(space, ACTIONS, settings, seed=seed) for seed in (0, 1))
    rollout = vectors() if space is VECTOR else pixels(size=84).repeat(1, 1, 2, 1, 1)
    saved.inputs.follow(rollout, Alone())
    assert [name for name in saved.state_dict() if "moments" in name] == ["inputs.moments"]
    restored.load_state_dict(saved.state_dict())
    for got, expected in zip(restored(rollout[0]), saved(rollout[0]), strict=True):
        assert torch.equal(got, expected)


def test_vectors_are_normalised_in_front_of_both_encoders():
    settings = ModelSettings(observation_normalization=True, observation_clip=1.0)
    model = build_model(VECTOR, ACTIONS, settings, seed=0)
    model.inputs.follow(vectors(offset=5.0), Alone())
    plain = build_model(VECTOR, ACTIONS, ModelSettings(), seed=0)
    observations = vectors(1, offset=5.0)[0]
    for got, expected in zip(model(observations), plain(model.inputs(observations)), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("numbers", [[255] * 1000, [0, 1, 2, 250], list(range(256)) * 3])
def test_pixels_and_their_squares_are_added_without_rounding(numbers):
    expected = [float(sum(numbers)), float(sum(number * number for number in numbers))]
    assert sums_of_powers(torch.tensor(numbers, dtype=torch.uint8)).tolist() == expected
