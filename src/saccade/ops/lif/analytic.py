"""The same recurrence with its backward pass written out.

Autograd keeps about ten tensors a step for the reference; this variant keeps one, the charged
membrane h, and finds spikes and resets again from it. Forward values are bit-equal: the same
products and sums are rounded in the same order.
"""

from typing import Any

import torch
from torch import Tensor

from saccade.ops.lif.reference import Fire
from saccade.ops.surrogate import SURROGATE


def refuses(
    x: Tensor, v0: Tensor | None, decay: float | Tensor, gain: float | Tensor, fire: Fire
) -> str | None:
    """Only constants: the gradients of a learned decay or gain are left to autograd."""
    if isinstance(decay, Tensor) or isinstance(gain, Tensor):
        return "decay and gain are learned here"
    # torch.compile fuses the unrolled steps itself, and cannot trace what is done in place here
    return "torch.compile sees the reference" if torch.compiler.is_compiling() else None


def scan(
    x: Tensor, v0: Tensor | None, decay: float, gain: float, fire: Fire
) -> tuple[Tensor, Tensor]:
    """See `saccade.ops.lif.reference.scan`."""
    s, v = _Scan.apply(x, v0, decay, gain, fire)  # type: ignore[no-untyped-call]
    return s, v


def _run(
    x: Tensor, v0: Tensor | None, decay: float, gain: float, fire: Fire
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, last membrane, and every charged membrane."""
    rest = fire.rest
    h = x * gain
    s = torch.empty_like(h)
    fires = torch.gt if fire.strict else torch.ge
    v = torch.full_like(h[0], rest) if v0 is None else v0
    for h_t, s_t in zip(h, s, strict=True):
        h_t.add_(v * decay)
        if rest:
            h_t.add_((1 - decay) * rest)
        # h >= theta wherever the reference finds h - theta >= 0: a difference of floats is 0
        # only between equals
        fires(h_t, fire.v_threshold, out=s_t)
        if fire.v_reset is None:
            v = torch.sub(h_t, s_t, alpha=fire.v_threshold)
        elif fire.v_reset == 0:
            v = torch.addcmul(h_t, h_t, s_t, value=-1)  # h - h s: exact, in one pass
        else:
            v = h_t.masked_fill(s_t > 0, fire.v_reset)
    return s, v, h


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v0: Tensor | None, decay: float, gain: float, fire: Fire
    ) -> tuple[Tensor, Tensor]:
        s, v, h = _run(x, v0, decay, gain, fire)
        ctx.save_for_backward(h)
        ctx.constants = decay, gain, fire
        return s, v

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_s, grad_v = grads
        (h,) = ctx.saved_tensors
        decay, gain, fire = ctx.constants
        slope = SURROGATE[fire.surrogate].derivative(h - fire.v_threshold, fire.sharpness)
        dv_dh = _reset_slope(h, slope, fire)
        grad_h = slope.mul_(grad_s)
        carried, kept = grad_v, 0.0 if fire.detach_membrane else decay
        for t in range(len(h) - 1, -1, -1):
            grad_h[t].addcmul_(carried, dv_dh[t])
            carried = grad_h[t] * kept
        return grad_h.mul_(gain), carried if ctx.needs_input_grad[1] else None, None, None, None


def _reset_slope(h: Tensor, slope: Tensor, fire: Fire) -> Tensor:
    """dv_t/dh_t of the reset line."""
    if fire.v_reset is None:
        return torch.ones_like(h) if fire.detach_reset else 1 - fire.v_threshold * slope
    kept = (h <= fire.v_threshold if fire.strict else h < fire.v_threshold).to(h.dtype)
    return kept if fire.detach_reset else kept + (fire.v_reset - h) * slope
