import re
import signal

import numpy as np
import pytest
import torch

from ppo.collectives import Alone
from ppo.command_line import explicit_settings, parse_command_line
from ppo.device import Placement
from ppo.envs import make_envs
from ppo.families import family_of
from ppo.identity import named_settings
from ppo.run import build_run
from ppo.run_trackers import without_effect
from ppo.settings import Refusal
from tests.faults.running import ENDLESS, RunningJob, checkpoint_steps
from tests.jobs import CARTPOLE, PONG, mpirun, ppo, rows, weights
from tests.ranks import on_ranks

WORLDS = {"CartPole-v1": CARTPOLE, "PongNoFrameskip-v4": PONG}


def assert_ok(job):
    assert job.returncode == 0, job.stdout + job.stderr


def assert_same_files(first, second, relative):
    assert (first / relative).read_bytes() == (second / relative).read_bytes()


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """Three updates of each world on one rank."""
    folder = tmp_path_factory.mktemp("one-rank")
    for flags in WORLDS.values():
        assert_ok(ppo(folder, *flags, "--env_steps=192"))
    return folder


# Threads stand in for 1 to 4 ranks in test_same_training.py; three make blocks of unequal sizes.
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("world", WORLDS)
def test_any_number_of_ranks_takes_the_same_three_updates(world, ranks, one_rank, tmp_path):
    assert_ok(ppo(tmp_path, *WORLDS[world], "--env_steps=192", ranks=ranks))
    expected, got = weights(one_rank, world, 192), weights(tmp_path, world, 192)
    assert expected.keys() == got.keys()
    for name in expected.keys() - {"value_normalizer/moments"}:
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-5, err_msg=name)
    moments = "value_normalizer/moments"  # sums over all samples so far, not parameters
    np.testing.assert_allclose(got[moments], expected[moments], rtol=1e-4)
    assert_ok(ppo(tmp_path, *WORLDS[world], "--env_steps=64", "--model_name=short", "--learning_rate=1e-12"))
    policy_head = "model/policy_head.weight"
    moved = np.abs(expected[policy_head] - weights(tmp_path, "short", 64)[policy_head]).max()
    assert moved > 1e-4, "the updates are too small for the comparison to mean anything"


@pytest.mark.parametrize(
    ("world", "ranks", "precision"),
    [
        ("CartPole-v1", 0, "float32"),
        *(("PongNoFrameskip-v4", *case) for case in ((0, "float32"), (2, "float32"), (0, "bfloat16"))),
    ],
)
def test_resuming_gives_the_same_weights_and_logs_as_never_stopping(world, ranks, precision, tmp_path, monkeypatch):
    monkeypatch.setattr("ppo.device.has_amx", lambda: True)  # processors without it compute the same, but slowly
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    schedules = {
        # A linear rate ends with --env_steps. Lambda is falling where the run is stopped.
        "CartPole-v1": [
            "--learning_rate_schedule=constant",
            "--gae_lambda=1",
            "--gae_lambda_late=0.5",
            "--gae_lambda_late_steps=512",
        ],
        "PongNoFrameskip-v4": ["--learning_rate_schedule=kl_adaptive", "--sticky_actions=0.25"],
    }
    flags = [*WORLDS[world], *schedules[world], "--checkpoint_interval=3", f"--precision={precision}"]
    assert_ok(ppo(whole, *flags, "--env_steps=640", ranks=ranks))
    assert_ok(ppo(stopped, *flags, "--env_steps=320", ranks=ranks))
    resumed = ppo(stopped, *flags, "--env_steps=640", ranks=ranks)
    assert_ok(resumed)
    assert f"resuming {world} at 320 steps" in resumed.stdout
    assert f"device: cpu, {precision}" in resumed.stdout
    assert "not bit-identical" not in resumed.stdout
    for file_name in ("model.safetensors", "training.safetensors"):
        assert_same_files(whole, stopped, f"checkpoints/{world}/step_000000000640/{file_name}")
    for log in ("progress.csv", "episodes.csv"):
        expected = rows(whole / "runs" / world / log, ignore=("time/",))
        assert rows(stopped / "runs" / world / log, ignore=("time/",)) == expected
    progress = rows(whole / "runs" / world / "progress.csv")
    assert len(progress) == 10
    if world == "CartPole-v1":
        lambdas = [float(row["update/gae_lambda"]) for row in progress]
        assert lambdas == [1.0, 1.0, 1.0, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.5]


def test_a_finished_run_says_so_and_a_larger_goal_continues(tmp_path):
    assert_ok(ppo(tmp_path, *CARTPOLE, "--env_steps=128"))
    again = ppo(tmp_path, *CARTPOLE, "--env_steps=128")
    assert_ok(again)
    assert "CartPole-v1 is finished" in again.stdout
    further = ppo(tmp_path, *CARTPOLE, "--env_steps=192")
    assert_ok(further)
    assert "resuming CartPole-v1 at 128 steps" in further.stdout
    # A third of 192 steps is left at 128.
    assert "env_steps 128 -> 192: learning_rate continues at 33% of its initial value instead of 0%" in further.stdout


def test_a_longer_run_changes_nothing_that_does_not_depend_on_the_length(tmp_path):
    flags = [*CARTPOLE, "--learning_rate_schedule=kl_adaptive"]
    assert_ok(ppo(tmp_path, *flags, "--env_steps=64"))
    further = ppo(tmp_path, *flags, "--env_steps=128")
    assert_ok(further)
    assert "env_steps 64" not in further.stdout


def test_a_new_learning_rate_is_used_though_the_old_one_had_been_adapted(tmp_path):
    flags = [*CARTPOLE, "--learning_rate_schedule=kl_adaptive", "--num_epochs=1"]
    assert_ok(ppo(tmp_path, *flags, "--env_steps=64", "--learning_rate=1e-3"))
    assert_ok(ppo(tmp_path, *flags, "--env_steps=128", "--learning_rate=1e-5", "--change_settings"))
    rates = [float(row["update/learning_rate"]) for row in rows(tmp_path / "runs/CartPole-v1/progress.csv")]
    assert rates == [pytest.approx(1e-3), pytest.approx(1e-5)]


def test_a_world_that_one_rank_cannot_make_is_refused_on_all(monkeypatch):
    def make(env_name, world, *, indices, **others):
        if 0 not in indices:
            raise Refusal("there is only one licence")
        return make_envs(env_name, world, indices=indices, **others)

    config = parse_command_line(CARTPOLE)

    def work(comm):
        with pytest.raises(Refusal, match="only one licence"):
            build_run(config, comm)
        return comm.rank

    monkeypatch.setattr("ppo.run.make_envs", make)
    assert sorted(on_ranks(2, work)) == [0, 1]


@pytest.mark.parametrize(
    ("flags", "idle"),
    [
        ([*CARTPOLE, "--log_deviation_init=1", "--pixel_normalization", "--gae_lambda=0.9"], ["log", "pixel"]),
        ([*CARTPOLE, "--observation_normalization", "--observation_clip=5", "--hidden_sizes=8"], []),
        ([*CARTPOLE, "--kl_target=0.1", "--observation_clip=5"], ["kl_target", "observation_clip"]),
        ([*CARTPOLE, "--hidden_sizes=8", "--model_size=large"], ["model_size"]),
        ([*PONG, "--network=nature", "--hidden_sizes=8", "--model_size=large"], ["hidden", "model_size"]),
        ([*PONG, "--hidden_sizes=8", "--observation_normalization"], ["hidden", "observation"]),
    ],
)
def test_settings_without_effect_are_named(flags, idle):
    config = parse_command_line(flags)
    run = build_run(config, Alone(), named=named_settings(config, explicit_settings(flags)))
    said = without_effect(run)
    run.close()
    assert len(said) == len(idle)
    assert all(any(text.startswith(name) for text in said) for name in idle)


def test_fresh_moves_the_old_run_aside_and_starts_from_scratch(tmp_path):
    assert_ok(ppo(tmp_path, *CARTPOLE, "--env_steps=128"))
    fresh = ppo(tmp_path, *CARTPOLE, "--env_steps=64", "--fresh")
    assert_ok(fresh)
    assert "resuming" not in fresh.stdout
    assert len(rows(tmp_path / "runs/CartPole-v1/progress.csv")) == 1
    aside = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith("CartPole-v1.before-")]
    assert len(aside) == 1
    assert (tmp_path / "checkpoints" / aside[0] / "step_000000000128" / "manifest.json").exists()


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path):
    assert_ok(ppo(tmp_path, *PONG, "--env_steps=64", "--model_name=mine"))
    before = sorted(p for p in tmp_path.rglob("*"))
    refused = ppo(tmp_path, *PONG, "--env_steps=128", "--model_name=mine", "--sticky_actions=0.25", ranks=2)
    assert refused.returncode == 2
    assert refused.stderr.count("sticky_actions 0.0 -> 0.25") == 1
    assert "--fresh" in refused.stderr
    assert sorted(p for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("first", "then"), [("CartPole-v1", "PongNoFrameskip-v4"), ("PongNoFrameskip-v4", "CartPole-v1")]
)
def test_a_checkpoint_of_a_world_of_another_family_is_refused_naming_both(first, then, tmp_path):
    assert_ok(ppo(tmp_path, *WORLDS[first], "--env_steps=64", "--model_name=mine"))
    refused = ppo(tmp_path, *WORLDS[then], "--env_steps=128", "--model_name=mine")
    assert refused.returncode == 2
    assert f"env_name {first} -> {then}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_hyperparameter_that_is_changed_on_purpose_is_named_and_used(tmp_path):
    assert_ok(ppo(tmp_path, *CARTPOLE, "--env_steps=64", "--learning_rate_schedule=constant"))
    on_purpose = ["--learning_rate=1e-5", "--change_settings"]
    changed = ppo(tmp_path, *CARTPOLE, "--env_steps=128", "--learning_rate_schedule=constant", *on_purpose)
    assert_ok(changed)
    assert "changed since the checkpoint: learning_rate 0.001 -> 1e-05" in changed.stdout
    assert float(rows(tmp_path / "runs/CartPole-v1/progress.csv")[1]["update/learning_rate"]) == 1e-5


def test_another_way_to_sum_gradients_is_named_when_a_run_continues(tmp_path):
    assert_ok(ppo(tmp_path, *CARTPOLE, "--env_steps=64"))
    changed = ppo(tmp_path, *CARTPOLE, "--env_steps=128", "--gradient_wire=bfloat16")
    assert_ok(changed)
    assert "changed since the checkpoint: gradient_wire float32 -> bfloat16" in changed.stdout


@pytest.mark.parametrize(("before", "now"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_that_a_gpu_takes_part_in_says_that_it_does_not_resume_bit_for_bit(before, now, tmp_path, monkeypatch):
    def train_on(device, env_steps):
        # The processor ran it, but the checkpoint says otherwise.
        settings = {"device": device, "precision": "float32"}
        monkeypatch.setattr("ppo.device.Placement.settings", lambda placement: settings)
        return ppo(tmp_path, *CARTPOLE, f"--env_steps={env_steps}")

    assert_ok(train_on(before, 64))
    resumed = train_on(now, 128)
    assert_ok(resumed)
    assert resumed.stdout.count(f"saved with {before}, resumes with {now}: not bit-identical") == 1


def test_a_run_that_resumes_in_another_precision_says_that_it_is_not_bit_identical(tmp_path, monkeypatch):
    monkeypatch.setattr("ppo.device.has_amx", lambda: True)
    assert_ok(ppo(tmp_path, *PONG, "--precision=bfloat16", "--env_steps=64"))
    resumed = ppo(tmp_path, *PONG, "--env_steps=128")
    assert_ok(resumed)
    assert "changed since the checkpoint: precision bfloat16 -> float32" in resumed.stdout
    assert resumed.stdout.count("saved with bfloat16, resumes with float32: not bit-identical") == 1


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"mujoco": "3.9.9"}, {"mujoco": "4.0.0"}, "mujoco 3.9.9 -> 4.0.0"),
        ({"mujoco": "4.0.0"}, {"mujoco": "4.0.0", "mujoco-ce": "1.0"}, "mujoco-ce unknown -> 1.0"),
        ({"mujoco": "4.0.0"}, {"mujoco-ce": "1.0"}, "mujoco 4.0.0 -> unknown, mujoco-ce unknown -> 1.0"),
    ],
)
def test_a_run_whose_simulator_changes_says_that_it_is_not_bit_identical(before, now, said, tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    family = family_of("InvertedPendulum-v5")
    monkeypatch.setitem(vars(family), "simulators", ("mujoco", "mujoco-ce"))
    flags = ["--env_name=InvertedPendulum-v5", *CARTPOLE[1:]]
    for installed, env_steps in ((before, 64), (now, 128)):
        monkeypatch.setattr("ppo.versions.version_of", lambda package, there=installed: there.get(package, "unknown"))
        job = ppo(tmp_path, *flags, f"--env_steps={env_steps}")
        assert_ok(job)
    assert f"not bit-identical to an uninterrupted run, because these changed: {said}\n" in job.stdout


def test_a_checkpoint_from_before_there_were_devices_is_of_a_processor(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("ppo.device.Placement.settings", lambda placement: {"device": "auto", "precision": "auto"})
        assert_ok(ppo(tmp_path, *CARTPOLE, "--env_steps=64"))
    resumed = ppo(tmp_path, *CARTPOLE, "--env_steps=128")
    assert_ok(resumed)
    assert "env_steps 64 -> 128: learning_rate continues at" in resumed.stdout
    assert resumed.stdout.count("device") == 1


def test_a_world_without_images_is_float32_whatever_the_device_has(tmp_path, monkeypatch):
    able = Placement(precision=torch.bfloat16)
    monkeypatch.setattr("ppo.device.choose_placement", lambda *job: able)
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=64")
    assert_ok(job)
    assert "device: cpu, float32" in job.stdout
    assert '"precision": "float32"' in (tmp_path / "runs/CartPole-v1/config.json").read_text()


@pytest.mark.parametrize(
    ("env_name", "expected"),
    [
        (
            "ALE/Pong-v5",
            [
                "protocol: nature (no sticky actions, the game's own actions, a lost life ends a training episode)",
                "Gymnasium's ALE/Pong-v5 has sticky actions, but this run has none; use --protocol=v5 for Gymnasium's "
                "settings",
                "network: SmallCNN, 677,943 parameters",
            ],
        ),
        ("PongNoFrameskip-v4 --protocol=v5", ["protocol: v5 (sticky actions 0.25, the game's own actions, "]),
        ("CartPole-v1 --preset=classic", ["preset classic is not tuned for CartPole-v1", "network: MLP, 9,155 param"]),
        ("CartPole-v1", ["network: MLP, 9,155 parameters"]),
    ],
)
def test_a_run_begins_with_its_protocol_preset_and_network(env_name, expected, tmp_path):
    job = ppo(tmp_path, *PONG[1:], *f"--env_name={env_name}".split(), "--env_steps=64")
    assert_ok(job)
    beginning = job.stdout.partition(" steps/s")[0]
    for line in expected:
        assert beginning.count(line) == 1
    for kind in ("protocol: ", "not tuned", "sticky actions, but"):
        assert (kind in beginning) == any(kind in line for line in expected)


def test_a_run_on_processors_says_so_and_promises_to_be_exact(tmp_path):
    for env_steps in (64, 128):
        job = ppo(tmp_path, *CARTPOLE, f"--env_steps={env_steps}")
        assert_ok(job)
        assert job.stdout.count("device: cpu, float32") == job.stdout.count("device:") == 1
        assert "bit for bit" not in job.stdout


def test_saving_more_often_changes_nothing(tmp_path):
    often, rarely = tmp_path / "often", tmp_path / "rarely"
    often.mkdir()
    rarely.mkdir()
    assert_ok(ppo(often, *PONG, "--env_steps=256", "--checkpoint_interval=1"))
    assert_ok(ppo(rarely, *PONG, "--env_steps=256", "--checkpoint_interval=1000"))
    assert_same_files(often, rarely, "checkpoints/PongNoFrameskip-v4/step_000000000256/model.safetensors")
    assert_same_files(often, rarely, "checkpoints/PongNoFrameskip-v4/step_000000000256/training.safetensors")


def test_a_run_leaves_its_logs_in_one_folder(tmp_path):
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=64")
    assert_ok(job)
    folder = tmp_path / "runs/CartPole-v1"
    assert {"config.json", "progress.csv", "episodes.csv"} <= {p.name for p in folder.iterdir()}
    assert any(p.name.startswith("events.out.tfevents") for p in folder.iterdir())
    (row,) = rows(folder / "progress.csv")
    promised = {
        "update", "env_steps", "time/seconds", "time/steps_per_second", "rollout/return_mean", "rollout/episodes",
        "update/policy_loss", "update/value_loss", "update/entropy", "update/approx_kl", "update/clip_fraction",
        "update/explained_variance", "update/learning_rate", "update/grad_norm", "time/env", "time/inference",
        "time/learn", "time/communicate", "time/wait", "time/save",
    }  # fmt: skip
    assert promised <= row.keys()
    phases = sum(float(row[f"time/{phase}"]) for phase in ("env", "inference", "learn", "communicate"))
    seconds = float(row["time/seconds"])  # in milliseconds
    assert 0.5 * seconds < phases <= seconds + 0.001


def test_a_save_that_fails_is_warned_of_and_shows_in_the_exit_code(tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ppo.outputs.checkpoint.write_checkpoint", full)
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=128", "--checkpoint_interval=1")
    assert job.returncode == 1
    assert "WARNING: the checkpoint at 64 steps was not saved" in job.stdout
    assert "WITHOUT a last checkpoint" in job.stdout
    assert len(rows(tmp_path / "runs/CartPole-v1/progress.csv")) == 2


def test_logs_without_their_checkpoints_are_moved_aside_and_not_deleted(tmp_path):
    assert_ok(ppo(tmp_path, *CARTPOLE, "--env_steps=128"))
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=64", "--checkpoint_dir=elsewhere")
    assert_ok(job)
    assert "moved aside to runs/CartPole-v1.before-" in job.stdout
    (old,) = (tmp_path / "runs").glob("CartPole-v1.before-*")
    assert len(rows(old / "progress.csv")) == 2
    assert len(rows(tmp_path / "runs/CartPole-v1/progress.csv")) == 1


@pytest.mark.parametrize("setting", ["value_normalization", "rng_seed"])
def test_what_would_change_the_meaning_of_the_weights_is_refused(setting, tmp_path):
    assert_ok(ppo(tmp_path, *CARTPOLE, "--env_steps=64"))
    flags = {"value_normalization": ["--no-value_normalization"]}
    flags["rng_seed"] = ["--rng_seed=1", "--model_name=CartPole-v1"]
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=128", *flags[setting])
    assert job.returncode == 2
    assert setting in job.stderr


def test_the_old_settings_that_a_refusal_names_can_be_typed(tmp_path):
    flags = [*CARTPOLE, "--learning_rate_schedule=constant"]
    assert_ok(ppo(tmp_path, *flags, "--env_steps=64", "--no-value_normalization", "--max_gradient_norm=None"))
    refused = ppo(tmp_path, *flags, "--env_steps=128")
    (old_settings,) = re.findall(r"use the old settings \((.*?)\)", refused.stderr)
    assert sorted(old_settings.split()) == ["--max_gradient_norm=None", "--no_value_normalization"]
    resumed = ppo(tmp_path, *flags, "--env_steps=128", *old_settings.split())
    assert_ok(resumed)
    assert "resuming" in resumed.stdout
    assert "changed since" not in resumed.stdout


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 75), (signal.SIGTERM, 75), (signal.SIGUSR2, 0)]
)
def test_a_signal_saves_and_leaves_with_its_exit_code(number, code, tmp_path):
    with RunningJob(tmp_path, *CARTPOLE, ENDLESS, ranks=0, program="ppo") as job:
        job.wait_for_updates(2)
        job.process.send_signal(number)
        assert job.end(within=30)[0] == code, job.log
    assert checkpoint_steps(tmp_path)[-1] == 64 * len(rows(tmp_path / "runs/CartPole-v1/progress.csv"))


def test_a_rank_whose_environment_fails_ends_the_job(tmp_path):
    program = (
        "import sys, ppo.envs.gymnasium as control\n"
        "from ppo.__main__ import main\n"
        "from ppo.collectives.mpi import launched_rank\n"
        "original = control.GymnasiumEnvironments.step\n"
        "def broken(self, actions):\n"
        "    if launched_rank() == 1: raise RuntimeError('the emulator is on fire')\n"
        "    return original(self, actions)\n"
        "control.GymnasiumEnvironments.step = broken\n"
        f"sys.exit(main({[*CARTPOLE, '--env_steps=6400']!r}))\n"
    )
    job = mpirun(2, ["-c", program], tmp_path, timeout=40)
    assert job.returncode not in (0, 2)
    assert "rank 1 of 2" in job.stderr
    assert "the emulator is on fire" in job.stderr


def test_the_time_in_which_ranks_wait_for_a_slow_one_is_separated_from_communication(tmp_path):
    slow = (
        "import sys, time, ppo.envs.gymnasium as control\n"
        "from ppo.__main__ import main\n"
        "from ppo.collectives.mpi import launched_rank\n"
        "original = control.GymnasiumEnvironments.step\n"
        "def slow(self, actions):\n"
        "    time.sleep(0.03 * launched_rank())\n"
        "    return original(self, actions)\n"
        "control.GymnasiumEnvironments.step = slow\n"
        f"sys.exit(main({[*CARTPOLE, '--env_steps=192']!r}))\n"
    )
    assert_ok(mpirun(2, ["-c", slow], tmp_path))
    updates = rows(tmp_path / "runs/CartPole-v1/progress.csv")
    assert all(float(row["time/wait"]) <= float(row["time/communicate"]) for row in updates)
    # Rank 0 waits for 16 steps of 30 ms, rank 1 for nobody: 0.24 s on average.
    assert sum(float(row["time/wait"]) for row in updates) / len(updates) > 0.15
