"""No time without equality: a variant must give its op's example the values of the reference."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from saccade.ops import Op

GRADIENT_TOLERANCE = 2e-5
"""Largest |variant - reference| / max(1, |reference|) of gradients."""


class Unequal(RuntimeError):  # noqa: N818  (what was found)
    """A variant differs from its reference, so it is not timed."""


def moved(value: Any, device: torch.device) -> Any:
    """Tensors, and dataclasses of tensors, on a device and in the same memory order."""
    if isinstance(value, Tensor):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
        tensors = {k: v.to(device) for k, v in parts.items() if isinstance(v, Tensor)}
        return replace(value, **tensors) if tensors else value
    return value


def example_on(op: Op, device: torch.device) -> tuple[Any, ...]:
    """The example arguments of an op, on a device."""
    return tuple(moved(a, device) for a in op.example())


def require_equal(op: Op, variant: str, device: torch.device) -> None:
    """Compare a variant with the reference on the op's example: values, then gradients.

    Raises:
        Unequal: where they differ by more than `Op.tolerances` allows, or where the variant
            refuses the example, so that nothing is known of it.
    """
    if variant == "reference":
        return
    fn, refuses = op.variants[variant]
    args = example_on(op, device)
    with torch.enable_grad(), _full_float32():
        if (why := refuses(*args)) is not None:
            raise Unequal(f"{op.name}: {variant!r} refuses the op's own example: {why}")
        got, want = (_run(f, args, op.learns) for f in (fn, op.reference))
    for what, allowed in (("values", op.tolerances[variant]), ("gradients", GRADIENT_TOLERANCE)):
        for i, (g, w) in enumerate(zip(got[what], want[what], strict=True)):
            if not (difference := _difference(g, w)) <= allowed:
                raise Unequal(
                    f"{op.name}: {what} {i} of {variant!r} differ from the reference by "
                    f"{difference:.3g} on {device.type}, allowed {allowed:g}: it is not timed"
                )


@contextmanager
def _full_float32() -> Iterator[None]:
    """Inside this block cuDNN and cuBLAS take float32 as it is: else references round, too."""
    libraries: tuple[Any, ...] = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [library.allow_tf32 for library in libraries]
    for library in libraries:
        library.allow_tf32 = False
    try:
        yield
    finally:
        for library, allowed in zip(libraries, before, strict=True):
            library.allow_tf32 = allowed


def _run(fn: Callable[..., Any], args: tuple[Any, ...], learns: bool) -> dict[str, list[Tensor]]:
    """Outputs, and where the op learns gradients of the inputs under uneven weights."""
    args = tuple(_leaf(a) if learns else a for a in args)
    outs = results(fn(*args))
    weights = (torch.arange(o.numel(), device=o.device).reshape(o.shape) % 7 for o in outs)
    total = sum((o * w.to(o.dtype)).sum() for o, w in zip(outs, weights, strict=True))
    inputs = differentiable(args)
    gradients: list[Any] = []
    if inputs and isinstance(total, Tensor) and total.requires_grad:
        found = torch.autograd.grad(total, inputs, allow_unused=True)
        pairs = zip(inputs, found, strict=True)
        gradients = [torch.zeros_like(a) if g is None else g for a, g in pairs]
    return {"values": [o.detach() for o in outs], "gradients": gradients}


def _leaf(a: Any) -> Any:
    return a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a


def results(out: Any) -> tuple[Tensor, ...]:
    """The tensors that a call returned."""
    return tuple(o for o in (out if isinstance(out, tuple) else (out,)) if isinstance(o, Tensor))


def differentiable(args: tuple[Any, ...]) -> list[Tensor]:
    """The arguments that take gradients."""
    return [a for a in args if isinstance(a, Tensor) and a.requires_grad]


def _difference(got: Tensor, want: Tensor) -> float:
    """Largest |got - want| / max(1, |want|); infinite for another shape or what is no number."""
    if got.shape != want.shape:
        return float("inf")
    got, want = got.double(), want.double()
    if not want.numel():
        return 0.0
    scaled = (got - want).abs() / want.abs().clamp(min=1)
    return float(scaled.max()) if scaled.isfinite().all() else float("inf")
