"""Bare MLPs of actor and critic predict and learn like the model; unrecognised networks are left to the model."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ppo.config import ModelSettings
from ppo.models.actor_critic import ActorCritic, Policy, build_model
from ppo.models.bare import BareActorCritic, bare
from ppo.models.encoders import MLP
from ppo.models.frozen import freeze

VECTORS = spaces.Box(-np.inf, np.inf, (5,), np.float32)
TWO, BOX = spaces.Discrete(2), spaces.Box(-1.0, 1.0, (3,))


def build(actions: spaces.Space = TWO, **settings) -> ActorCritic:  # type: ignore[no-untyped-def,type-arg]
    model = build_model(VECTORS, actions, ModelSettings(**settings), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def gradients(model: ActorCritic, policy: Policy, observations: Tensor) -> list[Tensor]:
    """Return the gradients of a loss that depends on every output."""
    prediction = policy(observations)
    (prediction.action.sin().sum() + prediction.values.square().sum()).backward()  # type: ignore[no-untyped-call]
    if isinstance(policy, BareActorCritic):
        policy.add_gradients()
    return taken_gradients(model)


def taken_gradients(model: ActorCritic) -> list[Tensor]:
    """Return the gradients and leave zeros behind."""
    found = []
    for parameter in model.parameters():
        assert parameter.grad is not None
        found.append(parameter.grad.clone())
        parameter.grad.zero_()
    return found


@pytest.mark.parametrize(
    "settings", [{}, {"activation": "relu"}, {"hidden_sizes": "7"}, {"observation_normalization": True}]
)
@pytest.mark.parametrize("actions", [TWO, BOX, spaces.MultiBinary(3)])
def test_predictions_and_gradients_are_those_of_the_model(actions, settings) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model, observations = build(actions, **settings), 3.0 * torch.randn(6, 5)
    model.inputs.applied.copy_(torch.stack([torch.randn(5), 0.1 + torch.rand(5)]))
    policy = bare(model)
    assert policy is not None
    for actual, expected in zip(policy(observations), model(observations), strict=True):
        torch.testing.assert_close(actual, expected)
    expected_gradients = gradients(model, model, observations)
    assert all(gradient.any() for gradient in expected_gradients)
    for actual, expected in zip(gradients(model, policy, observations), expected_gradients, strict=True):
        torch.testing.assert_close(actual, expected)


def test_gradients_of_parts_add_up_to_that_of_the_whole() -> None:
    model, observations = build(BOX), torch.randn(6, 5)
    policy = bare(model)
    assert policy is not None
    whole = gradients(model, policy, observations)

    for part in (observations[:4], observations[4:]):
        prediction = policy(part)
        (prediction.action.sin().sum() + prediction.values.square().sum()).backward()  # type: ignore[no-untyped-call]
        policy.add_gradients()
    for actual, expected in zip(taken_gradients(model), whole, strict=True):
        torch.testing.assert_close(actual, expected)


def test_what_the_loss_does_not_depend_on_gets_no_gradient() -> None:
    model = build()
    policy = bare(model)
    assert policy is not None
    policy(torch.randn(2, 5)).values.sum().backward()  # type: ignore[no-untyped-call]
    policy.add_gradients()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[0] for name, gradient in gradients.items() if gradient.any()} == {"critic", "value_head"}


def test_weights_are_read_where_they_are() -> None:
    model, observations = build(), torch.randn(2, 5)
    policy = bare(model)
    assert policy is not None
    with torch.no_grad():
        model.value_head.get_parameter("bias").add_(5.0)
        torch.testing.assert_close(policy(observations).values, model(observations).values)


def test_a_network_for_vectors_acts_so() -> None:
    model = build()
    assert isinstance(freeze(model), BareActorCritic)
    with torch.inference_mode():
        assert not freeze(model)(torch.randn(2, 5)).values.requires_grad


class Doubled(MLP):
    def forward(self, observations: Tensor) -> Tensor:
        return 2.0 * super().forward(observations)


class Halved(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        return 0.5 * super().forward(features)


def changed(name: str, module: nn.Module | None) -> ActorCritic:
    model = build()
    setattr(model, name, module)
    return model


def with_class(model: ActorCritic, kind: type[nn.Module], name: str) -> ActorCritic:
    model.get_submodule(name).__class__ = kind
    return model


class OtherActorCritic(ActorCritic):
    pass


@pytest.mark.parametrize(
    "model",
    [
        with_class(build(), Doubled, "critic"),
        with_class(build(), Halved, "actor.2"),
        with_class(build(), Halved, "value_head"),
        with_class(build(), nn.Sigmoid, "actor.1"),  # not the activation of the layer behind it
        with_class(build(), OtherActorCritic, ""),
        changed("policy_head", nn.Sequential(nn.Linear(64, 2))),
        changed("critic", None),
        build(activation="leaky_relu"),
        build(trunk="shared"),
        build(head_units=5),
        build_model(spaces.Box(0, 255, (1, 8, 8), np.uint8), TWO, ModelSettings(network="mlp"), seed=0),
        build().to("meta"),
    ],
    ids=[
        "encoder",
        "layer",
        "head",
        "mixed",
        "model",
        "sequence",
        "no critic",
        "leaky",
        "shared",
        "units",
        "images",
        "device",
    ],
)
def test_an_unrecognised_network_is_left_to_the_model(model: ActorCritic) -> None:
    assert bare(model) is None
    assert freeze(model) is model


def test_a_layer_that_was_added_is_not_overlooked() -> None:
    for added in (nn.Tanh(), nn.Linear(64, 64), nn.Identity()):
        model = build()
        assert isinstance(model.actor, MLP)
        model.actor.append(added)
        assert bare(model) is None
