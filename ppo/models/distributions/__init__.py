"""Action distributions: everything that depends on the kind of action, in one object built for an action space.

Shapes: B minibatch, or any other leading axes; K outputs of the policy head per state; D dimensions of the flattened
space. Raw actions are what a distribution samples and the learner stores; `to_environment` converts them to what the
environment takes. `torch.distributions` computes the same at several times the cost per call.

Every method of tensors works on the device of its arguments and transfers nothing between devices, so that a CUDA graph
can record it.
"""

from typing import Any

from ppo.models.distributions.base import ActionDistribution, Space
from ppo.models.distributions.beta import Beta
from ppo.models.distributions.categories import Bernoulli, Categorical, MultiCategorical
from ppo.models.distributions.composite import Composite
from ppo.models.distributions.gaussian import Gaussian

__all__ = ["DISTRIBUTIONS", "ActionDistribution", "distribution_type", "make_distribution"]

DISTRIBUTIONS: dict[str, type[ActionDistribution]] = {
    kind.name: kind for kind in (Categorical, MultiCategorical, Bernoulli, Gaussian, Beta, Composite)
}
"""Distributions by value of the setting `policy`; "auto" selects the first that supports the space."""


def make_distribution(space: Space, policy: str = "auto", **options: Any) -> ActionDistribution:
    """Build the distribution for an action space.

    Args:
        space: the action space of one environment.
        policy: "auto", or a name of DISTRIBUTIONS.
        options: options of the chosen kind.

    Raises:
        ValueError: unknown policy, none for this space, or an option that the kind does not have.
    """
    kind = distribution_type(space, policy)
    for option in options:
        if option not in kind.options:
            raise ValueError(
                f"{option} does not apply to policy={kind.name}, whose options are: {', '.join(kind.options) or 'none'}"
            )
    return kind(space, **options)  # type: ignore[call-arg]


def distribution_type(space: Space, policy: str = "auto") -> type[ActionDistribution]:
    """Return the kind of distribution for an action space.

    Raises:
        ValueError: unknown policy, or none for this space.
    """
    serving = [name for name, kind in DISTRIBUTIONS.items() if kind.refusal(space) is None]
    if policy != "auto" and policy not in DISTRIBUTIONS:
        raise ValueError(f"policy must be one of auto, {', '.join(DISTRIBUTIONS)}, got {policy}")
    if not serving:
        raise ValueError(
            f"no policy supports the action space {space}: it must be Discrete, MultiDiscrete, MultiBinary or Box"
        )
    kind = DISTRIBUTIONS[serving[0] if policy == "auto" else policy]
    reason = kind.refusal(space)
    if reason is not None:
        raise ValueError(f"policy={policy} {reason}, got {space}; try auto or {' or '.join(serving)}")
    return kind
