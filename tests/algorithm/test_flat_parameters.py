import pytest
import torch

from ppo.algorithm.flat_parameters import FlatParameters


def test_what_backward_adds_and_what_is_written_to_the_parameters_is_in_the_flat_vectors():
    model = torch.nn.Linear(2, 3)
    weight = model.weight.detach().clone()
    flat = FlatParameters(model, num_sums=2)
    assert torch.equal(flat.values[:6], weight.flatten())
    for _ in range(2):
        model(torch.tensor([[1.0, 2.0]])).sum().backward()
    flat.check_views()
    assert flat.exchanged.tolist() == [2.0, 4.0] * 3 + [2.0] * 3 + [0.0, 0.0]
    flat.sums.fill_(1.0)
    flat.zero_gradient()
    assert not flat.exchanged.any() and not model.weight.grad.any()
    flat.values.fill_(7.0)
    assert (model.weight == 7.0).all() and (model.bias == 7.0).all()


def test_a_lost_gradient_view_is_noticed():
    model = torch.nn.Linear(2, 2)
    flat = FlatParameters(model, num_sums=0)
    model.zero_grad(set_to_none=False)
    flat.check_views()
    model.weight.grad = torch.zeros(2, 2)
    with pytest.raises(AssertionError):
        flat.check_views()
