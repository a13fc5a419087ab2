import numpy as np
from numpy.typing import NDArray

def gather_pixels(gathered: NDArray[np.float32], rows: NDArray[np.uint8], indices: NDArray[np.int64], /) -> None: ...
