"""What holds for all tests of ops."""

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_empty_tensors():
    """What `torch.empty` leaves unwritten is NaN, so that it cannot pass for a result."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
