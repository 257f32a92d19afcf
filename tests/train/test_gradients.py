"""Gradients side by side are the gradients."""

import torch
from torch import nn

from saccade.train.gradients import Gradients


class Mixed(nn.Module):
    """Kernels that lie channels-last, a vector, a number, another dtype, and one that is unused."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.long = nn.Parameter(torch.randn(7, dtype=torch.float64))
        self.unused = nn.Parameter(torch.randn(4))
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).square().mean() * self.scale + self.long.square().sum()


X = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_they_are_the_same_numbers_in_one_tensor_for_each_dtype():
    plain, model = Mixed(), Mixed()
    gradients = Gradients(model)
    for _ in range(2):  # what was there before is gone
        plain.zero_grad()
        plain(X).backward()
        gradients.clear()
        model(X).backward()
        held = gradients.gather()
    assert [flat.dtype for flat in held] == [torch.float32, torch.float64]
    memory = {flat.untyped_storage().data_ptr() for flat in held}
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        if name in ("unused", "frozen"):
            assert p.grad is None
            continue
        assert torch.equal(p.grad, q.grad), name
        assert p.grad.untyped_storage().data_ptr() in memory
        assert p.grad.stride() == p.stride(), name
        assert p.grad.data_ptr() % 64 == 0
    norm = nn.utils.get_total_norm([q.grad for q in plain.parameters() if q.grad is not None])
    assert torch.equal(gradients.norm(), norm)
    for flat in held:
        flat.mul_(2)
    assert torch.equal(model.scale.grad, 2 * plain.scale.grad)
    assert torch.equal(model.long.grad, 2 * plain.long.grad)


def test_a_parameter_that_loses_its_gradient_leaves_nothing_behind():
    model = Mixed()
    gradients = Gradients(model)
    (model(X) + model.unused.sum()).backward()
    gradients.gather()
    assert model.unused.grad is not None
    gradients.clear()
    model(X).backward()
    gradients.gather()
    assert model.unused.grad is None
