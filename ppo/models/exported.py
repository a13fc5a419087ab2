"""Networks as TorchScript: an agent without noise, for programs that have PyTorch but not this package."""

import io
import warnings

import torch
from torch import Tensor, nn

from ppo.collectives.moments import RunningMoments
from ppo.models.actor_critic import ActorCritic
from ppo.models.distributions.base import Rule


class _Exported(nn.Module):
    """Maps observations (N, ...) to elements of the action space (N, ...) and values (N,) in raw units."""

    def __init__(self, model: ActorCritic, rule: Rule, values: RunningMoments) -> None:
        super().__init__()
        self._model, self._rule, self._values = model, rule, values

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        prediction, distribution = self._model(observations), self._model.distribution
        actions = distribution.elements(getattr(distribution, self._rule)(prediction.action))
        return actions, self._values.denormalize(prediction.values)


def exported(model: ActorCritic, rule: Rule, values: RunningMoments, example: Tensor) -> bytes:
    """Return a network as a TorchScript file, by tracing it.

    Args:
        model: the network, on the CPU.
        rule: how the action is chosen, "mean" or "mode".
        values: the value normaliser.
        example: observations (N, ...), N at least 2.

    Raises:
        Refusal: the distribution is user-defined and has no `elements`.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # PyTorch recommends torch.export, but only PyTorch's own compiler can turn its files into C++.
        warnings.simplefilter("ignore", DeprecationWarning)
        # The bounds of an action space are constants, and input statistics always have two rows.
        for harmless in ("torch.from_numpy results are registered as constants", "Iterating over a tensor"):
            warnings.filterwarnings("ignore", harmless)
        traced = torch.jit.trace(_Exported(model, rule, values).eval(), example)  # type: ignore[no-untyped-call]
        content = io.BytesIO()
        torch.jit.save(traced, content)
    return content.getvalue()
