"""Which run a command line means: the name of its folders, and whether its settings are those of its checkpoints.

A run is identified by its environment, its seed and its settings in SECTIONS. Settings missing from a command line come
from a preset, which another version of the program may have changed: a run keeps the values it started with.
"""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

from ppo.config import Config, as_flags, default_model_name, differences, outside_names
from ppo.outputs import checkpoint
from ppo.outputs.manifest import Manifest
from ppo.settings import Refusal

SECTIONS = ("world", "model", "ppo")
# Changing these would change the meaning of the weights or of the environments' states.
_FIXED_IN_PPO = ("num_envs", "value_normalization")
_FIXED_IN_WORLD = ("frame_stack", "full_action_space", "env_kwargs")

Changes = dict[str, tuple[Any, Any]]


def find_run(config: Config) -> Config:
    """Return the settings with the name of the run that they mean.

    The default name is `<env>` for seed 0 and `<env>-seed<N>` for seed N. But if `<env>` holds a run with seed N, that
    run is meant, because earlier versions kept every seed there.

    Raises:
        Refusal: the checkpoint folder cannot be read.
    """
    plain, seed = default_model_name(config.run.env_name), config.run.rng_seed
    if config.run.model_name is None and seed != 0:
        manifest = checkpoint.newest_manifest(config.run.checkpoint_dir / plain)
        if manifest is not None and manifest.config.run.rng_seed == seed:
            return config.replace_settings({"model_name": plain})
    return config


def named_settings(config: Config, explicit: set[str]) -> tuple[str, ...]:
    """Return the settings given on the command line that identify a run, sorted."""
    sections = [getattr(config, name) for name in SECTIONS]
    of_a_run = {"preset"} | {field.name for section in sections for field in dataclasses.fields(section)}
    return tuple(sorted(explicit & of_a_run))


def settle(config: Config, explicit: set[str]) -> tuple[Config, list[str]]:
    """Compare a command line with the newest checkpoint of the run that it means, before anything is modified.

    Args:
        config: the settings of the command line.
        explicit: names of the settings given on it.

    Returns:
        The settings to train with, and messages. Repeating a command keeps the settings of the checkpoint, even if this
        version of the program has other defaults.

    Raises:
        Refusal: the checkpoint is of another run; the message names the differences and the remedies.
    """
    config = find_run(config)
    folder = config.checkpoint_folder
    manifest = None if config.run.fresh else checkpoint.newest_manifest(folder)
    if manifest is None:
        return config, []
    config, notes = _settle(config, explicit, manifest, folder)
    return config, [*notes, *_changed_length(manifest, config)]


def _settle(config: Config, explicit: set[str], manifest: Manifest, folder: Path) -> tuple[Config, list[str]]:
    changed = _changes(manifest.config, config)
    fixed = _fixed(changed, config)
    # A world's default preset may have a different name by now.
    has_default_preset = manifest.named is not None and "preset" not in explicit
    is_same_command = (
        not {"env_name", "rng_seed"} & set(changed)
        and (has_default_preset or manifest.config.run.preset == config.run.preset)
        and manifest.named in (None, named_settings(config, explicit))
        and not explicit & set(changed)
    )
    if is_same_command and not set(changed) & set(from_outside(manifest.config)):
        notes = [
            f"this version has a different default: {name} {old} -> {new}; the run keeps {old}"
            for name, (old, new) in changed.items()
        ]
        return config.replace_settings({name: old for name, (old, _) in changed.items()}), notes
    if fixed or (changed and not config.run.change_settings):
        raise _of_another_run(folder, changed, can_change=not fixed)
    return config, []


def _changed_length(manifest: Manifest, config: Config) -> list[str]:
    """Return messages on how a length other than the checkpoint's changes the schedules that depend on it."""
    lengths = manifest.config.run.env_steps, config.run.env_steps
    schedules = {name: getattr(config.ppo, f"{name}_schedule") for name in ("learning_rate", "clip_range")}
    names = [name for name, schedule in schedules.items() if schedule == "linear"]
    done = manifest.counters.env_steps
    if lengths[0] == lengths[1] or not names or done >= lengths[1]:
        return []
    before, now = (f"{max(0.0, 1.0 - done / length):.0%}" for length in lengths)
    return [
        f"env_steps {lengths[0]:,} -> {lengths[1]:,}: {name} continues at {now} of its initial value instead of "
        f"{before}, as if the run had had this length from the start"
        for name in names
    ]


def from_outside(saved: Config) -> dict[str, str]:
    """Return the settings of a checkpoint that name code or constructor arguments; a command must name them too.

    A checkpoint may come from anywhere, so code that it names is never imported unless the command names it too.
    """
    wanted = outside_names(saved)
    if not all(isinstance(value, bool | int | float) for value in json.loads(saved.env_kwargs).values()):
        wanted["env_kwargs"] = saved.env_kwargs
    return wanted


def refuse_other_run(config: Config, manifest: Manifest, folder: Path) -> None:
    """Refuse a checkpoint whose weights or environment states would change their meaning under these settings.

    Raises:
        Refusal: the message names the differences and the remedies.
    """
    changed = _changes(manifest.config, config)
    if _fixed(changed, config):
        raise _of_another_run(folder, changed, can_change=False)


def _changes(saved: Config, config: Config) -> Changes:
    """Return the differences in what identifies a run, as name -> (old, new)."""
    run = {name: (vars(saved.run)[name], vars(config.run)[name]) for name in ("env_name", "rng_seed")}
    return {name: pair for name, pair in run.items() if pair[0] != pair[1]} | differences(saved, config, SECTIONS)


def _fixed(changed: Changes, config: Config) -> set[str]:
    """Return the changes that cannot be made within a run."""
    world = dataclasses.fields(config.world)
    free = {field.name for field in world if field.metadata.get("training_only") or field.metadata.get("of_playback")}
    free |= set(vars(config.ppo))
    return set(changed) - free.difference(_FIXED_IN_PPO, _FIXED_IN_WORLD)


def _of_another_run(folder: Path, changed: Changes, *, can_change: bool) -> Refusal:
    listing = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changed.items())
    old_settings = shlex.join(as_flags({name: before for name, (before, _) in changed.items()}))
    ways = "another --model_name" + (", " if can_change else " or ") + "--fresh to move it aside"
    ways += ", or --change_settings to continue with the new ones" if can_change else ""
    return Refusal(f"{folder} belongs to another run ({listing}); use the old settings ({old_settings}), {ways}")
