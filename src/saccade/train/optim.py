"""Optimisers by name: which parameters are decayed, and which rule moves them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.conv import _ConvNd

from saccade._registry import Registry, nearest
from saccade.models import SpikingModel
from saccade.train.moments import Lamb, Muon
from saccade.train.recipe import Optim

OPTIMIZER: Registry[Callable[..., torch.optim.Optimizer]] = Registry("optimizer")
"""Name -> function of (model, the recipe's optim) and the options of that optimiser."""

DECAY: dict[str, Callable[[Tensor], bool]] = {
    "matrices": lambda p: p.dim() > 1,
    "all": lambda p: True,
}
"""Which parameters `weight_decay` acts on. "matrices" spares those of one axis or none (biases,
norms, time constants), as the official code of Spikformer does; "all" is torch's own habit."""
_WHOLE = ("lamb", "muon")
"""Those that look at a layer as a whole: its norm, its singular values."""


def make_optimizer(
    model: nn.Module, optim: Optim, *, recorded: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of a recipe. Each group keeps the peak of its rate as "peak_lr".

    Args:
        model: what learns.
        optim: the recipe's part.
        recorded: whether its steps will be part of a CUDA graph; see `make_recordable`.

    Raises:
        ValueError: for an unknown optimiser, option or decay rule, naming the nearest; or a value
            out of its range.
    """
    if optim.decay not in DECAY:
        raise ValueError(f"unknown optim.decay {optim.decay!r}; {nearest(optim.decay, [*DECAY])}")
    part = {**optim.options, "name": optim.name}
    if optim.name in _WHOLE and any(isinstance(p, DTensor) for p in model.parameters()):
        raise ValueError(
            f"got optim.name={optim.name!r} with strategy fsdp, which leaves a part of each matrix "
            "on each device, expected adamw, adam or sgd; or strategy ddp"
        )
    optimizer: torch.optim.Optimizer = OPTIMIZER.build(part, model, optim)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
        if recorded:  # torch's own rules; ours never ask the device for a number
            group |= {name: True for name in ("fused", "capturable") if name in group}
    return optimizer


def make_recordable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let tensors of the device stand for what changes from step to step, once a state was read."""
    exact = torch.float64 if device.type == "cpu" else torch.float32  # what fused rules take
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros((), dtype=exact, device=device)
        if isinstance(optimizer, torch.optim.SGD) and group["momentum"]:
            for p in group["params"]:  # nothing, as before the first step
                optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p))


def _groups(learned: list[nn.Parameter], optim: Optim) -> list[dict[str, Any]]:
    """Those that are decayed and those that are not."""
    decays = DECAY[optim.decay]
    return [
        {"params": [p for p in learned if decays(p)], "weight_decay": optim.weight_decay},
        {"params": [p for p in learned if not decays(p)], "weight_decay": 0.0},
    ]


def _learned(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _betas(beta1: float, beta2: float, eps: float) -> dict[str, Any]:
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        _check_share(name, value)
    if not eps > 0:
        raise ValueError(f"got optim.options.eps={eps}, expected a number above 0")
    return {"betas": (beta1, beta2), "eps": eps}


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"got optim.options.{name}={value}, expected a share from 0 up to 1")


@OPTIMIZER.add("adamw")
def _adamw(
    model: nn.Module,
    optim: Optim,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Adam with the decay beside the gradient (Loshchilov and Hutter, arXiv:1711.05101)."""
    return torch.optim.AdamW(
        _groups(_learned(model), optim), lr=optim.lr, **_betas(beta1, beta2, eps)
    )


@OPTIMIZER.add("adam")
def _adam(
    model: nn.Module,
    optim: Optim,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Adam with the decay inside the gradient (Kingma and Ba, arXiv:1412.6980); MA-SNN's choice."""
    return torch.optim.Adam(
        _groups(_learned(model), optim), lr=optim.lr, **_betas(beta1, beta2, eps)
    )


@OPTIMIZER.add("sgd")
def _sgd(
    model: nn.Module, optim: Optim, *, momentum: float = 0.9, nesterov: bool = True
) -> torch.optim.Optimizer:
    """Gradient descent with momentum; the residual nets' choice."""
    _check_share("momentum", momentum)
    return torch.optim.SGD(
        _groups(_learned(model), optim),
        lr=optim.lr,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
    )


@OPTIMIZER.add("lamb")
def _lamb(
    model: nn.Module,
    optim: Optim,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-6,
    max_trust: float | None = None,
) -> torch.optim.Optimizer:
    """Adam whose step is as long as the layer's weights are (You et al., arXiv:1904.00962)."""
    if max_trust is not None and not max_trust > 0:
        raise ValueError(f"got optim.options.max_trust={max_trust}, expected a number above 0")
    groups = _groups(_learned(model), optim)
    return Lamb(groups, lr=optim.lr, max_trust=max_trust, **_betas(beta1, beta2, eps))


@OPTIMIZER.add("muon")
def _muon(
    model: nn.Module,
    optim: Optim,
    *,
    matrix_lr: float = 0.02,
    matrix_decay: float = 0.0,
    momentum: float = 0.95,
    nesterov: bool = True,
    iterations: int = 5,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Orthogonalised momentum on inner matrices and kernels, AdamW on the rest (Jordan, 2024)."""
    _check_share("momentum", momentum)
    if not matrix_lr > 0:
        raise ValueError(f"got optim.options.matrix_lr={matrix_lr}, expected a number above 0")
    for name, value, least in (("matrix_decay", matrix_decay, 0), ("iterations", iterations, 1)):
        if not value >= least:
            raise ValueError(f"got optim.options.{name}={value}, expected {least} or more")
    inner = inner_kernels(model)
    if not inner:
        raise ValueError(
            "got a model without a convolution or linear layer between its first and its last; "
            "muon has nothing to move: use optim.name=adamw"
        )
    chosen = {id(p) for p in inner}
    rest = _groups([p for p in _learned(model) if id(p) not in chosen], optim)
    matrices = {"params": inner, "lr": matrix_lr, "weight_decay": matrix_decay}
    return Muon(
        matrices,
        rest,
        lr=optim.lr,
        momentum=momentum,
        nesterov=nesterov,
        iterations=iterations,
        **_betas(beta1, beta2, eps),
    )


def inner_kernels(model: nn.Module) -> list[nn.Parameter]:
    """Weights of convolutions and linear layers that learn, but those of the first and the head.

    The head is what the model names in `last`, or else the last such layer.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)]
    weights = [m.get_parameter("weight") for m in layers]
    head = [model.get_parameter(model.last)] if isinstance(model, SpikingModel) else weights[-1:]
    ends = {id(p) for p in (*weights[:1], *head)}
    inner = {id(p): p for p in weights if p.requires_grad}  # a shared one once
    return [p for i, p in inner.items() if i not in ends]
