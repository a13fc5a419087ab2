"""A function of tensors whose kernels are launched on a GPU all at once.

The gradient of a network for 84x84 pixels is a hundred kernels of a few microseconds each, and launching a kernel takes
the CPU as long as running it takes the GPU. A CUDA graph is launched as a whole (Nguyen et al. 2021, "Accelerating
PyTorch with CUDA Graphs").
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# cuDNN and cuBLAS choose algorithms and allocate memory in the first calls, which must not be recorded.
_CALLS_BEFORE_RECORDING = 3


class CUDAGraph:
    """The recorded kernels of one call of a function, to be replayed on other inputs of the same shapes.

    Whatever the function reads besides its inputs, or writes besides its result, keeps the memory address that was
    recorded. The function must neither wait for the GPU nor branch on the contents of a tensor.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], examples: Sequence[Tensor]) -> None:
        """Call `function` a few times and record one more call; `examples` have the shapes of all later inputs.

        All these calls have side effects: the caller restores memory that must stay unchanged.
        """
        self._inputs = [example.clone() for example in examples]
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_CALLS_BEFORE_RECORDING):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads (the watchdog, NCCL's) may use the GPU meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Replay the kernels on inputs of the examples' shapes; the next call overwrites the result."""
        for own, given in zip(self._inputs, inputs, strict=True):
            assert own.shape == given.shape
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._result
