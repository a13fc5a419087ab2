"""Results of steps: one piece of memory, images channel-first on channel-last memory."""

import dataclasses

import numpy as np
import pytest

from ppo.envs.arrays import StepArrays

SHAPES = [((4,), np.float32), ((3, 5, 7), np.uint8), ((1, 2, 2), np.uint8)]


@pytest.mark.parametrize("shape, dtype", SHAPES)
def test_observations_have_the_shape_and_type_that_was_asked_for(shape, dtype) -> None:
    arrays = StepArrays.empty(6, shape, dtype)
    for observations in (arrays.observations, arrays.final_obs):
        assert (observations.shape, observations.dtype) == ((6, *shape), dtype)


def test_images_are_channel_first_on_memory_with_the_channels_last() -> None:
    images = StepArrays.empty(2, (3, 5, 7), np.uint8).observations
    assert images.strides == (5 * 7 * 3, 1, 7 * 3, 3)


def test_vectors_lie_one_after_the_other() -> None:
    assert StepArrays.empty(2, (4,), np.float32).observations.flags.c_contiguous


@pytest.mark.parametrize("shape, dtype", SHAPES)
def test_arrays_over_the_same_memory_are_the_same_and_do_not_overlap(shape, dtype) -> None:
    memory = memoryview(bytearray(StepArrays.bytes_needed(3, shape, dtype)))
    ours, theirs = (StepArrays.over(memory, 3, shape, dtype) for _ in range(2))
    names = [field.name for field in dataclasses.fields(StepArrays)]
    for number, name in enumerate(names):
        getattr(ours, name)[...] = number % 2
    for number, name in enumerate(names):
        assert (getattr(theirs, name) == number % 2).all()


def test_a_part_of_the_arrays_is_in_the_same_memory() -> None:
    whole = StepArrays.empty(4, (2, 3, 3), np.uint8)
    part = whole[1:3]
    part.observations[:], part.rewards[:] = 7, 5.0
    assert whole.observations.any(axis=(1, 2, 3)).tolist() == [False, True, True, False]
    assert whole.rewards.tolist() == [0.0, 5.0, 5.0, 0.0]


def test_results_are_the_arrays_themselves() -> None:
    arrays = StepArrays.empty(2, (4,), np.float32)
    observations, rewards, terminated, truncated, info = arrays.result()
    assert observations is arrays.observations and rewards is arrays.rewards
    assert terminated is arrays.terminated and truncated is arrays.truncated
    assert set(info) == {"life_lost", "final_obs", "episode_return", "episode_length"}
