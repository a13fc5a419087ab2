"""Weights & Biases: curves, settings and clips of a run on its servers or in its offline format; see docs/logs.md."""

import contextlib
import importlib.util
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo.outputs.folders import write_whole
from ppo.outputs.trackers import Clips, FinishedEpisode, Metrics, OutputError, newest_clip
from ppo.settings import Refusal

_SECONDS_TO_CONNECT = 30
_IDENTITY = "wandb_id.txt"
_IDENTITY_PATTERN = re.compile(r"[a-z0-9]{8}")


def require_installed() -> None:
    """Refuse to start without the package.

    Raises:
        Refusal: the package is missing; says how to install it.
    """
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # a folder named wandb, such as the package creates, has no origin
        raise Refusal("track=wandb needs the package wandb; install it with: pip install wandb, or omit --track")


class WeightsAndBiases:
    """One Weights & Biases run per run folder, continued by every start of the run.

    The x axis of every curve is `env_steps`. The service's own axis, a counter of calls, would not do: values below its
    maximum are dropped, and a run that resumes an older checkpoint goes back.
    """

    def __init__(
        self, folder: Path, name: str, env_name: str, settings: Mapping[str, Any], clips: Clips = lambda _: None
    ) -> None:
        """Connect, or with WANDB_MODE=offline start a separate folder in `folder`.

        Args:
            folder: the run's folder.
            name: the run's name.
            env_name: groups the runs of an environment.
            settings: the run's settings by name.
            clips: shown among the media.

        Raises:
            OutputError: the service cannot be reached, or the user is not logged in.
        """
        self.notes: list[str] = []
        self._clips = clips
        with self._trouble():
            import wandb  # type: ignore[import-not-found, unused-ignore]

            self._wandb = wandb
            self._run = wandb.init(
                project="ppo",
                group=env_name,
                name=name,
                id=_identity(folder),
                resume="allow",
                dir=folder,
                config=dict(settings),
                settings=wandb.Settings(console="off", silent=True, init_timeout=_SECONDS_TO_CONNECT),
            )
            self._run.define_metric("env_steps")
            self._run.define_metric("*", step_metric="env_steps")

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        """Pass on every known metric, and the clip of this update if there is one."""
        known: dict[str, Any] = {name: value for name, value in metrics.items() if value is not None}
        with self._trouble():
            self._run.log(known)
        if clip := newest_clip(self._clips, metrics, self.notes):
            with self._trouble(), tempfile.TemporaryDirectory(prefix="ppo-clip-") as folder:
                path = Path(folder) / "clip.gif"
                path.write_bytes(clip)
                self._run.log({"env_steps": metrics["env_steps"], "clip": self._wandb.Video(str(path), format="gif")})

    def say(self, text: str) -> None:
        """Ignore messages, which are in messages.txt."""

    def sync(self) -> None:
        """Do nothing: the service's own process decides when to write to disk."""

    def close(self) -> None:
        """Send or write the rest."""
        with self._trouble():
            self._run.finish()

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise OutputError(
                f"cannot log to Weights & Biases ({error}); training continues, and everything is in the other logs",
                relief="logging to Weights & Biases works again",
            ) from error


def _identity(folder: Path) -> str:
    """Return the service's id for the run of a folder; stored there on the first start."""
    path = folder / _IDENTITY
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if os.lstat(path).st_size < 100 and _IDENTITY_PATTERN.fullmatch(kept := path.read_text().strip()):
            return kept
    new = secrets.token_hex(4)
    write_whole(path, f"{new}\n".encode())
    return new
