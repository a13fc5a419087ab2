import dataclasses
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from ppo.algorithm import equations
from ppo.algorithm import update as update_module
from ppo.algorithm.loss import TERMS
from ppo.algorithm.minibatches import minibatch_indices
from ppo.algorithm.samples import gather_minibatches
from ppo.collectives import Alone, Halt, Hosts
from tests.algorithm.learners import SETTINGS, build, indices_of, samples_of, weights_of
from tests.algorithm.worlds import ScriptedWorld, WorldInGroups
from tests.jobs import mpirun


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

    samples = samples_of(learner, rollout)
    index = indices_of(learner, 0, 0)[0]
    predictions = learner._add_gradients(rollout, index, samples.at(index), 0.2)
    torch.testing.assert_close(learner._flat.gradient, expected, rtol=1e-4, atol=1e-6)
    # The logged number is a mean too.
    logged = torch.stack([-objective, 0.5 * (values - returns).square().mean(), policy.entropy().mean()])
    _, means = learner._read([learner._step(0.0)], predictions, samples.at(index[None]), 0.2)
    assert TERMS[:3] == ("policy_loss", "value_loss", "entropy")
    torch.testing.assert_close(torch.from_numpy(means[:3]).float(), logged, rtol=1e-4, atol=1e-6)


def test_an_update_makes_good_actions_more_probable():
    settings = dataclasses.replace(SETTINGS, minibatch_size=24, num_epochs=1, learning_rate=1e-4)
    model, collector, learner = build(settings)
    rollout, _ = collector.collect(0)
    batch = samples_of(learner, rollout)
    old_values = batch.values
    learner.update(rollout, update=0, env_steps=0, progress=0.0)
    with torch.no_grad():
        outputs, values = model(rollout.observations.flatten(0, 1))
    log_probs = model.distribution.log_prob(outputs, batch.actions)
    assert ((log_probs - batch.log_probs) * batch.advantages).mean() > 0
    assert (values - batch.returns).square().mean() < (old_values - batch.returns).square().mean()


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


def test_after_a_step_that_is_not_finite_no_later_one_changes_a_weight(monkeypatch):
    settings = dataclasses.replace(SETTINGS, num_epochs=1, minibatch_size=3)
    weights = {}
    for last in (2, 8):  # steps of the epoch that are taken
        model, collector, learner = build(settings)
        rollout, _ = collector.collect(0)
        taken, sum_up = [], learner._gradient_sum.sum

        def spoiled(taken=taken, sum_up=sum_up, learner=learner):
            summed = sum_up()
            taken.append(learner)
            if len(taken) == 3:
                summed[5] = float("inf")
            return summed

        monkeypatch.setattr(learner._gradient_sum, "sum", spoiled)
        if last == 2:
            monkeypatch.setattr(
                update_module, "minibatch_indices", lambda *given, **how: minibatch_indices(*given, **how)[:2]
            )
            learner.update(rollout, update=0, env_steps=0, progress=0.0)
        else:
            with pytest.raises(Halt, match=r"gradient norm inf, policy_loss -?[0-9]"):
                learner.update(rollout, update=0, env_steps=0, progress=0.0)
        assert len(taken) == last
        weights[last] = weights_of(model)
        monkeypatch.undo()
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
        weights.append(weights_of(model))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_adaptive_rate_is_steered_once_per_epoch_and_survives_a_restart():
    settings = dataclasses.replace(
        SETTINGS, learning_rate_schedule="kl_adaptive", learning_rate=1e-5, learning_rate_max=1.0, num_epochs=3
    )
    _, collector, learner = build(settings)
    rollout, _ = collector.collect(0)
    metrics = learner.update(rollout, update=0, env_steps=0, progress=0.0)
    assert metrics["update/learning_rate"] == pytest.approx(1e-5 * 1.5**2)  # the last epoch's
    other = build(settings)[2]
    other.load_state_dict(learner.state_dict())
    assert other.update(rollout, update=1, env_steps=0, progress=0.0)["update/learning_rate"] == pytest.approx(
        1e-5 * 1.5**5
    )


def test_too_large_a_kl_ends_the_epochs_early():
    settings = dataclasses.replace(SETTINGS, kl_stop=1e-6, num_epochs=5, learning_rate=0.1)
    _, collector, learner = build(settings)
    rollout, _ = collector.collect(0)
    assert learner.update(rollout, update=0, env_steps=0, progress=0.0)["update/epochs"] < 5


def test_only_what_ranks_have_copies_of_is_compared():
    learner = build()[2]
    state = learner.state_dict()
    assert learner.replicated_state().keys() == state.keys()
    learner.is_one_replica = True  # as where all ranks share one host's memory
    assert state.keys() - learner.replicated_state().keys() == {"first_moment", "second_moment"}
    assert {"adaptive_rate", "gradient_steps", "return_moments"} <= learner.replicated_state().keys()


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
        weights.append(weights_of(model))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-5)
    assert np.isfinite(weights[0].numpy()).all()


def recorded_samples(settings, *, world):
    """Learn from a rollout; return each epoch's samples with its first weights, the learner and the rollout."""
    model, collector, learner = build(settings, world=world)
    rollout, _ = collector.collect(0)
    seen = []

    def gather(samples, *others):
        seen.append((samples, weights_of(model).clone()))
        return gather_minibatches(samples, *others)

    with mock.patch.object(update_module, "gather_minibatches", gather):
        learner.update(rollout, update=0, env_steps=0, progress=0.0)
    return seen, learner, rollout


@pytest.mark.parametrize("kind", [ScriptedWorld, WorldInGroups])
def test_values_are_recomputed_as_they_were_collected_while_no_weight_has_changed(kind):
    _, collector, learner = build(world=kind())
    for update in range(2):
        rollout, _ = collector.collect(update)
        again = learner._revalued(rollout)
        assert (rollout.next_values == 0.0).any() and len(rollout.cuts) in (2, 3)
        torch.testing.assert_close(again.values, rollout.values)
        torch.testing.assert_close(again.next_values, rollout.next_values)
        assert torch.equal(again.rewards, rollout.rewards) and torch.equal(again.log_probs, rollout.log_probs)


@pytest.mark.parametrize("recompute", [True, False])
def test_advantages_are_estimated_again_by_the_weights_of_each_epoch_only_where_asked_for(recompute):
    settings = dataclasses.replace(SETTINGS, num_epochs=3, recompute_advantages=recompute)
    epochs, learner, rollout = recorded_samples(settings, world=ScriptedWorld())
    assert len(epochs) == 3
    for number, (samples, weights) in enumerate(epochs):
        learner._flat.values.copy_(weights if recompute else epochs[0][1])
        current = learner._revalued(rollout)
        expected = samples_of(learner, current)
        for name in ("values", "advantages", "returns"):
            torch.testing.assert_close(getattr(samples, name), getattr(expected, name), rtol=1e-4, atol=1e-4)
        assert torch.equal(samples.log_probs, rollout.log_probs.flatten())
        assert torch.equal(samples.values, epochs[0][0].values) == (number == 0 or not recompute)
    assert not torch.equal(epochs[1][1], epochs[0][1])


def test_a_rollout_counts_once_in_the_value_normaliser_however_often_it_is_prepared():
    settings = dataclasses.replace(SETTINGS, num_epochs=3, recompute_advantages=True, value_normalization=True)
    _, collector, learner = build(settings)
    learner.update(collector.collect(0)[0], update=0, env_steps=0, progress=0.0)
    assert learner._value_normalizer.state_dict()["moments"][0] == 24


def test_the_l2_penalty_reaches_the_optimiser():
    weights = []
    for l2_penalty in (0.0, 100.0):
        settings = dataclasses.replace(SETTINGS, l2_penalty=l2_penalty, num_epochs=1, minibatch_size=24)
        model, collector, learner = build(settings)
        before = weights_of(model).clone()
        learner.update(collector.collect(0)[0], update=0, env_steps=0, progress=0.0)
        weights.append(weights_of(model))
    moved = weights[1] - before
    large = before.abs() > 0.1  # here the penalty decides the sign; the first step of Adam has the size of the rate
    torch.testing.assert_close(moved[large], -1e-2 * before[large].sign(), rtol=1e-3, atol=1e-5)
    assert not torch.equal(*weights)


def test_a_rollout_that_is_not_learnt_from_has_the_columns_of_one_that_is():
    model, collector, learner = build()
    before = weights_of(model).clone()
    nothing = learner.no_update()
    assert torch.equal(weights_of(model), before)
    assert {value for name, value in nothing.items() if name != "update/epochs"} == {None}
    assert nothing["update/epochs"] == 0 and learner.seconds == {"learn": 0.0, "communicate": 0.0}
    learnt = learner.update(collector.collect(0)[0], update=0, env_steps=0, progress=0.0)
    assert list(nothing) == list(learnt)


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
    batch = samples_of(learner, rollout)
    index = indices_of(learner, 0, 0)[0]
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
    # Only one of the two ranks contributes: |g|^2 of its own steps, 2 of 3, over two ranks.
    for mean_of_squares, square_of_mean in seen:
        assert mean_of_squares == pytest.approx(square_of_mean * 1.5**2 / 2, rel=1e-4)


LATE = """
import time
import torch
from ppo.collectives import share
from ppo.collectives.abort_guard import AbortGuard
from ppo.collectives.mpi import connect
from tests.algorithm.learners import SETTINGS, build

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


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_no_rank_continues_before_every_shard_of_the_shared_weights_has_been_moved(ranks, tmp_path):
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})"
    job = mpirun(ranks, ["-c", f"{here}\n{LATE}"], tmp_path)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count(f"of {ranks} agrees after 4 steps") == ranks
