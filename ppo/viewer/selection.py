"""The agent that is shown and those that can be; new ones appear while training continues."""

from pathlib import Path

from ppo.agents import Agent, find_agent, has_shipped
from ppo.config import Config
from ppo.identity import find_run
from ppo.outputs.checkpoint import list_checkpoints, steps_of

_FOLLOWING = ("latest", "best")
"""Values that may refer to another checkpoint once a new one is written."""


class Selection:
    """The agent that is shown: a value of `--checkpoint` that may be changed."""

    def __init__(self, config: Config, explicit: set[str]) -> None:
        """Find the agent that the command line selects.

        Raises:
            Refusal: there is no such agent.
        """
        self._config, self._explicit = config, explicit
        self._has_shipped = has_shipped(config)
        self.wish = config.playback.checkpoint
        # Of a run that may not have written checkpoints yet.
        self._folder = find_run(config).checkpoint_folder
        self.agent = self._find(self.wish)
        self.steps = self._list()

    @property
    def wishes(self) -> list[str]:
        """The available values, and the current one even if the training has since deleted its checkpoint."""
        following = _FOLLOWING if self.steps else _FOLLOWING[:1]
        wishes = [*following, *(["shipped"] if self._has_shipped else []), *map(str, reversed(self.steps))]
        return wishes if self.wish in wishes else [*wishes, self.wish]

    @property
    def run_folder(self) -> Path:
        """Where the training writes its logs."""
        return self._config.run.run_dir / self._folder.name

    def choose(self, wish: str) -> bool:
        """Switch to the agent that `wish` names; return whether it differs from the one before.

        Raises:
            Refusal: there is no such agent.
        """
        before, self.agent = self.agent, self._find(wish)
        self.wish = wish
        return self.agent.folder != before.folder

    def poll(self) -> tuple[bool, bool]:
        """Look for new checkpoints; return whether the list has changed, and whether the shown agent has.

        Raises:
            Refusal: the agent to show cannot be played, or the folder cannot be read.
        """
        steps = self._list()
        has_others = steps != self.steps
        is_another = has_others and self.wish in _FOLLOWING and self.choose(self.wish)
        self.steps = steps  # set last, so that an agent that could not be shown is retried
        return has_others, is_another

    def _list(self) -> list[int]:
        return [steps_of(folder) for folder in list_checkpoints(self._folder)]

    def _find(self, wish: str) -> Agent:
        agent = find_agent(self._config.replace_settings({"checkpoint": wish}), self._explicit)
        if not agent.is_shipped:
            self._folder = agent.folder.parent
        return agent
