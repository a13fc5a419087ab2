"""Check that no Atari game waits for FIRE in vain; exit code 1 if one does.

Each game is played by policies that never press FIRE. An event is a reward, a lost life or the end of the game. Without
events, FIRE must be pressed as soon as `ppo.envs.atari.fire` prescribes.

Games in which FIRE was pressed are played again without it, to see its effect: a game has stopped if that run ends with
STOPPED steps without an event, and FIRE continues it if events follow the press.
"""

import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from ppo.envs.atari import accepted_names, rom_name
from ppo.envs.atari.fire import FIRE_ACTIONS, MAX_CHECKS, STEPS_BETWEEN_CHECKS, FireWatch
from ppo.envs.atari.game import FRAME_SKIP, AtariGame
from ppo.families import AtariSettings

LONGEST_WAIT = MAX_CHECKS * STEPS_BETWEEN_CHECKS
LONGEST_STILL = 2 * STEPS_BETWEEN_CHECKS
STOPPED = 600
HELD, RANDOM = "one move held", "random moves"
POLICIES = ("nothing done", HELD, RANDOM)
NO_EVENT, GOES_ON, GOES_ON_WITH_FIRE = "no event", "goes on", "goes on with FIRE"


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    games: tuple[str, ...] = ()
    """ROMs to check, e.g. gopher kaboom. Default: all that can be trained on."""
    steps: int = 3000
    """Agent steps to play in each game, unless it ends earlier."""
    blind: bool = False
    """Never press FIRE when nothing happens, to see that the check detects it."""
    output: Path | None = None
    """Write the table to this .md."""


@dataclass
class Played:
    """The result of one play of a game; times in steps."""

    steps: int = 0
    is_over: bool = False
    events: int = 0
    wait: int = 0
    """Steps since the last event."""
    longest_wait: int = 0
    longest_without_fire: int = 0
    """Most steps without an event and without FIRE."""
    longest_still: int = 0
    """Most such steps with an unchanged screen."""
    pressed: Sequence[int] = ()
    """The actions pressed because nothing happened."""
    events_before: int = 0
    """Events before the first of these presses."""

    @property
    def stopped(self) -> bool:
        """Whether events stopped for good."""
        return not self.is_over and self.wait >= STOPPED


@dataclass(frozen=True)
class Row:
    """The result of a game with one of the policies."""

    rom: str
    policy: str
    uses_fire: bool
    played: Played
    without: Played
    """The same without FIRE when nothing happens."""

    @property
    def waits_in_vain(self) -> bool:
        """Whether FIRE was pressed too late, or not at all."""
        late = self.played.longest_without_fire > LONGEST_WAIT or self.played.longest_still > LONGEST_STILL
        return self.uses_fire and late

    @property
    def verdict(self) -> str:
        """A summary of the policy's effect."""
        if not self.without.stopped:
            return GOES_ON
        return GOES_ON_WITH_FIRE if self.played.events > self.played.events_before else NO_EVENT

    @property
    def waits(self) -> str:
        """The longest wait without and with FIRE when nothing happens, and the number of presses."""
        with_fire = f" → {self.played.longest_wait}, {len(self.played.pressed)} FIRE" if self.played.pressed else ""
        return f"{self.without.longest_wait}{with_fire}"


class RecordingWatch(FireWatch):
    """Records its presses; never checks if `blind`."""

    def __init__(self, fires: Sequence[int], *, blind: bool) -> None:
        """Start with an empty record."""
        super().__init__(fires)
        self.pressed: list[int] = []
        self._blind = blind

    def should_check(self, happened: bool) -> bool:
        """Count a step and return whether to check."""
        return super().should_check(happened) and not self._blind

    def check(self, screen: NDArray[np.uint8]) -> int | None:
        """Return the action to press, if any, and record it."""
        press = super().check(screen)

        if press is not None:
            self.pressed.append(press)
        return press


def play(rom: str, policy: str, steps: int, *, blind: bool) -> tuple[bool, Played]:
    """Play a game; return whether the game uses FIRE, and the result."""
    game, rng = AtariGame(rom, AtariSettings(), index=0, seed=0), np.random.default_rng(0)
    moves = [number for number, action in enumerate(game.actions) if action not in FIRE_ACTIONS]
    game.reset()
    game._fire_watch = watch = RecordingWatch(game.fires, blind=blind)
    played = Played(pressed=watch.pressed)
    without_fire, still, before = 0, 0, b""
    while played.steps < steps and not played.is_over:
        lives, frame, presses = game._lives, game._ale.getEpisodeFrameNumber(), len(watch.pressed)
        move = int(rng.choice(moves)) if policy == RANDOM else moves[-1 if policy == HELD else 0]
        reward, played.is_over, _, _ = game.step(move)
        if watch.pressed and not presses:
            played.events_before = played.events
        happened = played.is_over or reward != 0.0 or game._lives != lives
        fired = game._ale.getEpisodeFrameNumber() - frame > FRAME_SKIP
        picture = game.screens.tobytes()
        played.steps += 1
        played.events += happened
        played.wait = 0 if happened else played.wait + 1
        without_fire = 0 if happened or fired else without_fire + 1
        still = still + 1 if without_fire and picture == before else 0
        before = picture
        played.longest_wait = max(played.longest_wait, played.wait)
        played.longest_without_fire = max(played.longest_without_fire, without_fire)
        played.longest_still = max(played.longest_still, still)
    return game.presses_fire, played


def check(rom: str, policy: str, options: Options) -> Row:
    """Play a game, and again without FIRE if it was pressed."""
    uses_fire, played = play(rom, policy, options.steps, blind=options.blind)
    without = play(rom, policy, options.steps, blind=True)[1] if played.pressed else played
    return Row(rom, policy, uses_fire, played, without)


def table(options: Options, rows: list[Row], minutes: float) -> str:
    """Return the report as Markdown."""
    games = list(dict.fromkeys(row.rom for row in rows))
    in_vain = sorted({row.rom for row in rows if row.waits_in_vain})
    software = ", ".join(f"{name} {metadata.version(name)}" for name in ("ale-py", "gymnasium", "numpy"))
    lines = [
        "# Games and FIRE",
        "",
        f"**In {len(games) - len(in_vain)} of {len(games)} games a policy that never presses FIRE waits for it at most "
        f"{LONGEST_WAIT} steps, and in front of one picture at most {LONGEST_STILL}.** "
        f"Exceptions: {', '.join(in_vain) or 'none'}.",
        "",
        f"`python {' '.join(sys.argv)}`, {date.today()}, {minutes:.1f} minutes on one of {os.cpu_count()} cores of "
        f"{platform.machine()}; Python {platform.python_version()}, {software}.",
        "",
        f"Each game is played for {options.steps} steps, or until it is over, by three policies that never press FIRE. "
        "An event is a reward, a lost life or the end of the game. Where there is none for long, the environment "
        "presses FIRE ([protocol](../protocol.md)). The numbers are the most steps in a row without an event: with "
        "FIRE at the start of a game and after lost lives only, then, where the environment pressed it more often, "
        "with these presses, and how many there were. A game has stopped if it ends with "
        f"{STOPPED} steps without an event.",
        "",
    ]

    def named(policy: str, verdict: str) -> set[str]:
        return {row.rom for row in rows if (row.policy, row.verdict) == (policy, verdict)}

    never = named(RANDOM, NO_EVENT)
    groups = {
        f"Stopped, and goes on with these presses, {policy}": named(policy, GOES_ON_WITH_FIRE) for policy in POLICIES
    }
    groups["Waits for the player to move: no event with the other policies, though with random moves"] = (
        set.union(*(named(policy, NO_EVENT) for policy in POLICIES)) - never
    )
    groups["No event with random moves either: FIRE now and then is not enough to score or to die"] = never
    lines += [f"* {meaning}: {', '.join(sorted(roms)) or 'none'}." for meaning, roms in groups.items()]
    lines += ["", f"| game | uses FIRE | {' | '.join(POLICIES)} |", "|---|---|---|---|---|"]
    for rom in games:
        own = [row for row in rows if row.rom == rom]
        lines.append(f"| {rom} | {'yes' if own[0].uses_fire else 'no'} | {' | '.join(row.waits for row in own)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Check the games, print and write the results; return the exit code."""
    options = tyro.cli(Options, description=__doc__)
    games = options.games or sorted({rom_name(name) for name in accepted_names()})
    rows: list[Row] = []
    started = time.process_time()
    for number, rom in enumerate(games, start=1):
        for policy in POLICIES:
            rows.append(row := check(rom, policy, options))
            late = ", WAITS FOR FIRE IN VAIN" if row.waits_in_vain else ""
            print(f"{number}/{len(games)} {rom}, {policy}: {row.verdict}, longest wait {row.waits}{late}", flush=True)
    in_vain = sorted({row.rom for row in rows if row.waits_in_vain})
    print(f"{len(games) - len(in_vain)} of {len(games)} games get FIRE in time; waiting in vain: {in_vain}")
    if options.output:
        options.output.write_text(table(options, rows, (time.process_time() - started) / 60))
    return 1 if in_vain else 0


if __name__ == "__main__":
    sys.exit(main())
