"""Write the report of a run, for `--mode=report` and at the end of training."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ppo
from ppo.agents import Agent, find_agent
from ppo.collectives import Collective, decided_by_root
from ppo.config import Config, differences
from ppo.envs import world_of
from ppo.models.actor_critic import ActorCritic
from ppo.outputs.display import print_line
from ppo.outputs.folders import require_writable, write_whole
from ppo.outputs.manifest import LOGS
from ppo.playback import announce
from ppo.presets import PRESETS, for_environments
from ppo.report.findings import findings
from ppo.report.game import RecordedGame, play_game, saliency
from ppo.report.logs import Logs, read_logs, with_card
from ppo.report.network import CannotBeHeldError, describe_distribution, portable
from ppo.report.packing import Pack, plain, plain_number
from ppo.report.page import MAX_BYTES, assemble
from ppo.settings import Refusal
from ppo.standard_streams import say_on_standard_error

GoesOn = Callable[[float], bool]
"""Whether to continue with work that may last until this many seconds after the report was started."""

REPORT_FILE = "report.html"
_SECONDS_OF_TRAINING = 10.0
# At the end of training: when to cut the game and stop the saliency of large networks, counted from the report's start.
_SECONDS_OF_GAME = 4.0
_SECONDS_OF_TINT = 6.0
# At the end of training, while all ranks wait: progress.csv is read at about 11 MB/s.
_MOST_BYTES_OF_LOGS = 32_000_000
_BINS = 30
_SALIENCY_SIDE = 21
_PARTS_OF_A_GAME = (1.0, 0.6, 0.35, 0.2, 0.1, 0.0)
_OUTSIDE = {"env_name", "env_kwargs", "network", "policy"}
"""Settings that may name user-defined code; they count as explicit, since the training named them."""


def report(config: Config, comm: Collective, explicit: set[str]) -> int:
    """Write the report of the run or shipped agent that the settings name; return the exit code."""
    return decided_by_root(comm, lambda: _report(config, explicit))


def report_at_end(config: Config, *, goes_on: Callable[[], bool]) -> None:
    """Write the report of a run that has ended, within a few seconds; a failure only prints a line.

    None is written for a run shorter than ten seconds, or for one that had ended before and has its report.

    Args:
        config: the training's settings.
        goes_on: checked between the steps of the game that is played for the report.
    """
    begun = time.monotonic()

    def has_time(seconds: float) -> bool:
        return goes_on() and time.monotonic() < begun + seconds

    try:
        if _is_newest(config.run_folder):
            return
        logs_there = [path for name in LOGS if (path := config.run_folder / name).exists()]
        size = sum(path.stat().st_size for path in logs_there)
        if size > _MOST_BYTES_OF_LOGS:
            print_line(
                f"no report written: reading {size / 1e6:.0f} MB of logs takes a while; use --mode=report to make one"
            )
            return
        logs = read_logs(config.run_folder)
        seconds = logs.curves["time/seconds"]
        if not len(seconds) or not seconds[-1] >= _SECONDS_OF_TRAINING:
            return
        path = _write(*_find(config, _OUTSIDE), config, logs, has_time)
        print_line(f"report: {path}")
    except Exception as error:  # a failed report must not fail a run that succeeded
        say_on_standard_error(f"WARNING: no report was made ({type(error).__name__}: {error}); try --mode=report")


def _is_newest(folder: Path) -> bool:
    """Return whether a run's report is newer than its log."""
    path = folder / REPORT_FILE
    return path.exists() and path.stat().st_mtime >= (folder / "progress.csv").stat().st_mtime


def _report(config: Config, explicit: set[str]) -> int:
    name, agent, reason = _find(config, explicit)
    if agent is not None:
        announce(agent)
    logs = read_logs(config.run.run_dir / name)
    path = _write(name, agent, reason, config, logs, lambda seconds: True)
    print_line(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser")
    return 0


def _find(config: Config, explicit: set[str]) -> tuple[str, Agent | None, str]:
    """Return the name of the run that the settings mean, its agent if any, and the reason if there is none.

    Raises:
        Refusal: there is neither an agent nor a log.
    """
    try:
        agent = find_agent(config, explicit)
    except Refusal as error:
        if not _has_log(config, config.model_name):
            raise
        return config.model_name, None, str(error)
    if agent.is_shipped and config.playback.checkpoint != "shipped":
        for name in (config.model_name, agent.name):
            if _has_log(config, name):  # from a training run that did not produce the shipped agent
                return name, None, f"there is no checkpoint of {name} in {config.run.checkpoint_dir}"
    return agent.name, agent, ""


def _has_log(config: Config, name: str) -> bool:
    return (config.run.run_dir / name / "progress.csv").is_file()


def _write(name: str, agent: Agent | None, reason: str, config: Config, logs: Logs, goes_on: GoesOn) -> Path:
    """Write the report of a run and return its path.

    Raises:
        Refusal: the folder is not writable.
    """
    folder = config.run.run_dir / name
    require_writable("run_dir", folder)
    if agent and agent.is_shipped:
        logs = with_card(logs, agent.folder / "card.json")
    content = build_report(name, agent, reason, config, logs, goes_on)
    write_whole(folder / REPORT_FILE, content)
    return folder / REPORT_FILE


def build_report(name: str, agent: Agent | None, reason: str, config: Config, logs: Logs, goes_on: GoesOn) -> bytes:
    """Return the report page of a run.

    Args:
        name: the run's name.
        agent: plays the game that the page shows; None if there is none.
        reason: why there is no agent.
        config: the settings of this invocation; the page shows those of the agent, else of the logs.
        logs: the run's logs.
        goes_on: checked before every step of the game but the first, and while its saliency is computed.
    """
    game, model, tints = None, None, None
    if agent is not None:
        try:
            game, model = play_game(agent, config, lambda: goes_on(_SECONDS_OF_GAME))
        except Refusal as error:
            reason = str(error)
    words = _in_words(name, agent, logs)
    for part in _PARTS_OF_A_GAME:
        pack, shown, why = Pack(), None, reason
        network: dict[str, Any] | None = None
        if agent is not None and game is not None and model is not None and part:
            shape = game.observations.shape[1:]
            try:
                network = portable(model, shape, agent.moments, pack)
            except CannotBeHeldError as error:
                why = f"This page does not include the agent: {error}."
                if tints is None and game.observations.ndim == 4:
                    tints = saliency(model, game.observations, _SALIENCY_SIDE, lambda: goes_on(_SECONDS_OF_TINT))
            steps = max(1, round(part * game.num_steps))
            shown = _describe_game(game, model, agent, steps, tints, pack)
        elif game is not None:
            why = "The game does not fit within the page's limit of 2 MB."
        data = {**words, "game": shown, "network": network, "reason": why}
        page = assemble(f"{name} - run report", pack.encode(data))
        if len(page) <= MAX_BYTES:
            break
    return page


def _in_words(name: str, agent: Agent | None, logs: Logs) -> dict[str, Any]:
    """Return all content of the page other than the game and the network."""
    settings = agent.config if agent else logs.settings
    newest = logs.newest["return"]
    recent = newest[-100:] if len(newest) else np.array(agent.counters.recent_returns if agent else ())
    return {
        "name": name,
        "world": settings.run.env_name if settings else "An unknown world",
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "facts": _facts(agent, settings, logs),
        "settings": settings.to_dict() if settings else {},
        "changed": _changed(settings) if settings else {},
        "score": plain_number(float(recent.mean())) if len(recent) else None,
        "scoreOf": len(recent),
        "steps": _last_known(logs.curves["env_steps"], agent.counters.env_steps if agent else None),
        "seconds": _last_known(logs.curves["time/seconds"], agent.counters.seconds if agent else None),
        "bestEvaluation": _largest(logs.curves["evaluation/return_mean"]),
        "evaluation": logs.evaluation,
        "references": _references(settings.run.env_name) if settings else [],
        "curves": {name: plain(column) for name, column in logs.curves.items()},
        "games": {name: plain(column) for name, column in logs.games.items()},
        "numGames": logs.num_games,
        "histograms": {column: _histogram(logs.newest[column]) for column in ("return", "length")},
        "findings": findings(logs.curves),
        "warnings": logs.messages,
    }


def _references(env_name: str) -> list[dict[str, Any]]:
    return [vars(reference) for reference in world_of(env_name).references(env_name)]


def _facts(agent: Agent | None, settings: Config | None, logs: Logs) -> list[list[str]]:
    """Return the facts of a run, as pairs of label and text."""
    facts: list[tuple[str, Any]] = []
    if settings is not None:
        facts += [("world", settings.run.env_name), ("kind of world", settings.family.title)]
    steps, seconds = logs.curves["env_steps"], logs.curves["time/seconds"]
    if len(steps):
        facts.append(("trained", f"{steps[-1]:,.0f} steps in {_duration(float(seconds[-1]))}"))
    facts += [(name, logs.facts.get(name)) for name in ("started", "command", "hosts")]
    if agent is not None:
        counters, saved = agent.counters, agent.manifest
        facts += [
            (
                "agent",
                f"{'shipped with the program: ' if agent.is_shipped else ''}checkpoint at {counters.env_steps:,} steps",
            ),
            ("plays", {"mean": "the mean action", "mode": "the most probable action"}.get(agent.rule, "a sample")),
            ("ranks", saved.ranks),
            ("device", agent.config.machine.device),
            ("processor", ", ".join(f"{name} {value}" for name, value in saved.machine.items())),
            ("versions", ", ".join(f"{package} {version}" for package, version in saved.versions.items())),
        ]
    else:
        facts.append(("ranks", logs.facts.get("ranks")))
    facts += [("commit", logs.facts.get("commit")), ("code", logs.facts.get("code"))]
    if settings is not None:
        facts += [("seed", settings.run.rng_seed), ("preset", settings.run.preset)]
    facts.append(("report made by", f"ppo {ppo.__version__}"))
    return [[label, str(fact)] for label, fact in facts if fact not in (None, "")]


def _changed(settings: Config) -> dict[str, Any]:
    """Return the settings that differ from their preset, by name."""
    preset = PRESETS.get(settings.run.preset or "")
    if preset is None:
        return {}
    defaults = dataclasses.replace(Config(), world=settings.family.settings())
    scaled = for_environments(preset, settings.ppo.num_envs, settings.ppo.rollout_steps)
    base = defaults.replace_settings({**scaled, "env_name": settings.run.env_name})
    changed = differences(base, settings, ("world", "model", "ppo"))
    return {name: now for name, (_, now) in changed.items()}


def _describe_game(
    game: RecordedGame, model: ActorCritic, agent: Agent, steps: int, tints: NDArray[np.uint8] | None, pack: Pack
) -> dict[str, Any]:
    """Return the first steps of a game as JSON, with their arrays in `pack`."""
    values = agent.moments.denormalize(game.values[:steps].astype(np.float64))
    described: dict[str, Any] = {
        "steps": steps,
        "isWhole": game.is_over and steps == game.num_steps,
        "return": float(game.rewards.astype(np.float64).sum()),
        "length": game.num_steps,
        "isOver": game.is_over,
        "rate": game.steps_per_second,
        "rewards": pack.add(game.rewards[:steps]),
        "values": pack.add(values.astype(np.float32)),
        "outputs": pack.add(game.outputs[:steps]),
        "actions": pack.add(np.array(game.actions[:steps], np.float32)),
        "actionNames": game.action_names,
        "entryNames": game.entry_names,
        "distribution": describe_distribution(model.distribution),
        "channelsPerPicture": agent.channels_per_picture,
        "observations": _describe_observations(game.observations[:steps], pack),
        "film": None,
        "saliency": None,
    }
    if game.film is not None:
        pictures = pack.add_film(np.stack(game.film.pictures[:steps]))
        described["film"] = {"pictures": pictures, "palette": game.film.palette}
    if tints is not None:
        described["saliency"] = pack.add(tints[:steps])
    return described


def _describe_observations(observations: NDArray[Any], pack: Pack) -> dict[str, Any]:
    """Return observations (T, *S) as JSON; for stacked images, the whole first one and then each step's new channels.

    `new` is the number of channels that a step adds; all channels if images are not stacked.
    """
    if observations.ndim == 2:
        return {"kind": "vector", "values": pack.add(observations.astype(np.float32))}
    channels = observations.shape[1]
    stacked = (
        new
        for new in range(1, channels)
        if channels % new == 0 and np.array_equal(observations[1:, :-new], observations[:-1, new:])
    )
    new = next(stacked, channels)
    return {
        "kind": "image",
        "new": new,
        "first": pack.add(observations[0]),
        "newest": pack.add_film(observations[:, -new:]),
    }


def _largest(column: NDArray[np.float64]) -> float | None:
    known = column[~np.isnan(column)]
    return plain_number(float(known.max())) if len(known) else None


def _last_known(column: NDArray[np.float64], otherwise: float | None) -> float | None:
    known = column[~np.isnan(column)]
    return float(known[-1]) if len(known) else otherwise


def _histogram(values: NDArray[np.float64]) -> dict[str, Any] | None:
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    counts, edges = np.histogram(known, _BINS)
    return {"counts": counts.tolist(), "edges": plain(edges), "of": len(known)}


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds < 60.0:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60.0:.1f} minutes" if seconds < 5400.0 else f"{seconds / 3600.0:.1f} hours"
