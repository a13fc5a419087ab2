"""The program in three calls, for scripts and notebooks: load an agent, evaluate it, train one.

Settings are keyword arguments here, with the names and checks of the command line's flags.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppo.agents import find_agent, load_agent, world_in
from ppo.api.agent import TrainedAgent
from ppo.api.job import OnUpdate, TrainingJob
from ppo.command_line import parse_command_line
from ppo.config import as_flags
from ppo.games import number_of_slots
from ppo.identity import find_run
from ppo.models.actor_critic import one_thread
from ppo.playback import play_games, statistics_of
from ppo.settings import Refusal

_OF_EVALUATION = ("rng_seed", "max_game_steps")


def load(agent: str | Path, **settings: Any) -> TrainedAgent:
    """Load a trained agent: your own, or a shipped one if you have none of that name.

    Args:
        agent: the name of a run or world, or a folder: that of a run's checkpoints, or a single checkpoint.
        settings: playback settings, such as `act="mode"`, `checkpoint="latest"`, `checkpoint_dir=...` or `rng_seed`
            (for sampled actions); also `network`, `policy` or `env_name` of an agent that uses code of your own, which
            is imported only if named here.

    Raises:
        Refusal: there is no such agent, it is damaged, or it needs code that is not named here.
    """
    explicit = set(settings)
    own = [Path(agent), Path(settings.get("checkpoint_dir", "checkpoints")) / agent]
    for folder in own if settings.get("checkpoint") != "shipped" else []:
        world = world_in(folder)
        if world is not None:
            # The world determines which settings exist; code that only a manifest names is not imported.
            config = parse_command_line(_flags(world) + _flags(**settings))
            return TrainedAgent(load_agent(folder, config, explicit), seed=config.run.rng_seed)
    config = parse_command_line(_flags(str(agent), **settings))
    return TrainedAgent(find_agent(config, explicit | {"env_name"}), seed=config.run.rng_seed)


def evaluate(agent: TrainedAgent | str | Path, episodes: int = 100, **settings: Any) -> dict[str, Any]:
    """Play whole games in this process and return what `--mode=evaluate` prints: mean, standard error and the protocol.

    Args:
        agent: an agent from `load`, or an argument for `load`.
        episodes: number of games; the same games for the same `rng_seed`.
        settings: `rng_seed` and `max_game_steps`; if the agent is not loaded yet, also those of `load`.

    Raises:
        Refusal: a setting is refused, or the network's outputs are non-finite.
    """
    of_load = {name: settings.pop(name) for name in [*settings] if name not in _OF_EVALUATION}
    if not isinstance(agent, TrainedAgent):
        agent = load(agent, **of_load)
    elif of_load:
        name = next(iter(of_load))
        raise Refusal(f"{name} must not be set for an agent that is already loaded; pass it to load")
    config = parse_command_line(_flags(agent.env_name, mode="evaluate", episodes=episodes, **settings))
    num_slots = number_of_slots(episodes)
    with one_thread():
        games = list(play_games(agent.saved, config, range(num_slots), num_slots))
    return statistics_of(sorted(games, key=lambda game: game.number), agent.saved, config)


def train(env: str, *, ranks: int | None = None, on_update: OnUpdate | None = None, **settings: Any) -> TrainingJob:
    """Start training as a separate job, as the command `ppo` does, and return immediately.

    The job outlives this process: an error or a Ctrl-C here does not end the job, and nothing in the job ends this
    process. An existing run of that name is resumed.

    Args:
        env: the world: a Gymnasium id, or `module:id`.
        ranks: processes that share the work; None: one per core or GPU.
        on_update: called in `wait` with the row that each update adds to progress.csv; returning False stops the job.
        settings: any of `ppo --help_all`.

    Raises:
        Refusal: a setting is refused; nothing was started.
    """
    if "mode" in settings:
        raise Refusal(f"mode must not be set for train, got {settings['mode']!r}; to evaluate, call ppo.evaluate")
    if "seeds" in settings:
        raise Refusal("seeds must not be set for train, which starts one run; call it with each rng_seed")
    flags = _flags(env, **settings)
    config = find_run(parse_command_line(flags))
    own = [] if ranks is None else [f"--ranks={ranks}"]
    return TrainingJob([sys.executable, "-m", "ppo.launcher", *flags, *own], config, on_update)


def _flags(world: str | None = None, **settings: Any) -> list[str]:
    """Return settings as a command line; `env_kwargs` may be a mapping."""
    kwargs = settings.get("env_kwargs")
    if isinstance(kwargs, Mapping):
        settings["env_kwargs"] = json.dumps(kwargs)
    return as_flags(({} if world is None else {"env_name": world}) | settings)
