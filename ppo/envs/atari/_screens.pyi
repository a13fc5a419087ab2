import numpy as np
from numpy.typing import NDArray

def push_screens(stack: NDArray[np.uint8], screens: NDArray[np.uint8], greys: NDArray[np.uint8], /) -> None: ...
