import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Ranks run with one thread, and so do the tests that stand in for them."""
    torch.set_num_threads(1)
