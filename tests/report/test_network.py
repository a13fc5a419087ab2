import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import nn

from ppo.collectives.moments import RunningMoments
from ppo.config import ModelSettings
from ppo.models.actor_critic import ActorCritic, build_distribution, build_model
from ppo.report.network import CannotBeHeldError, describe_distribution, portable
from ppo.report.packing import Pack
from tests.report.test_packing import unpack

IMAGES = Box(0, 255, (4, 84, 84), np.uint8)
SMALL_IMAGES = Box(0, 255, (4, 48, 48), np.uint8)
VECTORS = Box(-1.0, 1.0, (5,), np.float32)
MOVES = Box(-2.0, 3.0, (2,), np.float32)


def model_for(observations, actions=None, **settings):
    model = build_model(observations, actions or Discrete(6), ModelSettings(**settings), seed=3).eval()
    with torch.no_grad():  # heads that begin near 0 would hide errors before them
        for parameter in model.policy_head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.manual_seed(1)) * 0.05)
        if model.inputs.applied.shape[1:] == (5,):
            model.inputs.applied.copy_(torch.tensor([[0.1, -0.2, 0.0, 0.3, 0.0], [0.5, 0.01, 1.0, 2.0, 1.0]]))
    return model


def run(described, array, observation):
    """Run a network as `browser/network.js` does: with what stands in the page alone."""

    def weight(layer):
        numbers, scales = array(layer["weight"]["numbers"]), layer["weight"].get("scales")
        if scales is None:
            return torch.from_numpy(numbers.copy())
        assert numbers.dtype == np.int8
        return torch.from_numpy(numbers * array(scales).reshape(-1, *[1] * (numbers.ndim - 1)))

    def through(layers, features):
        for layer in layers:
            kind = layer["kind"]
            if kind == "convolution":
                features = features.reshape(1, *layer["before"])
                bias = torch.from_numpy(array(layer["bias"]).copy())
                features = nn.functional.conv2d(features, weight(layer), bias, layer["stride"])[0]
                assert list(features.shape) == layer["after"]
                if "constant" in layer:
                    features = features + torch.from_numpy(array(layer["constant"]).copy())
            elif kind == "linear":
                features = weight(layer) @ features.flatten() + torch.from_numpy(array(layer["bias"]).copy())
            elif kind == "append":
                features = torch.cat([features, torch.from_numpy(array(layer["values"]).copy())])
            else:
                slopes = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "leaky_relu": nn.LeakyReLU(layer.get("slope", 0.0))}
                features = slopes[kind](features)
        return features

    features = torch.from_numpy(observation).float()
    if described["scaling"]:
        scaling = described["scaling"]
        features = (features - torch.from_numpy(array(scaling["mean"]).copy())) / torch.from_numpy(
            array(scaling["deviation"]).copy()
        )
        bound = scaling["bound"]
        features = features if bound is None else features.clamp(-bound, bound)
    acting = through(described["actor"], features)
    judging = acting if described["critic"] is None else through(described["critic"], features)
    units = described["units"]
    value = through(described["value"], judging) * units["deviation"] + units["mean"]
    return through(described["policy"], acting), value


def packed(model, shape, moments=None):
    pack = Pack()
    described = portable(model, shape, moments or RunningMoments(), pack)
    return unpack(pack.encode(described))


@pytest.mark.parametrize(
    "observations, actions, settings",
    [
        (IMAGES, None, {}),
        (IMAGES, None, {"pixel_normalization": True}),
        (SMALL_IMAGES, MOVES, {"network": "coordconv", "policy": "beta", "head_units": 100}),
        (Box(0, 255, (1, 8, 8), np.uint8), None, {"network": "mlp"}),
        (VECTORS, None, {}),
        (VECTORS, MOVES, {"observation_normalization": True}),
        (VECTORS, MOVES, {"observation_normalization": True, "observation_clip": None, "trunk": "shared"}),
        (VECTORS, MOVES, {"state_dependent_deviation": True, "activation": "leaky_relu", "hidden_sizes": "32"}),
        (VECTORS, MultiDiscrete([3, 2]), {"activation": "relu"}),
    ],
    ids=["a3c", "pixel-normalisation", "coordconv", "mlp-of-images", "mlp", "scaled", "shared", "leaky", "relu"],
)
def test_what_the_page_holds_says_what_the_network_says(observations, actions, settings):
    model = model_for(observations, actions, **settings)
    described, array = packed(model, observations.shape)
    observations.seed(0)
    for _ in range(3):
        observation = observations.sample()
        with torch.inference_mode():
            expected = model(torch.from_numpy(observation)[None])
        outputs, value = run(described, array, observation)
        # Large layers are in 8 bits.
        torch.testing.assert_close(outputs, expected.action[0], atol=0.02, rtol=0.02)
        torch.testing.assert_close(value, expected.values, atol=0.05, rtol=0.05)


def test_values_are_in_units_of_returns():
    model, moments = model_for(VECTORS), RunningMoments()
    moments.load_state_dict({"moments": torch.tensor([10.0, 7.0, 90.0], dtype=torch.float64)})
    described, array = packed(model, VECTORS.shape, moments)
    observation = np.full(5, 0.3, np.float32)
    with torch.inference_mode():
        expected = moments.denormalize(model(torch.from_numpy(observation)[None]).values)
    torch.testing.assert_close(run(described, array, observation)[1], expected)


class Odd(nn.Module):
    def forward(self, features):
        return features.sin()


def refused(model, shape):
    pack = Pack()
    with pytest.raises(CannotBeHeldError) as refusal:
        portable(model, shape, RunningMoments(), pack)
    assert len(pack.encode({})) < 50, "something of a refused network was packed"
    return str(refusal.value)


def test_a_network_that_is_too_large_is_refused_with_its_size():
    assert "1.7 million weights" in refused(model_for(IMAGES, network="nature"), IMAGES.shape)


def test_a_layer_that_the_page_does_not_know_is_refused_by_name():
    model = model_for(VECTORS)
    model.critic.append(Odd())
    assert "(Odd)" in refused(model, VECTORS.shape)


def test_a_subclass_of_a_known_layer_may_do_something_else_and_is_refused():
    class Other(nn.Linear):
        pass

    model = model_for(VECTORS)
    model.actor[0] = Other(5, 64)
    assert "(Other)" in refused(model, VECTORS.shape)


def test_convolutions_with_a_border_are_refused():
    assert "convolution" in refused(model_for(SMALL_IMAGES, network="impala"), SMALL_IMAGES.shape)


@pytest.mark.parametrize("kernel, stride", [((4, 3), 2), ((4, 4), (2, 1))])
def test_convolutions_that_are_not_square_are_refused(kernel, stride):
    model = model_for(SMALL_IMAGES)
    (place,) = [place for place, layer in enumerate(model.actor) if type(layer) is nn.Conv2d]
    layer = model.actor[place]
    model.actor[place] = nn.Conv2d(layer.in_channels, layer.out_channels, kernel, stride)
    assert "convolution" in refused(model, SMALL_IMAGES.shape)


def test_another_kind_of_model_is_refused():
    class OtherModel(ActorCritic):
        pass

    model = model_for(VECTORS)
    model.__class__ = OtherModel
    assert "OtherModel" in refused(model, VECTORS.shape)


@pytest.mark.parametrize(
    "space, policy, expected",
    [
        (Discrete(4, start=-1), "auto", {"kind": "categorical", "sizes": [4], "starts": [-1]}),
        (MultiDiscrete([3, 2], start=[0, 5]), "auto", {"kind": "multi_categorical", "sizes": [3, 2], "starts": [0, 5]}),
        (MultiBinary(3), "auto", {"kind": "bernoulli", "sizes": [1, 1, 1], "starts": [0, 0, 0]}),
        (MOVES, "gaussian", {"kind": "gaussian", "low": [-2.0, -2.0], "high": [3.0, 3.0]}),
        (MOVES, "beta", {"kind": "beta", "low": [-2.0, -2.0], "high": [3.0, 3.0]}),
    ],
)
def test_a_distribution_says_what_outputs_mean(space, policy, expected):
    assert describe_distribution(build_distribution(space, ModelSettings(policy=policy))) == expected


def test_actions_of_several_kinds_are_not_drawn():
    from ppo.envs.actions import action_space

    space = action_space(gymnasium.spaces.Tuple([Discrete(2), MOVES]))
    assert describe_distribution(build_distribution(space, ModelSettings())) == {"kind": "other"}
