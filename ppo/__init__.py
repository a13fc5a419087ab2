"""PPO for Atari and its neighbours, distributed over MPI ranks.

`ppo.load`, `ppo.evaluate` and `ppo.train` are the program in Python (docs/python.md); `import ppo` imports nothing yet.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppo.api import evaluate, load, train

__version__ = "0.1.0"
__all__ = ("evaluate", "load", "train")


def __getattr__(name: str) -> Any:
    """Import a call when it is first asked for, which takes PyTorch's seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'ppo' has no attribute {name!r}")
    from ppo import api

    return getattr(api, name)
