"""Passes over a minibatch in compiled code, where the package was installed with a compiler."""

try:
    from ppo.algorithm import _minibatch as compiled
except ImportError:
    compiled = None  # type: ignore[assignment]

__all__ = ["IS_COMPILED", "compiled"]

IS_COMPILED = compiled is not None
"""Whether `compiled` is there; who uses it does the same without, in more time."""
