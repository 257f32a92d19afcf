"""Spikformer V2, after the abstract: V1's ImageNet blocks behind a convolutional stem.

Source: Zhou et al., arXiv:2401.02020. Known: attention as in V1, a stem with more convolutions,
and three parameter counts, from which it follows that the blocks are V1's and the stem scales with
D^2. The stem's layout is not public; see `saccade.nn.SCS`. Not compared with anything.
"""

from saccade._sources import Result
from saccade.models._base import MODELS, ModelEntry
from saccade.models.spikformer import VARIANTS
from saccade.models.transformer import TransformerConfig
from saccade.nn.stems import SPIKFORMER_V2

_PART = VARIANTS["imagenet"] | {"stem": {"name": "scs"}}
_IMAGENET = "ImageNet, 224 px"
_NAMED = (
    (8, 384, 8, 4, ()),
    (8, 512, 8, 4, (Result(dataset=_IMAGENET, metric="top-1 %", value=80.38, note="T=4"),)),
    (
        16,
        768,
        12,
        1,
        (Result(dataset=_IMAGENET, metric="top-1 %", value=81.10, note="T=1, pre-trained"),),
    ),
)
for _depth, _dim, _heads, _T, _results in _NAMED:
    MODELS.add(f"spikformer_v2_{_depth}_{_dim}")(
        ModelEntry(
            config=TransformerConfig(dim=_dim, depth=_depth, heads=_heads, **_PART | {"T": _T}),
            source=SPIKFORMER_V2,
            about=f"Spikformer V2 after the abstract, {_depth} blocks of {_dim} channels",
            results=_results,
            note="After the abstract: the stem's layout is a design of this library that meets "
            "the published parameter count within 1 %; not compared with official code.",
        )
    )
