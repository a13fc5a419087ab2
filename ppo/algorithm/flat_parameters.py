"""A network's parameters and gradients as two flat vectors: one message and one kernel for all of them."""

import torch
from torch import Tensor, nn


def num_parameters(model: nn.Module) -> int:
    """Return P, the number of a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


class FlatParameters:
    """A model's parameters and gradients as two flat vectors the model's own tensors are views of."""

    def __init__(
        self, model: nn.Module, num_sums: int, exchanged: Tensor | None = None, values: Tensor | None = None
    ) -> None:
        """Move the parameters of `model` into a flat vector.

        Args:
            model: its parameters must be float32, on one device.
            num_sums: further numbers to be summed over ranks together with the gradient.
            exchanged: the memory for the gradient and these numbers, (P + num_sums,); by default it is made here.
            values: the memory for the parameters, (P,); by default it is made here.
        """
        parameters = list(model.parameters())
        assert all(p.dtype == torch.float32 for p in parameters)
        self.count = num_parameters(model)
        device = parameters[0].device
        self.values = torch.empty(self.count, device=device) if values is None else values
        self.exchanged = torch.zeros(self.count + num_sums, device=device) if exchanged is None else exchanged
        assert self.exchanged.shape == (self.count + num_sums,) and self.values.shape == (self.count,)
        self.gradient = self.exchanged[: self.count]
        self.sums = self.exchanged[self.count :]
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            values = self.values[start:end].view_as(parameter)
            values.copy_(parameter.data)
            parameter.data = values
            parameter.grad = self.gradient[start:end].view_as(parameter)
            start = end
        self._owners = [
            (parameter, parameter.grad.data_ptr()) for parameter in parameters if parameter.grad is not None
        ]

    def zero_gradient(self) -> None:
        """Clear gradients and sums in place; `zero_grad()` would drop the views."""
        self.exchanged.zero_()

    def check_views(self) -> None:
        """Assert that backward() still writes into the flat vector."""
        for parameter, address in self._owners:
            assert parameter.grad is not None and parameter.grad.data_ptr() == address
