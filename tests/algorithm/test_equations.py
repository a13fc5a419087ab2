import math

import numpy as np
import pytest
import torch

from ppo.algorithm import equations


def slow_gae(rewards, values, next_values, dones, discount, gae_lambda):
    """The sum of eq. 16, written out: sum over k of (discount * lambda)^k delta_{t+k} until the episode ends."""
    num_steps, num_envs = rewards.shape
    advantages = np.zeros((num_steps, num_envs))
    for n in range(num_envs):
        for t in range(num_steps):
            for k in range(num_steps - t):
                delta = rewards[t + k, n] + discount * next_values[t + k, n] - values[t + k, n]
                advantages[t, n] += (discount * gae_lambda) ** k * delta
                if dones[t + k, n]:
                    break
    return advantages


def random_trajectory(num_steps=40, num_envs=3, seed=0):
    random = np.random.default_rng(seed)
    rewards, values = random.normal(size=(2, num_steps, num_envs))
    dones = random.random((num_steps, num_envs)) < 0.15
    truncated = dones & (random.random((num_steps, num_envs)) < 0.5)
    following = np.concatenate([values[1:], random.normal(size=(1, num_envs))])
    final_values = random.normal(size=(num_steps, num_envs))
    next_values = np.where(dones, np.where(truncated, final_values, 0.0), following)
    return rewards, values, next_values, dones


def column(*numbers, dtype=torch.float64):
    return torch.tensor(numbers, dtype=dtype).unsqueeze(1)


def test_gae_agrees_with_the_sum_of_the_paper_written_out():
    rewards, values, next_values, dones = random_trajectory()
    expected = slow_gae(rewards, values, next_values, dones, 0.97, 0.9)
    got = equations.gae(
        *(torch.from_numpy(a) for a in (rewards, values, next_values, dones)), discount=0.97, gae_lambda=0.9
    )
    assert dones.any()
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-10)


def test_gae_reproduces_golden_advantages():
    rewards = column(0, 1, 2, 3, 4, 5) / 20
    values = column(0, 0, 1, 2, 3, 5)
    next_values = column(0, 1, 2, 3, 5, 5)
    dones = torch.zeros(6, 1, dtype=torch.bool)
    got = equations.gae(rewards, values, next_values, dones, discount=0.99, gae_lambda=0.95)
    golden = [4.694519, 4.991514, 4.201504, 3.318983, 2.3381, 0.2]
    np.testing.assert_allclose(got.squeeze(1).numpy(), golden, atol=1e-6)


def test_gae_with_lambda_one_is_the_discounted_return_minus_the_value():
    rewards, nothing = column(0, 1, 2, 3, 4, 5), torch.zeros(6, 1, dtype=torch.float64)
    dones = torch.zeros(6, 1, dtype=torch.bool)
    values = column(3, 1, 4, 1, 5, 9)
    next_values = torch.cat([values[1:], nothing[:1]])
    got = equations.gae(rewards, values, next_values, dones, discount=0.99, gae_lambda=1.0)
    golden = column(14.4584312895, 14.60447605, 13.741895, 11.8605, 8.95, 5.0)
    np.testing.assert_allclose((got + values).numpy(), golden.numpy(), atol=1e-9)


def test_gae_with_lambda_zero_is_the_one_step_error():
    rewards, values, next_values, dones = (torch.from_numpy(a) for a in random_trajectory())
    got = equations.gae(rewards, values, next_values, dones, discount=0.9, gae_lambda=0.0)
    torch.testing.assert_close(got, rewards + 0.9 * next_values - values)


def test_truncation_bootstraps_and_termination_does_not():
    rewards, values, done = column(1.0), column(0.5), column(1, dtype=torch.bool)
    truncated = equations.gae(rewards, values, column(10.0), done, discount=0.9, gae_lambda=0.95)
    terminated = equations.gae(rewards, values, column(0.0), done, discount=0.9, gae_lambda=0.95)
    assert truncated.item() == pytest.approx(1.0 + 9.0 - 0.5)
    assert terminated.item() == pytest.approx(1.0 - 0.5)


def test_nothing_leaks_over_the_end_of_an_episode():
    rewards, zero = column(0.0, 100.0), column(0.0, 0.0)
    ended = equations.gae(rewards, zero, zero, column(1, 0, dtype=torch.bool), discount=1.0, gae_lambda=1.0)
    going_on = equations.gae(rewards, zero, zero, column(0, 0, dtype=torch.bool), discount=1.0, gae_lambda=1.0)
    assert ended[0].item() == 0.0
    assert going_on[0].item() == 100.0


def surrogate_gradient(log_ratio, advantage, clip_range=0.2):
    log_ratios = torch.tensor([log_ratio], requires_grad=True)
    equations.clipped_surrogate_loss(log_ratios, torch.tensor([advantage]), clip_range).sum().backward()
    return log_ratios.grad.item()


def test_at_ratio_one_the_surrogate_is_the_policy_gradient():
    # Minimising must raise the probability of what turned out well: d loss / d log pi = -advantage.
    assert surrogate_gradient(0.0, 3.0) == pytest.approx(-3.0)
    assert surrogate_gradient(0.0, -3.0) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected_loss", "has_gradient"),
    [
        (1.5, 2.0, -2.4, False),  # already raised enough
        (0.5, -2.0, 1.6, False),  # already lowered enough
        (1.5, -2.0, 3.0, True),  # raised but bad: the gradient is not clipped
        (0.5, 2.0, -1.0, True),  # lowered though it was good
        (1.1, 2.0, -2.2, True),
    ],
)
def test_the_surrogate_is_clipped_on_the_profitable_side_only(ratio, advantage, expected_loss, has_gradient):
    log_ratio = math.log(ratio)
    loss = equations.clipped_surrogate_loss(torch.tensor([log_ratio]), torch.tensor([advantage]), 0.2)
    assert loss.item() == pytest.approx(expected_loss, abs=1e-5)
    assert (surrogate_gradient(log_ratio, advantage) != 0.0) == has_gradient


def test_value_loss_is_half_the_squared_error():
    loss = equations.value_loss(torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([1.0]), None)
    assert loss.item() == 2.0


@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_at_the_old_value_the_derivative_of_the_value_loss_is_the_error(clip_range):
    # Both errors are the same there, and neither may be lost.
    values = torch.tensor([3.0, 3.0, 3.0], requires_grad=True)
    loss = equations.value_loss(values, torch.full((3,), 3.0), torch.tensor([1.0, 3.0, 4.0]), clip_range)
    assert torch.autograd.grad(loss.sum(), values)[0].tolist() == [2.0, 0.0, -1.0]


def test_clipped_value_loss_is_the_larger_of_both_errors():
    old, target = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    loss = equations.value_loss(torch.tensor([0.9, 5.0]), old, target, 0.2)
    # A jump towards the target counts as a step of 0.2; one past it counts in full.
    torch.testing.assert_close(loss, torch.tensor([0.5 * 0.8**2, 0.5 * 4.0**2]))


def test_the_kl_estimate_has_the_true_kl_as_its_mean_and_is_never_negative():
    old, new = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.4, 0.4, 0.2])
    estimates = equations.approximate_kl((new / old).log())
    true_kl = (old * (old / new).log()).sum()
    assert (estimates >= 0).all()
    assert (old * estimates).sum().item() == pytest.approx(true_kl.item(), abs=1e-6)


def test_clipped_counts_both_sides_of_the_range():
    ratios = torch.tensor([0.79, 0.81, 1.0, 1.19, 1.21])
    assert equations.clipped(ratios.log(), 0.2).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("error", "loss", "slope"), [(0.5, 0.125, 0.5), (-3.0, 2.5, -1.0), (1.0, 0.5, 1.0), (8.0, 7.5, 1.0)]
)
@pytest.mark.parametrize("clip_range", [None, 100.0])
def test_a_smooth_value_loss_is_the_squared_one_up_to_an_error_of_1_and_a_straight_line_beyond(
    error, loss, slope, clip_range
):
    values = torch.tensor([5.0 + error], requires_grad=True)
    got = equations.value_loss(values, values.detach(), torch.tensor([5.0]), clip_range, smooth_l1=True)
    assert got.item() == pytest.approx(loss)
    assert torch.autograd.grad(got.sum(), values)[0].item() == pytest.approx(slope)


def test_a_clipped_smooth_value_loss_is_the_larger_of_both():
    old, target = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    loss = equations.value_loss(torch.tensor([0.9, 5.0]), old, target, 0.2, smooth_l1=True)
    torch.testing.assert_close(loss, torch.tensor([0.5 * 0.8**2, 4.0 - 0.5]))


@pytest.mark.parametrize(("env_steps", "expected"), [(0, 3e-4), (50, 1.5e-4), (100, 1e-4), (450, 3e-5)])
def test_inverse_time_decay_halves_a_value_after_its_steps_and_never_ends(env_steps, expected):
    assert equations.inverse_time_decay(3e-4, env_steps, 50) == pytest.approx(expected)


@pytest.mark.parametrize(("env_steps", "expected"), [(0, 0.95), (400, 0.95), (600, 0.925), (800, 0.9), (9_999, 0.9)])
def test_lambda_is_early_at_first_and_late_at_last_and_between_them_in_the_middle(env_steps, expected):
    assert equations.scheduled_lambda(env_steps, early=0.95, late=0.9, late_steps=800) == pytest.approx(expected)


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 2.5e-4), (0.5, 1.25e-4), (1.0, 0.0), (1.3, 0.0)])
def test_linear_decay_ends_at_zero_and_stays_there(progress, expected):
    assert equations.linear_decay(2.5e-4, progress) == pytest.approx(expected)


@pytest.mark.parametrize(("kl", "expected"), [(0.03, 2e-4), (0.02, 3e-4), (0.01, 3e-4), (0.005, 3e-4), (0.004, 4.5e-4)])
def test_the_adaptive_rate_falls_when_the_policy_moves_too_far_and_rises_when_too_little(kl, expected):
    rate = equations.adapted_learning_rate(3e-4, kl, kl_target=0.01, factor=1.5, maximum=1e-3)
    assert rate == pytest.approx(expected)


def test_the_adaptive_rate_never_passes_its_maximum():
    assert equations.adapted_learning_rate(9e-4, 0.0, kl_target=0.01, factor=1.5, maximum=1e-3) == 1e-3
