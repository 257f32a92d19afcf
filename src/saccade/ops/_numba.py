"""What every CPU kernel of the library shares: whether it can run, and the threads it runs on.

Numba comes with the extra `cpu`; without it every op keeps its other variants. It is imported,
with the kernels, by the first call that runs them. Kernels run on the threads of torch's own
OpenMP, so there is one pool of them and `torch.set_num_threads` rules it; the work is cut the same
way for any number of threads, and gives the same bits.
"""

import ctypes
import math
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saccade.ops.lif.reference import Fire

if TYPE_CHECKING:
    from numpy.typing import NDArray

AVAILABLE = find_spec("numba") is not None
DTYPES = (torch.float32, torch.bfloat16)
LANES = 32
"""Numbers of a vector in `saccade.kernels.cpu`."""
TASKS = 64
"""Shares that sums are cut into, whatever the number of threads."""
_TORCH = ctypes.CDLL(torch._C.__file__)  # finds what torch itself is linked with


def refuses(x: Tensor, dtypes: tuple[torch.dtype, ...] = DTYPES) -> str | None:
    """Why no kernel can run on `x`, or None where it can."""
    if x.device.type != "cpu":
        return f"the tensors are on {x.device.type}, not cpu"
    if x.dtype not in dtypes:
        return f"{str(x.dtype).removeprefix('torch.')} is left to torch"
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        return "torch.compile and its like see through the other variants only"
    if not AVAILABLE:
        return 'numba is not installed: pip install "saccade[cpu]"'
    if not hasattr(_TORCH, "GOMP_parallel"):
        return "this torch has no GNU OpenMP, whose threads the kernels use"
    return None


def run(kernel: Callable[..., bool], *args: Any) -> None:
    """All parts of a kernel, on every thread of torch; returns when they are done.

    Raises:
        MemoryError: where a part found no memory.
    """
    if kernel(_openmp(), torch.get_num_threads(), *args):
        raise MemoryError(f"{kernel.__name__} found no memory for a part of its work")


@cache
def _openmp() -> tuple[int, ...]:
    """Addresses of what `saccade.kernels.team` calls."""
    names = "GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"
    found = (ctypes.cast(getattr(_TORCH, name), ctypes.c_void_p).value for name in names)
    return tuple(address or 0 for address in found)


def array(x: Tensor, *shape: int) -> "NDArray[Any]":
    """The memory of a contiguous tensor as numpy sees it; bfloat16 as uint16."""
    assert x.is_contiguous(), f"got strides {x.stride()}, expected a contiguous tensor"
    x = x.detach() if x.requires_grad else x
    seen: NDArray[Any] = (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
    return seen.reshape(shape) if shape else seen


def fresh(*shape: int, dtype: torch.dtype) -> Tensor:
    """As torch.empty; but numpy asks Linux for large pages, which are cleared four times as fast.

    It matters from 32 MiB on: glibc gives such memory back whenever it is freed.
    """
    size, line = math.prod(shape) * dtype.itemsize, 64
    whole = torch.from_numpy(np.empty(size + line, np.uint8))
    first = -whole.data_ptr() % line
    x = whole[first : first + size].view(dtype).view(shape)
    switch: Any = torch.utils.deterministic
    if switch.fill_uninitialized_memory and torch.are_deterministic_algorithms_enabled():
        x.fill_(math.nan if dtype.is_floating_point else torch.iinfo(dtype).max)
    return x


def nothing() -> "NDArray[Any]":
    """An array for an argument that is not there."""
    return np.empty(0, np.float32)


def cell(decay: float, gain: float, fire: Fire) -> Any:
    """Constants of a neuron as kernels take them."""
    from saccade.kernels.cpu import Cell

    f32, kinds = np.float32, ("sigmoid", "atan", "rectangle", "triangle", "fast_sigmoid")
    theta = f32(fire.v_threshold)
    return Cell(
        decay=f32(decay),
        gain=f32(gain),
        pull=f32((1 - decay) * fire.rest),
        theta=theta,
        bar=np.nextafter(theta, f32(math.inf)) if fire.strict else theta,
        reset=f32(fire.v_reset or 0.0),
        rest=f32(fire.rest),
        alpha=f32(fire.sharpness),
        carry=f32(0 if fire.detach_membrane else decay),
        follow=not fire.detach_reset,
        hard=fire.v_reset is not None,
        kind=kinds.index(fire.surrogate),
    )


def places(C: int) -> int:
    """Numbers after which channels and vectors both begin anew."""
    return math.lcm(C, LANES)


def tasks_of(n: int, unit: int) -> tuple[int, int]:
    """Shares of n numbers, and the numbers of a share: whole units."""
    units = -(-n // unit)
    per_task = -(-units // TASKS)
    return -(-units // per_task), per_task * unit
