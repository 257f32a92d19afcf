"""Norms of several processes, each with a part of the batch, come to the norm of the whole batch.

What the processes would tell each other is found by running their parts again and again: every
exchange that is answered rightly lets the next one be asked rightly.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from saccade.ops import Fire, Norm, norm_lif

VARIANTS = ["reference", "composed"] + ["triton"] * ("triton" in norm_lif.variants)
PARTS = slice(0, 1), slice(1, 3)
FIRE = Fire(detach_reset=True)


class Exchange:
    """Adds up what each part says, from what all of them said in the round before."""

    def __init__(self) -> None:
        self.said: dict[tuple[int, int], Tensor] = {}
        self.calls = 0

    def joiner(self, rank: int, parts: int) -> Callable[[Tensor], None]:
        place = iter(range(99))

        def join(sums: Tensor) -> None:
            at = next(place)
            self.calls = max(self.calls, at + 1)
            mine = sums.clone()
            for other in range(parts):
                if other != rank:
                    sums += self.said.get((other, at), torch.zeros_like(sums))
            self.said[rank, at] = mine

        return join


def scan_of(variant: str) -> Callable[..., Tensor]:
    return norm_lif.reference if variant == "reference" else norm_lif.variants[variant][0]


def run(
    scan: Callable[..., Tensor], y: Tensor, g: Tensor, pools: bool, offset: bool, **join: object
) -> list[Tensor]:
    """Spikes, running statistics, gradients of y, weight and bias."""
    C = y.shape[2]
    chance = torch.Generator().manual_seed(1)
    weight, bias, shift = (torch.randn(C, generator=chance) / 8 + k for k in (2, 0.5, 1))
    inputs = [a.clone().requires_grad_() for a in (y, weight, bias)]
    norm = Norm(
        weight=inputs[1],
        bias=inputs[2],
        running_mean=torch.ones(C),
        running_var=torch.ones(C),
        training=True,
        offset=shift.requires_grad_() if offset else None,
        **join,  # type: ignore[arg-type]
    )
    s = scan(inputs[0], norm, 0.5, 0.5, FIRE, g.shape[0], pools)
    grads = torch.autograd.grad((s * g).sum(), inputs)
    return [s.detach(), norm.running_mean, norm.running_var, *grads]


@pytest.mark.parametrize("offset", [True, False], ids=["offset", "plain"])
@pytest.mark.parametrize("pools", [True, False], ids=["pools", "grid"])
@pytest.mark.parametrize("t", [3, 1], ids=["steps", "once"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_uneven_parts_come_to_the_whole(variant: str, t: int, pools: bool, offset: bool):
    chance, scan = torch.Generator().manual_seed(0), scan_of(variant)
    y = torch.randn(t, 3, 4, 4, 16, generator=chance).permute(0, 1, 4, 2, 3) + 2
    side = (2, 2) if pools else (4, 4)
    g = torch.randn(3, 3, *side, 16, generator=chance).permute(0, 1, 4, 2, 3)
    whole = run(scan, y, g, pools, offset)
    exchange = Exchange()
    for _ in range(3):  # forward, backward, and with both of them known
        got = [
            run(scan, y[:, p], g[:, p], pools, offset, join=exchange.joiner(rank, len(PARTS)))
            for rank, p in enumerate(PARTS)
        ]
    assert exchange.calls == 2
    assert 0.02 < whole[0].mean() < 0.98
    assert torch.equal(torch.cat([part[0] for part in got], 1), whole[0])
    for part in got:  # running statistics are the same everywhere
        for ours, theirs in zip(part[1:3], whole[1:3], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.cat([part[3] for part in got], 1), whole[3], rtol=1e-4, atol=1e-5
    )
    for k in (4, 5):  # those of weight and bias are each process's own
        torch.testing.assert_close(got[0][k] + got[1][k], whole[k], rtol=1e-4, atol=1e-4)
    # what a part comes to by itself is something else
    apart = run(scan, y[:, PARTS[0]], g[:, PARTS[0]], pools, offset)
    assert not torch.allclose(apart[3], got[0][3], atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_joined_where_statistics_are_known(variant: str):
    def never(sums: Tensor) -> None:
        raise AssertionError("joined")

    y = torch.randn(3, 2, 4, 4, 16).permute(0, 1, 4, 2, 3)
    ones = torch.ones(16)
    norm = Norm(
        weight=ones, bias=ones, running_mean=ones * 0, running_var=ones, training=False, join=never
    )
    assert scan_of(variant)(y, norm, 0.5, 0.5, FIRE, 3, False).shape == y.shape
