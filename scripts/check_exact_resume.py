"""Check that runs in every family of worlds, and all Atari games, resume bit for bit; exit code 1 if one does not.

Runs in at least three worlds of each family are stopped in the middle of episodes, resumed and compared with runs that
never stopped (exact_resume/worlds.py). Saved states of all Atari games are restored in another process and played on
(exact_resume/games.py). Needs the environment of scripts/environment.sh, whose variables mpirun reads.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from exact_resume import games, worlds
from exact_resume.report import conclude, processor_minutes


@dataclass(frozen=True)
class Options(games.Options):
    """Flags of this script."""

    only: Literal["games", "worlds"] | None = None
    """Check only games or only worlds. Default: both."""
    worlds: tuple[str, ...] = worlds.WORLDS
    """Ids of the worlds to check, each followed by its own flags, if any."""
    output: Path | None = None
    """Write the tables to this .md and the numbers to the .json beside it; unchecked parts stay unchanged."""


def main() -> int:
    """Check, print and write the results; return the exit code."""
    options = tyro.cli(Options, description=__doc__)
    all_exact = True
    if options.only != "games":
        minutes, runs = processor_minutes(), worlds.check(options.worlds)
        inexact = [row.world for row in runs if not row.is_exact]
        all_exact &= conclude("worlds", runs, inexact, minutes, worlds.section(runs), options.output)
    if options.only != "worlds":
        minutes, played = processor_minutes(), games.check(options)
        inexact = [row.rom for row in played if not row.is_exact]
        all_exact &= conclude("games", played, inexact, minutes, games.section(options, played), options.output)
    return 0 if all_exact else 1


if __name__ == "__main__":
    sys.exit(main())
