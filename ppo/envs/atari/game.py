"""Atari 2600 games on `ALEInterface`, with the standard protocol and no wrappers.

One agent step holds an action for 4 emulated frames; the observation is the pixelwise maximum of the last two grey
screens, resized to 84x84 by area interpolation and stacked. Without no-ops and FIRE the pixels, rewards and ends equal
those of `ale_py.vector_env.AtariVectorEnv` (a test compares them); neither reads the screen of the frame that ends a
game. One difference: AtariVectorEnv stops a game at frame `max_frames` and does not read that frame either; here the
step is completed, so that the final observation, from which the learner bootstraps, shows the running game.

The protocol is Mnih et al. 2015's as in the PPO paper; sticky actions follow Machado et al. 2018.

A game is saved as its start and the actions since, and restored by replaying them; a digest of the emulator and of the
observation shows whether the replay was exact. ALE 0.12.1 can copy its state, but the copy lacks a part of the
television chip's state (Q*bert, Tetris and Tic-Tac-Toe 3D do not continue as before; ALE #412, #732, #739). ALE's
reader also trusts the lengths in the bytes, so that a forged file could overwrite memory. Replay is exact for every
game (docs/measurements/exact_resume.md), and every saved number can be checked.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Any

import ale_py
import numpy as np
from ale_py import roms
from numpy.typing import NDArray

from ppo.envs import ArrayState, FrameListener
from ppo.envs.atari.fire import FIRE_ACTIONS, FireWatch
from ppo.envs.atari.screens import IDENTITY_GREYS, NTSC_GREYS, SCREEN_SIZE, push_screens
from ppo.families import AtariSettings
from ppo.random_streams import Purpose, derived_seed, stream
from ppo.settings import MOST_STEPS

FRAME_SKIP = 4
# Consoles of the PAL standard, which has other colours, have taller screens.
_PAL_HEIGHT = 250
_STICKY_BLOCK = 4096
_STATE_PARTS = {"counters", "generator", "ram", "actions", "digest"}
# The vector engine saves only the number of a game; a resume begins the next game.
VECTOR_STATE_PARTS = {"episode"}
_RAM_BYTES = 128
_DIGEST_BYTES = 32
# Positions in the bytes of ALE's state: the frames since power-on, which do not affect the game, and the length of the
# console's own saved state.
_FRAMES_SINCE_POWER_ON = slice(8, 12)
_CONSOLE_LENGTH = slice(24, 28)
# The console's random generator (std::mt19937) as text after its length: 624 words and a position. libc++ writes only
# the words, in order of use.
_GENERATOR = re.compile(rb"(?:\d+ ){623,624}\d+")
_GENERATOR_WORDS = 624
_NOOP: int = ale_py.Action.NOOP.value
_FIRE: int = ale_py.Action.FIRE.value


class AtariGame:
    """One emulator playing whole games of one ROM under the protocol."""

    def __init__(
        self, rom: str, world: AtariSettings, *, index: int, seed: int, on_frame: FrameListener | None = None
    ) -> None:
        """Load the ROM; `reset` starts the first game.

        Args:
            rom: name of the ROM, e.g. "ms_pacman".
            world: the protocol.
            index: global index of the environment, the address of its random numbers.
            seed: seed of the job.
            on_frame: receives every emulated frame of a step, (210, 160, 3) RGB, but not those of a game's start.
        """
        self._rom, self.index, self._seed = rom, index, seed
        self._stickiness = world.sticky_actions
        self._on_frame, self._shows = on_frame, False
        self.muted = False
        """True during a replay: `on_frame` is not called."""
        self.greys: NDArray[np.uint8] = NTSC_GREYS
        """The grey of each colour of `screens`, (256,)."""
        self._power_on()
        minimal = self._ale.getMinimalActionSet()
        chosen = self._ale.getLegalActionSet() if world.full_action_space else minimal
        self.actions = [action.value for action in chosen]
        self.presses_fire = world.fire_reset and ale_py.Action.FIRE in minimal
        self.fires = [action.value for action in minimal if action.value in FIRE_ACTIONS]
        self._fire_watch = FireWatch(self.fires)
        self._noop_max, self._max_frames = world.noop_max, world.max_frames

        self.screens = np.zeros((2, *self._ale.getScreenDims()), np.uint8)
        """Colours of a step's last two frames, newest first; `push_screens` pools them into the first."""
        self.episode = -1
        self.episode_return = 0.0
        self.episode_length = 0
        self._lives = 0
        self._sticky_frames = 0
        self._sticky_draws = np.empty(0)
        self._last_action = _NOOP
        self._taken = bytearray()
        self._beginning: dict[str, NDArray[Any]] = {}

    def reset(self) -> None:
        """Start the next game: no-ops, then FIRE where the game uses it; `screens` shows its first frame."""
        self.episode = (self.episode + 1) % MOST_STEPS
        # `reset_game` initialises the rest of the console.
        self._beginning = {
            "counters": np.array([self.episode, self._sticky_frames], np.int64),
            "generator": _read_generator(self._ale.cloneState().serialize()),
            "ram": self._ale.getRAM(),
        }
        self._taken.clear()
        self.episode_return, self.episode_length = 0.0, 0
        self._last_action = _NOOP
        self._shows = False
        self._ale.reset_game()
        if self._noop_max:
            noops = stream(self._seed, Purpose.NOOPS, self.index, self.episode).integers(1, self._noop_max + 1)
            for _ in range(noops):
                self.episode_return += self._act(_NOOP)
                if self._ale.game_over():
                    self._ale.reset_game()
                    self.episode_return = 0.0
        if self.presses_fire:
            self.episode_return += self._hold(_FIRE)
        self._shows = True
        self._lives = self._ale.lives()
        self._fire_watch = FireWatch(self.fires)
        self._read_first_screen()

    def step(self, action: int) -> tuple[float, bool, bool, bool]:
        """Take one agent step and update `screens`.

        Returns:
            (raw reward, terminated, truncated, life_lost); `life_lost` is False when the game is over.
        """
        self._taken.append(action)
        reward = self._hold(self.actions[action])
        over, lives = self._ale.game_over(), self._ale.lives()
        # Falling to 0 lives is not a lost life, as in AtariVectorEnv: some games stay at 0 for a while before they are
        # over (Wizard of Wor), some play their last life at 0 (Bank Heist).
        life_lost = 0 < lives < self._lives and not over
        press = _FIRE if life_lost else None
        if self.presses_fire and not over:
            happened = reward != 0.0 or lives != self._lives or self.actions[action] in FIRE_ACTIONS
            if self._fire_watch.should_check(happened):
                press = self._fire_watch.check(self._picture())
            if press is not None:
                # Otherwise Breakout waits for ever. These frames are hidden from the learner but count in the return.
                reward += self._hold(press)
                over, lives = self._ale.game_over(), self._ale.lives()
                life_lost = life_lost or 0 < lives < self._lives
        self._lives = lives
        self.episode_return += reward
        self.episode_length += 1
        truncated = not over and self._ale.getEpisodeFrameNumber() >= self._max_frames
        return reward, over, truncated, life_lost and not over

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the start of the current game and the actions since."""
        assert self._beginning, "no game has begun"
        return {**self._beginning, "actions": np.frombuffer(bytes(self._taken), np.uint8).copy()}

    def check(self, state: ArrayState) -> None:
        """Check that `state` could be a saved state of this game.

        Raises:
            ValueError: it cannot; the message says why.
        """
        of = f"of environment {self.index}"
        if set(state) == VECTOR_STATE_PARTS:
            saved_episode(state, self.index)
            return
        if set(state) != _STATE_PARTS:
            raise ValueError(f"the saved state {of} must have the keys {sorted(_STATE_PARTS)}, got {sorted(state)}")
        words = _read_generator(self._ale.cloneState().serialize()).size
        for name, dtype, size in (
            ("counters", "int64", 2),
            ("generator", "int64", words),
            ("ram", "uint8", _RAM_BYTES),
            ("actions", "uint8", state["actions"].size),
            ("digest", "uint8", _DIGEST_BYTES),
        ):
            array = state[name]
            if (array.dtype.name, array.shape) != (dtype, (size,)):
                raise ValueError(f"the saved {name} {of} must be {dtype} ({size},), got {array.dtype} {array.shape}")
        if ((state["counters"] < 0) | (state["counters"] >= MOST_STEPS)).any():
            raise ValueError(
                f"the saved counters {of} must be at least 0 and below 2^48, got {state['counters'].tolist()}"
            )
        limits = np.where(np.arange(words) < _GENERATOR_WORDS, 2**32 - 1, _GENERATOR_WORDS)
        if ((state["generator"] < 0) | (state["generator"] > limits)).any():
            raise ValueError(f"the saved generator {of} is not the state of an MT19937")
        actions = state["actions"]
        if actions.size * FRAME_SKIP >= self._max_frames:
            raise ValueError(f"{actions.size} saved actions {of} are more than max_frames = {self._max_frames} allows")
        if (actions >= len(self.actions)).any():
            raise ValueError(f"the saved actions {of} must be below {len(self.actions)}, got {actions.max()}")

    def check_game(self, game: ArrayState) -> None:
        """Check that `game` could be the whole of a game, as it is kept when it ends.

        Raises:
            ValueError: it cannot; the message says why.
        """
        if "last_seen" not in game:
            raise ValueError(f"the game of environment {self.index} must have last_seen, got {sorted(game)}")
        game, actions = {**game}, game.get("actions", np.empty(0))
        del game["last_seen"]
        # Only the last step may reach `max_frames`.
        for part in (actions[:-1], actions[-1:]):
            self.check({**game, "actions": part, "digest": np.zeros(_DIGEST_BYTES, np.uint8)})

    def rewind(self, state: ArrayState) -> None:
        """Restore the moment before the `reset` that began the game of `state`, which must have passed `check`."""
        if self.episode >= 0:
            # No saved state holds all of the television chip's state.
            self._power_on()
        emulator = _write_generator(self._ale.cloneState().serialize(), state["generator"])
        self._ale.restoreState(ale_py.ALEState(emulator))
        for address, byte in enumerate(state["ram"].tolist()):
            self._ale.setRAM(address, byte)
        episode, self._sticky_frames = state["counters"].tolist()
        self.episode = episode - 1
        self._sticky_draws = np.empty(0)

    def digest(self, observation: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the SHA-256 of the emulator's state and an observation."""
        emulator = bytearray(self._ale.cloneState().serialize())
        emulator[_FRAMES_SINCE_POWER_ON] = bytes(4)
        return np.array(list(hashlib.sha256(emulator + observation.tobytes()).digest()), np.uint8)

    def close(self) -> None:
        """Free the emulator; the game cannot be used any more.

        Some objects of a game refer to each other, and the program exits without collecting such cycles. ALE reports
        every emulator that is left then.
        """
        del self._ale, self._act, self._read_screen

    def _power_on(self) -> None:
        """Load the ROM into a new emulator."""
        self._ale = ale_py.ALEInterface()
        self._ale.setInt("random_seed", derived_seed(self._seed, Purpose.EMULATOR, self.index))
        # Sticky actions are drawn in this class: ALE does not save its last action.
        self._ale.setFloat("repeat_action_probability", 0.0)
        path = roms.get_rom_path(self._rom)
        assert path is not None
        self._ale.loadROM(path)
        if self._ale.getScreenDims()[0] >= _PAL_HEIGHT:
            self.greys = IDENTITY_GREYS
        self._bind_reader()
        needs_more = self._on_frame or self._stickiness
        self._act: Callable[[int], int] = self._emulate_frame if needs_more else self._ale.act

    def _bind_reader(self) -> None:
        """Choose the reader whose colours `greys` maps."""
        known = self.greys is NTSC_GREYS
        self._read_screen = self._ale.getScreen if known else self._ale.getScreenGrayscale

    def _read_first_screen(self) -> None:
        """Read a game's first screen; the screen before it counts as black."""
        newest, other = self.screens
        self._read_screen(newest)
        self._ale.getScreenGrayscale(other)
        if not np.array_equal(self.greys[newest], other):
            # An unknown palette: from now on ALE looks up the greys.
            self.greys = IDENTITY_GREYS
            self._bind_reader()
            newest[...] = other
        other[...] = 0

    def _hold(self, action: int) -> float:
        """Hold an action for FRAME_SKIP frames and read the last two screens; stop early if the game is over."""
        ale, act, read_screen = self._ale, self._act, self._read_screen
        reward = 0
        for frames_left in range(FRAME_SKIP - 1, -1, -1):
            reward += act(action)
            if ale.game_over():
                break
            if frames_left < 2:
                read_screen(self.screens[frames_left])
        return float(reward)

    def _picture(self) -> NDArray[np.uint8]:
        """Return the observation that `push_screens` makes of `screens`, (84, 84, 1)."""
        picture = np.zeros((SCREEN_SIZE, SCREEN_SIZE, 1), np.uint8)
        push_screens(picture, self.screens.copy(), self.greys)
        return picture

    def _emulate_frame(self, action: int) -> int:
        """Emulate one frame with sticky actions and the frame listener."""
        if self._stickiness:
            if self._draw() < self._stickiness:
                action = self._last_action
            self._last_action = action
        reward: int = self._ale.act(action)
        if self._on_frame and self._shows and not self.muted:
            self._on_frame(self._ale.getScreenRGB())
        return reward

    def _draw(self) -> float:
        """Return the uniform number for this environment's next frame; numbers are generated in blocks."""
        block, position = divmod(self._sticky_frames, _STICKY_BLOCK)
        if position == 0 or not self._sticky_draws.size:
            self._sticky_draws = stream(self._seed, Purpose.STICKY_ACTIONS, self.index, block).random(_STICKY_BLOCK)
        self._sticky_frames = (self._sticky_frames + 1) % MOST_STEPS
        return float(self._sticky_draws[position])


def saved_episode(state: ArrayState, index: int) -> int:
    """Return the game's number from a saved state of either engine.

    Raises:
        ValueError: it is missing or invalid.
    """
    name, size = ("episode", 1) if set(state) == VECTOR_STATE_PARTS else ("counters", 2)
    array = state.get(name, np.empty(0))
    if (array.dtype.name, array.shape) != ("int64", (size,)) or not 0 <= array[0] < MOST_STEPS:
        raise ValueError(f"the saved {name} of environment {index} must be int64 ({size},), at least 0 and below 2^48")
    return int(array[0])


def _read_generator(emulator: bytes) -> NDArray[np.int64]:
    """Read the console's random generator from the bytes of an ALE state."""
    match = _GENERATOR.search(emulator)
    assert match is not None
    return np.array(match.group().split(), np.int64)


def _write_generator(emulator: bytes, words: NDArray[np.int64]) -> bytes:
    """Return the bytes of an ALE state with its random generator replaced."""
    match = _GENERATOR.search(emulator)
    assert match is not None
    text = b" ".join(b"%d" % word for word in words.tolist())
    patched = bytearray(emulator)
    patched[match.start() - 4 : match.end()] = len(text).to_bytes(4, "little") + text
    length = int.from_bytes(emulator[_CONSOLE_LENGTH], "little") + len(text) - len(match.group())
    patched[_CONSOLE_LENGTH] = length.to_bytes(4, "little")
    return bytes(patched)
