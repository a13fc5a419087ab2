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

from ppo import playback
from ppo.agents import own_preset
from ppo.command_line import parse_command_line
from ppo.config import SHIPPED, Config, as_flags, default_model_name, differences
from ppo.outputs import checkpoint
from ppo.outputs.manifest import MODEL_FILE, FileEntry, Manifest, encode_manifest
from ppo.outputs.tensor_file import Tensors, encode_tensors
from ppo.outputs.whole_folder import write_folder
from ppo.presets import preset_of
from ppo.settings import Refusal
from scripts.scored_runs import length_of
from scripts.stored_games import CARD, play, stored

ROOT = Path(__file__).resolve().parent.parent
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


def card_of(manifest: Manifest, run_folder: Path, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an agent's card: how it was trained and how it scores."""
    with (run_folder / "progress.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return {
        "env_name": manifest.config.run.env_name,
        "command": command_of(manifest.config),
        "commit": json.loads((run_folder / "config.json").read_text())["commit"],
        "ranks": manifest.ranks,
        "machine": manifest.machine,
        "versions": manifest.versions,
        "env_steps": manifest.counters.env_steps,
        "minutes": round(manifest.counters.seconds / 60, 1),
        "training_return_mean": float(last["rollout/return_mean"]),
        "evaluation": evaluation,
    }


def files_of(
    name: str, source: Path, manifest: Manifest, run_folder: Path, evaluation: Mapping[str, Any], *, float16: bool
) -> dict[str, bytes]:
    """Return the files of an agent to ship, after a trial of it.

    Args:
        name: of its folder.
        source: its checkpoint.
        manifest: that of the checkpoint, with the settings that it is to have.
        run_folder: the logs of its run.
        evaluation: the content of its evaluation.json.
        float16: ship the weights in 16 bits.

    Raises:
        SystemExit: it does not play as in its evaluation.
    """
    policy = (source / MODEL_FILE).read_bytes()
    if float16:
        policy = in_16_bits(checkpoint.read_tensors(source, manifest, MODEL_FILE))
    entry = FileEntry(len(policy), hashlib.sha256(policy).hexdigest())
    content = encode_manifest(replace(manifest, files={MODEL_FILE: entry}))
    files = {MODEL_FILE: policy, checkpoint.MANIFEST_FILE: content}
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / SHIPPED / name
        trial.parent.mkdir()
        write_folder(trial, files)
        games = try_out(trial, evaluation)
        if float16:
            evaluation = evaluated_again(trial, evaluation)
    card = card_of(manifest, run_folder, evaluation) | {"games": games}
    return {**files, CARD: (json.dumps(card, indent=1) + "\n").encode()}


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
    if options.curve_only and (options.act or options.float16):
        parser.error("--act and --float16 must not be given with --curve_only, which ships no agent")
    evaluation = json.loads((run_folder / "evaluation.json").read_text())
    if evaluation["env_steps"] != manifest.counters.env_steps:
        sys.exit(f"evaluate {source} first: evaluation.json is for the agent at {evaluation['env_steps']} steps")
    if options.act is not None:
        config = config.replace_settings({"act": options.act})
    name = score_name(config, options.name)
    agent = options.name or default_model_name(config.run.env_name)
    files: dict[str, bytes] = {}
    if not options.curve_only:
        to_ship = replace(manifest, config=config)
        files = files_of(agent, source, to_ship, run_folder, evaluation, float16=options.float16)
    scores = options.project / "docs" / "runs" / "scores"
    scores.mkdir(parents=True, exist_ok=True)
    shutil.copy(run_folder / "progress.csv", scores / f"{name}.csv")
    (scores / f"{name}.json").write_text(json.dumps(evaluation, indent=1) + "\n")
    print(f"wrote {scores / name}.csv and .json")
    if files:
        target = options.project / "checkpoints" / SHIPPED / agent
        if target.exists():
            shutil.rmtree(target)
        write_folder(target, files)
        checkpoint.verify(target)
        print(f"wrote {target}")


def in_16_bits(tensors: Tensors) -> bytes:
    """Return a file of a policy with its weights in 16 bits, but not statistics of inputs.

    Raises:
        SystemExit: a weight is too large for 16 bits.
    """
    weights = {name for name in tensors if name.startswith("model/") and not name.startswith("model/inputs.")}
    try:
        return encode_tensors({name: t.half() if name in weights else t for name, t in tensors.items()})
    except FloatingPointError as error:
        sys.exit(f"in 16 bits {error}; leave out --float16")


def try_out(folder: Path, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Play an agent's first games as users will; return what its card says about them.

    Raises:
        SystemExit: it cannot be played, or chooses its actions by another rule than in its evaluation.
    """
    try:
        games = stored(folder)
    except Refusal as error:
        sys.exit(f"the agent cannot be shipped: {error}")
    if games["act"] != evaluation["act"]:
        sys.exit(
            f"the agent would play by {games['act']}, but was evaluated by {evaluation['act']}: evaluate it again, or "
            f"save that rule with --act={evaluation['act']}"
        )
    return games


def evaluated_again(folder: Path, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Play the games of an evaluation with an agent's rounded weights and return their statistics.

    Raises:
        SystemExit: the mean return differs by more than its standard error.
    """
    same = [f"--{name}={evaluation[name]}" for name in ("rng_seed", "max_game_steps")]
    found = playback.statistics_of(*play(folder, evaluation["episodes"], *same))
    difference = found["return_mean"] - evaluation["return_mean"]
    if abs(difference) > evaluation["return_stderr"]:
        sys.exit(f"in 16 bits the mean return changes by {difference:+.3g}, more than its error; leave out --float16")
    return {**found, "model_name": evaluation["model_name"]}


if __name__ == "__main__":
    main(sys.argv[1:])
