"""Clips during training: the opening of a game, played by the current policy between two updates.

Rank 0 plays it on a separate environment, always from the same start, that of --mode=record; training is not affected.
The other ranks wait for it at their next all-reduce.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ppo.agents import choose_rule
from ppo.config import Config
from ppo.envs import make_envs
from ppo.games import Actor, play_slots
from ppo.models.actor_critic import ActorCritic
from ppo.outputs.video import VideoError, VideoRecorder
from ppo.random_streams import Purpose, derived_seed
from ppo.settings import Refusal

SECONDS = 15
_SECONDS_TO_PLAY = 20.0
"""Time limit, since all ranks wait for a clip; slow worlds get shorter clips."""


class ClipMaker:
    """Makes an animated gif of a game's first seconds every `clip_interval` updates."""

    def __init__(self, config: Config, model: ActorCritic, goes_on: Callable[[], bool]) -> None:
        """Prepare to play with a network that keeps learning between clips.

        Args:
            config: the settings of the run.
            model: the network.
            goes_on: called after every step; the clip ends once it returns False.
        """
        self._config, self._model, self._goes_on = config, model, goes_on
        self._newest: tuple[int, bytes | None] = (0, None)
        self._has_failed = False

    def clip_of(self, update: int) -> bytes | None:
        """Return a clip of the policy after this many updates, or None if none is due.

        Raises:
            VideoError: there is no ffmpeg, or the world cannot be played or drawn here; later clips are not tried.
        """
        interval = self._config.run.clip_interval
        if interval is None or update % interval or self._has_failed:
            return None
        if update != self._newest[0]:  # else it was made for another output
            try:
                self._newest = update, self._make()
            except (VideoError, Refusal, RuntimeError, FloatingPointError) as error:
                self._has_failed = True
                raise VideoError(f"no clip of a game was made: {error}") from error
        return self._newest[1]

    def _make(self) -> bytes:
        config, slot, until = self._config, range(1), time.monotonic() + _SECONDS_TO_PLAY
        seed = derived_seed(config.run.rng_seed, Purpose.PLAYBACK)
        video: VideoRecorder
        envs = make_envs(
            config.run.env_name,
            config.world.of_whole_games(),
            indices=slot,
            seed=seed,
            on_frame=lambda frame: video.write(frame),
        )
        try:
            rate, max_steps = envs.frames_per_second, config.playback.max_game_steps
            rule = choose_rule(config.playback.act, "saved", self._model.distribution)
            actor = Actor(self._model, rule, indices=slot, seed=seed)
            with tempfile.TemporaryDirectory(prefix="ppo-clip-") as folder:
                path = Path(folder) / "clip"
                with VideoRecorder(path, rate, with_mp4=False) as video:
                    envs.reset()
                    for _ in play_slots(actor, envs, slot, num_slots=1, episodes=1, max_steps=max_steps):
                        if video.num_frames >= SECONDS * rate or time.monotonic() > until or not self._goes_on():
                            break
                return path.with_suffix(".gif").read_bytes()
        finally:
            envs.close()
