"""Standard input, output and error: always open, and able to print every character."""

import contextlib
import io
import os
import sys

from ppo.settings import printable


def prepare_standard_streams() -> None:
    """Open closed streams to the null device, and let all of them escape characters that their encodings lack.

    Otherwise the next file opened would get the descriptor of a closed stream, and C libraries would print into a
    checkpoint. Folder names may contain any character; one that cannot be encoded would end all printing.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say_on_standard_error(text: str) -> None:
    """Print a line to standard error; if that fails, there is no reader left."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(printable(text), file=sys.stderr, flush=True)


def encodable(text: str, encoding: str) -> str:
    """Return a text with characters that an encoding lacks escaped, as they are printed."""
    return text.encode(encoding, "backslashreplace").decode(encoding)
