import subprocess
import sys

import pytest
import torch

from ppo.algorithm.adam import Adam


@pytest.mark.parametrize("l2_penalty", [0.0, 0.1])
def test_it_takes_the_steps_of_torch_bit_for_bit(l2_penalty):
    torch.manual_seed(0)
    values = torch.randn(1000)
    parameter = torch.nn.Parameter(values.clone())
    reference = torch.optim.Adam([parameter], lr=1.0, eps=1e-5, weight_decay=l2_penalty, fused=True)
    adam = Adam(1000, 1e-5, l2_penalty=l2_penalty)
    for rate in (1e-3, 1e-3, 5e-4, 2e-2):
        gradient = torch.randn(1000)
        parameter.grad = gradient.clone()
        reference.param_groups[0]["lr"] = rate
        reference.step()
        adam.step(values, gradient, rate)
        assert torch.equal(values, parameter.detach())


def test_the_first_step_is_the_rate_against_the_gradients_sign():
    values = torch.zeros(2)
    Adam(2, 1e-12).step(values, torch.tensor([3.0, -0.5]), 0.1)
    torch.testing.assert_close(values, torch.tensor([-0.1, 0.1]))


def test_the_l2_penalty_draws_weights_to_zero():
    values = torch.tensor([3.0, -0.5])
    Adam(2, 1e-12, l2_penalty=0.1).step(values, torch.zeros(2), 0.1)
    torch.testing.assert_close(values, torch.tensor([2.9, -0.4]))


def test_a_restored_optimiser_continues_bit_for_bit():
    gradients = torch.randn(6, 50)
    values, whole = torch.zeros(50), Adam(50, 1e-8)
    for gradient in gradients[:3]:
        whole.step(values, gradient, 0.01)
    copy, restored = values.clone(), Adam(50, 1e-8)
    restored.load_state_dict(whole.state_dict())
    for gradient in gradients[3:]:
        whole.step(values, gradient, 0.01)
        restored.step(copy, gradient, 0.01)
    assert torch.equal(values, copy)


def test_moments_of_another_network_are_refused():
    with pytest.raises(ValueError, match="the optimiser state is for 4 parameters, but this network has 5"):
        Adam(5, 1e-8).load_state_dict(Adam(4, 1e-8).state_dict())


@pytest.mark.parametrize("world", ["CartPole-v1", "PongNoFrameskip-v4"])
def test_a_run_loads_neither_the_compiler_nor_sympy(world, tmp_path):
    flags = [f"--env_name={world}", "--num_envs=2", "--rollout_steps=4", "--minibatch_size=8", "--env_steps=8"]
    program = (
        f"import sys\nfrom ppo.__main__ import main\nassert main({[*flags, '--device=cpu']}) == 0\n"
        "sys.exit(' '.join({'sympy', 'torch._dynamo'} & sys.modules.keys()) or 0)"
    )
    job = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert job.returncode == 0, job.stderr
