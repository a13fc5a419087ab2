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
    """Refuse to begin without the package.

    Raises:
        Refusal: says how to install it.
    """
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # a folder that is named so, as the package names its own, has none
        raise Refusal("track=wandb needs the package wandb; install it with: pip install wandb, or leave --track away")


class WeightsAndBiases:
    """A run of Weights & Biases for each run folder, continued by every start of the run.

    The x axis of every curve is `env_steps`. A counter of calls, which is the service's own axis, would not do: it
    drops whatever comes below its highest value, and a run that resumes an older checkpoint goes back.
    """

    def __init__(
        self, folder: Path, name: str, env_name: str, settings: Mapping[str, Any], clips: Clips = lambda _: None
    ) -> None:
        """Connect, or begin a folder of its own in `folder` with WANDB_MODE=offline.

        Args:
            folder: of the run.
            name: of the run.
            env_name: groups the runs of a world.
            settings: by name.
            clips: shown among the media.

        Raises:
            OutputError: the service cannot be reached, or does not know who is training.
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
        """Words are in messages.txt."""

    def sync(self) -> None:
        """Leave it to the service's own process what is on disk when."""

    def close(self) -> None:
        """Have the rest sent or written."""
        with self._trouble():
            self._run.finish()

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise OutputError(
                f"Weights & Biases takes no logs ({error}); training goes on, and all is in the other logs",
                relief="Weights & Biases takes logs again",
            ) from error


def _identity(folder: Path) -> str:
    """Return the name under which the service knows the run of a folder; kept there from its first start on."""
    path = folder / _IDENTITY
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if os.lstat(path).st_size < 100 and _IDENTITY_PATTERN.fullmatch(kept := path.read_text().strip()):
            return kept
    new = secrets.token_hex(4)
    write_whole(path, f"{new}\n".encode())
    return new
