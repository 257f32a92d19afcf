"""Fold every batch norm into the kernel before it, for inference."""

from copy import deepcopy

import torch
from torch import nn

from saccade._registry import nearest
from saccade.attention import SpikingAttention
from saccade.models import SpikingModel
from saccade.models.transformer import SpikingTransformer
from saccade.nn import Neuron, Projection
from saccade.nn.folded import Exact, Folded

PRODUCTS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}


def fuse(model: SpikingModel, products: str = "bfloat16") -> SpikingModel:
    """A copy of a model for inference, whose projections have their batch norms folded.

    A folded kernel is rounded once, to the type of its products; membranes stay float32. Spikes
    therefore differ from those of the model in its own precision wherever that rounding moves a
    current across the threshold: measure the accuracy. With "int8" the convolutions and linear maps
    take spikes and residual sums as the integers that they are, exactly, and round only weights;
    the first one and those whose channels 16 does not divide have bfloat16 kernels. The picture is
    rounded to the type of the first kernel: counts of events above 256 lose their last bits in
    bfloat16. An attention that needs floating point is float32 within; where it hands real
    numbers to a projection, these meet the rounded weights in float32.

    Args:
        model: in evaluation mode.
        products: "float32", "bfloat16", "float16" or "int8".

    Raises:
        ValueError: for another name; a model in training mode, without projections, or with
            neurons that are more than a constant charge; convolutions outside of projections and
            attentions, unless products are "float32"; with "int8", more blocks than eight bits
            can add up.
    """
    if products not in PRODUCTS:
        raise ValueError(f"unknown products {products!r}; {nearest(products, list(PRODUCTS))}")
    if model.training:
        raise ValueError("got a model in training mode, expected model.eval()")
    dtype = PRODUCTS[products]
    if dtype == torch.int8:
        _check_integers(model)
    fused = deepcopy(model).requires_grad_(False)
    exact = {} if dtype == torch.float32 else _exact(fused)
    within = tuple(f"{path}." for path in exact)
    found = [(path, m) for path, m in fused.named_modules() if isinstance(m, Projection)]
    if not found:
        folded = any(isinstance(module, Folded) for module in fused.modules())
        raise ValueError(
            f"a {type(fused).__name__} has no projection to fuse"
            + (" left: it is fused already" if folded else "; expected a spiking transformer")
        )
    for n, (path, projection) in enumerate(found):
        emits = torch.float32 if path.startswith(within) else dtype
        _put(fused, path, _folded(path, projection, dtype, emits, sees_picture=n == 0))
    for path, attention in exact.items():
        _put(fused, path, Exact(attention, dtype))
    _check_rest(fused, dtype)
    return fused


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent).register_module(name, module)


def _exact(model: nn.Module) -> dict[str, nn.Module]:
    """Attentions that need floating point, by path; of one within another, the outer."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        inner = path.startswith(tuple(f"{outer}." for outer in found))
        if isinstance(module, SpikingAttention) and not module.takes_integers and not inner:
            found[path] = module
    return found


def _folded(
    path: str,
    projection: Projection,
    dtype: torch.dtype,
    emits: torch.dtype,
    *,
    sees_picture: bool,
) -> Folded:
    neuron = projection.neuron
    if type(neuron).forward is not Neuron.forward or any(True for _ in neuron.parameters()):
        raise ValueError(
            f"{path} has a {type(neuron).__name__}, which learns its time constant or steps in a "
            "way of its own; expected a neuron whose charge is constant, such as 'lif'"
        )
    fits = projection.conv.in_channels % 16 == 0 and projection.conv.out_channels % 16 == 0
    kernel = torch.bfloat16 if dtype == torch.int8 and (sees_picture or not fits) else dtype
    return Folded(projection, kernel, emits=emits)


def _check_rest(fused: SpikingModel, dtype: torch.dtype) -> None:
    """Nothing may stay behind that the folded projections' types do not suit."""
    exact = {m for e in fused.modules() if isinstance(e, Exact) for m in e.modules()}
    for path, module in fused.named_modules():
        if module in exact or dtype == torch.float32:
            continue
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            raise ValueError(
                f"{path} is a convolution outside of any projection and stays float32; expected "
                "products='float32'"
            )


def _check_integers(model: SpikingModel) -> None:
    if isinstance(model, SpikingTransformer) and (most := 3 + 2 * model.config.depth) > 127:
        raise ValueError(
            f"got {model.config.depth} blocks, whose residual sums reach {most}; eight bits end at "
            "127, so expected at most 62 blocks, or products='bfloat16'"
        )
