"""Spikformer with LRF-SSA or LRF-Dyn in place of its attention, and what their authors report.

Source: "Neural Dynamics Self-Attention for Spiking Transformers", ICLR 2026, arXiv:2603.19290;
results as secondary sources give them. No official code is known; the hosts are the Spikformers of
`saccade.models.spikformer`, whose recipes the authors are assumed to share.
"""

from typing import Any

from saccade._sources import Result
from saccade.attention.lrf_ssa import NDSA
from saccade.models._base import MODELS, ModelEntry
from saccade.models.spikformer import VARIANTS
from saccade.models.transformer import TransformerConfig

NOTE = (
    "A reading: the paper leaves kernels, batch norm and initialisation open (options preset, "
    "dilations, norm, shared_heads; reading or form). LRF-Dyn is smaller here than reported "
    "(8-512: 25.6 M parameters, not 29.71 M), for it has no use for the projections of q and k. "
    "The paper's 49.4 % less inference memory has no protocol; it is not claimed here."
)
_CIFAR = "kernels up to dilation 5; host not named, by its baseline this one"

# attention, its options in the CIFAR copy, CIFAR-100 in 4_384, ImageNet in 8_512
_NAMED: tuple[tuple[str, dict[str, Any], float, float], ...] = (
    ("lrf_ssa", {"qkv_bias": True}, 78.64, 74.62),
    ("lrf_dyn", {}, 78.57, 74.51),
)


def _entry(depth: int, dim: int, heads: int, variant: dict[str, Any], result: Result) -> ModelEntry:
    name = variant["attention"]["name"]
    return ModelEntry(
        config=TransformerConfig(dim=dim, depth=depth, heads=heads, **variant),
        source=NDSA,
        about=f"Spikformer {depth}-{dim} with {name} for attention; no official code",
        results=(result,),
        note=NOTE,
    )


for _name, _options, _cifar100, _imagenet in _NAMED:
    MODELS.add(f"spikformer_4_384_{_name}")(
        _entry(
            *(4, 384, 12),
            VARIANTS["cifar"] | {"attention": {"name": _name, **_options}},
            Result(dataset="CIFAR-100", metric="top-1 %", value=_cifar100, note=_CIFAR),
        )
    )
    MODELS.add(f"spikformer_8_512_{_name}")(
        _entry(
            *(8, 512, 8),
            VARIANTS["imagenet"] | {"attention": {"name": _name}},
            Result(dataset="ImageNet, 224 px", metric="top-1 %", value=_imagenet),
        )
    )
