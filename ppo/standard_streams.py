"""Standard input, output and error: open, and able to take every character."""

import contextlib
import io
import os
import sys

from ppo.settings import printable


def prepare_standard_streams() -> None:
    """Open those that the caller has closed to nowhere, and let them escape what their encodings lack.

    The next file to be opened would get the number of a closed one, and C libraries would print into a checkpoint.
    Names of folders may hold any character, and after one that cannot be encoded nothing more would be printed.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say_on_standard_error(text: str) -> None:
    """Print where standard output has failed; if this fails too, there is no reader left."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(printable(text), file=sys.stderr, flush=True)


def encodable(text: str, encoding: str) -> str:
    """Return a text with what an encoding lacks escaped, as it is printed."""
    return text.encode(encoding, "backslashreplace").decode(encoding)
