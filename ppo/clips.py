"""Clips during training: the opening of a game by the policy as it is between two updates.

Rank 0 plays it on an environment of its own, the same opening every time, which is that of --mode=record; training does
not notice. The other ranks wait for it at their next all-reduce.
"""

import tempfile
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


class ClipMaker:
    """Makes an animated gif of a game's first seconds, every so many updates."""

    def __init__(self, config: Config, model: ActorCritic) -> None:
        """Prepare to play with a network that goes on learning between the clips."""
        self._config, self._model = config, model
        self._newest: tuple[int, bytes | None] = (0, None)
        self._has_failed = False

    def clip_of(self, update: int) -> bytes | None:
        """Return the clip of the policy that the first so many updates have led to, or None if it is not time for one.

        Raises:
            VideoError: there is no ffmpeg, or the world's pictures cannot be drawn here. No more are tried then.
        """
        interval = self._config.run.clip_interval
        if interval is None or update % interval or self._has_failed:
            return None
        if update != self._newest[0]:  # else another output has asked for it
            try:
                self._newest = update, self._make()
            except VideoError:
                self._has_failed = True
                raise
        return self._newest[1]

    def _make(self) -> bytes:
        config, slot = self._config, range(1)
        seed = derived_seed(config.run.rng_seed, Purpose.PLAYBACK)
        with tempfile.TemporaryDirectory(prefix="ppo-clip-") as folder:
            video: VideoRecorder
            try:
                envs = make_envs(
                    config.run.env_name,
                    config.world.of_whole_games(),
                    indices=slot,
                    seed=seed,
                    on_frame=lambda frame: video.write(frame),
                )
            except Refusal as error:
                raise VideoError(f"no clip was made: {error}") from error
            rule = choose_rule(config.playback.act, "saved", self._model.distribution)
            actor = Actor(self._model, rule, indices=slot, seed=seed)
            most_frames = SECONDS * envs.frames_per_second
            path = Path(folder) / "clip"
            try:
                with VideoRecorder(path, envs.frames_per_second) as video:
                    envs.reset()
                    max_steps = config.playback.max_game_steps
                    for _ in play_slots(actor, envs, slot, num_slots=1, episodes=1, max_steps=max_steps):
                        if video.num_frames >= most_frames:
                            break
            finally:
                envs.close()
            return path.with_suffix(".gif").read_bytes()
