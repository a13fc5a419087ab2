"""Compare Atari games restored from saved states with games that were never stopped.

Each game is played with random actions and its state saved every 10 steps. States from the start, the middle and right
before the end of a game are sent to another process, restored there in fresh environments and played on with the same
actions, past the end of the game if it is near. Every step is compared with the game that was never stopped
(observation, reward, ends, lost lives, final observation, return, length and RAM), and finally the saved state.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import sha1
from multiprocessing import get_context
from typing import Any, Literal

import ale_py
import numpy as np
from numpy.typing import NDArray

from ppo.envs import ArrayState
from ppo.envs.atari import accepted_names, rom_name
from ppo.envs.atari.block import AtariEnvironments
from ppo.envs.atari.game import FRAME_SKIP
from ppo.families import AtariSettings

STICKY_ACTIONS = (0.0, 0.25)
SAVE_INTERVAL = 10
STEPS_COMPARED = 60
"""A multiple of SAVE_INTERVAL, so that the saved states at the end can be compared."""
COPY_INTERVAL = 100
SEED, INDEX = 1, 3
PARTS = ("observation", "reward", "terminated", "truncated", "life_lost", "ram", "final_obs", "return", "length")
Moment = tuple[Any, ...]
"""The results of one step, in the order of PARTS."""


@dataclass(frozen=True)
class Options:
    """How games are checked."""

    games: tuple[str, ...] = ()
    """ROMs to check, e.g. pong qbert. Default: all that can be trained on."""
    steps: int = 1100
    """Agent steps to play in each game."""
    max_frames: int = 4000
    """Time limit of a game in emulated frames, so that every game ends at least once."""
    forget: Literal["counters", "generator", "ram", "actions"] | None = None
    """Set this part of every saved state to 0, to see that the check detects it."""


@dataclass(frozen=True)
class Recording:
    """A game that was never stopped."""

    rom: str
    world: AtariSettings
    actions: NDArray[np.int64]
    moments: list[Moment]
    states: dict[int, dict[str, NDArray[Any]]]
    """Saved states by number of steps taken."""
    copies: dict[int, dict[str, NDArray[Any]]]
    """ALE's own states at the same steps."""


@dataclass(frozen=True)
class Verdict:
    """The result for a game's saved states."""

    save_points: tuple[int, ...]
    steps_replayed: int
    """The largest number of steps since the start of a game."""
    frames_compared: int
    ends_crossed: int
    finding: str
    """"exact", or the first difference."""


@dataclass(frozen=True)
class Row:
    """The result of a game."""

    rom: str
    plain: Verdict
    sticky: Verdict
    copied: str
    """The result with ALE's own copied state instead."""

    @property
    def is_exact(self) -> bool:
        """Whether this program's saved state resumes exactly."""
        return self.plain.finding == self.sticky.finding == "exact"


class CopiedEnvironments(AtariEnvironments):
    """Saves ALE's own copy of its state; for comparison only, with states from a trusted source.

    ALE's reader is not safe: it trusts lengths and indices in the bytes.
    """

    def get_states(self) -> list[dict[str, NDArray[Any]]]:
        """Copy the emulator's state and the counters and screens around it."""
        (game,) = self._games
        emulator = game._ale.cloneState(include_rng=True).serialize()
        counters = [game.episode, game.episode_length, game._lives, game._sticky_frames, game._last_action]
        return [
            {
                "emulator": np.frombuffer(emulator, np.uint8),
                "counters": np.array(counters, np.int64),
                "episode_return": np.array([game.episode_return]),
                "screens": game.screens.copy(),
                "stack": self._stacks[0].copy(),
            }
        ]

    def set_states(self, states: Sequence[ArrayState]) -> list[int]:
        """Restore the copy."""
        (game,), (state,) = self._games, states
        game._ale.restoreState(ale_py.ALEState(state["emulator"].tobytes()))
        game.episode, game.episode_length, game._lives, game._sticky_frames, game._last_action = state[
            "counters"
        ].tolist()
        game.episode_return = float(state["episode_return"][0])
        game.screens[...] = state["screens"]
        self._stacks[0] = state["stack"]
        return []


def all_games() -> list[str]:
    """Return every ROM that can be trained on."""
    return sorted({rom_name(name) for name in accepted_names()})


def make(kind: type[AtariEnvironments], rom: str, world: AtariSettings) -> AtariEnvironments:
    """Make a block of one environment, with the same index and seed everywhere."""
    return kind(rom, world, indices=range(INDEX, INDEX + 1), seed=SEED)


def moments(envs: AtariEnvironments, actions: NDArray[np.int64]) -> Iterator[Moment]:
    """Take the steps and yield the results of each."""
    for action in actions:
        observations, rewards, terminated, truncated, info = envs.step(np.array([action]))
        over = terminated[0] or truncated[0]
        yield (
            sha1(observations.tobytes()).digest(),
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            bool(info["life_lost"][0]),
            envs._games[0]._ale.getRAM().tobytes(),
            sha1(info["final_obs"].tobytes()).digest() if over else b"",
            float(info["episode_return"][0]) if over else 0.0,
            int(info["episode_length"][0]) if over else 0,
        )


def record(rom: str, sticky_actions: float, steps: int, max_frames: int) -> Recording:
    """Play a game and save it at regular intervals."""
    world = AtariSettings(sticky_actions=sticky_actions, max_frames=max_frames)
    envs = make(AtariEnvironments, rom, world)
    actions = np.random.default_rng(0).integers(0, len(envs._games[0].actions), steps)
    recording = Recording(rom, world, actions, [], {}, {})
    envs.reset()
    for step, moment in enumerate(moments(envs, actions), start=1):
        recording.moments.append(moment)
        if step % SAVE_INTERVAL == 0:
            (recording.states[step],) = envs.get_states()
            (recording.copies[step],) = CopiedEnvironments.get_states(envs)  # type: ignore[arg-type]
    return recording


def choose_save_points(recording: Recording) -> tuple[int, ...]:
    """Return an early step, the middle of the longest game and the last step saved before the first and last end."""
    last = len(recording.moments) - STEPS_COMPARED
    ends = [step for step, moment in enumerate(recording.moments, start=1) if moment[2] or moment[3]]
    usable = [step for step in recording.states if step <= last]
    before = [max((step for step in usable if step < end), default=usable[0]) for end in (ends[:1] + ends[-1:])]
    games = list(zip([0, *ends], [*ends, last], strict=True))
    first, end = max(games, key=lambda game: game[1] - game[0])
    middle = (first + end) // 2 // SAVE_INTERVAL * SAVE_INTERVAL
    return tuple(sorted({usable[0], min(max(middle, usable[0]), usable[-1]), *before}))


def verify(
    rom: str,
    world: AtariSettings,
    state: ArrayState,
    actions: NDArray[np.int64],
    expected: list[Moment],
    expected_state: ArrayState,
) -> str:
    """Restore a state in a fresh environment, play on and return the first difference."""
    envs = make(AtariEnvironments, rom, world)
    if envs.set_states([state]):
        return "restarted"
    finding = compare(moments(envs, actions), expected)
    (saved,) = envs.get_states()
    differing = [name for name in expected_state if not np.array_equal(saved[name], expected_state[name])]
    return finding or (f"saved state: {', '.join(differing)}" if differing else "exact")


def verify_copies(
    rom: str,
    world: AtariSettings,
    copies: dict[int, dict[str, NDArray[Any]]],
    actions: NDArray[np.int64],
    expected: list[Moment],
) -> str:
    """Verify ALE's own states likewise; return how many were not exact and the first difference."""
    wrong = []
    for point, copy in copies.items():
        envs = make(CopiedEnvironments, rom, world)
        envs.set_states([copy])
        window = slice(point, point + STEPS_COMPARED)
        if finding := compare(moments(envs, actions[window]), expected[window]):
            wrong.append(f"saved at {point}, {finding}")
    return f"{len(wrong)} of {len(copies)} differ, the first {wrong[0]}" if wrong else "exact"


def compare(answered: Iterator[Moment], expected: list[Moment]) -> str | None:
    """Describe the first difference and its step; None if there is none."""
    for step, (got, want) in enumerate(zip(answered, expected, strict=True), start=1):
        differing = [part for part, a, b in zip(PARTS, got, want, strict=True) if a != b]
        if differing:
            return f"step {step}: {', '.join(differing)}"
    return None


def verify_all(submit: Callable[..., Future[str]], recording: Recording, forget: str | None) -> Callable[[], Verdict]:
    """Start the verification of a recording's save points; return a function that waits for the result."""
    points = choose_save_points(recording)
    findings: dict[int, Future[str]] = {}
    ends = 0
    for point in points:
        window = slice(point, point + STEPS_COMPARED)
        expected = recording.moments[window]
        ends += sum(moment[2] or moment[3] for moment in expected)
        saved, after = recording.states[point], recording.states[point + STEPS_COMPARED]
        state = {name: np.zeros_like(array) if name == forget else array for name, array in saved.items()}
        findings[point] = submit(
            verify, recording.rom, recording.world, state, recording.actions[window], expected, after
        )

    def wait() -> Verdict:
        wrong = [f"saved at {point}, {text}" for point in points if (text := findings[point].result()) != "exact"]
        return Verdict(
            save_points=points,
            steps_replayed=max(recording.states[point]["actions"].size for point in points),
            frames_compared=len(points) * STEPS_COMPARED * FRAME_SKIP,
            ends_crossed=ends,
            finding=wrong[0] if wrong else "exact",
        )

    return wait


def check(options: Options) -> list[Row]:
    """Check the games, printing a line each."""
    games = options.games or all_games()
    rows: list[Row] = []
    # Recording in this process overlaps with restoring in the other.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        waiting: list[Callable[[], Row]] = []

        def collect() -> None:
            rows.append(row := waiting.pop(0)())
            findings = f"{row.plain.finding}; sticky: {row.sticky.finding}; ALE's copy: {row.copied}"
            print(f"{len(rows)}/{len(games)} {row.rom}: {findings}", flush=True)

        for rom in games:
            waiting.append(start(pool.submit, rom, options))
            if len(waiting) > 1:
                collect()
        while waiting:
            collect()
    return rows


def start(submit: Callable[..., Future[str]], rom: str, options: Options) -> Callable[[], Row]:
    """Record a game and start its verification; return a function that waits for the row of the table."""
    plain, sticky = (record(rom, p, options.steps, options.max_frames) for p in STICKY_ACTIONS)
    plain_verdict, sticky_verdict = (verify_all(submit, recording, options.forget) for recording in (plain, sticky))
    last = options.steps - STEPS_COMPARED
    copies = {step: copy for step, copy in plain.copies.items() if step <= last and step % COPY_INTERVAL == 0}
    copied = submit(verify_copies, rom, plain.world, copies, plain.actions, plain.moments)
    return lambda: Row(rom, plain_verdict(), sticky_verdict(), copied=copied.result())


def section(options: Options, rows: Sequence[Row]) -> list[str]:
    """Return the lines of the report."""
    inexact = [row.rom for row in rows if not row.is_exact]
    not_copied = [row.rom for row in rows if row.copied != "exact"]
    own = [verdict for row in rows for verdict in (row.plain, row.sticky)]
    lines = [
        f"**{len(rows) - len(inexact)} of {len(rows)} games resume bit for bit from a saved state.** "
        f"Exceptions: {', '.join(inexact) or 'none'}.",
        "",
        f"Each game is played for {options.steps} steps of {FRAME_SKIP} frames with random actions, without and with "
        f"sticky actions (0.25), and cut after {options.max_frames} frames. States saved at the steps named are "
        f"restored in another process and played on for {STEPS_COMPARED} steps with the same actions. Compared at "
        f"every step: {', '.join(PARTS)}; and the saved state at the end. In all: "
        f"{sum(v.frames_compared for v in own):,} frames from {sum(len(v.save_points) for v in own)} saved states, "
        f"over {sum(v.ends_crossed for v in own)} ends of games.",
        "",
        "A state is the start of its game and the actions since; it is restored by replaying them. The last column is "
        f"the result with ALE's own copied state, at every {COPY_INTERVAL}th step without sticky actions. Not exact: "
        f"{', '.join(not_copied) or 'none'}.",
        "",
        "| game | steps when saved, sticky off | sticky on | steps replayed, at most | frames compared "
        "| ends crossed | sticky off | sticky on | restored by | ALE's copy |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        plain, sticky = row.plain, row.sticky
        cells = [
            row.rom,
            ", ".join(map(str, plain.save_points)),
            ", ".join(map(str, sticky.save_points)),
            max(plain.steps_replayed, sticky.steps_replayed),
            plain.frames_compared + sticky.frames_compared,
            plain.ends_crossed + sticky.ends_crossed,
            plain.finding,
            sticky.finding,
            "replay",
            row.copied,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines
