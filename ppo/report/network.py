"""A network as data that a page can run: its layers in order, large weights in 8 bits.

Only layers of exactly known types are exported. Weights of more than 65,536 numbers become integers from -127 to 127
with one scale per output; all others stay float32. `browser/network.js` runs the layers.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppo.collectives.moments import RunningMoments
from ppo.models.actor_critic import ActorCritic
from ppo.models.distributions import ActionDistribution
from ppo.models.distributions.beta import Beta
from ppo.models.distributions.categories import Bernoulli, Categorical, MultiCategorical
from ppo.models.distributions.gaussian import Gaussian, GaussianHead
from ppo.models.encoders import CoordConv2d, Flatten, PixelConv2d
from ppo.models.inputs import PixelStatistics, VectorStatistics
from ppo.report.packing import Pack

_MOST_IN_FLOAT32 = 65_536
_MOST_BYTES = 1_000_000
_LARGEST_8_BITS = 127

Shape = tuple[int, ...]
Layers = list[dict[str, Any]]


class CannotBeHeldError(Exception):
    """A page cannot run the network; the message says why."""


@torch.inference_mode()
def portable(model: ActorCritic, shape: Shape, moments: RunningMoments, pack: Pack) -> dict[str, Any]:
    """Return a network as JSON, with its weights in `pack`.

    Args:
        model: the network.
        shape: the shape of an observation.
        moments: of the returns; they denormalize the network's values.
        pack: receives the weights.

    Raises:
        CannotBeHeldError: the network is too large or has an unknown layer.
    """
    if sum(_size_of(parameter) for parameter in model.parameters()) > _MOST_BYTES:
        number = sum(parameter.numel() for parameter in model.parameters())
        raise CannotBeHeldError(f"its network has {number / 1e6:.1f} million weights, more than this page can hold")
    if type(model) is not ActorCritic:
        raise CannotBeHeldError(f"its network is of a kind that this page cannot run ({type(model).__name__})")
    _Export(Pack()).everything(model, shape)  # a dry run: a network refused halfway leaves `pack` empty
    described = _Export(pack).everything(model, shape)
    return {**described, "units": {"mean": moments.mean, "deviation": moments.deviation}}


def describe_distribution(distribution: ActionDistribution) -> dict[str, Any]:
    """Return the meaning of the policy head's outputs as JSON; `kind` is "other" if a page cannot show them."""
    kind = type(distribution)
    if isinstance(distribution, Categorical | MultiCategorical | Bernoulli) and kind in _KINDS:
        if isinstance(distribution, MultiCategorical):
            sizes = distribution.sizes
        else:
            sizes = [distribution.num_outputs] if kind is Categorical else [1] * distribution.num_outputs
        starts = distribution.to_environment(np.zeros((1, *distribution.action_shape), np.int64)).flatten().tolist()
        return {"kind": distribution.name, "sizes": sizes, "starts": starts}
    if isinstance(distribution, Gaussian | Beta) and kind in _KINDS:
        ends = np.full((2, distribution.num_dimensions), 1.0, np.float32)
        ends[0] = 0.0 if kind is Beta else -1.0
        low, high = distribution.to_environment(ends).reshape(2, -1).astype(np.float64).tolist()
        return {"kind": distribution.name, "low": low, "high": high}
    return {"kind": "other"}


_KINDS = (Categorical, MultiCategorical, Bernoulli, Gaussian, Beta)


class _Export:
    """Turns modules into layers."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack

    def everything(self, model: ActorCritic, shape: Shape) -> dict[str, Any]:
        """Return the input scaling, both encoders and both heads."""
        actor, features = self.layers([model.actor], shape)
        critic = None if model.critic is None else self.layers([model.critic], shape)[0]
        heads = {
            name: self.layers([module for module in modules if module is not None], features)[0]
            for name, modules in (
                ("policy", (model.policy_layer, model.policy_head)),
                ("value", (model.value_layer, model.value_head)),
            )
        }
        return {"shape": list(shape), "scaling": self._scaling(model), "actor": actor, "critic": critic, **heads}

    def layers(self, modules: Iterable[nn.Module], shape: Shape) -> tuple[Layers, Shape]:
        """Return the layers of consecutive modules, and their output shape for inputs of `shape`."""
        layers: Layers = []
        for module in modules:
            kind = type(module)
            if isinstance(module, nn.Sequential) and kind.forward is nn.Sequential.forward:
                inner, shape = self.layers(module, shape)
                layers += inner
            elif kind in (nn.Flatten, Flatten):
                shape = (math.prod(shape),)
            elif kind in (nn.ReLU, nn.Tanh):
                layers.append({"kind": "relu" if kind is nn.ReLU else "tanh"})
            elif isinstance(module, nn.LeakyReLU) and kind is nn.LeakyReLU:
                layers.append({"kind": "leaky_relu", "slope": module.negative_slope})
            elif isinstance(module, nn.Linear) and kind is nn.Linear:
                layers.append(self._linear(module))
                shape = (module.out_features,)
            elif isinstance(module, GaussianHead) and kind is GaussianHead:
                deviations = self._pack.add(module.log_deviations.float().numpy())
                layers += [self._linear(module.means), {"kind": "append", "values": deviations}]
                shape = (2 * module.means.out_features,)
            elif isinstance(module, CoordConv2d) and kind is CoordConv2d:
                layer, shape = self._convolution(module.of_channels, shape)
                constant = module.of_coordinates(module.coordinates)[0]
                layers.append({**layer, "constant": self._pack.add(constant.float().contiguous().numpy())})
            elif isinstance(module, nn.Conv2d):
                layer, shape = self._convolution(module, shape)
                layers.append(layer)
            else:
                raise CannotBeHeldError(f"its network has a layer that this page cannot run ({kind.__name__})")
        return layers, shape

    def _linear(self, module: nn.Linear) -> dict[str, Any]:
        bias = torch.zeros(module.out_features) if module.bias is None else module.bias
        return {"kind": "linear", "weight": self._weight(module.weight), "bias": self._pack.add(bias.float().numpy())}

    def _convolution(self, module: nn.Conv2d, shape: Shape) -> tuple[dict[str, Any], Shape]:
        plain = (module.padding, module.dilation, module.groups) == ((0, 0), (1, 1), 1)
        square = len({*module.kernel_size}) == len({*module.stride}) == 1
        known = type(module) in (nn.Conv2d, PixelConv2d) and plain and square
        if not known or module.bias is None or len(shape) != 3:
            raise CannotBeHeldError("its network has a convolution of a kind that this page cannot run")
        weight, bias = module.folded() if isinstance(module, PixelConv2d) else (module.weight, module.bias)
        outputs, _, kernel, _ = weight.shape
        stride = module.stride[0]
        after = (outputs, *((side - kernel) // stride + 1 for side in shape[1:]))
        layer = {"kind": "convolution", "stride": stride, "before": list(shape), "after": list(after)}
        return {**layer, "weight": self._weight(weight), "bias": self._pack.add(bias.float().numpy())}, after

    def _weight(self, weight: Tensor) -> dict[str, Any]:
        """Pack a weight (outputs, ...): its numbers and, if they are 8-bit, the scale of each output."""
        numbers = weight.float().numpy()
        if numbers.size <= _MOST_IN_FLOAT32:
            return {"numbers": self._pack.add(numbers)}
        rows = numbers.reshape(len(numbers), -1)
        scales = np.maximum(np.abs(rows).max(1), 1e-30).astype(np.float32) / _LARGEST_8_BITS
        whole = np.rint(rows / scales[:, np.newaxis]).astype(np.int8)
        return {"numbers": self._pack.add(whole.reshape(numbers.shape)), "scales": self._pack.add(scales)}

    def _scaling(self, model: ActorCritic) -> dict[str, Any] | None:
        """Return how observations are scaled before the first layer; None if they are not."""
        inputs = model.inputs
        if isinstance(inputs, PixelStatistics):
            if model.pixel_layer is not None:
                return None  # folded into the first convolution
            bound = None
        else:
            assert isinstance(inputs, VectorStatistics)
            if not inputs.follows:
                return None
            bound = inputs.clip
        mean, deviation = inputs.applied.float().numpy()
        packed = {"mean": self._pack.add(np.atleast_1d(mean)), "deviation": self._pack.add(np.atleast_1d(deviation))}
        return {**packed, "bound": bound}


def _size_of(parameter: Tensor) -> int:
    """Estimate how many bytes a parameter takes in a page."""
    number = parameter.numel()
    return number if number > _MOST_IN_FLOAT32 else 4 * number
