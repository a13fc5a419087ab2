import torch

from ppo.collectives import Alone
from ppo.config import Config
from ppo.run import build_run
from ppo.supervision.replicas import _digest, compare_replicas, difference

HOSTS = ["a", "b", "c"]


def test_equal_replicas_are_not_different():
    assert difference([{"w": "1"}] * 3, HOSTS) is None


def test_the_rank_that_differs_from_the_majority_is_named_with_the_tensor_and_both_hashes():
    text = difference([{"w": "1", "v": "7"}, {"w": "2", "v": "7"}, {"w": "2", "v": "7"}], HOSTS)
    assert "rank 0 on a differs from rank 1 on b in w (1 there, 2 here)" in text
    assert "v (" not in text


def test_in_a_draw_rank_0_is_the_reference():
    assert "rank 1 on b differs from rank 0 on a" in difference([{"w": "1"}, {"w": "2"}], HOSTS)


def test_the_smallest_change_changes_the_hash():
    tensor = torch.ones(1000)
    changed = tensor.clone()
    changed[3] = torch.nextafter(changed[3], torch.tensor(2.0))
    assert _digest(tensor) != _digest(changed)
    assert _digest(tensor) == _digest(tensor.clone())


def test_the_hash_is_of_the_values_and_not_of_their_order_in_memory():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert _digest(tensor.T) == _digest(tensor.T.contiguous())


def test_a_single_rank_has_nothing_to_compare():
    compare_replicas({"w": torch.ones(2)}, Alone(), ["a"])


def test_what_all_ranks_share_is_not_compared_and_everything_else_is():
    config = Config().replace_settings({"num_envs": 1, "rollout_steps": 8, "minibatch_size": 8})
    run = build_run(config, Alone())
    saved = run.model_tensors().keys() | run.learner_tensors().keys()
    assert run.replicated_tensors().keys() == saved
    run.learner.is_one_replica = True  # as where all ranks share one host's memory
    shared = {f"model/{name}" for name, _ in run.model.named_parameters()}
    assert saved - run.replicated_tensors().keys() == shared | {"learner/first_moment", "learner/second_moment"}
    assert {
        "model/inputs.moments",
        "model/inputs.applied",
        "value_normalizer/moments",
    } <= run.replicated_tensors().keys()
    run.close()
