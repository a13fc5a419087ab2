"""Networks prepared for acting predict like the network; others act without preparation."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from ppo.config import ModelSettings
from ppo.models import frozen
from ppo.models.actor_critic import ActorCritic, build_model
from ppo.models.frozen import FrozenCNN, freeze, onednn_is_usable
from tests.models.test_actor_critic import SCREENS, build, set_pixel_moments
from tests.models.test_encoders import pixels

BOX = spaces.Box(-1.0, 1.0, (2,))


def assert_it_acts_as_the_network_does(model: ActorCritic) -> None:
    screens = pixels(3, 4, 84, 84)
    with torch.no_grad():
        expected, policy = model(screens), freeze(model)
        for count in (3, 1, 3):
            for actual, value in zip(policy(screens[:count]), expected, strict=True):
                torch.testing.assert_close(actual, value[:count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_onednn", [True, False])
@pytest.mark.parametrize("size", ["small", "large", "impala"])
def test_a_frozen_network_is_the_network_as_it_was(
    size: str, with_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_onednn:
        monkeypatch.setattr(frozen, "onednn_is_usable", lambda: False)
    model = build(size)
    set_pixel_moments(model, 73.5, 41.25)
    nn.init.normal_(model.value_head.bias)
    assert isinstance(freeze(model), FrozenCNN) == (size != "impala")
    assert_it_acts_as_the_network_does(model)


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 96, 64)])
@pytest.mark.parametrize("network", ["a3c", "nature"])
def test_images_of_every_size_are_acted_on_by_a_frozen_network(network: str, shape: tuple[int, ...]) -> None:
    model = build(network=network, space=spaces.Box(0, 255, shape, np.uint8))
    policy, images = freeze(model), pixels(2, *shape)
    assert isinstance(policy, FrozenCNN)
    with torch.no_grad():
        for actual, expected in zip(policy(images), model(images), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_weights_of_small_layers_and_statistics_are_those_of_the_moment() -> None:
    model, screens = build(), pixels(2, 4, 84, 84)
    policy = freeze(model)
    with torch.no_grad():
        before = policy(screens)
        model.policy_head.weight.mul_(2.0)
        set_pixel_moments(model, 73.5, 41.25)
        for actual, expected in zip(policy(screens), before, strict=True):
            assert torch.equal(actual, expected)
        assert not torch.equal(freeze(model)(screens).action, before.action)


@pytest.mark.parametrize("name", ["Dimmed", "Longer", "OtherLayer", "Padded"])
def test_a_subclass_of_a_cnn_or_of_a_layer_acts_itself(name: str) -> None:
    model = build(network=f"tests.models.outside:{name}")
    assert freeze(model) is model
    assert_it_acts_as_the_network_does(model)


def test_a_layer_that_was_added_or_replaced_makes_a_network_act_itself() -> None:
    for change in (
        lambda model: model.actor.append(nn.ReLU()),
        lambda model: setattr(model, "policy_head", nn.Sequential(model.policy_head)),
        lambda model: setattr(model, "value_head", nn.Bilinear(1, 1, 1)),
        lambda model: setattr(model, "critic", model.actor),
    ):
        model = build()
        assert freeze(model) is not model
        change(model)
        assert freeze(model) is model


class Bolder(ActorCritic):
    def forward(self, observations):  # type: ignore[no-untyped-def]
        prediction = super().forward(observations)
        return prediction._replace(action=2.0 * prediction.action)


def test_a_subclass_of_the_network_acts_itself() -> None:
    model = build()
    model.__class__ = Bolder
    assert freeze(model) is model


@pytest.mark.parametrize(
    "model",
    [
        build(trunk="separate"),
        build(network="mlp"),
        build(head_units=5),
        build_model(SCREENS, BOX, ModelSettings(), seed=0),  # whose head is no linear layer
        build(precision=torch.bfloat16),
        build().to("meta"),
    ],
    ids=["separate", "mlp", "layers before heads", "gaussian", "bfloat16", "device"],
)
def test_other_networks_act_themselves(model: ActorCritic) -> None:
    assert freeze(model) is model


@pytest.mark.parametrize(
    ("actions", "settings"),
    [
        (spaces.MultiDiscrete([2, 3]), {}),
        (spaces.MultiBinary(3), {}),
        (BOX, {"policy": "beta"}),
        (BOX, {"state_dependent_deviation": True}),
    ],
)
def test_every_linear_head_is_frozen_with_the_network(actions, settings) -> None:  # type: ignore[no-untyped-def]
    model = build_model(SCREENS, actions, ModelSettings(**settings), seed=0)
    assert isinstance(freeze(model), FrozenCNN)
    assert_it_acts_as_the_network_does(model)


def test_this_pytorch_has_the_calls_that_make_acting_faster() -> None:
    assert onednn_is_usable() == torch.backends.mkldnn.is_available()
