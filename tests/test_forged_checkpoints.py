"""Whatever a checkpoint says with hashes that fit: it is refused, or it is used and saved again, and nothing is raised.

Every value of the manifest and of the headers is replaced, one at a time, by values of its own kind and of others, and
the checkpoint is resumed, played and pruned as the program does it.
"""

import contextlib
import io
import json
import random
import shutil

import pytest
import torch

from ppo.agents import find_agent
from ppo.collectives import Alone, Halt
from ppo.command_line import explicit_settings, parse_command_line
from ppo.outputs import checkpoint
from ppo.playback import play_games
from ppo.run import build_run, resume, save
from ppo.settings import Refusal
from tests.forgery import MANIFEST, MODEL, TRAINING, edit_manifest, replace_file, taken_apart, tensor_file
from tests.jobs import CARTPOLE, ppo

PLAY = ["--env_name=CartPole-v1", "--mode=evaluate", "--episodes=2", "--max_game_steps=20"]
VALUES = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**48, 2**49, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 10**400),
    *(0.0, 0.5, -0.5, 1e-320, 1e30, 1e100, 1e308, -1e308),
    *(
        "",
        "auto",
        "none",
        "0",
        "-1",
        "9" * 400,
        "x" * 5000,
        "a\x1b[2J\x07\nb",
        "../..",
        "os:system",
        "\ud800",
        "Acrobot-v1",
    ),
    *([], [1, 2], [65536] * 5 + [0], [[[[]]]], {}, {"a": {"b": []}}),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder of one checkpoint, in a folder of checkpoints; torch has one thread as in a rank."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("forged")
    assert ppo(folder, *CARTPOLE, "--env_steps=64").returncode == 0
    parent = folder / "checkpoints" / "CartPole-v1"
    older, newest = checkpoint.list_checkpoints(parent)
    shutil.rmtree(older)
    return newest


@pytest.fixture(scope="module")
def user(trained):
    """What resumes and plays what is in the folder: a run, and the settings of playback."""
    folders = [f"--checkpoint_dir={trained.parent.parent}", f"--run_dir={trained.parent.parent.parent / 'runs'}"]
    run = build_run(parse_command_line([*CARTPOLE, *folders]), Alone())
    yield run, parse_command_line([*PLAY, *folders])
    run.close()


def paths(data, path=()):
    """Yield the path of every member of JSON data."""
    if path:
        yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from paths(value, (*path, key))


def put(data, path, value):
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


def forge(folder, name, path, value):
    """Replace a value in the manifest or in the header of a file of tensors, and make the hashes fit."""
    if name == MANIFEST:
        edit_manifest(folder, lambda data: put(data, path, value))
    else:
        header, data = taken_apart((folder / name).read_bytes())
        put(header, path, value)
        replace_file(folder, name, tensor_file(header, data))


def use(folder, user):
    """Resume and save, play, and prune; return what came of the first two, a refusal or None."""
    outcomes, (run, playback) = [], user
    for what in (lambda: go_on(run), lambda: play(playback)):
        try:
            outcomes.append(what())
        except Refusal as refusal:
            outcomes.append(str(refusal))
    checkpoint.prune(folder.parent, keep="1")
    return outcomes


def go_on(run):
    """Resume, and count on and save what was accepted, as an update does; a Halt says that its numbers overflow."""
    resume(run)
    run.progress.update += 1
    run.progress.episodes += 1
    run.progress.env_steps += run.config.steps_per_update
    run.progress.seconds += 1.0
    if run.progress.env_steps < run.config.run.env_steps:  # else the run is finished
        said = []
        with contextlib.suppress(Halt):
            assert save(run, said.append), said


def play(config):
    with contextlib.redirect_stdout(io.StringIO()):
        list(play_games(find_agent(config, explicit_settings(PLAY)), config, range(2), 2))


def cases(folder):
    """Return every place and value, in an order that is the same every time."""
    everything = []
    for name in (MANIFEST, MODEL, TRAINING):
        content = (folder / name).read_bytes()
        data = json.loads(content) if name == MANIFEST else taken_apart(content)[0]
        everything += [(name, path, value) for path in paths(data) for value in VALUES]
    random.Random(0).shuffle(everything)
    return everything


@pytest.mark.parametrize("number", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_value_raises_anything_but_a_refusal(number, trained, user):
    whole = {name: (trained / name).read_bytes() for name in (MANIFEST, MODEL, TRAINING)}
    refused = 0
    for name, path, value in cases(trained)[:number]:
        forge(trained, name, path, value)
        try:
            refused += any(use(trained, user))
        except Exception as error:
            raise AssertionError(f"{name} {path} = {str(value)[:100]!r} raised {error!r}") from error
        finally:
            put_back(trained, whole)
    assert refused > number / 2


def put_back(folder, whole):
    """Undo what a forgery changed and what its use left."""
    for other in folder.parent.iterdir():
        shutil.rmtree(other)
    folder.mkdir()
    for file, content in whole.items():
        (folder / file).write_bytes(content)


def test_what_is_not_changed_is_used(trained, user):
    assert use(trained, user) == [None, None]
