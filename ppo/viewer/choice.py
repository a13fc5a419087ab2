"""The agents that a watcher can show, of which new ones come while a training goes on."""

from pathlib import Path

from ppo.agents import Agent, find_agent, has_shipped
from ppo.config import Config
from ppo.identity import find_run
from ppo.outputs.checkpoint import list_checkpoints, steps_of

_FOLLOWING = ("latest", "best")
"""Choices that may mean another checkpoint when one has been written."""


class Choice:
    """Which agent is shown: a value of `--checkpoint`, which may be changed."""

    def __init__(self, config: Config, explicit: set[str]) -> None:
        """Find the agent that a command line means.

        Raises:
            Refusal: there is none.
        """
        self._config, self._explicit = config, explicit
        self._has_shipped = has_shipped(config)
        self.wish = config.playback.checkpoint
        # Of a training that may come to have checkpoints.
        self._folder = find_run(config).checkpoint_folder
        self.agent = self._find(self.wish)
        self.steps = self._list()

    @property
    def wishes(self) -> list[str]:
        """What can be chosen now, and what is: a checkpoint that the training has deleted since is still shown."""
        following = _FOLLOWING if self.steps else _FOLLOWING[:1]
        wishes = [*following, *(["shipped"] if self._has_shipped else []), *map(str, reversed(self.steps))]
        return wishes if self.wish in wishes else [*wishes, self.wish]

    @property
    def run_folder(self) -> Path:
        """Where the training writes its logs."""
        return self._config.run.run_dir / self._folder.name

    def choose(self, wish: str) -> bool:
        """Look for the agent that is wished for; return whether it is another one than before.

        Raises:
            Refusal: there is none such.
        """
        before, self.agent = self.agent, self._find(wish)
        self.wish = wish
        return self.agent.folder != before.folder

    def poll(self) -> tuple[bool, bool]:
        """Look for new checkpoints; return whether there are others than before, and whether another one is shown now.

        Raises:
            Refusal: what is to be shown cannot be played, or the folder cannot be read.
        """
        steps = self._list()
        has_others = steps != self.steps
        is_another = has_others and self.wish in _FOLLOWING and self.choose(self.wish)
        self.steps = steps  # not before: what could not be shown is tried again
        return has_others, is_another

    def _list(self) -> list[int]:
        return [steps_of(folder) for folder in list_checkpoints(self._folder)]

    def _find(self, wish: str) -> Agent:
        agent = find_agent(self._config.replace_settings({"checkpoint": wish}), self._explicit)
        if not agent.is_shipped:
            self._folder = agent.folder.parent
        return agent
