"""The program in three calls, for scripts and notebooks: load an agent, evaluate it, train one.

A setting is a keyword argument here and a flag on the command line, under the same name and with the same refusals.
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
    """Load a trained agent: your own, or a shipped one where you have none of that name.

    Args:
        agent: the name of a run or of a world, or a folder: that of a run's checkpoints, or one checkpoint.
        settings: of playback, such as `act="mode"`, `checkpoint="latest"`, `checkpoint_dir=...` or `rng_seed`, of what
            is sampled; and `network`, `policy` or `env_name` of an agent with code of yours, which is imported only if
            it is named here.

    Raises:
        Refusal: there is no such agent, it is damaged, or it asks for code that is not named here.
    """
    explicit = set(settings)
    own = [Path(agent), Path(settings.get("checkpoint_dir", "checkpoints")) / agent]
    for folder in own if settings.get("checkpoint") != "shipped" else []:
        world = world_in(folder)
        if world is not None:
            # It says which settings there are; code that it may name is not imported on a manifest's word.
            config = parse_command_line(_flags(world) + _flags(**settings))
            return TrainedAgent(load_agent(folder, config, explicit), seed=config.run.rng_seed)
    config = parse_command_line(_flags(str(agent), **settings))
    return TrainedAgent(find_agent(config, explicit | {"env_name"}), seed=config.run.rng_seed)


def evaluate(agent: TrainedAgent | str | Path, episodes: int = 100, **settings: Any) -> dict[str, Any]:
    """Play whole games in this process and return what `--mode=evaluate` prints: mean, standard error and the protocol.

    Args:
        agent: from `load`, or what `load` takes.
        episodes: games; the same ones for the same `rng_seed`.
        settings: `rng_seed` and `max_game_steps`; if the agent is still to be loaded, those of `load` too.

    Raises:
        Refusal: a setting is refused, or the agent's numbers overflow.
    """
    of_load = {name: settings.pop(name) for name in [*settings] if name not in _OF_EVALUATION}
    if not isinstance(agent, TrainedAgent):
        agent = load(agent, **of_load)
    elif of_load:
        name = next(iter(of_load))
        raise Refusal(f"{name} must not be set for an agent that is loaded; give it to load")
    config = parse_command_line(_flags(agent.env_name, mode="evaluate", episodes=episodes, **settings))
    num_slots = number_of_slots(episodes)
    with one_thread():
        games = list(play_games(agent.saved, config, range(num_slots), num_slots))
    return statistics_of(sorted(games, key=lambda game: game.number), agent.saved, config)


def train(env: str, *, ranks: int | None = None, on_update: OnUpdate | None = None, **settings: Any) -> TrainingJob:
    """Start training as a job of its own, as the command `ppo` does, and return at once.

    The job outlives this process, and neither an error nor a Ctrl-C here ends it; nor does anything it does end this.
    A run of that name goes on where it was.

    Args:
        env: the world: a Gymnasium id, or `module:id`.
        ranks: processes that share the work; None: one per core or GPU.
        on_update: called in `wait` with the row that each update adds to progress.csv; returning False stops the job.
        settings: any of `ppo --help_all`.

    Raises:
        Refusal: a setting is refused; nothing was started.
    """
    if "mode" in settings:
        raise Refusal(f"mode must not be set for train, got {settings['mode']!r}; evaluate is a call of its own")
    if "seeds" in settings:
        raise Refusal("seeds must not be set for train, which starts one run; call it with each rng_seed")
    flags = _flags(env, **settings)
    config = find_run(parse_command_line(flags))
    own = [] if ranks is None else [f"--ranks={ranks}"]
    return TrainingJob([sys.executable, "-m", "ppo.launcher", *flags, *own], config, on_update)


def _flags(world: str | None = None, **settings: Any) -> list[str]:
    """Return settings as a command line; constructor arguments of a world may be a mapping."""
    kwargs = settings.get("env_kwargs")
    if isinstance(kwargs, Mapping):
        settings["env_kwargs"] = json.dumps(kwargs)
    return as_flags(({} if world is None else {"env_name": world}) | settings)
