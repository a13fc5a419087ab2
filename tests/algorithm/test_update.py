import dataclasses
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from ppo.algorithm import equations
from ppo.algorithm.rollout import Collector
from ppo.algorithm.update import Learner, _sums_of_powers
from ppo.collectives import Alone, Halt, Hosts
from ppo.collectives.moments import RunningMoments
from ppo.config import MachineSettings, PPOSettings
from ppo.envs import make_envs
from ppo.families import WorldSettings
from ppo.models import distributions
from ppo.models.actor_critic import build_model
from tests.jobs import mpirun

SETTINGS = PPOSettings(
    num_envs=3, rollout_steps=8, minibatch_size=12, num_epochs=2, learning_rate=1e-2, learning_rate_schedule="constant"
)


def build(settings=SETTINGS, *, env_name="CartPole-v1", indices=None, comm=None):
    indices = range(settings.num_envs) if indices is None else indices
    envs = make_envs(env_name, WorldSettings(), indices=indices, seed=3)
    model = build_model(envs.single_observation_space, envs.single_action_space, "small", seed=1)
    with torch.no_grad():
        model.policy_head.weight.mul_(100.0)  # far from uniform, so that a wrong observation would show
    normalizer = RunningMoments()
    collector = Collector(
        envs,
        model,
        normalizer,
        indices=indices,
        rollout_steps=settings.rollout_steps,
        clip_rewards=False,
        episodic_life=True,
        seed=5,
    )
    learner = Learner(model, normalizer, settings, comm or Alone(), machine=MachineSettings(), indices=indices, seed=5)
    collector.reset()
    return model, collector, learner


def first_ratios(model, learner, rollout):
    index = learner.minibatches(0, 0)[0]
    with torch.no_grad():
        log_probs = distributions.log_probabilities(model(rollout.observations_at(index))[0])
    return (
        distributions.log_prob(log_probs, rollout.actions.flatten()[index]) - rollout.log_probs.flatten()[index]
    ).exp()


@pytest.mark.parametrize("env_name", ["CartPole-v1", "BreakoutNoFrameskip-v4"])
def test_every_ratio_is_one_on_the_first_minibatch_of_the_first_epoch(env_name):
    model, collector, learner = build(env_name=env_name)
    rollout, _ = collector.collect(0)
    assert (first_ratios(model, learner, rollout) - 1.0).abs().max() < 1e-5


def test_centring_pixels_moves_no_ratio_between_collecting_and_learning():
    settings = dataclasses.replace(SETTINGS, pixel_normalization=True, minibatch_size=24, num_epochs=1)
    model, collector, learner = build(settings, env_name="BreakoutNoFrameskip-v4")
    seen = []
    for update in range(2):
        rollout, _ = collector.collect(update)
        assert (first_ratios(model, learner, rollout) - 1.0).abs().max() < 1e-5
        learner.update(rollout, update=update, env_steps=0, progress=0.0)
        seen.append(rollout.observations[0].double())  # one step in 64 is looked at
    mean, deviation = model.pixel_layer.pixel_moments.tolist()
    assert mean == pytest.approx(torch.stack(seen).mean().item())
    assert deviation == pytest.approx(torch.stack(seen).std(unbiased=False).item())


def test_pixels_are_only_divided_by_255_unless_told_otherwise():
    model, collector, learner = build(env_name="BreakoutNoFrameskip-v4")
    rollout, _ = collector.collect(0)
    learner.update(rollout, update=0, env_steps=0, progress=0.0)
    assert model.pixel_layer.pixel_moments.tolist() == [0.0, 255.0]


@pytest.mark.parametrize("env_name", ["CartPole-v1", "BreakoutNoFrameskip-v4"])
def test_a_shifted_observation_breaks_the_ratio_of_one(env_name):
    model, collector, learner = build(env_name=env_name)
    for update in range(3):  # the first screens of a game are all alike
        rollout, _ = collector.collect(update)
    shifted = dataclasses.replace(rollout, observations=rollout.observations.roll(-1, 0))
    assert (first_ratios(model, learner, shifted) - 1.0).abs().max() > 1e-3


def test_the_gradient_is_that_of_the_loss_written_out():
    settings = dataclasses.replace(SETTINGS, minibatch_size=24, value_coefficient=0.7, entropy_coefficient=0.3)
    _, collector, learner = build(settings)
    rollout, _ = collector.collect(0)
    reference = build(settings)[0]

    advantages = equations.gae(
        rollout.rewards, rollout.values, rollout.next_values, rollout.dones, discount=0.99, gae_lambda=0.95
    )
    returns = (advantages + rollout.values).flatten()
    normalized = ((advantages - advantages.mean()) / advantages.std(unbiased=False)).flatten()
    logits, values = reference(rollout.observations.flatten(0, 1))
    policy = torch.distributions.Categorical(logits=logits)
    ratios = (policy.log_prob(rollout.actions.flatten()) - rollout.log_probs.flatten()).exp()
    objective = torch.min(ratios * normalized, ratios.clamp(0.8, 1.2) * normalized).mean()
    loss = -objective + 0.7 * 0.5 * (values - returns).square().mean() - 0.3 * policy.entropy().mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(reference.parameters()))])

    samples, _ = learner._prepare(rollout, gae_lambda=0.95)
    index = learner.minibatches(0, 0)[0]
    outputs = learner._add_gradients(rollout, index, samples.at(index), 0.2)
    torch.testing.assert_close(learner._flat.gradient, expected, rtol=1e-4, atol=1e-6)
    # What the log has of it is a mean, too.
    logged = torch.stack([-objective, 0.5 * (values - returns).square().mean(), policy.entropy().mean()])
    _, sums = learner._read([learner._step(0.0)], outputs, samples.at(index), 0.2, update=0)
    got = torch.from_numpy(sums[:3]).float()
    torch.testing.assert_close(got, logged, rtol=1e-4, atol=1e-6)


def test_an_update_makes_good_actions_more_probable():
    settings = dataclasses.replace(SETTINGS, minibatch_size=24, num_epochs=1, learning_rate=1e-4)
    model, collector, learner = build(settings)
    rollout, _ = collector.collect(0)
    batch, _ = learner._prepare(rollout, gae_lambda=0.95)
    old_values = batch.values
    learner.update(rollout, update=0, env_steps=0, progress=0.0)
    with torch.no_grad():
        logits, values = model(rollout.observations.flatten(0, 1))
    log_probs = distributions.log_prob(distributions.log_probabilities(logits), batch.actions)
    assert ((log_probs - batch.log_probs) * batch.advantages).mean() > 0
    assert (values - batch.returns).square().mean() < (old_values - batch.returns).square().mean()


def test_the_minibatches_of_an_epoch_hold_every_step_once():
    _, _, learner = build()
    for epoch in range(2):
        assert sorted(learner.minibatches(4, epoch).flatten().tolist()) == list(range(24))
    assert not torch.equal(learner.minibatches(4, 0), learner.minibatches(4, 1))


def test_a_minibatch_holds_the_same_steps_at_any_rank_count():
    settings = dataclasses.replace(SETTINGS, num_envs=4, minibatch_size=16)

    def steps(indices):
        learner = build(settings, indices=indices)[2]
        return [
            {(int(flat) // len(indices), indices[int(flat) % len(indices)]) for flat in minibatch}
            for minibatch in learner.minibatches(2, 1)
        ]

    whole = steps(range(4))
    parts = [steps(range(0, 1)), steps(range(1, 4))]
    assert whole == [a | b for a, b in zip(*parts, strict=True)]


def test_parameters_stay_views_of_the_flat_vector():
    model, collector, learner = build()
    for update in range(2):
        rollout, _ = collector.collect(update)
        learner.update(rollout, update=update, env_steps=0, progress=0.0)
    flat = learner._flat
    torch.testing.assert_close(torch.cat([p.data.flatten() for p in model.parameters()]), flat.values.data)
    flat.values.data.zero_()
    assert all(not p.data.any() for p in model.parameters())


def test_the_gradient_is_clipped_to_its_global_norm():
    settings = dataclasses.replace(SETTINGS, max_gradient_norm=1e-3, minibatch_size=24, num_epochs=1)
    _, collector, learner = build(settings)
    rollout, _ = collector.collect(0)
    metrics = learner.update(rollout, update=0, env_steps=0, progress=0.0)
    assert metrics["update/grad_norm"] > 1e-3
    assert learner._flat.gradient.norm().item() == pytest.approx(1e-3, rel=1e-4)


def test_a_gradient_that_is_not_finite_reaches_no_weight():
    model, collector, learner = build()
    rollout, _ = collector.collect(0)
    rollout.rewards[0, 0] = float("nan")
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(Halt, match="update 1 is not finite"):
        learner.update(rollout, update=0, env_steps=0, progress=0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("norms", "named"), [([1.0, 2.0], "2"), ([1.0, float("nan")], "nan"), ([float("inf"), 2.0], "inf")]
)
def test_the_message_has_the_norm_that_is_not_finite_or_else_the_last(norms, named):
    _, collector, learner = build()
    rollout, _ = collector.collect(0)
    samples, _ = learner._prepare(rollout, gae_lambda=0.95)
    minibatches = learner._gather(samples, learner.minibatches(0, 0))
    logits, values = torch.zeros(24, 2), torch.zeros(24)
    values[0] = 0.0 if named != "2" else float("nan")
    with pytest.raises(Halt, match=rf"gradient norm {named},"):
        learner._read([torch.tensor([norm, 0.0]) for norm in norms], [(logits, values)], minibatches.flatten(), 0.2, 0)


def test_after_a_step_that_is_not_finite_no_later_one_changes_a_weight(monkeypatch):
    settings = dataclasses.replace(SETTINGS, num_epochs=1, minibatch_size=3)
    weights = {}
    for last in (2, 8):  # steps of the epoch that are taken
        model, collector, learner = build(settings)
        rollout, _ = collector.collect(0)
        taken, finish = [], learner._gradient_sum.finish

        def spoiled(taken=taken, finish=finish, learner=learner):
            summed = finish()
            taken.append(learner)
            if len(taken) == 3:
                summed[5] = float("inf")
            return summed

        monkeypatch.setattr(learner._gradient_sum, "finish", spoiled)
        if last == 2:
            monkeypatch.setattr(learner, "minibatches", lambda update, epoch, own=learner.minibatches: own(0, 0)[:2])
            learner.update(rollout, update=0, env_steps=0, progress=0.0)
        else:
            with pytest.raises(Halt, match=r"gradient norm inf, policy_loss -?[0-9]"):
                learner.update(rollout, update=0, env_steps=0, progress=0.0)
        assert len(taken) == last
        weights[last] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(weights[8], weights[2])


@pytest.mark.parametrize(("progress", "rate", "clip_range"), [(0.0, 1e-2, 0.2), (0.5, 5e-3, 0.1), (1.0, 0.0, 0.0)])
def test_linear_schedules_follow_progress_and_end_at_zero(progress, rate, clip_range):
    settings = dataclasses.replace(SETTINGS, learning_rate_schedule="linear", clip_range_schedule="linear")
    model, collector, learner = build(settings)
    rollout, _ = collector.collect(0)
    before = [p.detach().clone() for p in model.parameters()]
    metrics = learner.update(rollout, update=0, env_steps=0, progress=progress)
    assert metrics["update/learning_rate"] == pytest.approx(rate)
    assert metrics["update/clip_range"] == pytest.approx(clip_range)
    unchanged = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert unchanged == (progress == 1.0)


@pytest.mark.parametrize(("env_steps", "gae_lambda"), [(0, 1.0), (200, 1.0), (300, 0.75), (400, 0.5), (1000, 0.5)])
def test_lambda_falls_between_half_and_all_of_its_steps_and_the_update_is_made_with_it(env_steps, gae_lambda):
    weights = []
    for settings in (
        dataclasses.replace(SETTINGS, gae_lambda=1.0, gae_lambda_late=0.5, gae_lambda_late_steps=400),
        dataclasses.replace(SETTINGS, gae_lambda=gae_lambda),
        dataclasses.replace(SETTINGS, gae_lambda=0.9 * gae_lambda),
    ):
        model, collector, learner = build(settings)
        metrics = learner.update(collector.collect(0)[0], update=0, env_steps=env_steps, progress=0.0)
        assert metrics["update/gae_lambda"] == pytest.approx(gae_lambda if len(weights) < 2 else 0.9 * gae_lambda)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_adaptive_rate_is_steered_once_per_epoch_and_survives_a_restart():
    settings = dataclasses.replace(
        SETTINGS, learning_rate_schedule="kl_adaptive", learning_rate=1e-5, learning_rate_max=1.0, num_epochs=3
    )
    _, collector, learner = build(settings)
    rollout, _ = collector.collect(0)
    metrics = learner.update(rollout, update=0, env_steps=0, progress=0.0)
    assert metrics["update/learning_rate"] == pytest.approx(1e-5 * 1.5**3)
    other = build(settings)[2]
    other.load_state_dict(learner.state_dict())
    assert other.update(rollout, update=1, env_steps=0, progress=0.0)["update/learning_rate"] == pytest.approx(
        1e-5 * 1.5**6
    )


def test_too_large_a_kl_ends_the_epochs_early():
    settings = dataclasses.replace(SETTINGS, kl_stop=1e-6, num_epochs=5, learning_rate=0.1)
    _, collector, learner = build(settings)
    rollout, _ = collector.collect(0)
    assert learner.update(rollout, update=0, env_steps=0, progress=0.0)["update/epochs"] < 5


def test_minibatch_normalization_scales_each_minibatch_to_mean_zero():
    settings = dataclasses.replace(SETTINGS, advantage_normalization="minibatch")
    _, collector, learner = build(settings)
    rollout, _ = collector.collect(0)
    batch, _ = learner._prepare(rollout, gae_lambda=0.95)
    scaled = learner._gather(batch, learner.minibatches(0, 0)).advantages
    torch.testing.assert_close(scaled.mean(-1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(-1, unbiased=False), torch.ones(2), atol=1e-4, rtol=0)


def test_explained_variance_is_one_for_perfect_values_and_zero_for_constant_ones():
    settings = dataclasses.replace(SETTINGS, discount=1.0)
    _, collector, learner = build(settings)
    rollout, _ = collector.collect(0)
    steps_left = torch.arange(8.0, 0.0, -1.0).unsqueeze(1).expand(8, 3)
    constant, perfect = torch.zeros(8, 3), steps_left
    for values, expected in ((perfect, 1.0), (constant, 0.0)):
        following = torch.cat([values[1:], torch.zeros(1, 3)])
        crafted = dataclasses.replace(
            rollout,
            rewards=torch.ones(8, 3),
            values=values,
            next_values=following,
            dones=torch.zeros(8, 3, dtype=torch.bool),
        )
        assert learner._prepare(crafted, gae_lambda=1.0)[1] == pytest.approx(expected, abs=1e-6)


def test_only_what_ranks_have_copies_of_is_compared():
    learner = build()[2]
    state = learner.state_dict()
    assert learner.replicated_state().keys() == state.keys()
    learner.is_one_replica = True  # as where all ranks share one host's memory
    assert state.keys() - learner.replicated_state().keys() == {"first_moment", "second_moment"}
    assert {"adaptive_rate", "gradient_steps", "pixel_moments"} <= learner.replicated_state().keys()


def test_learner_state_of_another_network_is_refused():
    state = build()[2].state_dict()
    state["first_moment"] = state["first_moment"][:-1]
    with pytest.raises(ValueError, match="parameters"):
        build()[2].load_state_dict(state)


def test_a_minibatch_larger_than_the_cache_gives_the_same_gradient_as_its_parts(monkeypatch):
    settings = dataclasses.replace(SETTINGS, minibatch_size=24, num_epochs=1)
    weights = []
    for limit in (256, 5):
        monkeypatch.setattr("ppo.algorithm.update._MAX_SAMPLES_AT_ONCE", limit)
        model, collector, learner = build(settings)
        rollout, _ = collector.collect(0)
        learner.update(rollout, update=0, env_steps=0, progress=0.0)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-5)
    assert np.isfinite(weights[0].numpy()).all()


def test_no_network_is_built_for_spaces_it_cannot_serve():
    box = gymnasium.spaces.Box(0, 1, (7, 7), np.float32)
    with pytest.raises(ValueError, match="no network"):
        build_model(box, gymnasium.spaces.Discrete(2), "small", seed=0)


class OneOfTwo(Alone):
    """The second of two ranks, with 2 of 3 environments; the first one adds nothing."""

    rank, size = 1, 2

    def __init__(self):
        self.exchanged = []

    def sum_in_place(self, buffer):
        self.exchanged.append(buffer.copy())

    def split_by_host(self):
        return Hosts(1, self, None)


def test_a_rank_contributes_the_square_of_the_mean_gradient_of_its_own_steps():
    comm = OneOfTwo()
    _, collector, learner = build(indices=range(1, 3), comm=comm)
    rollout, _ = collector.collect(0)
    batch, _ = learner._prepare(rollout, gae_lambda=0.95)
    index = learner.minibatches(0, 0)[0]
    assert len(index) == 8  # of the 12 steps of a minibatch
    learner._add_gradients(rollout, index, batch.at(index), 0.2)
    mean_of_own_steps = learner._flat.gradient * SETTINGS.minibatch_size / len(index)
    learner._step(1e-4)
    assert comm.exchanged[-1][-1] == pytest.approx(float(mean_of_own_steps.square().sum()) / 2, rel=1e-5)


def test_noise_is_measured_in_every_fourth_minibatch_of_an_epoch_only(monkeypatch):
    comm, seen = OneOfTwo(), []
    settings = dataclasses.replace(SETTINGS, minibatch_size=3)
    _, collector, learner = build(settings, indices=range(1, 3), comm=comm)
    rollout, _ = collector.collect(0)
    monkeypatch.setattr(learner._noise_scale, "observe", lambda *squares: seen.append(squares))
    learner.update(rollout, update=0, env_steps=0, progress=0.0)
    assert len(seen) == 2 * settings.num_epochs  # of 8 minibatches
    # One of the two ranks adds all that is added: |g|^2 of its own steps, 2 of 3, over two ranks.
    for mean_of_squares, square_of_mean in seen:
        assert mean_of_squares == pytest.approx(square_of_mean * 1.5**2 / 2, rel=1e-4)


@pytest.mark.parametrize("pixels", [[255] * 1000, [0, 1, 2, 250], list(range(256)) * 3])
def test_pixels_and_their_squares_are_added_without_rounding(pixels):
    expected = [float(sum(pixels)), float(sum(pixel * pixel for pixel in pixels))]
    assert _sums_of_powers(torch.tensor(pixels, dtype=torch.uint8)).tolist() == expected


LATE = """
import time
import torch
from ppo.collectives import share
from ppo.collectives.abort_guard import AbortGuard
from ppo.collectives.mpi import connect
from tests.algorithm.test_update import SETTINGS, build

comm = connect()
model, collector, learner = build(indices=share(SETTINGS.num_envs, comm.rank, comm.size), comm=comm)
assert learner.shares_memory
rollout, _ = collector.collect(0)
step, move = learner._step, torch._fused_adam_
steps = 0

def take_step(rate, **options):
    numbers = step(rate, **options)
    everyone = comm.gather(learner._flat.values.numpy().tobytes())
    assert comm.rank or len(set(everyone)) == 1, "a rank has gone on with weights that were not all moved"
    return numbers

def move_late(*arguments, **named):
    global steps
    steps += 1
    if comm.rank == steps % comm.size:
        time.sleep(0.05)
    move(*arguments, **named)

learner._step, torch._fused_adam_ = take_step, move_late
with AbortGuard(comm):
    learner.update(rollout, update=0, env_steps=0, progress=0.0)
print("rank", comm.rank, "of", comm.size, "agrees after", steps, "steps")
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_no_rank_goes_on_before_every_piece_of_the_shared_weights_has_been_moved(ranks, tmp_path):
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})"
    job = mpirun(ranks, ["-c", f"{here}\n{LATE}"], tmp_path)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count(f"of {ranks} agrees after 4 steps") == ranks
