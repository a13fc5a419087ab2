"""Malicious checkpoints are refused in one line on all ranks, quickly, in little memory, executing nothing.

Every attack makes the hashes fit where it says `forged`: they are no secret.
"""

import ast
import contextlib
import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import stat
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

import ppo as package
from ppo.collectives import Alone
from ppo.families import family_of
from ppo.outputs import checkpoint
from tests.forgery import (
    MANIFEST,
    MODEL,
    TRAINING,
    edit_manifest,
    edit_tensors,
    overwrite,
    replace_file,
    taken_apart,
    tensor_file,
)
from tests.jobs import CARTPOLE, PONG, ppo, separately

MAX_SECONDS = 5.0
NAN = float("nan")
DEEP = '{"a":' * 900 + "1" + "}" * 900
HUGE = ",".join(["9999"] * 16)
FLAGS = {"cartpole": CARTPOLE, "pong": PONG}


@pytest.fixture(autouse=True)
def reported(request, fault_report):
    """Put every test of this file into the table of faults, with scenario 9 for what belongs to another run."""
    case = request.node.name.partition("[")[2].rstrip("]") or "see the claim"
    another = any(word in request.node.name for word in ("game", "network", "format", "precision", "integers"))
    fault_report(9 if another else 8, case, "refused in one line, exit code 2, nothing changed (or as claimed)")


@pytest.fixture(autouse=True)
def failures_are_raised(monkeypatch):
    """Let an error that is no refusal fail the test instead of ending the process."""

    def abort(self, code):
        raise SystemExit(f"the job was aborted with code {code}")

    monkeypatch.setattr(Alone, "abort", abort)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of one checkpoint for each world, called by the world."""
    folder = tmp_path_factory.mktemp("trained")
    for world, flags in FLAGS.items():
        job = ppo(folder, *flags, "--env_steps=64", f"--model_name={world}")
        assert job.returncode == 0, job.stderr
        for older in checkpoint.list_checkpoints(folder / "checkpoints" / world)[:-1]:
            shutil.rmtree(older)
    return folder


def copied(trained, tmp_path, world):
    """Copy a world's run and return its checkpoint."""
    for parent in ("checkpoints", "runs"):
        shutil.copytree(trained / parent / world, tmp_path / parent / world)
    return tmp_path / "checkpoints" / world / checkpoint.folder_name(64)


def tree(folder):
    """Return every path below a folder with its kind, size and, if it is not huge, its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        small = stat.S_ISREG(status.st_mode) and status.st_size < 10_000_000
        content = hashlib.sha256(path.read_bytes()).hexdigest() if small else None
        size = status.st_size if stat.S_ISREG(status.st_mode) else None
        found[str(path.relative_to(folder))] = (stat.S_IFMT(status.st_mode), size, content)
    return found


@contextlib.contextmanager
def no_hang(seconds=120):
    """Raise TimeoutError in the main thread if the block takes so long."""

    def fail(number, frame):
        raise TimeoutError(f"no end after {seconds} seconds")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def assert_refused(folder, mode, world, *flags, ranks=0, names=""):
    """Run a mode on a world's checkpoint and assert that it is refused as promised; return the line that says so."""
    everything = {"train": [*FLAGS[world], "--env_steps=128"], "play": ["--mode=play", "--episodes=1"]}[mode]
    before = tree(folder)
    started = time.process_time()  # generous, since the machine may be busy
    with no_hang():
        job = ppo(folder, *everything, f"--model_name={world}", *flags, ranks=ranks)
    seconds = time.process_time() - started
    assert job.returncode == 2, job.stdout + job.stderr
    lines = [line for line in job.stderr.splitlines() if line.strip()]
    own = [line for line in lines if not ranks or line.startswith("ppo: ")]  # mpirun adds its own on a failure
    assert len(own) == 1, job.stderr
    assert own[0].startswith("ppo: ")
    assert "Traceback" not in job.stderr
    assert names in own[0]
    assert seconds < MAX_SECONDS
    assert tree(folder) == before
    return own[0]


# ------------------------------------------------------------------------------------------------------------- attacks


class Canary:
    """A pickle of this creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def canary(folder):
    return folder.parent.parent.parent / "canary"


def pickled(name, *, forged):
    def attack(folder):
        content = pickle.dumps(Canary(canary(folder)))
        if forged and name != MANIFEST:
            replace_file(folder, name, content)
        else:
            (folder / name).write_bytes(content)

    return attack


def torch_archive(name):
    """The file that torch.save makes of the same pickle."""

    def attack(folder):
        path = folder / "archive"
        torch.save({"model": Canary(canary(folder))}, path)
        content = path.read_bytes()
        path.unlink()
        replace_file(folder, name, content)

    return attack


def declared_huge(name, tensor):
    """Let a tensor claim four terabytes, and everything that says how many there are agree."""

    def attack(folder):
        header, data = taken_apart((folder / name).read_bytes())
        header[tensor].update(shape=[10**12], data_offsets=[0, 4 * 10**12])
        replace_file(folder, name, tensor_file(header, data))

    return attack


def sparse(name, size):
    """Make a file huge without using the disk."""

    def attack(folder):
        with open(folder / name, "r+b") as file:
            file.truncate(size)
        entry = {"size": size, "sha256": "0" * 64}
        if name != MANIFEST:
            edit_manifest(folder, lambda data: data["files"].update({name: entry}))

    return attack


def declared_file(path):
    def attack(folder):
        secret = folder.parent.parent.parent / "secret"
        secret.write_bytes((folder / MODEL).read_bytes())
        entry = json.loads((folder / MANIFEST).read_text())["files"][MODEL]
        edit_manifest(folder, lambda data: data["files"].update({path or str(secret): entry}))

    return attack


def rewritten(name, change):
    """Let `change` replace tensors, and write the file anew."""

    def attack(folder):
        tensors = safetensors.torch.load((folder / name).read_bytes())
        tensors.update(change(tensors))
        replace_file(folder, name, safetensors.torch.save(tensors))

    return attack


def first_number(name, tensor, number):
    """Overwrite the first number of a float32 tensor."""
    content = torch.tensor([number]).numpy().tobytes()
    return lambda folder: edit_tensors(folder, name, overwrite(tensor, 0, content))


def all_states(change):
    """Change the training state of every environment."""

    def attack(folder):
        tensors = safetensors.torch.load((folder / TRAINING).read_bytes())
        states = {name: change(tensor) for name, tensor in tensors.items() if name.startswith("environment/")}
        replace_file(folder, TRAINING, safetensors.torch.save(tensors | states))

    return attack


def last_state(change):
    """Change the state of the last environment, which is another rank's than the one that reads it."""

    def attack(folder):
        tensors = safetensors.torch.load((folder / TRAINING).read_bytes())
        states = {name: change(tensor) for name, tensor in tensors.items() if name.startswith("environment/3/")}
        assert states
        replace_file(folder, TRAINING, safetensors.torch.save(tensors | states))

    return attack


def state_of_another_kind(folder):
    content = (folder / TRAINING).read_bytes()
    replace_file(folder, TRAINING, content.replace(b"/actions", b"/outcome"))


def nothing_of_a_huge_shape(folder):
    """A part of each environment's state that has no bytes and a shape whose size no library can count."""

    def change(header, data):
        for index in range(4):
            header[f"environment/{index}/nothing"] = {
                "dtype": "U8",
                "shape": [65536, 65536, 65536, 65536, 0],
                "data_offsets": [len(data), len(data)],
            }

    edit_tensors(folder, TRAINING, change)


def fifo(name):
    def attack(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return attack


def link_to_device(name):
    def attack(folder):
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return attack


def manifest(change):
    return lambda folder: edit_manifest(folder, change)


def text(content):
    return lambda folder: (folder / MANIFEST).write_text(content)


def world(env_name):
    """Name another world, and the family it belongs to with its default protocol if that is another."""

    def change(data):
        data["env_name"] = data["config"]["run"]["env_name"] = env_name
        family = family_of(env_name).name
        if data["family"] != family:
            data["family"], data["config"]["world"] = family, {}

    return manifest(change)


def larger(name):
    return lambda tensors: {name: torch.zeros(tensors[name].shape[0] + 1, *tensors[name].shape[1:])}


def noise(tensor):
    return torch.randint(0, 256, tensor.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).to(
        tensor.dtype
    )


POLICY = "model/policy_head.weight"
FIRST, SECOND = "learner/first_moment", "learner/second_moment"

# What it is -> (the attack, what the refusal names). Those on the model or the manifest are tried on playing too.
READ_BY_ALL = {
    "pickle for the model": (pickled(MODEL, forged=False), MODEL),
    "forged pickle for the model": (pickled(MODEL, forged=True), MODEL),
    "pickle for the manifest": (pickled(MANIFEST, forged=False), MANIFEST),
    "torch archive for the model": (torch_archive(MODEL), MODEL),
    "forged four terabytes of weights": (declared_huge(MODEL, POLICY), MODEL),
    "forged model of 20 GB": (sparse(MODEL, 20 << 30), MODEL),
    "manifest of 20 GB": (sparse(MANIFEST, 20 << 30), MANIFEST),
    "forged file above the checkpoint": (declared_file("../../../secret"), "secret"),
    "forged file anywhere": (declared_file(None), "secret"),
    "forged double precision": (rewritten(MODEL, lambda t: {POLICY: t[POLICY].double()}), "float64"),
    "forged integers": (rewritten(MODEL, lambda t: {POLICY: t[POLICY].long()}), "int64"),
    "forged half precision": (rewritten(MODEL, lambda t: {POLICY: t[POLICY].half()}), POLICY),
    "forged weight that is not a number": (first_number(MODEL, POLICY, NAN), POLICY),
    "forged infinite weight": (first_number(MODEL, POLICY, float("inf")), POLICY),
    "forged normaliser": (
        rewritten(MODEL, lambda t: {"value_normalizer/moments": torch.tensor([1.0, 0.0, -1.0]).double()}),
        "value_normalizer/moments",
    ),
    "forged wider network": (rewritten(MODEL, larger(POLICY)), POLICY),
    "forged deeper network": (rewritten(MODEL, lambda t: {"model/actor.9.weight": torch.zeros(2)}), "model/actor.9"),
    "forged tensor of the learner among the weights": (rewritten(MODEL, lambda t: {FIRST: torch.zeros(2)}), FIRST),
    "forged newer format": (manifest(lambda data: data.update(format=4)), "format 4"),
    "forged older format": (manifest(lambda data: data.update(format=1)), "format 1"),
    "pipe for the model": (fifo(MODEL), MODEL),
    "pipe for the manifest": (fifo(MANIFEST), MANIFEST),
    "device for the model": (link_to_device(MODEL), MODEL),
    "device for the manifest": (link_to_device(MANIFEST), MANIFEST),
    "deep manifest": (text('{"a":' * 100_000), MANIFEST),
    "forged deep member": (text('{"format": 4, "a": ' + "[" * 50_000 + "]" * 50_000 + "}"), MANIFEST),
    "forged endless rollouts": (manifest(lambda d: d["config"]["ppo"].update(rollout_steps=10**18)), MANIFEST),
    "forged infinite steps": (manifest(lambda d: d["counters"].update(env_steps=10**18)), MANIFEST),
    "forged returns that overflow": (manifest(lambda d: d["counters"].update(recent_returns=[1e308] * 3)), MANIFEST),
    "forged deep arguments": (manifest(lambda d: d["config"]["world"].update(env_kwargs=DEEP)), MANIFEST),
    "forged layers that take hours": (manifest(lambda d: d["config"]["model"].update(hidden_sizes=HUGE)), MANIFEST),
    "forged module for a world": (world("os:system"), "os:system"),
    "forged path for a world": (world("../../etc"), "../../etc"),
    "forged unknown game": (world("ALE/Nothing-v5"), "ALE/Nothing-v5"),
    "forged family": (manifest(lambda data: data.update(family="os")), MANIFEST),
    "forged family of other worlds": (manifest(lambda data: data.update(family="atari")), MANIFEST),
}
READ_TO_TRAIN = {
    "forged shape of nothing that overflows": (nothing_of_a_huge_shape, TRAINING),
    "pickle for the training state": (pickled(TRAINING, forged=False), TRAINING),
    "forged pickle for the training state": (pickled(TRAINING, forged=True), TRAINING),
    "torch archive for the training state": (torch_archive(TRAINING), TRAINING),
    "forged four terabytes of moments": (declared_huge(TRAINING, FIRST), TRAINING),
    "forged training state of 20 GB": (sparse(TRAINING, 20 << 30), TRAINING),
    "pipe for the training state": (fifo(TRAINING), TRAINING),
    "forged first moment that is not a number": (first_number(TRAINING, FIRST, NAN), FIRST),
    "forged second moment that is not a number": (first_number(TRAINING, SECOND, NAN), SECOND),
    "forged negative second moment": (first_number(TRAINING, SECOND, -1.0), SECOND),
    "forged double precision moments": (rewritten(TRAINING, lambda t: {FIRST: t[FIRST].double()}), FIRST),
    "forged moments of another network": (rewritten(TRAINING, larger(FIRST)), FIRST),
    "forged further moments": (rewritten(TRAINING, lambda t: {"learner/third_moment": t[FIRST] + 1}), "third_moment"),
    "forged further environment": (rewritten(TRAINING, lambda t: {"environment/4/a": torch.zeros(1)}), TRAINING),
    "forged garbage states": (all_states(noise), "environment"),
    "forged empty states": (all_states(lambda tensor: tensor[:0].clone()), "environment"),
    "forged states of another kind": (state_of_another_kind, "state"),
    "forged endless counters": (all_states(lambda t: torch.full_like(t, 2**62) if t.dtype == torch.int64 else t), ""),
}


@pytest.mark.parametrize("kind", [*READ_BY_ALL, *READ_TO_TRAIN])
def test_training_refuses_to_resume_it(kind, trained, tmp_path):
    attack, names = (READ_BY_ALL | READ_TO_TRAIN)[kind]
    folder = copied(trained, tmp_path, "cartpole")
    attack(folder)
    assert_refused(tmp_path, "train", "cartpole", names=names)
    assert not canary(folder).exists()


@pytest.mark.parametrize("kind", READ_BY_ALL)
def test_playing_refuses_it(kind, trained, tmp_path):
    attack, names = READ_BY_ALL[kind]
    folder = copied(trained, tmp_path, "cartpole")
    attack(folder)
    assert_refused(tmp_path, "play", "cartpole", names=names)
    assert not canary(folder).exists()


def test_the_attacks_are_on_a_checkpoint_that_is_used_without_them(trained, tmp_path):
    folder = copied(trained, tmp_path, "cartpole")
    edit_manifest(folder, lambda data: None)
    for name in (MODEL, TRAINING):
        replace_file(folder, name, tensor_file(*taken_apart((folder / name).read_bytes())))
    rewritten(TRAINING, lambda tensors: {})(folder)
    assert ppo(tmp_path, "--mode=play", "--episodes=1", "--model_name=cartpole").returncode == 0
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=128", "--model_name=cartpole")
    assert job.returncode == 0
    assert "resuming cartpole at 64 steps" in job.stdout


@pytest.mark.parametrize("mode", ["play", "record", "evaluate"])
def test_weights_that_overflow_are_not_played(mode, trained, tmp_path):
    folder = copied(trained, tmp_path, "cartpole")
    rewritten(MODEL, lambda t: {name: torch.full_like(w, 3e38) for name, w in t.items() if "weight" in name})(folder)
    job = ppo(tmp_path, f"--mode={mode}", "--model_name=cartpole")
    assert job.returncode == 2, job.stderr
    last = job.stderr.splitlines()[-1]
    assert last == "ppo: cartpole at 64 steps cannot be played: the outputs of its network are not finite"
    assert job.stderr.count("\n") == 1 + (mode == "evaluate")


def test_the_canary_would_sing(tmp_path):
    folder = tmp_path / "checkpoints" / "cartpole" / "step"
    pickle.loads(pickle.dumps(Canary(canary(folder))))
    assert canary(folder) == tmp_path / "canary"
    assert canary(folder).exists()


# ------------------------------------------------------------------------------------------ while a healthy run goes on


def test_hostile_checkpoints_do_not_end_the_run_that_prunes_them(trained, tmp_path):
    folder = copied(trained, tmp_path, "cartpole")
    attacks = [*READ_TO_TRAIN.values(), *READ_BY_ALL.values()]
    for env_steps, (attack, _) in enumerate(attacks, start=1):
        old = folder.with_name(checkpoint.folder_name(env_steps))
        assert env_steps < 64
        shutil.copytree(folder, old)
        attack(old)
        status = (old / MANIFEST).lstat()
        if stat.S_ISREG(status.st_mode) and status.st_size < 10_000_000:
            forged = {"env_steps": env_steps, "update": 1, "episodes": 1, "recent_returns": [1e9] * 100}
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                edit_manifest(old, lambda data, forged=forged: data["counters"].update(forged))
    with no_hang():
        job = ppo(
            tmp_path,
            *(*CARTPOLE, "--env_steps=192", "--checkpoint_interval=1", "--keep_checkpoints=1", "--model_name=cartpole"),
        )
    assert job.returncode == 0, job.stderr
    assert checkpoint.steps_of(checkpoint.list_checkpoints(folder.parent)[-1]) == 192
    assert "Traceback" not in job.stdout + job.stderr


def failing(monkeypatch, call, broken):
    """Let a call of the operating system fail for one path."""
    original = getattr(os, call)

    def fail(path, *arguments, **options):
        if not isinstance(path, int) and Path(path).absolute() == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, call, fail)


@pytest.mark.parametrize("mode", ["train", "play"])
def test_a_folder_that_cannot_be_listed_is_refused(mode, trained, tmp_path, monkeypatch):
    folder = copied(trained, tmp_path, "cartpole")
    failing(monkeypatch, "listdir", folder.parent)
    everything = {"train": [*CARTPOLE, "--env_steps=128"], "play": ["--mode=play"]}[mode]
    job = ppo(tmp_path, *everything, "--model_name=cartpole")
    assert job.returncode == 2, job.stderr
    assert job.stderr == "ppo: checkpoints/cartpole cannot be read: Input/output error\n"


def test_another_folder_that_cannot_be_listed_hides_no_agent(trained, tmp_path, monkeypatch):
    folder = copied(trained, tmp_path, "cartpole")
    folder.parent.rename(folder.parent.with_name("CartPole-v1"))
    broken = folder.parent.with_name("broken")
    broken.mkdir()
    failing(monkeypatch, "listdir", broken)
    assert ppo(tmp_path, "--mode=play", "--episodes=1", "--env_name=CartPole-v1").returncode == 0
    job = ppo(tmp_path, "--mode=play", "--model_name=none")
    assert job.returncode == 2
    assert "agents: --model_name=CartPole-v1" in job.stderr


def test_a_folder_that_can_no_longer_be_listed_costs_a_warning(trained, tmp_path, monkeypatch):
    folder = copied(trained, tmp_path, "cartpole")
    original = checkpoint.prune

    def prune(parent, *arguments):
        with monkeypatch.context() as patch:
            failing(patch, "listdir", folder.parent)
            original(parent, *arguments)

    monkeypatch.setattr(checkpoint, "prune", prune)
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=128", "--model_name=cartpole")
    assert job.returncode == 0, job.stderr
    assert "WARNING: old checkpoints could not be deleted: checkpoints/cartpole cannot be read" in job.stdout


@pytest.mark.parametrize(
    "name", ["a\x1b]0;b\x07", "a\nppo: done", "a\x1b[2J", "a\u202eb", os.fsdecode(b"a\xff"), "a\x9b2J"]
)
def test_names_of_folders_are_shown_without_what_a_terminal_obeys(name, trained, tmp_path):
    folder = copied(trained, tmp_path, "cartpole")
    folder.parent.rename(folder.parent.with_name(name))
    job = ppo(tmp_path, "--mode=play", "--model_name=none")
    assert job.returncode == 2
    assert job.stderr.count("\n") == 1
    assert job.stderr.rstrip("\n").isprintable()
    assert "--model_name=a" in job.stderr


# --------------------------------------------------------------------------------------------------------- other games


@pytest.mark.parametrize("mode", ["train", "play"])
def test_a_game_with_as_many_actions_is_another_game(mode, trained, tmp_path):
    folder = copied(trained, tmp_path, "pong")
    world("QbertNoFrameskip-v4")(folder)
    line = assert_refused(tmp_path, mode, "pong", "--env_name=PongNoFrameskip-v4")
    assert "QbertNoFrameskip-v4" in line and "PongNoFrameskip-v4" in line


def test_a_default_name_promises_its_game(trained, tmp_path):
    folder = copied(trained, tmp_path, "pong")
    folder.parent.rename(folder.parent.with_name("PongNoFrameskip-v4"))
    world("QbertNoFrameskip-v4")(folder.parent.with_name("PongNoFrameskip-v4") / folder.name)
    job = ppo(tmp_path, "--mode=play", "--episodes=1")
    assert job.returncode == 2
    assert job.stderr.startswith("ppo: env_name must be QbertNoFrameskip-v4")


@pytest.mark.parametrize("change", [noise, lambda tensor: tensor[:0].clone()], ids=["garbage", "empty"])
def test_garbage_for_an_emulator_is_refused(change, trained, tmp_path):
    all_states(change)(copied(trained, tmp_path, "pong"))
    assert_refused(tmp_path, "train", "pong", names="environment")


@pytest.mark.parametrize("attack", [first_number(MODEL, POLICY, NAN), sparse(MODEL, 20 << 30)], ids=["nan", "sparse"])
def test_a_hostile_shipped_agent_is_passed_over_by_name(attack, trained, tmp_path):
    folder = copied(trained, tmp_path, "cartpole")
    shipped = tmp_path / "checkpoints" / "pretrained" / "CartPole-v1"
    shipped.parent.mkdir()
    folder.rename(shipped)
    attack(shipped)
    job = ppo(tmp_path, "--mode=play", "--episodes=1", "--env_name=CartPole-v1")
    assert (job.returncode, job.stderr) == (0, "")
    assert f"skipped a damaged shipped agent: {Path('checkpoints') / 'pretrained' / 'CartPole-v1'}" in job.stdout


# ------------------------------------------------------------------------------------------------------------ all ranks


@pytest.mark.parametrize(
    ("mode", "attack", "names"),
    [
        ("train", pickled(MODEL, forged=True), MODEL),
        ("train", last_state(lambda tensor: tensor[:0].clone()), "environment"),
        ("play", fifo(MODEL), MODEL),
    ],
    ids=["pickle", "state of the other rank", "pipe"],
)
def test_two_ranks_refuse_it_once(mode, attack, names, trained, tmp_path):
    folder = copied(trained, tmp_path, "cartpole")
    attack(folder)
    assert_refused(tmp_path, mode, "cartpole", ranks=2, names=names)
    assert not canary(folder).exists()


# --------------------------------------------------------------------------------------------------------------- memory

MEASURE = """
import json, time
from pathlib import Path
import torch
from ppo.settings import Refusal
from ppo.families import family_of
from ppo.outputs import checkpoint
from ppo.outputs.tensor_file import specification
from ppo.outputs.untrusted import DamagedCheckpointError

def peak_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

expected = specification({"model/weight": torch.zeros(2)})
results = {}
for parent in sorted(Path("checkpoints").iterdir()):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = peak_memory(), time.process_time()
    try:
        checkpoint.newest_valid(parent, lambda text: None, expected=expected)
        error = "none"
    except (Refusal, DamagedCheckpointError) as caught:
        error = type(caught).__name__
    results[parent.name] = [error, (peak_memory() - before) / 1024, time.process_time() - started]
print(json.dumps(results))
"""


def large_and_whole(folder):
    """A valid model of 256 MB whose only fault is that it does not fit the network."""
    size = 256 << 20
    header = {"model/weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    start = tensor_file(header)
    digest = hashlib.sha256(start)
    for _ in range(256):
        digest.update(bytes(1 << 20))
    with open(folder / MODEL, "wb") as file:
        file.write(start)
        file.truncate(len(start) + size)
    entry = {"size": len(start) + size, "sha256": digest.hexdigest()}
    edit_manifest(folder, lambda data: data["files"].update({MODEL: entry}))


def endless_header(folder):
    """Four megabytes of JSON that would take Python a hundred."""
    replace_file(folder, MODEL, tensor_file(b"[" + b"[]," * 1_390_000 + b"[]]"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured as Linux counts it")
def test_the_largest_lies_cost_little_memory_and_time(trained, tmp_path):
    attacks = {
        "declared": declared_huge(MODEL, POLICY),
        "header": endless_header,
        "large": large_and_whole,
        "manifest": sparse(MANIFEST, 20 << 30),
        "numbers": lambda folder: (folder / MANIFEST).write_text("[" + "[]," * 300_000 + "[]]"),
        "sparse": sparse(MODEL, 20 << 30),
    }
    for name, attack in attacks.items():
        folder = tmp_path / "checkpoints" / name / checkpoint.folder_name(64)
        shutil.copytree(trained / "checkpoints" / "cartpole" / folder.name, folder)
        attack(folder)
    job = separately([sys.executable, "-c", MEASURE], tmp_path)
    assert job.returncode == 0, job.stderr
    results = json.loads(job.stdout)
    assert results.keys() == attacks.keys()
    for name, (error, megabytes, seconds) in results.items():
        assert error == "Refusal", name
        assert megabytes < (200 if name == "header" else 50), name
        assert seconds < MAX_SECONDS, name


# --------------------------------------------------------------------------------------------- nothing can be executed

EXECUTING_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "runpy", "code"}
EXECUTING_CALLS = {"eval", "exec", "compile", "__import__"}
LOADERS = {"torch.load", "np.load", "numpy.load", "torch.jit.load", "torch.hub"}


@pytest.mark.parametrize("path", sorted(Path(package.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_the_package_has_nothing_that_could_execute_a_file(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not EXECUTING_MODULES & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in EXECUTING_MODULES
            assert not {f"{node.module}.{alias.name}" for alias in node.names} & LOADERS
        elif isinstance(node, ast.Name):
            assert node.id not in EXECUTING_CALLS
        elif isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in LOADERS
        elif isinstance(node, ast.keyword):
            assert node.arg not in ("allow_pickle", "weights_only")
