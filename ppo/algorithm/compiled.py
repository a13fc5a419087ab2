"""Passes over a minibatch in compiled code, where the package was installed with a compiler."""

try:
    from ppo.algorithm import _minibatch as code
except ImportError:
    code = None  # type: ignore[assignment]

__all__ = ["IS_COMPILED", "code"]

IS_COMPILED = code is not None
"""Whether `code` is there; who uses it does the same without, in more time."""
