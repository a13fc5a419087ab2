"""Ship the final agent of a finished run: its policy, card, curve and evaluation.

    python -m scripts.ship_agent RUN --root=CLONE [--name=NAME] [--act=RULE] [--float16] [--curve_only]

RUN is the model name of a run in CLONE that has been evaluated with `--mode=evaluate --checkpoint=latest`. Written to
this project: checkpoints/pretrained/<name>/ (the policy without the state that only resuming needs, and card.json:
command, commit, machine, minutes, scores, and two games to check it by), and docs/runs/scores/<name>-<steps>-seed-<N>
.csv and .json, from which scripts/score_table.py makes docs/scores.md. The name is that of the world; --name gives
another to a world that arguments change, such as CarRacing-v3-discrete. --act saves the rule by which the agent chooses
its actions from now on: that of the evaluation, found by comparing rules on other games. --float16 halves the weights'
bytes: the evaluation is repeated with the rounded weights, and the agent shipped if the mean return stays within its
standard error. --curve_only writes only the files in docs/: a world ships one agent, but its score has several seeds.
"""

import argparse
import csv
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ppo import playback
from ppo.agents import own_preset
from ppo.command_line import parse_command_line
from ppo.config import SHIPPED, Config, as_flags, default_model_name, differences
from ppo.outputs import checkpoint
from ppo.outputs.manifest import MODEL_FILE, FileEntry, Manifest, encode_manifest
from ppo.outputs.tensor_file import Tensors, encode_tensors
from ppo.outputs.whole_folder import write_folder
from ppo.presets import preset_of
from scripts.scored_runs import length_of
from scripts.stored_games import CARD, play, store

ROOT = Path(__file__).resolve().parent.parent
# Smaller tensors are few bytes, and statistics among them.
_LARGE = 1024
# Settings that do not affect how a run learns.
_NAMES = {"model_name", "preset", "checkpoint_dir", "run_dir", "asset_dir", "fresh", "mode"}


def command_of(config: Config) -> str:
    """Return the shortest command line that trains with these settings."""
    start = [f"--env_name={config.run.env_name}"]
    if config.run.preset != parse_command_line(start).run.preset:
        start.append(f"--preset={config.run.preset}")
    usual = parse_command_line(start)
    changed = {
        name: new
        for name, (_, new) in differences(usual, config, ["run", "world", "model", "ppo", "playback"]).items()
        if name not in _NAMES
    }
    return " ".join(["./scripts/train", *start, *as_flags(changed)])


def score_name(config: Config, world: str | None = None) -> str:
    """Return the name under which a run's curve and evaluation are kept: HalfCheetah-v5-4M-seed-1.

    Args:
        config: the run's settings.
        world: the name of its world; by default the id.
    """
    world, steps = world or config.run.env_name.rpartition("/")[2], config.run.env_steps
    return f"{world}-{length_of(steps)}-seed-{config.run.rng_seed}"


def card_of(manifest: Manifest, run_folder: Path, evaluation: dict[str, Any], commit: str | None) -> dict[str, Any]:
    """Return an agent's card: how it was trained and how it scores."""
    with (run_folder / "progress.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return {
        "env_name": manifest.config.run.env_name,
        "command": command_of(manifest.config),
        "commit": commit,
        "ranks": manifest.ranks,
        "machine": manifest.machine,
        "versions": manifest.versions,
        "env_steps": manifest.counters.env_steps,
        "minutes": round(manifest.counters.seconds / 60, 1),
        "training_return_mean": float(last["rollout/return_mean"]),
        "evaluation": evaluation,
    }


def main(arguments: list[str]) -> None:
    """Copy a run's results into the project, replacing the agent shipped for its world, if any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--root", type=Path, default=ROOT, help="the clone in which the run was trained")
    parser.add_argument("--project", type=Path, default=ROOT, help="the folder to write to")
    parser.add_argument("--name", help="of the agent's folder and of its scores")
    parser.add_argument("--act", help="the rule to save: sample, mean or mode; by default the one that training saved")
    parser.add_argument("--float16", action="store_true", help="ship the weights in 16 bits if the score allows it")
    parser.add_argument("--curve_only", action="store_true")
    options = parser.parse_args(arguments)
    run_folder = options.root / "runs" / options.run
    checkpoints = options.root / "checkpoints" / options.run
    source = max(path for path in checkpoints.glob("step_*") if path.name.removeprefix("step_").isdecimal())
    manifest = checkpoint.verify(source)
    config = manifest.config
    if options.name is None and own_preset(config) != preset_of(config.run.env_name, config.family):
        parser.error(f"--name must be given: the arguments {config.env_kwargs} make another world")
    evaluation = json.loads((run_folder / "evaluation.json").read_text())
    if evaluation["env_steps"] != manifest.counters.env_steps:
        sys.exit(f"evaluate {source} first: evaluation.json is for the agent at {evaluation['env_steps']} steps")
    if options.act is not None:
        if evaluation["act"] != options.act:
            parser.error(f"--act must be {evaluation['act']}, by which the agent was evaluated, got {options.act}")
        config = config.replace_settings({"act": options.act})
    name = score_name(config, options.name)
    scores = options.project / "docs" / "runs" / "scores"
    scores.mkdir(parents=True, exist_ok=True)
    shutil.copy(run_folder / "progress.csv", scores / f"{name}.csv")
    (scores / f"{name}.json").write_text(json.dumps(evaluation, indent=1) + "\n")
    print(f"wrote {scores / name}.csv and .json")
    if options.curve_only:
        return
    commit = json.loads((run_folder / "config.json").read_text())["commit"]
    policy = (source / MODEL_FILE).read_bytes()
    if options.float16:
        policy = in_16_bits(checkpoint.read_tensors(source, manifest, MODEL_FILE))
    entry = FileEntry(len(policy), hashlib.sha256(policy).hexdigest())
    policy_only = replace(manifest, config=config, files={MODEL_FILE: entry})
    contents = {MODEL_FILE: policy, checkpoint.MANIFEST_FILE: encode_manifest(policy_only)}
    target = options.project / "checkpoints" / SHIPPED / (options.name or default_model_name(config.run.env_name))
    if options.float16:
        evaluation = evaluation_in_16_bits(contents, target.name, evaluation)
    if target.exists():
        shutil.rmtree(target)
    card = card_of(manifest, run_folder, evaluation, commit)
    write_folder(target, {**contents, CARD: (json.dumps(card, indent=1) + "\n").encode()})
    checkpoint.verify(target)
    store(target)
    print(f"wrote {target}")


def in_16_bits(tensors: Tensors) -> bytes:
    """Return a file of a policy with its large weights in 16 bits.

    Raises:
        FloatingPointError: a weight is too large for 16 bits.
    """
    return encode_tensors(
        {
            name: tensor.half() if tensor.dtype == torch.float32 and tensor.numel() >= _LARGE else tensor
            for name, tensor in tensors.items()
        }
    )


def evaluation_in_16_bits(contents: Mapping[str, bytes], name: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Play the games of an evaluation with an agent's rounded weights and return their statistics.

    Raises:
        SystemExit: the mean return differs by more than its standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        rounded = Path(folder) / SHIPPED / name
        rounded.parent.mkdir()
        write_folder(rounded, contents)
        games, agent, config = play(rounded, evaluation["episodes"], evaluation["rng_seed"])
        found = playback.statistics_of(games, agent, config)
    difference = found["return_mean"] - evaluation["return_mean"]
    if abs(difference) > evaluation["return_stderr"]:
        sys.exit(
            f"in 16 bits the mean return changes by {difference:+.3g}, more than its error: ship without --float16"
        )
    return {**found, "model_name": evaluation["model_name"]}


if __name__ == "__main__":
    main(sys.argv[1:])
