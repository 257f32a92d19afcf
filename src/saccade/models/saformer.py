"""SAFormer: Spikformer's body with spike aggregated self-attention. A reconstruction.

Source: Zhang et al., arXiv:2412.13553v1; only its abstract could be read. Sizes are Spikformer's
siblings for the paper's data sets (CIFAR, Tiny-ImageNet, DVS); the paper's own are not known.
"""

from typing import Any

from saccade.attention import sasa
from saccade.models._base import MODELS, ModelEntry
from saccade.models.spikformer import ALL, VARIANTS
from saccade.models.transformer import TransformerConfig

DWC: dict[str, dict[str, Any]] = {
    "parallel": {"attention": {"name": "sasa", "dwc": "parallel"}},
    "mlp": {"attention": {"name": "sasa", "dwc": None}, "mlp": {"name": "mlp", "dwc": True}},
    "stem": {"attention": {"name": "sasa", "dwc": None}, "stem": {"name": "sps", "dwc": True}},
    "none": {"attention": {"name": "sasa", "dwc": None}},
}
"""Where the depthwise convolution module may stand: options for `create_model`."""

_SHAPES: dict[str, dict[str, Any]] = {
    "saformer_4_384": {"dim": 384, "depth": 4, "heads": 12} | VARIANTS["cifar"],
    "saformer_4_384_tiny": {"dim": 384, "depth": 4, "heads": 12}
    | VARIANTS["cifar"]
    | {
        "image_size": 64,
        "num_classes": 200,
        "stem": {"name": "sps", "pools": (False, True, True, True)},
    },
    "saformer_2_256_dvs": {"dim": 256, "depth": 2, "heads": 16}
    | VARIANTS["dvs"]
    | {"stem": {"name": "sps", "pools": ALL}},
}
_FOR = {"": "CIFAR", "_tiny": "Tiny-ImageNet, 64 px", "_dvs": "event frames, 128 px"}
for _name, _shape in _SHAPES.items():
    _where = next(v for k, v in reversed(_FOR.items()) if _name.endswith(k))
    MODELS.add(_name)(
        ModelEntry(
            config=TransformerConfig(**_shape | DWC["parallel"]),
            source=sasa.PAPER,
            about=f"Spikformer's body with SASA (reconstruction), for {_where}",
            note="A reconstruction from the abstract: the paper's equation, sizes and numbers are "
            "not public. Confidence in the default below 40 %; saccade.models.saformer.DWC and "
            "the options of 'sasa' hold the other readings.",
        )
    )
