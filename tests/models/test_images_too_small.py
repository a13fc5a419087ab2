"""Images too small for the convolutions are refused; the message names what works."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from ppo.config import ModelSettings
from ppo.models.actor_critic import check_model
from ppo.settings import Refusal

# A view of MiniGrid.
SEVEN_BY_SEVEN = Box(0, 255, (3, 7, 7), np.uint8)


def test_images_too_small_for_the_network_are_refused_with_one_that_takes_them() -> None:
    with pytest.raises(Refusal, match="small needs images of at least 20x20 pixels, got 7x7; try --network=mlp"):
        check_model(SEVEN_BY_SEVEN, Discrete(7), ModelSettings())
    check_model(SEVEN_BY_SEVEN, Discrete(7), ModelSettings(network="mlp"))


def test_vectors_are_refused_by_a_network_for_images_with_one_that_takes_them() -> None:
    with pytest.raises(
        Refusal, match="a3c needs images, but the observations are vectors of 4 entries; try --network=mlp"
    ):
        check_model(Box(-1, 1, (4,), np.float32), Discrete(2), ModelSettings(network="a3c"))
