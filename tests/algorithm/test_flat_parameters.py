import pytest
import torch

from ppo.algorithm.flat_parameters import FlatParameters


@pytest.fixture(params=["a processor", "a GPU, with the tensors of a processor"])
def flat_of(request):
    def make(model, num_sums):
        flat = FlatParameters(model, num_sums, moves_gradients=request.param == "a processor")
        flat.start_gradient()
        return flat

    return make


def test_what_backward_adds_and_what_is_written_to_the_parameters_is_in_the_flat_vectors(flat_of):
    model = torch.nn.Linear(2, 3)
    weight = model.weight.detach().clone()
    flat = flat_of(model, 2)
    assert torch.equal(flat.values[:6], weight.flatten())
    for _ in range(2):
        model(torch.tensor([[1.0, 2.0]])).sum().backward()
    flat.check_gradient()
    assert flat.buffer.tolist() == [2.0, 4.0] * 3 + [2.0] * 3 + [0.0, 0.0]
    flat.sums.fill_(1.0)
    flat.start_gradient()
    assert not flat.sums.any()
    model(torch.tensor([[1.0, 2.0]])).sum().backward()
    assert flat.buffer.tolist() == [1.0, 2.0] * 3 + [1.0] * 3 + [0.0, 0.0]
    flat.values.fill_(7.0)
    assert (model.weight == 7.0).all() and (model.bias == 7.0).all()


def test_a_lost_gradient_view_is_noticed():
    model = torch.nn.Linear(2, 2)
    flat = FlatParameters(model, num_sums=0, moves_gradients=False)
    model.zero_grad(set_to_none=False)
    flat.check_gradient()
    model.weight.grad = torch.zeros(2, 2)
    with pytest.raises(AssertionError):
        flat.check_gradient()


def test_a_parameter_without_a_gradient_is_noticed_where_its_last_one_would_stay():
    model = torch.nn.Linear(2, 2)
    flat = FlatParameters(model, num_sums=0, moves_gradients=True)
    flat.start_gradient()
    (torch.ones(1, 2) @ model.weight.T).sum().backward()
    with pytest.raises(AssertionError):
        flat.check_gradient()


def test_the_memory_may_be_given():
    model = torch.nn.Linear(2, 2)
    buffer, values = torch.zeros(7), torch.zeros(6)
    flat = FlatParameters(model, 1, buffer, values)
    flat.start_gradient()
    model(torch.ones(1, 2)).sum().backward()
    assert buffer.tolist() == [1.0] * 6 + [0.0]
    values.fill_(3.0)
    assert (model.weight == 3.0).all()
