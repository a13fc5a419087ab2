"""Games with a frozen policy: play (on screen), record (video), replay (a training game) and evaluate (scores).

The protocol is the one the agent was trained with, except for settings given on the command line.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppo.agents import Agent, decision_of, find_agent, restore_model
from ppo.collectives import Collective, decided_by_root, done_by_all, share
from ppo.config import Config
from ppo.envs import Environments, FrameListener, make_envs, world_of
from ppo.families import WorldSettings
from ppo.games import Actor, Game, Repeater, StepListener, mean_and_error, number_of_slots, play_slots
from ppo.outputs import checkpoint
from ppo.outputs.display import SECONDS_BETWEEN_LINES, print_line
from ppo.outputs.folders import require_writable, write_whole
from ppo.outputs.game_log import find_game
from ppo.outputs.untrusted import DamagedCheckpointError, brief
from ppo.outputs.window import GameWindow, NoWindowError, WindowClosedError, has_display
from ppo.random_streams import Purpose, derived_seed
from ppo.settings import Refusal
from ppo.standard_streams import say_on_standard_error
from ppo.supervision.signals import INTERRUPTED, StopRequest
from ppo.versions import versions_of_run


def play(config: Config, comm: Collective, explicit: set[str]) -> int:
    """Play games on rank 0, in a window where there is a display, and print each game's return."""
    agent = decided_by_root(comm, lambda: find_agent(config, explicit))
    return decided_by_root(comm, lambda: _play(agent, config))


def record(config: Config, comm: Collective, explicit: set[str]) -> int:
    """Play games on rank 0 and write them as one mp4 and one gif."""
    agent, folder = decided_by_root(comm, lambda: _find_with_folder(config, explicit, "asset_dir"))
    return decided_by_root(comm, lambda: _record(agent, folder, config))


def replay(config: Config, comm: Collective, explicit: set[str]) -> int:
    """Replay a logged training game on rank 0 and write it as one mp4 and one gif."""
    agent, folder = decided_by_root(comm, lambda: _find_with_folder(config, explicit, "asset_dir"))
    return decided_by_root(comm, lambda: _replay(agent, folder, config))


def evaluate(config: Config, comm: Collective, explicit: set[str]) -> int:
    """Play games on all ranks; print the statistics as JSON and write them to evaluation.json.

    Standard output has only the JSON; the agent and, every few seconds, the progress go to standard error.
    """
    agent, folder = decided_by_root(comm, lambda: _find_with_folder(config, explicit, "run_dir"))
    if comm.rank == 0:
        announce(agent, say_on_standard_error)
    num_slots = number_of_slots(config.episodes)
    slots = share(num_slots, comm.rank, comm.size)

    def own_games() -> list[Game]:
        games = play_games(agent, config, slots, num_slots) if slots else iter(())
        if comm.rank != 0:
            return list(games)
        number = sum(len(range(slot, config.episodes, num_slots)) for slot in slots)
        return list(_with_progress(games, f"{number} games" if comm.size == 1 else f"rank 0's {number} games"))

    parts = done_by_all(comm, own_games)
    games = sorted((game for part in parts for game in part), key=lambda game: game.number)
    return decided_by_root(comm, lambda: _write_evaluation(games, agent, config, folder))


def play_games(
    agent: Agent,
    config: Config,
    slots: range,
    num_slots: int,
    on_frame: FrameListener | None = None,
    on_step: StepListener | None = None,
    *,
    keeps_games: bool = False,
    episodes: int | None = None,
) -> Iterator[Game]:
    """Play this rank's share of a fixed set of games, many in parallel; see `play_steps`."""
    steps = play_steps(agent, config, slots, num_slots, on_frame, on_step, keeps_games=keeps_games, episodes=episodes)
    for games in steps:
        yield from games


def play_steps(
    agent: Agent,
    config: Config,
    slots: range,
    num_slots: int,
    on_frame: FrameListener | None = None,
    on_step: StepListener | None = None,
    *,
    keeps_games: bool = False,
    episodes: int | None = None,
) -> Iterator[list[Game]]:
    """Play this rank's share of a fixed set of games and yield, after every step, those that ended; see `ppo.games`.

    Args:
        agent: the policy.
        config: the settings of this invocation, for the number of games and the seed.
        slots: the slots of this rank.
        num_slots: the slots of all ranks.
        on_frame: receives the screens of the first slot.
        on_step: receives the steps of the first slot, each after its screens.
        keeps_games: yield every game with the state for playing it again.
        episodes: number of games over all ranks, if it is not that of the settings.

    Raises:
        Refusal: the policy's outputs are non-finite.
    """
    envs, actor = prepare_games(agent, slots, rng_seed=config.run.rng_seed, on_frame=on_frame)
    sizes = {"num_slots": num_slots, "episodes": episodes or config.episodes}
    try:
        envs.keep_games(keeps_games)
        yield from play_slots(actor, envs, slots, **sizes, max_steps=config.playback.max_game_steps, on_step=on_step)
    except FloatingPointError as error:
        raise Refusal(f"{agent.name} at {agent.counters.env_steps} steps cannot be played: {error}") from error
    finally:
        envs.close()


def prepare_games(
    agent: Agent, slots: range, *, rng_seed: int, on_frame: FrameListener | None = None
) -> tuple[Environments, Actor]:
    """Make the environments of some slots, at the start of their first games, and the actor that plays them.

    Raises:
        Refusal: `on_frame` is given and the world cannot be drawn here.
    """
    seed = derived_seed(rng_seed, Purpose.PLAYBACK)
    envs = make_envs(agent.config.run.env_name, agent.config.world, indices=slots, seed=seed, on_frame=on_frame)
    actor = Actor(restore_model(agent, envs), agent.rule, indices=slots, seed=seed)
    envs.reset()
    return envs, actor


def prepare_to_draw(agent: Agent, *, rng_seed: int, on_frame: FrameListener) -> tuple[Environments, Actor]:
    """Make one environment, which draws its frames if it can be drawn here, and the actor that plays it."""
    try:
        return prepare_games(agent, range(1), rng_seed=rng_seed, on_frame=on_frame)
    except Refusal:
        return prepare_games(agent, range(1), rng_seed=rng_seed)


def statistics_of(games: Sequence[Game], agent: Agent, config: Config) -> dict[str, Any]:
    """Return the statistics of raw whole-game returns, with the protocol and the software they were played with."""
    returns = [game.episode_return for game in games]
    mean, error = mean_and_error(games)
    env_name = agent.config.run.env_name
    return {
        "env_name": env_name,
        "model_name": agent.name,
        "env_steps": agent.counters.env_steps,
        "episodes": len(returns),
        "episodes_cut": sum(game.is_cut for game in games),
        "episodes_timed_out": sum(game.is_timed_out for game in games),
        "return_mean": mean,
        "return_stderr": error,
        "return_median": statistics.median(returns),
        "return_min": min(returns),
        "return_max": max(returns),
        "episode_length_mean": statistics.fmean(game.episode_length for game in games),
        "act": agent.rule,
        "rng_seed": config.run.rng_seed,
        "max_game_steps": config.playback.max_game_steps,
        "protocol": agent.config.to_dict()["world"],
        "versions": versions_of_run(agent.config),
        **world_of(env_name).facts(env_name, mean),
    }


def describe(game: Game) -> str:
    """Return the line about a game: `game 1: return -20, 1234 steps`."""
    cut = " (cut there: --max_game_steps)" if game.is_cut else ""
    return f"game {game.number + 1}: return {game.episode_return:g}, {game.episode_length} steps{cut}"


def announce(agent: Agent, say: Callable[[str], None] = print_line) -> None:
    """Say which agent plays."""
    for note in agent.notes:
        say(note)
    say(f"{agent.name}, trained for {agent.counters.env_steps:,} steps")


def _with_progress(games: Iterator[Game], of: str) -> Iterator[Game]:
    """Pass games through, and every few seconds report how many have been played."""
    last = time.monotonic()
    for number, game in enumerate(games, start=1):
        yield game
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say_on_standard_error(f"played {number} of {of}")


def _play(agent: Agent, config: Config) -> int:
    """Play in the terminal, or in a window if there can be one; return the exit code."""
    announce(agent)
    if config.playback.view == "terminal":
        return _play_in_terminal(agent, config)
    window = _open_window(agent, must=config.playback.view == "window")
    try:
        for game in play_games(agent, config, range(1), 1, window.show if window else None):
            print_line(describe(game))
    except WindowClosedError:
        print_line("window closed")
    except NoWindowError as error:  # the display is gone
        say_on_standard_error(f"ppo: {error}")
        return 1
    finally:
        if window:
            window.close()
    return 0


def _play_in_terminal(agent: Agent, config: Config) -> int:
    """Play in the terminal view, and print the results once it has closed; return the exit code."""
    from ppo.outputs.terminal import TerminalView

    title = f"{agent.name} at {agent.counters.env_steps:,} steps"
    results: list[str] = []
    stop = StopRequest()
    stop.listen()
    try:
        with TerminalView(title, agent.frames_per_second, agent.action_names, agent.entry_names, stop) as view:
            games = play_games(
                agent, config, range(1), 1, view.hold, lambda step: view.end_step(decision_of(agent, step))
            )
            for game in games:
                results.append(describe(game))
                view.say(results[-1])
    except WindowClosedError:
        if stop.exit_code is None:
            results.append("left")
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        for line in results:
            print_line(line)
    return stop.exit_code or 0


def _record(agent: Agent, folder: Path, config: Config) -> int:
    """Record games as a video, or the best and the worst of many games as one each; return the exit code."""
    announce(agent)
    path = folder / checkpoint.folder_name(agent.counters.env_steps)
    if config.playback.record_games is None:
        return _film(path, agent, config, lambda *listeners: play_games(agent, config, range(1), 1, *listeners))
    best, worst = _best_and_worst(agent, config, config.playback.record_games)
    world, seed = agent.config.world, derived_seed(config.run.rng_seed, Purpose.PLAYBACK)
    codes = [
        _film(
            path.with_name(f"{path.name}-{name}-return_{game.episode_return:g}"),
            agent,
            config,
            lambda *listeners, game=game: play_again(agent, world, seed, game, *listeners),
        )
        for name, game in (("best", best), ("worst", worst))
    ]
    return max(codes)


def _best_and_worst(agent: Agent, config: Config, number: int) -> tuple[Game, Game]:
    """Play games without drawing them; return the one with the highest and the one with the lowest return."""
    slots = number_of_slots(number)
    games = play_games(agent, config, range(slots), slots, keeps_games=True, episodes=number)
    best = worst = next(games)
    returns = [best.episode_return]
    for game in games:
        returns.append(game.episode_return)
        best = max(best, game, key=lambda game: (game.episode_return, -game.number))
        worst = min(worst, game, key=lambda game: (game.episode_return, game.number))
    print_line(f"{number} games: mean return {statistics.fmean(returns):g}")
    return best, worst


def _replay(agent: Agent, folder: Path, config: Config) -> int:
    """Record a logged training game as a video; return the exit code."""
    assert config.playback.episode is not None
    run_folder, trained = config.run.run_dir / agent.name, agent.manifest.config
    try:
        logged = find_game(run_folder, config.playback.episode)
    except DamagedCheckpointError as error:
        raise Refusal(f"episode {config.playback.episode} cannot be played again: {error}") from error
    if not 0 <= logged.environment < trained.ppo.num_envs:
        raise Refusal(f"episode {logged.number} cannot be played again: it has the environment {logged.environment}")
    number = logged.number - 1
    game = Game(
        number, logged.episode_return, logged.episode_length, environment=logged.environment, state=logged.state
    )
    announce(agent)
    return _film(
        folder / f"episode_{logged.number:06}",
        agent,
        config,
        # Under the training protocol, whose training-only settings may end an episode.
        lambda *listeners: play_again(agent, trained.world, trained.run.rng_seed, game, *listeners),
    )


def play_again(
    agent: Agent,
    world: WorldSettings,
    seed: int,
    game: Game,
    on_frame: FrameListener | None = None,
    on_step: StepListener | None = None,
) -> Iterator[Game]:
    """Replay a game from its actions and yield it.

    Args:
        agent: the agent whose network predicts for each step.
        world: the protocol under which the game was played.
        seed: seed of its environments.
        game: the game, with its state.
        on_frame: receives the screens.
        on_step: receives the steps.

    Raises:
        Refusal: it is not a game of this world, or the replay differs from the original.
    """
    env_name, environment = agent.config.run.env_name, game.environment
    which = f"game {game.number + 1} of {agent.name} cannot be played again"
    if game.state is None:
        raise Refusal(f"{which}: games of more than 100,000 steps are not kept")
    envs = make_envs(env_name, world, indices=range(environment, environment + 1), seed=seed, on_frame=on_frame)
    try:
        envs.keep_games(True)
        envs.begin_again(0, game.state)
        space = envs.single_action_space
        actions = np.asarray(game.state["actions"]).astype(space.dtype)
        if not len(actions):
            raise ValueError("it has no actions")
        actor = Repeater(restore_model(agent, envs), actions)
        steps = play_slots(actor, envs, range(1), num_slots=1, episodes=1, max_steps=len(actions), on_step=on_step)
        again = next(ended for games in steps for ended in games)
    except (ValueError, RuntimeError, FloatingPointError) as error:
        if isinstance(error, Refusal):
            raise
        raise Refusal(f"{which}: {brief(error)}") from error
    finally:
        envs.close()
    same_return = (again.episode_return, again.episode_length) == (game.episode_return, game.episode_length)
    same_end = again.state is not None and np.array_equal(again.state["last_seen"], game.state["last_seen"])
    if not same_return or not same_end:
        raise Refusal(
            f"{which}: the replay differs (return {again.episode_return:g} after {again.episode_length} steps instead "
            f"of {game.episode_return:g} after {game.episode_length}); its world is not deterministic, has a different "
            "version, or had its settings changed since (--change_settings)"
        )
    yield game


def _film(path: Path, agent: Agent, config: Config, play: Callable[..., Iterator[Game]]) -> int:
    """Make a video of the games of `play(on_frame, on_step)`; return the exit code."""
    from ppo.outputs.overlay import Overlay
    from ppo.outputs.video import VideoError, VideoRecorder

    try:
        with VideoRecorder(path, agent.frames_per_second) as video:
            overlay = Overlay(video.write, agent.action_names) if config.playback.overlay else None
            on_frame = overlay.hold if overlay else video.write
            on_step = (lambda step: overlay.end_step(decision_of(agent, step))) if overlay else None
            for game in play(on_frame, on_step):
                print_line(describe(game))
        print_line(f"wrote {video.describe()}")
    except VideoError as error:
        say_on_standard_error(f"ppo: {error}")
        return 1
    return 0


def _write_evaluation(games: Sequence[Game], agent: Agent, config: Config, folder: Path) -> int:
    """Print the statistics of games and write them to evaluation.json; return the exit code."""
    result = statistics_of(games, agent, config)
    print_line(json.dumps(result))
    try:
        write_whole(folder / "evaluation.json", (json.dumps(result, indent=1) + "\n").encode())
    except OSError as error:
        say_on_standard_error(f"ppo: {folder / 'evaluation.json'} was not written: {error.strerror}")
        return 1
    return 0


def _open_window(agent: Agent, *, must: bool) -> GameWindow | None:
    """Open a window for the games, or print why there is none.

    Raises:
        Refusal: a window was required but cannot be opened.
    """
    reason = "no display"
    if has_display():
        try:
            return GameWindow(f"{agent.name} at {agent.counters.env_steps:,} steps", agent.frames_per_second)
        except NoWindowError as error:
            reason = str(error)
    if must:
        raise Refusal(f"view must be terminal or auto here, got window: {reason}")
    print_line(
        f"{reason}: only results are shown; --view=terminal shows games here, --mode=watch in a browser, --mode=record "
        "makes a video"
    )
    return None


def _find_with_folder(config: Config, explicit: set[str], setting: str) -> tuple[Agent, Path]:
    """Find the agent and check that its folder under a setting can be written, before any game is played."""
    agent = find_agent(config, explicit)
    parent: Path = getattr(config.run, setting)
    require_writable(setting, parent / agent.name)
    return agent, parent / agent.name
