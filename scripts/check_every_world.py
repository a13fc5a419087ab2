"""Try every registered Gymnasium id: train two updates, resume for a third and evaluate one episode.

Each id is tried in its own process with the commands that a user would type, so a crash or a hang becomes a row of the
table and does not end the check. An id passes if it is trained, resumed and evaluated, or refused for one of the
reasons in `REFUSALS`; anything else is a fault and makes the exit code 1.

A resume is exact if the program reports no environment that began a new episode, if a run that never stopped ends with
the same tensors, and if the state of an environment that has played several episodes, restored in a new environment,
gives the same results for the same actions.

Ids of other packages are tried if the package is installed: pip install minigrid popgym gymnasium-robotics pettingzoo
"""

import collections
import contextlib
import csv
import dataclasses
import gc
import importlib
import math
import os
import platform
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from importlib import metadata
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro
from gymnasium import spaces
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ppo.__main__ import main
from ppo.config import default_model_name
from ppo.envs import Environments, world_of
from ppo.envs.observations import is_image
from ppo.envs.own_worlds import register_own_worlds
from ppo.families import FAMILIES, family_of

PACKAGES = ("minigrid", "popgym", "gymnasium_robotics")
LEARNT = "learnt, resumed exactly, evaluated"
ENDLESS = "learnt, resumed exactly, evaluated without an end in sight"
ANEW = "learnt, resumed with new episodes, evaluated"
FAILED = "FAILED"
REFUSALS = {
    "refused: Atari id of another protocol": r"must be a \.\.\.NoFrameskip-v4 or ALE/\.\.\.-v5 id",
    "refused: package missing": r"No module named|pip install",
    "refused: retired version": r"retired by Gymnasium|the newest version is",
    "refused: spaces of Text, Graph or Sequence": r"is not supported: .*(Text|Graph|Sequence)",
    "refused: images too small for the network": r"must fit the observations: \w+ needs images of at least",
    "refused: constructor fails": r"cannot be made here",
    # MiniGrid's wave-function-collapse worlds: the wheel lacks their patterns.
    "refused: package without its own files": r"failed at step 0 of episode 0, begun by reset\(.*\): FileNotFoundError",
}
"""Outcomes that are not faults, with a pattern for the refusal's message; the first match counts."""
OUTCOMES = (LEARNT, ENDLESS, ANEW, *REFUSALS, FAILED)
EXACTLY, BEGAN_ANEW = "exactly", "with new episodes"
# Outcomes of unfinished rows.
TRAINING, RESUMING, COMPARING, EVALUATING = "training", "resuming", "comparing", "evaluating"

_REFUSED = 2
_UPDATE_STEPS = 16
_FLAGS = ("--num_envs=2", "--rollout_steps=8", "--minibatch_size=8", "--num_epochs=1")
# A schedule that does not depend on the run's last step, and a device whose results are bit-identical in every run.
_REPEATABLE = ("--learning_rate_schedule=constant", "--device=cpu", "--env_engine=lean")
_FLAGS_OF_FAMILIES = {"atari": ("--max_frames=1000",)}
"""Bounds an Atari game, which takes 10 seconds or more with an untrained policy."""
_EPISODES_BEFORE, _STEPS_OF_EPISODE, _STEPS_COMPARED = 2, 40, 20
_PRELOADED = ("ppo.loop", "ppo.playback", "ppo.envs.gymnasium", "ppo.envs.atari.block", "pygame", "mujoco")


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    ids: tuple[str, ...] = ()
    """Ids to try. Default: all."""
    packages: tuple[str, ...] = PACKAGES
    """Packages whose ids are tried as well."""
    every: int = 1
    """Try only every nth id, for a sample."""
    workers: int = 2
    """Number of ids tried at the same time."""
    seconds: float = 600.0
    """Seconds after which an id still in the same stage is stopped; a fault except during evaluation."""
    evaluation_seconds: float = 60.0
    """Seconds of processor time after which an evaluation is stopped; some worlds have no time limit."""
    output: Path | None = None
    """Write the table to this .md, and each row as it is known to the .csv beside it. Ids that passed according to that
    file are skipped, so the same command resumes where it was stopped."""


@dataclass(frozen=True)
class Row:
    """The result of an id."""

    env_name: str
    group: str
    observations: str = ""
    actions: str = ""
    outcome: str = TRAINING
    resumed: str = ""
    """EXACTLY or BEGAN_ANEW; empty before the comparison."""
    message: str = ""
    cpu_seconds: float = 0.0


Run = Callable[[Sequence[str]], tuple[int, str]]
"""Runs `python -m ppo` with flags; returns the exit code and the output."""


class Fault(Exception):
    """Why an id FAILED."""


# ------------------------------------------------------------------------------------------------------ which ids


def all_ids(packages: Iterable[str]) -> list[str]:
    """Return the registered ids; `module:id` for packages that must be imported first."""
    importlib.import_module("ppo.envs.atari")  # registers ALE's ids
    register_own_worlds()
    names = list(gymnasium.registry)
    for package in packages:
        before = set(gymnasium.registry)
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(package)
        names += [f"{package}:{env_id}" for env_id in gymnasium.registry if env_id not in before]
    return names


def group_of(env_name: str) -> str:
    """Return an id's family; for the general family and for `module:id`, its package."""
    family = family_of(env_name)
    module, _, env_id = env_name.rpartition(":")
    if family is not FAMILIES[-1] or module:
        return module or family.name
    spec = gymnasium.registry.get(env_id)
    entry_point = spec.entry_point if spec is not None and isinstance(spec.entry_point, str) else "others"
    return re.split(r"[.:]", entry_point.removeprefix("gymnasium.envs."))[0]


def describe(space: gymnasium.Space[Any]) -> str:
    """Return a short description of a space: `Dict(image(7, 7, 3), Discrete(4), Text)`."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return f"{type(space).__name__}({', '.join(map(describe, parts))})"
    if isinstance(space, spaces.Discrete):
        return f"Discrete({space.n})"
    name = "image" if is_image(space) else type(space).__name__
    return f"{name}{space.shape or ''}"


# ------------------------------------------------------------------------------------------------------ one id


def try_world(env_name: str, run: Run) -> Iterator[Row]:
    """Try an id in the working directory and yield its row so far at every stage; the last row is the result.

    Args:
        env_name: the id.
        run: runs the program in the working directory.
    """
    so_far = Row(env_name, group_of(env_name))
    try:
        for row in _stages(so_far, run):
            so_far = row
            yield row
    except Exception as error:
        yield _finished(so_far, FAILED, f"{so_far.outcome}: {type(error).__name__}: {error}")


def _stages(row: Row, run: Run) -> Iterator[Row]:
    yield row
    family = family_of(row.env_name).name
    name = f"--env_name={row.env_name}"
    train = (name, *_FLAGS, *_REPEATABLE, *_FLAGS_OF_FAMILIES.get(family, ()))
    code, text = run((*train, f"--env_steps={2 * _UPDATE_STEPS}"))
    row = _with_spaces(row)
    if code == _REFUSED:
        message = text.strip().splitlines()[-1].removeprefix("ppo: ")
        outcome = next((outcome for outcome, said in REFUSALS.items() if re.search(said, message)), FAILED)
        yield _finished(row, outcome, message)
        return
    _require(code == 0, text)
    left_out = re.search(r"text in its observations is ignored: (.*)", text)
    message = f"text left out: {left_out[1].strip()}" if left_out else ""

    yield replace(row, outcome=RESUMING)
    code, text = run((*train, f"--env_steps={3 * _UPDATE_STEPS}"))
    _require(code == 0 and f"at {2 * _UPDATE_STEPS} steps" in text, text)
    anew = "began a new episode" in text

    yield replace(row, outcome=COMPARING)
    inexact = _difference_to_a_run_that_never_stopped(row.env_name, train, run)
    inexact = inexact or difference_of_a_restored_environment(row.env_name)
    # Beginning a new episode is a known limit; any other difference is a fault.
    _require(anew or not inexact or inexact == BEGAN_ANEW, inexact)
    row = replace(row, resumed=BEGAN_ANEW if anew or inexact else EXACTLY, message=message)

    yield replace(row, outcome=EVALUATING)
    code, text = run((name, "--mode=evaluate", "--episodes=1"))
    _require(code == 0 and '"return_mean"' in text, text)
    yield _finished(row, LEARNT if row.resumed == EXACTLY else ANEW, message)


def _finished(row: Row, outcome: str, message: str) -> Row:
    # Paths keep only the last folder and the file name, so they do not depend on where packages are installed.
    message = re.sub(r"/\S+/(?=[^/\s]+/[^/\s]+\.\w+\b)", "", message)
    return replace(row, outcome=outcome, message=message, cpu_seconds=time.process_time())


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise Fault(" / ".join(text.strip().splitlines()[-3:]))


def _with_spaces(row: Row) -> Row:
    """Add the environment's own spaces, before any conversion, if the environment can be made."""
    with contextlib.suppress(Exception):
        env: gymnasium.Env[Any, Any] = gymnasium.make(row.env_name, disable_env_checker=True)
        row = replace(row, observations=describe(env.observation_space), actions=describe(env.action_space))
        env.close()
    return row


def _difference_to_a_run_that_never_stopped(env_name: str, train: Sequence[str], run: Run) -> str:
    """Train for as many steps without a stop and compare all tensors; return the first difference, or ""."""
    code, text = run((*train, f"--env_steps={3 * _UPDATE_STEPS}", "--model_name=never_stopped"))
    _require(code == 0, text)
    resumed, straight = (
        Path("checkpoints", name, f"step_{3 * _UPDATE_STEPS:012d}")
        for name in (default_model_name(env_name), "never_stopped")
    )
    for file in ("model.safetensors", "training.safetensors"):
        ours, expected = load_file(resumed / file), load_file(straight / file)
        if set(ours) != set(expected):
            return f"{file} holds other tensors"
        for name, tensor in ours.items():
            if tensor.tobytes() != expected[name].tobytes():
                return f"{name} differs from that of a run that never stopped"
    return ""


def difference_of_a_restored_environment(env_name: str) -> str:
    """Restore the state after several episodes in a new environment; return the first difference, or ""."""
    envs, restored = (_one_environment(env_name) for _ in range(2))
    envs.single_action_space.seed(0)
    for _ in range(_EPISODES_BEFORE + 1):
        envs.reset()
        _answers(envs, _random_actions(envs, _STEPS_OF_EPISODE))
    if restored.set_states(envs.get_states()):
        return BEGAN_ANEW
    actions = _random_actions(envs, _STEPS_COMPARED)
    pairs = zip(_answers(envs, actions), _answers(restored, actions), strict=True)
    for step, (expected, answered) in enumerate(pairs, start=1):
        differing = [name for name in expected if answered[name] != expected[name]]
        if differing:
            return f"step {step} after restoring an environment differs: {', '.join(differing)}"
    envs.close()
    restored.close()
    return ""


def _random_actions(envs: Environments, steps: int) -> list[NDArray[Any]]:
    space = envs.single_action_space
    return [np.asarray(space.sample(), space.dtype)[None] for _ in range(steps)]


def _answers(envs: Environments, actions: Sequence[NDArray[Any]]) -> list[dict[str, bytes]]:
    """Return the results of each step."""
    names = ("observation", "reward", "terminated", "truncated")
    return [
        {name: array.tobytes() for name, array in zip(names, map(np.asarray, envs.step(action)), strict=False)}
        for action in actions
    ]


def _one_environment(env_name: str) -> Environments:
    return world_of(env_name).make_block(env_name, family_of(env_name).settings(), indices=range(3, 4), seed=1)


# ------------------------------------------------------------------------------------------------------ all ids


def try_all(env_names: Sequence[str], options: Options) -> Iterator[Row]:
    """Try ids, several at a time, each in its own process; yield their rows in the order of the ids."""
    context = get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    with ThreadPoolExecutor(options.workers) as pool:
        yield from pool.map(lambda env_name: try_apart(env_name, options), env_names)


def try_apart(env_name: str, options: Options) -> Row:
    """Try an id in its own process and return its row, even if the process crashes or hangs."""
    context = get_context("forkserver")
    folder = Path(tempfile.mkdtemp(prefix="ppo-world-"))
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_in_a_process, args=(env_name, folder, there, options.evaluation_seconds))
    row = Row(env_name, group_of(env_name))
    try:
        process.start()
        there.close()
        while row.outcome not in OUTCOMES:
            if not here.poll(options.seconds):
                return _cut_off(row, f"for more than {options.seconds:g} seconds")
            row = here.recv()
        return row
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return _cut_off(row, f"for {options.evaluation_seconds:g} seconds of processor time")
        said = (folder / "output").read_text(errors="replace").splitlines()[-3:]
        message = f"{row.outcome}: the process ended with code {process.exitcode}: {' / '.join(said)}"
        return replace(row, outcome=FAILED, message=message)
    finally:
        process.kill()
        process.join()
        shutil.rmtree(folder, ignore_errors=True)


def _cut_off(row: Row, how_long: str) -> Row:
    """Return the row of an id that was stopped; an endless episode is not a fault."""
    endless = ENDLESS if row.resumed == EXACTLY else ANEW
    outcome = endless if row.outcome == EVALUATING else FAILED
    return replace(row, outcome=outcome, message="; ".join(filter(None, (row.message, f"{row.outcome} {how_long}"))))


def _in_a_process(env_name: str, folder: Path, channel: connection.Connection, evaluation_seconds: float) -> None:
    os.nice(max(0, 10 - os.nice(0)))
    os.chdir(folder)
    warnings.simplefilter("ignore")
    gc.freeze()
    for row in try_world(env_name, run_here):
        channel.send(row)
        if row.outcome == EVALUATING:
            _, most = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + evaluation_seconds), most))


def run_here(flags: Sequence[str]) -> tuple[int, str]:
    """Run the program in this process; its output goes to the file `output`, which survives a crash."""
    path = Path("output")
    with path.open("w", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = main(flags)
    return code, path.read_text()


# ------------------------------------------------------------------------------------------------------ the report


def summary(rows: Sequence[Row]) -> str:
    """Return the number of ids per outcome."""
    counts = collections.Counter(row.outcome for row in rows)
    return "\n".join(f"{counts[outcome]:5} {outcome}" for outcome in OUTCOMES if counts[outcome])


def table(rows: Sequence[Row]) -> str:
    """Return the report as Markdown: counts by group and outcome, then the unusual ids."""
    outcomes = [outcome for outcome in OUTCOMES if any(row.outcome == outcome for row in rows)]
    counts = collections.Counter((row.group, row.outcome) for row in rows)
    passed = sum(row.outcome != FAILED for row in rows)
    minutes = sum(row.cpu_seconds for row in rows) / 60
    software = ", ".join(f"{name} {version}" for name, version in _versions().items())
    without_text = sum(row.message.startswith("text left out") for row in rows)
    lines = [
        "# Every registered id",
        "",
        f"**{passed} of {len(rows)} ids are served or refused for an allowed reason.**",
        "",
        f"`python {' '.join(sys.argv)}`, {date.today()}, {minutes:.0f} minutes of processor time on "
        f"{platform.machine()}; {software}. `{Path(sys.argv[0]).name}` describes the check. "
        f"The text among the observations of {without_text} ids is left out.",
        "",
        f"| worlds | ids | {' | '.join(outcomes)} |",
        "|---" * (2 + len(outcomes)) + "|",
    ]
    for group in (*dict.fromkeys(row.group for row in rows), None):
        shown = [outcome for outcome in outcomes]
        numbers = [sum(counts[g, o] for g, o in counts if o == outcome and group in (g, None)) for outcome in shown]
        lines.append(f"| {group or '**all**'} | {sum(numbers)} | {' | '.join(str(n or '') for n in numbers)} |")
    lines += [
        "",
        "## Other outcomes",
        "",
        "Ids with the same message share a row.",
        "",
        "| ids | worlds | observations | actions | outcome | message |",
        "|---|---|---|---|---|---|",
    ]
    for same in _alike(row for row in rows if row.outcome != LEARNT):
        row = same[0]
        ids = f"{row.env_name} and {len(same) - 1} more" if len(same) > 1 else row.env_name
        cells = (ids, row.group, row.observations, row.actions, row.outcome, row.message.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _alike(rows: Iterable[Row]) -> list[list[Row]]:
    """Group rows of the same group and outcome whose messages differ only in ids and numbers."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        message = row.message.replace(row.env_name, "ID")
        message = re.sub(r"\S*-v\d+|\S+\.py|\d+", "ID", message)
        found.setdefault((row.group, row.outcome, message), []).append(row)
    return list(found.values())


def _versions() -> dict[str, str]:
    names = ("gymnasium", "ale-py", "Box2D", "mujoco", "minigrid", "popgym", "gymnasium-robotics", "numpy", "torch")
    versions = {"Python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def read_rows(path: Path) -> dict[str, Row]:
    """Return the rows of a CSV file by id; none if the file does not exist."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    return {row["env_name"]: Row(**{**row, "cpu_seconds": float(row["cpu_seconds"])}) for row in rows}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**dataclasses.asdict(row), "cpu_seconds": round(row.cpu_seconds, 2)} for row in rows)


def check() -> int:
    """Try the ids, print and write the results; return the exit code."""
    warnings.simplefilter("ignore")
    options = tyro.cli(Options, description=__doc__)
    env_names = list(options.ids) or all_ids(options.packages)[:: options.every]
    csv_file = options.output.with_suffix(".csv") if options.output else None
    known = read_rows(csv_file) if csv_file else {}
    missing = [env_name for env_name in env_names if env_name not in known or known[env_name].outcome == FAILED]
    for number, row in enumerate(try_all(missing, options), start=1):
        known[row.env_name] = row
        print(f"{number}/{len(missing)} {row.env_name}: {row.outcome}; {row.message}"[:300], flush=True)
        if csv_file:
            write_rows(csv_file, known.values())
    rows = [known[env_name] for env_name in env_names]
    print(summary(rows))
    if options.output:
        options.output.write_text(table(rows))
    return int(any(row.outcome == FAILED for row in rows))


if __name__ == "__main__":
    sys.exit(check())
