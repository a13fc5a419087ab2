"""A network's parameters and gradients as two flat vectors: one message and one kernel serve all parameters."""

from functools import partial

import torch
from torch import Tensor, nn


def num_parameters(model: nn.Module) -> int:
    """Return P, the number of a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


class FlatParameters:
    """A model's parameters as views of one flat vector, and its gradients in another."""

    def __init__(
        self,
        model: nn.Module,
        num_sums: int,
        buffer: Tensor | None = None,
        values: Tensor | None = None,
        *,
        moves_gradients: bool = True,
    ) -> None:
        """Move the parameters of `model` into a flat vector.

        Args:
            model: its parameters must be float32, on one device.
            num_sums: number of further values to be summed over ranks with the gradient.
            buffer: memory for the gradient and these values, (P + num_sums,); allocated here by default.
            values: memory for the parameters, (P,); allocated here by default.
            moves_gradients: see `start_gradient`.
        """
        parameters = list(model.parameters())
        assert all(p.dtype == torch.float32 for p in parameters)
        self.count = num_parameters(model)
        device = parameters[0].device
        self.values = torch.empty(self.count, device=device) if values is None else values
        self.buffer = torch.zeros(self.count + num_sums, device=device) if buffer is None else buffer
        assert self.buffer.shape == (self.count + num_sums,) and self.values.shape == (self.count,)
        self.gradient = self.buffer[: self.count]
        self.sums = self.buffer[self.count :]
        self._grads: list[Tensor] = []
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            view = self.values[start:end].view_as(parameter)
            view.copy_(parameter.data)
            parameter.data = view
            self._grads.append(self.gradient[start:end].view_as(parameter))
            start = end
        self._parameters = parameters
        self._moves_gradients = moves_gradients
        self._to_come = [True] * len(parameters)
        for index, (parameter, grad) in enumerate(zip(parameters, self._grads, strict=True)):
            if self._moves_gradients:
                parameter.register_post_accumulate_grad_hook(partial(self._move, index))  # type: ignore[no-untyped-call]
            else:
                parameter.grad = grad

    def start_gradient(self) -> None:
        """Start a new gradient, to which all backward passes until the next call contribute; clear the sums.

        With `moves_gradients`, gradients are moved into the flat vector as they are computed. The first pass overwrites
        what is there: clearing the vector would be another pass over memory. Without it, the vector is cleared, for
        code that adds to gradients in place, such as a GPU's recorded kernels.
        """
        if self._moves_gradients:
            self._to_come = [True] * len(self._to_come)
            self.sums.zero_()
        else:
            self.buffer.zero_()

    def check_gradient(self) -> None:
        """Assert that the flat vector holds the whole gradient after backward()."""
        if self._moves_gradients:
            assert not any(self._to_come)
        else:
            for parameter, grad in zip(self._parameters, self._grads, strict=True):
                assert parameter.grad is not None and parameter.grad.data_ptr() == grad.data_ptr()

    def _move(self, index: int, parameter: Tensor) -> None:
        """Move a parameter's new gradient into the flat vector."""
        assert parameter.grad is not None
        if self._to_come[index]:
            self._grads[index].copy_(parameter.grad)
        else:
            self._grads[index].add_(parameter.grad)
        self._to_come[index] = False
        parameter.grad = None
