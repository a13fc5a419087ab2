"""A function of tensors whose kernels a GPU is given all at once.

A gradient of a network for 84x84 pixels is a hundred kernels of some microseconds each, and launching one takes the
processor as long as running it takes the GPU. A CUDA graph is launched as a whole (Nguyen et al. 2021, "Accelerating
PyTorch with CUDA Graphs").
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# cuDNN and cuBLAS choose algorithms and take memory in the first calls, which must not be recorded.
_CALLS_BEFORE_RECORDING = 3


class CUDAGraph:
    """The kernels of one call of a function, to be launched again on other inputs of the same shapes.

    What the function reads besides its inputs, and what it writes besides its result, stays where it was in memory when
    it was recorded. It may not wait for the GPU, nor decide anything by what is in a tensor.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], examples: Sequence[Tensor]) -> None:
        """Call `function` a few times and record one more call; `examples` are inputs like those to come.

        The calls have their effects: a caller that needs the memory they write unchanged restores it.
        """
        self._inputs = [example.clone() for example in examples]
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_CALLS_BEFORE_RECORDING):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads (the watchdog, NCCL's) may speak to the GPU meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Launch the kernels on inputs of the examples' shapes; the next call overwrites the result."""
        for own, given in zip(self._inputs, inputs, strict=True):
            assert own.shape == given.shape
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._result
