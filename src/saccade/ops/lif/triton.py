"""The recurrence in one pass over the currents each way; backward finds the membranes again."""

from typing import Any

import torch
from torch import Tensor

from saccade.kernels import lif as kernels
from saccade.ops._triton import (
    FLAGS,
    Kernels,
    dense,
    launch,
    like,
    operator,
    power_of_two,
    tiles,
)
from saccade.ops._triton import refuses as no_kernel
from saccade.ops.lif.constants import constants, fire_of, scalars
from saccade.ops.lif.reference import Fire


def refuses(
    x: Tensor, v0: Tensor | None, decay: float | Tensor, gain: float | Tensor, fire: Fire
) -> str | None:
    """Constants only, in memory without gaps."""
    if isinstance(decay, Tensor) or isinstance(gain, Tensor):
        return "decay and gain are learned here"
    if fire.detach_membrane:
        return "detach_membrane has no kernel"
    if not dense(x):
        return "the currents lie in memory with gaps"
    return no_kernel(x, len(x))


def _run(
    x: Tensor, v0: Tensor | None, decay: float, gain: float, v_threshold: float,
    v_reset: float | None, v_rest: float, strict: bool, detach_reset: bool, surrogate: str,
    alpha: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    fire = fire_of(v_threshold, v_reset, v_rest, strict, detach_reset, surrogate, alpha)
    s, v = torch.empty_like(x), torch.empty_like(x[0], dtype=torch.float32)
    block = _block(len(x))
    launch(
        kernels.forward, (tiles(v.numel(), block),), x, v0, s, v, v.numel(), fire.rest,
        START=v0 is not None, T=len(x), BLOCK=block, **constants(decay, gain, fire), **FLAGS,
    )  # fmt: skip
    return s, v


@operator("lif_backward")
def _run_back(
    x: Tensor, v0: Tensor | None, grad_s: Tensor, grad_v: Tensor | None, decay: float, gain: float,
    v_threshold: float, v_reset: float | None, v_rest: float, strict: bool, detach_reset: bool,
    surrogate: str, alpha: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    fire = fire_of(v_threshold, v_reset, v_rest, strict, detach_reset, surrogate, alpha)
    grad_x, grad_v0 = torch.empty_like(x), torch.empty_like(x[0] if v0 is None else v0)
    block, n = _block(len(x)), x[0].numel()
    launch(
        kernels.backward, (tiles(n, block),), x, v0, grad_s, grad_v, grad_x, grad_v0, n, fire.rest,
        DETACH=detach_reset, KIND=surrogate, START=v0 is not None, END=grad_v is not None,
        T=len(x), BLOCK=block, **constants(decay, gain, fire), **FLAGS,
    )  # fmt: skip
    return grad_x, grad_v0


def _block(steps: int) -> int:
    """Elements of a program: its membranes of all steps stay in registers."""
    return max(128, min(1024, 8192 // power_of_two(steps)))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, v0, *ctx.constants = inputs
    ctx.save_for_backward(x, v0)
    ctx.set_materialize_grads(False)  # nobody may need the last membrane


def _differentiate(
    ctx: Any, grad_s: Tensor | None, grad_v: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, v0 = ctx.saved_tensors
    grad_s = torch.zeros_like(x) if grad_s is None else like(grad_s, x)
    grad_v = None if grad_v is None else like(grad_v, x[0])
    grad_x, grad_v0 = _run_back(x, v0, grad_s, grad_v, *ctx.constants)
    return grad_x, None if v0 is None else grad_v0, *(None for _ in ctx.constants)


_op = Kernels("lif_forward", _run, _keep, _differentiate)


def scan(
    x: Tensor, v0: Tensor | None, decay: float, gain: float, fire: Fire
) -> tuple[Tensor, Tensor]:
    """See `saccade.ops.lif.reference.scan`. The last membrane is float32."""
    v0 = None if v0 is None else like(v0, x[0])
    s, v = _op(x, v0, decay, gain, *scalars(fire))
    return s, v
