"""Run a causal model one step at a time: the same numbers as the whole sequence at once.

A model keeps nothing between calls; this wrapper does it for the model, and nowhere else. What is
carried from step to step belongs to the modules that know time: those with a method
``scan(x, state) -> (y, state)``, neurons above all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Recurrent(Protocol):
    """A module through which one step influences the next."""

    def scan(self, x: Any, state: Any = None) -> tuple[Any, Any]:
        """Output, and the state from which the sequence goes on; it must not call the module."""


class Streaming:
    """A model that is fed one step at a time; made by `saccade.streaming`.

    Several streams of one model may take turns, each with its own state. `states` is the stream's
    own: what goes on in place, as in a fused model, is written there by the next step.

    Args:
        model: in evaluation mode, or batch norm would look at single steps.

    Raises:
        ValueError: for anything but a whole model, or one in training mode, or where some
            mechanism needs the future.
    """

    def __init__(self, model: nn.Module) -> None:
        if not hasattr(model, "forward_steps"):
            raise ValueError(
                f"got a {type(model).__name__}, expected a whole model, as of saccade.create_model"
            )
        for path, module in model.named_modules():
            if getattr(module, "causal", True) is False:
                raise ValueError(
                    f"{path or 'this model'} ({type(module).__name__}) weighs later steps too, "
                    "so it cannot run before they are there; expected a causal mechanism, or "
                    "options that make this one causal (saccade show NAME lists them)"
                )
        _check_mode(model)
        self.model, self.batch, self.ended = model, 0, True
        self.states: dict[str, Any] = {}
        self._recurrent = list(_outermost(model))

    @torch.no_grad()
    def step(self, x_t: Tensor) -> Tensor:
        """Logits [B K] of this step.

        Args:
            x_t: the frames of this step [B C H W]; B must stay the same between steps.

        Raises:
            ValueError: for a shape that the model does not take, or another batch size than
                the step before had; in training mode; and behind a step that broke off.
        """
        _check_mode(self.model)
        if not self.ended:
            raise ValueError(
                "got a step behind one that broke off half way, expected restart() before it"
            )
        frame: Any = self.model.frame
        if tuple(x_t.shape[1:]) != frame or x_t.dim() != len(frame) + 1:
            sizes = ", ".join(map(str, frame))
            raise ValueError(
                f"got a step of shape {list(x_t.shape)}, expected [B, {sizes}]: the frames of one "
                "step, samples first"
            )
        if self.states and len(x_t) != self.batch:
            raise ValueError(
                f"got a batch of {len(x_t)}, expected {self.batch} as in the step before; call "
                "restart() first, or make a second stream"
            )
        self.batch, self.ended = len(x_t), False
        with self._carrying():
            logits: Tensor = self.model.forward_steps(x_t[None])[0]  # type: ignore[operator]
        self.ended = True
        return logits

    def restart(self) -> None:
        """Forget everything: the next step is the first."""
        self.states.clear()
        self.ended = True

    @contextmanager
    def _carrying(self) -> Iterator[None]:
        """Inside this block the recurrent modules go on from their states."""
        for path, module in self._recurrent:
            module.forward = self._going_on(path, module)
        try:
            yield
        finally:
            for _, module in self._recurrent:
                del module.forward  # the class's own comes back

    def _going_on(self, path: str, module: nn.Module) -> Any:
        def forward(x: Tensor, **how: Any) -> Any:
            del module.forward  # the scan may run that of the class
            try:
                scan: Any = module.scan
                y, self.states[path] = scan(x, self.states.get(path), **how)
            finally:
                module.forward = forward
            return y

        return forward


def _check_mode(model: nn.Module) -> None:
    if model.training:
        raise ValueError("got a model in training mode, expected model.eval()")


def _outermost(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Recurrent modules that are inside no other one."""
    if isinstance(module, Recurrent):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _outermost(child, f"{path}.{name}" if path else name)
