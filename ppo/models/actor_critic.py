"""The actor-critic network: a policy head and a value head over encoders of the observation.

For images, actor and critic share one encoder, as in the PPO paper's Atari experiments; for vectors they have one each.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from ppo.config import ModelSettings
from ppo.models.distributions import ActionDistribution, distribution_type, make_distribution
from ppo.models.encoders import ENCODERS, Encoder, PixelConv2d, orthogonal
from ppo.models.inputs import InputStatistics, PixelStatistics, VectorStatistics
from ppo.models.repeatable import find_unrepeatable, find_unused
from ppo.settings import Refusal, did_you_mean

_IMAGE_NETWORKS = {"small": "a3c", "large": "nature", "impala": "impala"}

Space = gymnasium.Space[Any]


class Prediction(NamedTuple):
    """The outputs of a network for a minibatch of observations."""

    action: Tensor
    """Outputs of the policy head, (B, K), which the action distribution interprets."""
    values: Tensor
    """State values, (B,), in the units of the value normaliser."""


Policy = Callable[[Tensor], Prediction]
"""Maps observations (B, ...) to a prediction."""


class ActorCritic(nn.Module):
    """A network that predicts a policy and state values."""

    def __init__(
        self,
        distribution: ActionDistribution,
        inputs: InputStatistics,
        actor: nn.Module,
        critic: nn.Module | None,
        num_features: int,
        head_units: int | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        """Put heads on the encoders of actor and critic; without a critic, both heads share the actor's encoder.

        With `head_units`, a layer of that many ReLUs precedes each head. `precision` applies to the encoders'
        arithmetic only; weights and heads are always float32.
        """
        super().__init__()
        self.distribution = distribution
        self.inputs = inputs
        self.actor = actor
        self.critic = critic
        self.precision = precision
        self.policy_layer = _relu_layer(num_features, head_units)
        self.value_layer = _relu_layer(num_features, head_units)
        num_features = head_units or num_features
        # A nearly uniform first policy, and values near 0 (Andrychowicz et al. 2021, arXiv:2006.05990, section 3.2).
        self.policy_head = distribution.head(num_features)
        self.value_head = orthogonal(nn.Linear(num_features, 1), gain=1.0)
        self._inputs_are_absorbed = self.pixel_layer is not None and isinstance(inputs, PixelStatistics)
        if isinstance(inputs, PixelStatistics):
            for layer in self.modules():
                if isinstance(layer, PixelConv2d):
                    layer.absorb(inputs)
                    layer.in_16_bits = precision != torch.float32

    def forward(self, observations: Tensor) -> Prediction:
        """Predict for observations (B, ...)."""
        if not self._inputs_are_absorbed:
            observations = self.inputs(observations)
        with _arithmetic(self.device, self.precision):
            features = self.actor(observations)
            value_features = features if self.critic is None else self.critic(observations)
        features, value_features = features.float(), value_features.float()
        if self.policy_layer is not None and self.value_layer is not None:
            features, value_features = self.policy_layer(features), self.value_layer(value_features)
        return Prediction(self.policy_head(features), self.value_head(value_features).squeeze(-1))

    @property
    def precision_name(self) -> str:
        """The value of the setting `precision` for the encoders' arithmetic."""
        return str(self.precision).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """The device that holds the network."""
        return self.value_head.get_parameter("weight").device

    @property
    def pixel_layer(self) -> PixelConv2d | None:
        """The layer that reads pixels and absorbs their statistics; None if there is none."""
        return next((module for module in self.actor.modules() if isinstance(module, PixelConv2d)), None)


def build_model(
    observation_space: Space,
    action_space: Space,
    settings: ModelSettings,
    *,
    seed: int,
    precision: torch.dtype = torch.float32,
) -> ActorCritic:
    """Build the network for a pair of spaces, on the CPU; its weights depend on the seed alone.

    Args:
        observation_space: uint8 images (C, H, W) or float32 vectors (D,).
        action_space: any space that an action distribution supports.
        settings: the network, the policy and the input statistics.
        seed: seed of the weights.
        precision: arithmetic of image encoders; vector encoders always compute in float32.

    Raises:
        Refusal: the settings do not fit the spaces.
    """
    shape = observation_space.shape
    is_image = shape is not None and len(shape) == 3 and observation_space.dtype == np.uint8
    if not isinstance(observation_space, gymnasium.spaces.Box) or not shape or not (is_image or len(shape) == 1):
        raise Refusal(f"observations must be uint8 images or vectors, got {observation_space}")
    distribution = build_distribution(action_space, settings)
    inputs: InputStatistics
    if is_image:
        inputs = PixelStatistics(follows=settings.pixel_normalization)
    else:
        inputs = VectorStatistics(shape[0], follows=settings.observation_normalization, clip=settings.observation_clip)
    encoder_type = _encoder_type(settings, is_image)
    is_shared = is_image if settings.trunk == "auto" else settings.trunk == "shared"
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(seed)
        try:
            actor = encoder_type(shape, settings)
            critic = None if is_shared else encoder_type(shape, settings)
        except ValueError as error:
            setting = "model_size" if settings.network == "auto" else "network"
            value = settings.model_size if settings.network == "auto" else settings.network
            raise Refusal(
                f"{setting} must fit the observations: {value} needs {error}; try --network=mlp, which takes any"
            ) from error
        assert isinstance(actor, nn.Module) and (critic is None or isinstance(critic, nn.Module))
        if not hasattr(actor, "num_features"):
            raise Refusal(f"network must define num_features, the length of its output; {settings.network} does not")
        # Eight bits are too few for an angle or a speed, and vector networks would gain no time.
        used = precision if is_image else torch.float32
        model = ActorCritic(distribution, inputs, actor, critic, actor.num_features, settings.head_units, used)
        if settings.initialization == "default":
            _initialise_as_torch_does(model)
    if ":" in settings.network + settings.policy:
        _refuse_modules(model, observation_space)
    return model


def check_model(observation_space: Space, action_space: Space, settings: ModelSettings) -> None:
    """Refuse settings that do not fit the spaces, before any folder or environment is created.

    Raises:
        Refusal: see `build_model`.
    """
    # Not on the meta device: PyTorch would import SymPy and its compiler.
    build_model(observation_space, action_space, settings, seed=0)


def build_distribution(action_space: Space, settings: ModelSettings) -> ActionDistribution:
    """Return the action distribution for a space.

    Raises:
        Refusal: the setting `policy` does not fit the space.
    """
    if ":" in settings.policy:
        kind = _imported("policy", settings.policy, ActionDistribution)
        reason = kind.refusal(action_space)
        if reason is not None:
            raise Refusal(f"policy={settings.policy} {reason}, got {action_space}")
        distribution: ActionDistribution = kind(action_space)
        return distribution
    try:
        kind = distribution_type(action_space, settings.policy)
        return make_distribution(
            action_space, settings.policy, **{name: _option(settings, name) for name in kind.options}
        )
    except ValueError as error:
        raise Refusal(str(error)) from error


def _option(settings: ModelSettings, name: str) -> Any:
    """Return the value of a distribution's option."""
    return settings.action_starts if name == "action_start" else getattr(settings, name)


def _encoder_type(settings: ModelSettings, is_image: bool) -> type[Encoder]:
    """Return the encoder class that `network` names, or that `model_size` names if `network` is auto."""
    name = settings.network
    if name == "auto":
        name = _IMAGE_NETWORKS[settings.model_size] if is_image else "mlp"
        if not is_image and settings.model_size == "impala":
            raise Refusal("model_size must be small or large unless observations are images, got impala")
    if ":" in name:
        return _imported("network", name, nn.Module)  # type: ignore[no-any-return]
    if name not in ENCODERS:
        choices = ("auto", *ENCODERS)
        raise Refusal(
            f"network must be one of {', '.join(choices)} or module:Name, got {name!r}{did_you_mean(name, choices)}"
        )
    return ENCODERS[name]


def _imported(setting: str, name: str, base: type) -> Any:
    """Import a subclass of `base`, named on the command line as module:Name."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise Refusal(f"{setting} must name an importable class, got {name!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise Refusal(f"{setting} must name a subclass of {base.__name__}, got {name!r}")
    return found


def _relu_layer(num_features: int, units: int | None) -> nn.Module | None:
    """Return a layer of ReLUs, or None if `units` is None."""
    return None if units is None else nn.Sequential(orthogonal(nn.Linear(num_features, units)), nn.ReLU(inplace=True))


def _refuse_modules(model: ActorCritic, space: gymnasium.spaces.Box) -> None:
    """Refuse user-defined modules with frozen or unused parameters, or that act differently from how they learn."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise Refusal(f"network must have a gradient for every parameter, but {name} has none; make it a buffer")
    with one_thread():
        found = find_unrepeatable(model, space)
    if found:
        name, reason = found
        setting = _setting_of(name)
        kind = type(model.get_submodule(name)).__name__
        raise Refusal(f"{setting} must behave the same in acting and learning: {kind} ({name}) {reason}; remove it")
    unused = find_unused(model, space)
    if unused is not None:
        raise Refusal(f"{_setting_of(unused)} must use every parameter, but no output depends on {unused}; remove it")


def _setting_of(name: str) -> str:
    """Return which setting named the class of a module or a parameter."""
    return "policy" if name.startswith("policy_head") else "network"


def _initialise_as_torch_does(model: ActorCritic) -> None:
    """Initialise layers as PyTorch does, but keep the first policy that was asked for, as by log_deviation_init."""
    layers = [layer for layer in model.policy_head.modules() if isinstance(layer, nn.Linear)]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    chosen = [bias.detach().clone() for bias in biases]
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
    with torch.no_grad():
        for bias, asked in zip(biases, chosen, strict=True):
            bias.copy_(torch.where(asked == 0.0, bias, asked))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, as ranks do: more round some results differently and are slower for few samples."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _arithmetic(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """Return a context that autocasts to `precision`; float32 needs none."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    # Every weight is used once, so caching its cast gains nothing.
    return torch.autocast(device.type, precision, cache_enabled=False)
