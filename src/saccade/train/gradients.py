"""Gradients side by side in memory, so that one operation acts on all of them."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from saccade.train.devices import local, whole

_ALIGNED = 64
"""Elements at whose multiples a gradient begins: 256 bytes of float32, as an allocator would."""


class Gradients:
    """The gradients of a model, in one flat tensor for each dtype.

    Autograd leaves each gradient in memory of its own, so that nothing has to be cleared or added
    to; `gather` copies all of them side by side. A parameter that got none has none. Gradients that
    are spread over devices (fsdp) stay where they are.

    Args:
        model: whose parameters learn.
    """

    def __init__(self, model: nn.Module) -> None:
        self.learned = [p for p in model.parameters() if p.requires_grad]
        self.held: list[Tensor] = []
        self._views: dict[Tensor, Tensor] = {}
        by_dtype: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for p in self.learned:
            if not isinstance(p, DTensor):
                by_dtype[p.dtype].append(p)
        for same in by_dtype.values():
            self._lay_out(same)

    def _lay_out(self, same: Sequence[Tensor]) -> None:
        starts, end = [], 0
        for p in same:
            starts.append(end)
            end += -(-p.numel() // _ALIGNED) * _ALIGNED
        flat = same[0].new_zeros(end)
        for p, start in zip(same, starts, strict=True):
            # as the parameter lies, channels-last or not: optimisers take both at once
            strides = torch.empty_like(p, device="meta").stride()
            self._views[p] = flat.as_strided(p.shape, strides, start)
        self.held.append(flat)

    def clear(self) -> None:
        """Let every parameter have none."""
        for p in self.learned:
            p.grad = None

    def gather(self) -> list[Tensor]:
        """Bring them together; what holds all of them, to act on in place."""
        found = [(p, p.grad) for p in self.learned if p.grad is not None]
        if spread := [local(g) for p, g in found if p not in self._views]:
            return spread
        views = [self._views[p] for p, _ in found]
        if views:
            torch._foreach_copy_(views, [g for _, g in found])
        for (p, _), view in zip(found, views, strict=True):
            p.grad = view
        return self.held

    def norm(self) -> Tensor:
        """Of all of them together, over all devices."""
        return whole(nn.utils.get_total_norm([p.grad for p in self.learned if p.grad is not None]))
