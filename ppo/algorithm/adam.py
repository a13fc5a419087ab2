"""Adam on one flat vector.

The fused kernel of `torch.optim.Adam` is called directly: `torch.optim` imports PyTorch's compiler on first use, which
adds seconds to the start of every rank.
"""

import torch
from torch import Tensor


class Adam:
    """Adam, Kingma and Ba 2015, algorithm 1 (arXiv:1412.6980), with its betas of 0.9 and 0.999."""

    MOMENTS = ("first_moment", "second_moment")
    """Names of the moments, here and in a `state_dict`."""

    def __init__(
        self,
        count: int,
        epsilon: float,
        device: torch.device | None = None,
        moments: Tensor | None = None,
        *,
        l2_penalty: float = 0.0,
    ) -> None:
        """Start with empty moments for P parameters.

        Args:
            count: P.
            epsilon: added to the root of the second moment.
            device: device of the parameters, by default the CPU.
            moments: memory for both moments, (2, P), zeros; allocated here by default.
            l2_penalty: weight of half the squared norm of the parameters, which is added to the loss.
        """
        self._epsilon, self._l2_penalty = epsilon, l2_penalty
        self.first_moment, self.second_moment = torch.zeros(2, count, device=device) if moments is None else moments
        self.gradient_steps = torch.zeros((), device=device)

    @torch.no_grad()
    def step(
        self,
        values: Tensor,
        gradient: Tensor,
        rate: float,
        *,
        unless: Tensor | None = None,
        shard: slice = slice(None),
    ) -> None:
        """Take a step: update `values` (P,) in place.

        Args:
            values: all parameters.
            gradient: gradient of the shard.
            rate: the learning rate.
            unless: (), 1 to skip the step; read on the device only.
            shard: parameters to update, by default all.
        """
        self.gradient_steps += 1
        torch._fused_adam_(
            [values[shard]],
            [gradient],
            [self.first_moment[shard]],
            [self.second_moment[shard]],
            [],
            [self.gradient_steps],
            lr=rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=self._l2_penalty,
            eps=self._epsilon,
            amsgrad=False,
            maximize=False,
            found_inf=unless,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of both moments (P,) and the number of steps."""
        return {name: getattr(self, name).clone() for name in (*self.MOMENTS, "gradient_steps")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a `state_dict`.

        Raises:
            ValueError: the moments belong to a network of another size.
        """
        for name in self.MOMENTS:
            own = getattr(self, name)
            if state[name].shape != own.shape:
                raise ValueError(
                    f"the optimiser state is for {state[name].numel()} parameters, but this network has {own.numel()}"
                )
            own.copy_(state[name])
        self.gradient_steps.copy_(state["gradient_steps"])
