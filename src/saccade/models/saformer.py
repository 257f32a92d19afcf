"""SAFormer: Spikformer's body with spike aggregated self-attention. A reconstruction.

Source: Zhang et al., arXiv:2412.13553v1; only its abstract could be read. Sizes are Spikformer's
siblings for the paper's data sets (CIFAR, Tiny-ImageNet, DVS); the paper's own are not known.
"""

from typing import Any

from saccade.attention import sasa
from saccade.models._base import MODELS, ModelEntry
from saccade.models.spikformer import VARIANTS
from saccade.models.transformer import TransformerConfig

_CIFAR: dict[str, Any] = VARIANTS["cifar"] | {"dim": 384, "depth": 4, "heads": 12}
_TINY: dict[str, Any] = {
    "image_size": 64,
    "num_classes": 200,
    "stem": {"name": "sps", "pools": (False, True, True, True)},
}
_DVS: dict[str, Any] = VARIANTS["dvs"] | {"dim": 256, "depth": 2, "heads": 16}

for _name, _where, _sizes in (
    ("saformer_4_384", "CIFAR", _CIFAR),
    ("saformer_4_384_tiny", "Tiny-ImageNet, 64 px", _CIFAR | _TINY),
    ("saformer_2_256_dvs", "event frames, 128 px", _DVS),
):
    MODELS.add(_name)(
        ModelEntry(
            config=TransformerConfig(**_sizes | {"attention": "sasa"}),
            source=sasa.PAPER,
            about=f"Spikformer's body with SASA (reconstruction), for {_where}",
            note="A reconstruction from the abstract: the paper's equation, sizes and numbers are "
            "not public. Confidence in the default below 40 %; the options of 'sasa' hold the "
            "other readings.",
        )
    )
