import numpy as np
from numpy.typing import NDArray

def gather_pixels(gathered: NDArray[np.float32], rows: NDArray[np.uint8], indices: NDArray[np.int64], /) -> None: ...
def derivatives(
    logits: NDArray[np.float32],
    values: NDArray[np.float32],
    actions: NDArray[np.int64],
    log_probs: NDArray[np.float32],
    old_values: NDArray[np.float32],
    returns: NDArray[np.float32],
    advantages: NDArray[np.float32],
    clip_range: float,
    value_clip_range: float,
    entropy_coefficient: float,
    value_coefficient: float,
    minibatch_size: float,
    /,
) -> None: ...
