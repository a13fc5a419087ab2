"""Finds modules that behave differently in acting and learning, and parameters on which no output depends.

With such modules the first ratios of an update would not be 1; such parameters have no gradient.

The network is run on a few observations with hooks on every module. This finds modules of any kind that are random,
such as dropout, that differ in training mode or change their buffers, such as batch normalisation, or that mix the
samples of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

_NUM_SAMPLES = 4
# As a fraction of the largest output: above 16-bit rounding, below the effect of other samples or of training mode.
_TOLERANCE = 0.02


@dataclass(eq=False)
class _Call:
    """A call of a module."""

    name: str
    random_state: Tensor
    """State of torch's generator before the call."""
    is_random: bool = False
    outputs: list[Tensor] = field(default_factory=list)


def find_unrepeatable(model: nn.Module, space: Box) -> tuple[str, str] | None:
    """Return the name of the first module that does not act as it learns, and the reason; None if there is none.

    Leaves the model in training mode and torch's generator unchanged.

    Args:
        model: maps observations (B, *space.shape) to tensors.
        space: space of one observation.
    """
    observations = _samples(space)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        learning = _calls(model.train(), observations)
        for call in learning:
            if call.is_random:
                return call.name, "is random"
        for name, buffer in model.named_buffers():
            if not torch.equal(buffer, buffers[name]):
                return name.rpartition(".")[0], "changes its buffers"
        acting = _calls(model.eval(), observations)
        of_half = _calls(model.train(), observations[: _NUM_SAMPLES // 2])
    for others, reason in ((acting, "differs in training mode"), (of_half, "mixes the samples of a batch")):
        # A module may be called more than once, or in only one of the runs.
        unmatched = list(others)
        for call in learning:
            other = next((other for other in unmatched if other.name == call.name), None)
            if other is None:
                continue
            unmatched.remove(other)
            if not all(map(_same_samples, call.outputs, other.outputs)):
                return call.name, reason
    return None


def find_unused(model: nn.Module, space: Box) -> str | None:
    """Return the name of the first parameter that the outputs do not depend on; None if there is none.

    Args:
        model: see `find_unrepeatable`.
        space: see `find_unrepeatable`.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    outputs = torch.cat([output.flatten() for output in _tensors(model(_samples(space)))])
    gradients = torch.autograd.grad(outputs.sum(), parameters, allow_unused=True)
    return next((name for name, gradient in zip(names, gradients, strict=True) if gradient is None), None)


def _samples(space: Box) -> Tensor:
    """Return observations (_NUM_SAMPLES, *shape), the second half of images much darker than the first."""
    own = Box(space.low, space.high, dtype=space.dtype.type, seed=0)  # leaves the generator of `space` unchanged
    observations = torch.from_numpy(np.stack([own.sample() for _ in range(_NUM_SAMPLES)]))
    if observations.dtype == torch.uint8:
        observations[_NUM_SAMPLES // 2 :] //= 4
    return observations


def _calls(model: nn.Module, observations: Tensor) -> list[_Call]:
    """Run a model and return the calls of its modules in the order they return: inner modules first."""
    running: list[_Call] = []
    done: list[_Call] = []

    def watch(name: str, module: nn.Module) -> list[Any]:
        def begin(*_: Any) -> None:
            running.append(_Call(name, torch.get_rng_state()))

        def end(_module: nn.Module, _inputs: Any, output: Any) -> None:
            call = running.pop()
            call.is_random = not torch.equal(call.random_state, torch.get_rng_state())
            # A copy: the next module may overwrite its input.
            call.outputs = [tensor.clone() for tensor in _tensors(output)]
            done.append(call)

        return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]

    hooks = [hook for name, module in model.named_modules() for hook in watch(name, module)]
    try:
        model(observations)
    finally:
        for hook in hooks:
            hook.remove()
    return done


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def _same_samples(whole: Tensor, part: Tensor) -> bool:
    """Return whether a part of a batch has the same outputs as within the whole batch, up to rounding."""
    if not whole.ndim or len(whole) != _NUM_SAMPLES or whole.shape[1:] != part.shape[1:] or not whole.numel():
        return True  # an inner module of another layout; the outputs of the model itself are (B, ...)
    first, second = whole[: len(part)].double(), part.double()
    return torch.allclose(first, second, rtol=0.0, atol=_TOLERANCE * float(first.abs().max()), equal_nan=True)
