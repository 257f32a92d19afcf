"""Fold every batch norm into the kernel before it, for inference."""

from copy import deepcopy

import torch
from torch import nn

from saccade._registry import nearest
from saccade.attention import SpikingAttention
from saccade.models import SpikingModel
from saccade.nn import Neuron, Projection, Stem
from saccade.nn.folded import Folded, IntegerStem

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
    current across the threshold: measure the accuracy. With "int8" the linear maps of the blocks
    take spikes and residual sums as the integers that they are, exactly, and round only weights;
    the convolutions of the stem stay bfloat16.

    Args:
        model: in evaluation mode.
        products: "float32", "bfloat16", "float16" or "int8".

    Raises:
        ValueError: for another name; a model in training mode, without projections, or with
            neurons that are more than a constant charge; convolutions outside of projections,
            unless products are "float32"; with "int8", an attention that needs floating point.
    """
    if products not in PRODUCTS:
        raise ValueError(f"unknown products {products!r}; {nearest(products, list(PRODUCTS))}")
    if model.training:
        raise ValueError("got a model in training mode, expected model.eval()")
    dtype = PRODUCTS[products]
    if dtype == torch.int8:
        _check_integers(model)
    fused = deepcopy(model).requires_grad_(False)
    for path, module in [*fused.named_modules()]:
        if isinstance(module, Projection):
            parent, _, name = path.rpartition(".")
            fused.get_submodule(parent).register_module(name, _folded(path, module, dtype))
    _check_rest(fused, dtype)
    if dtype == torch.int8:
        for path, stem in [*fused.named_children()]:
            if isinstance(stem, Stem):
                fused.register_module(path, IntegerStem(stem))
    return fused


def _folded(path: str, projection: Projection, dtype: torch.dtype) -> Folded:
    neuron = projection.neuron
    if type(neuron).forward is not Neuron.forward or any(True for _ in neuron.parameters()):
        raise ValueError(
            f"{path} has a {type(neuron).__name__}, which learns its time constant or steps in a "
            "way of its own; expected a neuron whose charge is constant, such as 'lif'"
        )
    linear = projection.conv.kernel_size == (1, 1) and not projection.pools
    fits = projection.conv.in_channels % 16 == 0 and projection.conv.out_channels % 16 == 0
    if dtype == torch.int8 and not (linear and fits):
        dtype = torch.bfloat16
    return Folded(projection, dtype)


def _check_rest(fused: SpikingModel, dtype: torch.dtype) -> None:
    """Nothing may stay behind that the folded projections' types do not suit."""
    if not any(isinstance(module, Folded) for module in fused.modules()):
        raise ValueError(
            f"a {type(fused).__name__} has no projection to fuse; expected a spiking transformer"
        )
    for path, module in fused.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d) and dtype != torch.float32:
            raise ValueError(
                f"{path} is a convolution outside of any projection and stays float32; expected "
                "products='float32'"
            )


def _check_integers(model: SpikingModel) -> None:
    for path, module in model.named_modules():
        if isinstance(module, SpikingAttention) and not module.takes_integers:
            raise ValueError(
                f"{path} ({type(module).__name__}) needs floating point, so its spikes cannot be "
                "int8; expected products='bfloat16', or ssa attention"
            )
