"""Checkpoints as the official code writes them, made from our weights by naming them by hand."""

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from saccade.models import SpikingTransformer, create_model

STEM = {f"stages.{i}": f"proj_{{}}{i or ''}" for i in range(4)} | {"position": "rpe_{}"}
ATTENTION = {"q": "q_{}", "k": "k_{}", "v": "v_{}", "out": "proj_{}"}


def official_state(model: SpikingTransformer) -> dict[str, Tensor]:
    """Names and shapes of the CIFAR copy: Linear layers in the blocks, LayerNorms that idle."""
    official: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        part, _, rest = key.partition(".")
        if part == "stem":
            official[f"patch_embed.{_layer(rest, STEM, 'conv')}"] = value
        elif part == "head":
            official[f"head.{rest.removeprefix('linear.')}"] = value
        else:
            number, where, inner = rest.split(".", 2)
            names = ATTENTION if where == "attention" else {"fc1": "fc1_{}", "fc2": "fc2_{}"}
            place = f"block.{number}.{'attn' if where == 'attention' else 'mlp'}"
            official[f"{place}.{_layer(inner, names, 'linear')}"] = _flat(value)
    for i in range(model.config.depth):
        for norm in ("norm1", "norm2"):
            official[f"block.{i}.{norm}.weight"] = torch.ones(model.config.dim)
            official[f"block.{i}.{norm}.bias"] = torch.zeros(model.config.dim)
    return official


def _layer(key: str, names: dict[str, str], conv: str) -> str:
    ours = next(name for name in names if key.startswith(f"{name}."))
    kind, _, leaf = key.removeprefix(f"{ours}.").partition(".")
    return f"{names[ours].format(conv if kind == 'conv' else 'bn')}.{leaf}"


def _flat(value: Tensor) -> Tensor:
    return value[..., 0, 0] if value.dim() == 4 else value


def write_checkpoint(path: Path, name: str) -> SpikingTransformer:
    """An official checkpoint of random weights; returns the model that has them."""
    torch.manual_seed(0)
    model = create_model(name).eval()
    content = {"state_dict": official_state(model), "args": Namespace(lr=1e-3), "epoch": 3}
    torch.save(content, path)
    return model
