"""The outputs that a run reports to: files, TensorBoard, the screen and, on request, Weights & Biases."""

import json
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from ppo.algorithm.flat_parameters import num_parameters
from ppo.clips import ClipMaker
from ppo.config import Config
from ppo.identity import SECTIONS
from ppo.models.encoders import MLP
from ppo.outputs.display import make_display
from ppo.outputs.game_log import GameLog
from ppo.outputs.histograms import look_at
from ppo.outputs.tensorboard import TensorBoard
from ppo.outputs.trackers import CsvFiles, MessageFile, OutputError, Tracker, Trackers, write_config
from ppo.outputs.weights_and_biases import WeightsAndBiases
from ppo.presets import is_tuned_for
from ppo.run import Run
from ppo.versions import code_version, commit_here


def make_trackers(run: Run, hosts: Sequence[str], goes_on: Callable[[], bool]) -> Trackers:
    """Return the trackers of rank 0; the other ranks have none.

    Args:
        run: the run to report.
        hosts: the host of every rank.
        goes_on: called periodically by slow operations, which end once it returns False.
    """
    if run.comm.rank != 0:
        return Trackers([])
    config, progress = run.config, run.progress
    folder, command = config.run_folder, shlex.join(["python", "-m", "ppo", *sys.argv[1:]])
    notes = write_config(
        folder,
        config,
        ranks=run.comm.size,
        hosts=list(hosts),
        started=datetime.now().isoformat(timespec="seconds"),
        command=command,
        code=code_version(),
        commit=commit_here(),
    )
    ranks = "1 rank" if run.comm.size == 1 else f"{run.comm.size} ranks"
    title = f"{config.model_name}: {config.ppo.num_envs} environments on {ranks}, preset {config.run.preset}"
    preset = config.run.preset
    if preset and not is_tuned_for(preset, config.run.env_name, config.family, config.env_kwargs):
        notes.append(f"preset {preset} is not tuned for {config.run.env_name}")
    notes += without_effect(run)
    megabytes = config.run.replay_megabytes
    clips = ClipMaker(config, run.model, goes_on).clip_of
    outputs: list[Tracker] = [
        CsvFiles(folder, progress.logs),
        *([GameLog(folder, megabytes, progress.update)] if megabytes else []),
        MessageFile(folder),
        TensorBoard(
            folder,
            progress.env_steps,
            texts={"command": _preformatted(command), **texts(run)},
            hyperparameters=hyperparameters(config),
            look=lambda: look_at(run.collector.newest, run.learner.samples, run.model.distribution),
            clips=clips,
        ),
        make_display(title, config.run.env_steps),
    ]
    if config.run.track == "wandb":
        try:
            outputs.append(
                WeightsAndBiases(folder, config.model_name, config.run.env_name, hyperparameters(config), clips)
            )
        except OutputError as error:
            notes.append(f"WARNING: {error}")
    trackers = Trackers(outputs)
    for note in notes:
        trackers.say(note)
    return trackers


def without_effect(run: Run) -> list[str]:
    """Return messages on settings that the user gave and that change nothing in this run."""
    model, ppo, distribution = run.config.model, run.config.ppo, run.model.distribution
    reasons: dict[str, str] = {}
    if len(run.envs.single_observation_space.shape or ()) == 3:
        reasons |= dict.fromkeys(("observation_normalization", "observation_clip"), "observations are images")
    else:
        reasons["pixel_normalization"] = "observations are vectors"
        if not model.observation_normalization:
            reasons["observation_clip"] = "observation_normalization is off"
    is_own = ":" in model.network  # a class from outside may read any setting
    if not is_own and not isinstance(run.model.actor, MLP):
        reasons |= dict.fromkeys(("hidden_sizes", "activation"), "the network is a CNN")
    if not is_own and model.network not in ("auto", "mlp"):
        reasons["model_size"] = f"network is {model.network}"
    if isinstance(run.model.actor, MLP) and model.hidden_sizes != "auto":
        reasons["model_size"] = "hidden_sizes says the units"
    for option in {"log_deviation_init", "state_dependent_deviation", "action_start"}.difference(distribution.options):
        reasons[option] = f"actions are {distribution.name}"
    schedule = f"learning_rate_schedule is {ppo.learning_rate_schedule}"
    if ppo.learning_rate_schedule != "kl_adaptive":
        reasons |= dict.fromkeys(("learning_rate_max", "kl_target", "kl_factor"), schedule)
    if ppo.learning_rate_schedule != "inverse_time":
        reasons["learning_rate_decay_steps"] = schedule
    if ppo.gae_lambda_late is None:
        reasons["gae_lambda_late_steps"] = "gae_lambda_late is None"
    return [f"{name} has no effect: {reasons[name]}" for name in run.named or () if name in reasons]


def texts(run: Run) -> dict[str, str]:
    """Return the texts shown in TensorBoard: the network with its number of parameters, and the settings."""
    settings = json.dumps(run.config.to_dict(), indent=1)
    network = f"{num_parameters(run.model):,} parameters\n\n{_preformatted(str(run.model))}"
    return {"network": network, "settings": _preformatted(settings)}


def hyperparameters(config: Config) -> dict[str, Any]:
    """Return what distinguishes runs, by name: world, seed, preset, length and settings."""
    run = config.run
    return {
        "env_name": run.env_name,
        "rng_seed": run.rng_seed,
        "preset": run.preset,
        "env_steps": run.env_steps,
        **{name: value for section in SECTIONS for name, value in config.to_dict()[section].items()},
    }


def _preformatted(text: str) -> str:
    """Return a text as preformatted Markdown."""
    return textwrap.indent(text, "    ")
