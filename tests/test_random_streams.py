"""Random numbers by address."""

import numpy as np
import pytest

from ppo.random_streams import Purpose, derived_seed, stream


def numbers(seed: int, purpose: Purpose, *address: int) -> tuple[int, ...]:
    return tuple(stream(seed, purpose, *address).integers(2**63, size=4).tolist())


def test_the_same_address_gives_the_same_numbers() -> None:
    assert numbers(1, Purpose.ACTIONS, 2, 3) == numbers(1, Purpose.ACTIONS, 2, 3)


def test_what_was_drawn_elsewhere_changes_nothing() -> None:
    before = numbers(1, Purpose.ACTIONS, 2)
    stream(1, Purpose.ACTIONS, 3).random(1000)
    np.random.default_rng().random(10)
    assert numbers(1, Purpose.ACTIONS, 2) == before


def test_seed_purpose_and_every_part_of_the_address_change_the_numbers() -> None:
    addresses = [
        (1, Purpose.ACTIONS, 2, 3, 4),
        (2, Purpose.ACTIONS, 2, 3, 4),
        (1, Purpose.SHUFFLE, 2, 3, 4),
        (1, Purpose.ACTIONS, 9, 3, 4),
        (1, Purpose.ACTIONS, 2, 9, 4),
        (1, Purpose.ACTIONS, 2, 3, 9),
        (1, Purpose.ACTIONS, 3, 2, 4),
    ]
    assert len({numbers(*address) for address in addresses}) == len(addresses)


def test_neighbouring_streams_do_not_overlap() -> None:
    # Philox counts blocks in the lowest word of its counter, the address is in the words above it.
    drawn = np.concatenate([stream(0, Purpose.ACTIONS, i).integers(2**63, size=5000) for i in range(4)])
    assert len(np.unique(drawn)) == len(drawn)


def test_a_short_draw_is_the_beginning_of_a_long_one() -> None:
    long = stream(0, Purpose.NOOPS, 1).random(100)
    np.testing.assert_array_equal(stream(0, Purpose.NOOPS, 1).random(10), long[:10])


def test_streams_are_uniform_and_uncorrelated() -> None:
    drawn = np.stack([stream(0, Purpose.STICKY_ACTIONS, i).random(10_000) for i in range(8)])
    np.testing.assert_allclose(drawn.mean(axis=1), 0.5, atol=0.015)
    correlations = np.corrcoef(drawn) - np.eye(8)
    assert np.abs(correlations).max() < 0.05


def test_the_largest_seed_and_address_are_accepted() -> None:
    assert numbers(2**63 - 1, Purpose.ACTIONS, 2**64 - 1) != numbers(2**63 - 2, Purpose.ACTIONS, 2**64 - 1)


@pytest.mark.parametrize("address", [(1, 2, 3, 4), (-1,), (2**64,)])
def test_an_address_out_of_range_is_an_error(address: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        stream(0, Purpose.ACTIONS, *address)


def test_the_numbers_never_change() -> None:
    # Another version of this program must be able to resume a run; these are the numbers of the first release.
    assert stream(0, Purpose.WEIGHTS).integers(2**63, size=2).tolist() == [7501867102099269819, 6929809256754480050]
    assert [purpose.value for purpose in Purpose] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_derived_seeds_fit_into_31_bits_and_differ() -> None:
    seeds = {derived_seed(0, Purpose.EPISODE_SEEDS, 0, episode) for episode in range(200)}
    assert len(seeds) == 200
    assert min(seeds) >= 0 and 2**29 < max(seeds) < 2**31
