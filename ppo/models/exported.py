"""Networks as TorchScript: what an agent does without noise, for programs that have PyTorch and not this package."""

import io
import warnings

import torch
from torch import Tensor, nn

from ppo.collectives.moments import RunningMoments
from ppo.models.actor_critic import ActorCritic
from ppo.models.distributions import Rule


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
        model: the network, on a processor.
        rule: which action it takes, "mean" or "mode".
        values: the units of its values.
        example: observations (N, ...), N at least 2.

    Raises:
        Refusal: the distribution is one from outside without `elements`.
    """
    with torch.no_grad(), warnings.catch_warnings():
        # PyTorch advises torch.export, whose files only PyTorch's own compiler can take to C++.
        warnings.simplefilter("ignore", DeprecationWarning)
        # The bounds of an action space are constants, and input statistics always two rows.
        for harmless in ("torch.from_numpy results are registered as constants", "Iterating over a tensor"):
            warnings.filterwarnings("ignore", harmless)
        traced = torch.jit.trace(_Exported(model, rule, values).eval(), example)  # type: ignore[no-untyped-call]
        content = io.BytesIO()
        torch.jit.save(traced, content)
    return content.getvalue()
