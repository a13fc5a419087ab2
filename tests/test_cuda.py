"""The GPU compared with the processor. Marked cuda; run these on a machine with a GPU."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch

from ppo.algorithm.rollout import Rollout
from ppo.collectives import Alone
from ppo.config import ModelSettings, PPOSettings
from tests.algorithm import learners
from tests.algorithm.learners import indices_of, samples_of, weights_of
from tests.algorithm.test_ratios import KINDS
from tests.algorithm.worlds import ScriptedWorld
from tests.jobs import PONG, ppo, rows, weights

NAME = "PongNoFrameskip-v4"
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# With the processor in place of the GPU a test only shows that it runs.
NETWORKS = [
    pytest.param(CPU, "small", id="cpu-small"),
    *(pytest.param(CUDA, size, id=f"cuda-{size}", marks=pytest.mark.cuda) for size in ("small", "large", "impala")),
]
SETTINGS = PPOSettings(
    num_envs=4, rollout_steps=32, minibatch_size=32, num_epochs=2, learning_rate=2.5e-4, clip_rewards=True
)
ON_A_GPU = [flag for flag in PONG if not flag.startswith("--device")] + ["--device=cuda"]


@pytest.fixture(autouse=True)
def convolutions_in_full_precision():
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def build(device, size="small", precision=torch.float32, settings=SETTINGS):
    return learners.build(
        settings,
        env_name=NAME,
        model=ModelSettings(model_size=size, pixel_normalization=True),
        device=device,
        precision=precision,
    )


def moved(rollout, device):
    tensors = {name: value for name, value in vars(rollout).items() if isinstance(value, torch.Tensor)}
    return Rollout(**{name: tensor.to(device) for name, tensor in tensors.items()})


def assert_ok(job):
    assert job.returncode == 0, job.stdout + job.stderr


@pytest.mark.parametrize(("device", "size"), NETWORKS)
def test_the_same_rollout_is_collected(device, size):
    (expected, _), (got, _) = (build(where, size)[1].collect(0) for where in (CPU, device))
    # If two actions were within rounding of each other, the games would diverge.
    for name in ("observations", "actions", "rewards", "dones"):
        assert torch.equal(getattr(got, name).cpu(), getattr(expected, name)), name
    for name in ("values", "next_values", "log_probs"):
        torch.testing.assert_close(getattr(got, name).cpu(), getattr(expected, name), rtol=1e-3, atol=1e-4, msg=name)


# Not IMPALA's network: on the processor too, weights that differ by a millionth are 2 % of an update apart after it.
@pytest.mark.parametrize(("device", "size"), NETWORKS[:-1])
def test_an_update_leads_to_the_same_parameters(device, size):
    rollout, _ = build(CPU, size)[1].collect(0)
    found, pixels = [], []
    for where in (CPU, device):
        model, _, learner = build(where, size)
        metrics = learner.update(moved(rollout, where), update=0, env_steps=0, progress=0.0)
        model.inputs.follow(moved(rollout, where).observations, Alone())
        found.append((weights_of(model).cpu(), metrics))
        pixels.append(model.inputs.applied.cpu())
    (expected, expected_metrics), (got, metrics) = found
    # A step of Adam is as large where a gradient is rounding and nothing else: single weights may go elsewhere.
    apart = (got - expected).abs()
    assert (apart > 2e-5).float().mean() < 1e-3 and apart.max() < 5e-4
    assert metrics["update/grad_norm"] == pytest.approx(expected_metrics["update/grad_norm"], rel=1e-3)
    assert torch.equal(*pixels) and pixels[0][0] > 0.0  # sums of whole numbers are exact anywhere


@pytest.mark.parametrize(("device", "size"), NETWORKS)
def test_the_gradient_is_the_same(device, size):
    rollout, _ = build(CPU, size)[1].collect(0)
    found = []
    for where in (CPU, device):
        _, _, learner = build(where, size)
        samples = samples_of(learner, moved(rollout, where))
        index = torch.arange(64, device=where)
        learner._add_gradients(moved(rollout, where), index, samples.at(index), 0.2)
        found.append(learner._flat.buffer.cpu())
    expected, got = found
    assert (got - expected).norm() < 2e-3 * expected.norm()


@pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=pytest.mark.cuda)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_action_is_decided_and_learnt_the_same_way(kind, device):
    (_, expected, learner), (_, collector, other) = (build_kind(kind, where) for where in (CPU, device))
    for update in range(2):  # the second by kernels that were recorded in the first
        (rollout, _), (got, _) = (each.collect(update) for each in (expected, collector))
        for name in ("observations", "actions", "outputs", "log_probs", "values", "next_values", "rewards"):
            numbers = getattr(got, name).cpu()
            torch.testing.assert_close(numbers, getattr(rollout, name), rtol=1e-3, atol=1e-4, msg=name)
        metrics, of_device = (
            each.update(moved(rollout, where), update=update, env_steps=0, progress=0.0)
            for each, where in ((learner, CPU), (other, device))
        )
        for name in ("update/policy_loss", "update/value_loss", "update/entropy", "update/grad_norm"):
            assert of_device[name] == pytest.approx(metrics[name], rel=1e-3, abs=1e-4), name


def build_kind(kind, device):
    actions, settings = KINDS[kind]
    slow = dataclasses.replace(learners.SETTINGS, learning_rate=1e-4)
    return learners.build(slow, world=ScriptedWorld(actions=actions), model=ModelSettings(**settings), device=device)


@pytest.mark.parametrize(("device", "size"), NETWORKS)
def test_losses_in_16_bits_are_those_of_32_within_rounding(device, size):
    rollout, _ = build(CPU, size)[1].collect(0)
    one_step = dataclasses.replace(SETTINGS, minibatch_size=128, num_epochs=1)
    found = []
    for where, precision in ((CPU, torch.float32), (device, torch.bfloat16)):
        model, _, learner = build(where, size, precision, one_step)
        found.append(learner.update(moved(rollout, where), update=0, env_steps=0, progress=0.0))
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    expected, got = found
    for name in ("update/value_loss", "update/entropy", "update/grad_norm"):
        assert got[name] == pytest.approx(expected[name], rel=0.05), name
    assert got["update/policy_loss"] == pytest.approx(expected["update/policy_loss"], abs=0.01)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_recorded_decisions_are_those_of_the_weights_as_they_are_now(precision):
    model, collector, learner = build(CUDA, precision=precision)
    for update in range(3):
        rollout, _ = collector.collect(update)
        with torch.inference_mode():
            _, _, values = collector._decisions(rollout.observations[5], torch.zeros(4, 1, device=CUDA))
            values = collector._value_normalizer.denormalize(values)
        torch.testing.assert_close(rollout.values[5], values, rtol=1e-2, atol=1e-2)  # 16 bits, perhaps another kernel
        before = rollout.values[5].clone()
        learner.update(rollout, update=update, env_steps=0, progress=0.0)
        model.inputs.follow(rollout.observations, Alone())
        with torch.inference_mode():
            _, _, after = collector._decisions(rollout.observations[5], torch.zeros(4, 1, device=CUDA))
        assert (collector._value_normalizer.denormalize(after) - before).abs().max() > 0.05


@pytest.mark.cuda
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", ["small", "impala"])
def test_recorded_kernels_add_the_gradient_of_the_samples_they_are_given(size, precision):
    model, collector, learner = build(CUDA, size, precision)
    rollout, _ = collector.collect(0)
    samples = samples_of(learner, rollout)
    advantages = torch.randn(128, device=CUDA)
    for update, clip_range in ((0, 0.2), (1, 0.05), (2, 0.2)):
        index = indices_of(learner, update, 0)[0]
        found = []
        for add in (learner._add_gradient, learner._accumulate):
            learner._flat.start_gradient()
            for part in (slice(0, 16), slice(16, 32), slice(0, 24)):  # of two sizes
                add(
                    rollout,
                    index[part],
                    samples.at(index[part])._replace(advantages=advantages[index[part]]),
                    clip_range,
                )
            found.append(learner._flat.buffer.clone())
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5 if precision == torch.float32 else 1e-3)
        assert found[0].norm() > 0.01
        learner.update(rollout, update=update, env_steps=0, progress=0.0)
        model.inputs.follow(rollout.observations, Alone())  # weights and statistics have changed


@pytest.mark.cuda
def test_recorded_kernels_follow_a_rollout_that_lies_elsewhere():
    _, collector, learner = build(CUDA)
    rollout, _ = collector.collect(0)
    norms = []
    for given in (rollout, dataclasses.replace(rollout, observations=rollout.observations.flip(0)), rollout):
        samples = samples_of(learner, rollout)
        index = torch.arange(8, device=CUDA)
        learner._add_gradients(given, index, samples.at(index)._replace(advantages=torch.ones(8, device=CUDA)), 0.2)
        norms.append(learner._flat.gradient.norm().item())
    assert norms[0] == pytest.approx(norms[2], rel=1e-4)
    assert norms[1] != pytest.approx(norms[0], rel=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_no_step_of_the_learner_waits_for_the_gpu(precision):
    _, collector, learner = build(CUDA, precision=precision)
    rollout, _ = collector.collect(0)
    learner.update(rollout, update=0, env_steps=0, progress=0.0)  # one-time work is done
    samples = samples_of(learner, rollout)
    index = indices_of(learner, 0, 0)[0]
    minibatch = samples.at(index)
    with _no_waiting():
        learner._add_gradients(rollout, index, minibatch, 0.2)
        learner._step(1e-4)


@contextlib.contextmanager
def _no_waiting():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_a_run_goes_from_a_gpu_to_the_processor_and_back(tmp_path):
    for flags, env_steps in ((ON_A_GPU, 128), (PONG, 192), (ON_A_GPU, 256), (ON_A_GPU, 320)):
        job = ppo(tmp_path, *flags, f"--env_steps={env_steps}")
        assert_ok(job)
        assert "WARNING" not in job.stdout
        assert job.stdout.count("not bit-identical") == (env_steps > 128)
    assert [int(row["env_steps"]) for row in rows(tmp_path / "runs" / NAME / "progress.csv")] == list(
        range(64, 321, 64)
    )
    assert all(array.dtype.kind == "f" and np.isfinite(array).all() for array in weights(tmp_path, NAME, 320).values())
    assert_ok(ppo(tmp_path, f"--env_name={NAME}", "--mode=evaluate", "--episodes=1", "--max_frames=400"))


@pytest.mark.cuda
@pytest.mark.parametrize("engine", ["processes", "vector"])
def test_one_rank_feeds_a_gpu_from_all_cores(engine, tmp_path):
    flags = [flag for flag in ON_A_GPU if "env_engine" not in flag]
    job = ppo(tmp_path, *flags, f"--env_engine={engine}", "--model_size=impala", "--env_steps=192")
    assert_ok(job)
    assert "device: cuda, " in job.stdout and f"env_engine: {engine}" in job.stdout


@pytest.mark.cuda
@pytest.mark.parametrize("gpus", [1, 2])
def test_two_ranks_take_the_updates_of_one(gpus, tmp_path, monkeypatch):
    if torch.cuda.device_count() < gpus:
        pytest.skip("there is one GPU")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus))))
    flags = [*ON_A_GPU, "--precision=float32", "--env_steps=192"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder, ranks in ((alone, 1), (together, 2)):
        folder.mkdir()
        job = ppo(folder, *flags, ranks=ranks)
        assert_ok(job)
        assert ("summed by NCCL" in job.stdout) == (1 < ranks == gpus)
    expected, got = (weights(folder, NAME, 192) for folder in (alone, together))
    moments = [key for key in expected if "moments" in key]
    for key in moments:
        # Batches of another size may have another kernel, and convolutions are those of TF32.
        np.testing.assert_allclose(got[key], expected[key], rtol=2e-2, err_msg=key)
    # A step of Adam is as large where a gradient is rounding and nothing else: single weights may go elsewhere.
    apart = np.concatenate([np.abs(got[key] - expected[key]).ravel() for key in expected if key not in moments])
    assert (apart > 1e-4).mean() < 0.01 and apart.max() < 2e-3
