"""ALE loads a ROM without its table of blended colours, which this program never reads: in 7 ms instead of 84.

So a job of 64 emulators starts seconds earlier. `_blended_colours.c` says what is left out, and how. It is done for
versions of ALE that are known, where a test holds screens, colours and greys against those of ALE as it is; with
another version, on another system than Linux, or where the package was installed without a compiler, ROMs load as they
always did.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

KNOWN_VERSIONS = ("0.12.1",)
"""Of ale-py, in which nothing but `color_averaging` reads the table."""


def leave_out_blended_colours() -> bool:
    """Do so for every emulator of this process, before ALE is imported; return whether this call has done it."""
    if sys.platform != "linux" or "ale_py" in sys.modules:
        return False
    library = importlib.util.find_spec("ppo.envs.atari._blended_colours")
    if library is None or library.origin is None or _version() not in KNOWN_VERSIONS:
        return False
    try:
        ctypes.CDLL(library.origin, mode=os.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _version() -> str | None:
    try:
        return importlib.metadata.version("ale-py")
    except importlib.metadata.PackageNotFoundError:
        return None
