"""PPO for Atari and other Gymnasium environments, distributed over MPI ranks.

`ppo.load`, `ppo.evaluate` and `ppo.train` are the Python API (docs/python.md), imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppo.api import evaluate, load, train

__version__ = "0.1.0"
__all__ = ("evaluate", "load", "train")


def __getattr__(name: str) -> Any:
    """Import an API function on first access, because importing PyTorch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'ppo' has no attribute {name!r}")
    from ppo import api

    return getattr(api, name)
