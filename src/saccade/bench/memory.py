"""Peak memory of a call: from the allocator on CUDA, elsewhere by adding up live tensors.

The two are not to be compared: the allocator knows what an operation holds inside itself.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are alive after each operation, but those held before."""

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ours: dict[int, tuple[StorageWeakRef, int]] = {}
        self.before = {t.untyped_storage()._cdata for t in before}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.ours = {k: held for k, held in self.ours.items() if not held[0].expired()}  # type: ignore[no-untyped-call]
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                if storage._cdata not in self.before:
                    weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                    self.ours[storage._cdata] = (weak, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.ours.values()))
        return out


def peak(call: Callable[[], Any], device: torch.device, before: Iterable[Tensor]) -> int:
    """Bytes that `call` holds at its worst, beyond what was held before it.

    Args:
        call: runs twice on CUDA, so that libraries have allocated their workspaces, else once.
        device: where it computes.
        before: the tensors that were held; CUDA's allocator knows by itself.
    """
    if device.type == "cuda":
        call()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        most: int = torch.cuda.max_memory_allocated(device) - held
        return most
    with LiveBytes(before) as live:
        call()
    most = live.peak
    return most
