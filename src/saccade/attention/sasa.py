"""Spike aggregated self-attention (SAFormer): weights from Q and K alone, no V. A reconstruction.

Source: Zhang et al., "SAFormer", arXiv:2412.13553v1. Only the abstract could be read: attention
weights come from the spike matrices Q and K only, and a depthwise convolution module (DWC)
strengthens the features. Neither the equation nor the place of the DWC is public, and there is no
code. What stands here is a family that fits those words; the default is the likeliest member, with
a confidence below 40 %. No parity with the paper is claimed.

Equations: SASA-S1 to SASA-S3. Evidence: "aggregated" names a sum over one axis; a sum over channels
(S1) is QKFormer's token attention, which existed, so a sum over tokens (S2) is the default.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saccade._registry import one_of
from saccade._sources import Equation, Source
from saccade.attention._base import ATTENTION, Site, SpikingAttention, Tokens
from saccade.nn import DepthwiseConvolution, Projection, added, merge_heads, project, split_heads
from saccade.ops import Op

PAPER = Source(
    key="zhang2024saformer",
    title="Combining Aggregated Attention and Transformer Architecture for Accurate and Efficient "
    "Performance of Spiking Neural Networks",
    authors="Zhang, Hangming and Sboev, Alexander and Rybka, Roman and Yu, Qiang",
    venue="arXiv",
    year=2024,
    id="arXiv:2412.13553",
)
Heads = Float[Tensor, "T B h N d"]

AGGREGATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "channel": lambda q, k: q.sum(-1, keepdim=True),
    "token": lambda q, k: q.sum(-2, keepdim=True),
    "product": lambda q, k: (q * k).sum(-2, keepdim=True),
}
"""Name of the axis summed away -> current of the mask: S1 [.. N 1], S2 and S3 [.. 1 d]."""
DWC: dict[str, dict[str, dict[str, Any]]] = {
    "parallel": {},
    "mlp": {"mlp": {"dwc": True}},
    "stem": {"stem": {"dwc": True}},
    "none": {},
}
"""Places of the depthwise convolution module -> what is asked of other parts of the body."""


def _aggregate_reference(q: Heads, k: Heads, aggregate: str, scale: float) -> Tensor:
    """Eq. SASA-S1 to SASA-S3, before the neuron."""
    return AGGREGATES[aggregate](q, k) * scale


def _aggregate_example() -> tuple[Tensor, Tensor, str, float]:
    g = torch.Generator().manual_seed(0)
    q, k = (torch.rand(2, 3, 4, 9, 5, generator=g).round() for _ in range(2))
    return q, k, "product", 0.25


def _aggregate_additions(args: tuple[Any, ...], out: Any) -> float:
    """Each spike that is summed is one addition."""
    return float(out.detach().sum(dtype=torch.float64)) / float(args[3])


def _aggregate_dense(args: tuple[Any, ...]) -> float:
    return float(args[0].numel())


aggregate_spikes = Op(
    "sasa_aggregate",
    _aggregate_reference,
    _aggregate_example,
    _aggregate_additions,
    _aggregate_dense,
)


@ATTENTION.add("sasa")
class SASA(SpikingAttention):
    """A mask from Q (and K) selects spikes of K (or Q): Eq. SASA-S1 to SASA-S3.

    Args:
        site: where the mechanism sits.
        aggregate: the axis summed away: "channel" (S1), "token" (S2, the default) or
            "product" (S3).
        carrier: whose spikes the mask selects, "k" or "q".
        dwc: where the depthwise 3x3 convolution stands: "parallel" adds that of the carrier to
            the masked spikes, "mlp" puts it between the layers of the block's MLP, "stem" behind
            the stages of the stem, "none" leaves it out. In the MLP and the stem it is asked of
            the body of a model; built alone, the mechanism is then as with "none".
        scale: on the sum, before the neuron [inferred]. None takes the power of two nearest to
            2 / n for n summed spikes: the mask then fires where a quarter of them is there,
            while a bare sum of many spikes would fire always.
        v_threshold: of the neuron behind the sum; 0.5 as in SSA [inferred].

    Raises:
        ValueError: for an unknown aggregate, carrier or place of the DWC.
    """

    source = PAPER
    golden = "reconstruction"
    adds_onto = True
    equations = tuple(
        Equation(
            name=f"SASA-{name}",
            text=text,
            source=PAPER,
            where="reconstruction: the paper's equation is not public",
            code="saccade.attention.sasa.SASA",
        )
        for name, text in (
            ("S1", "Y = SN(s sum_channels Q) (x) K"),
            ("S2", "Y = SN(s sum_tokens Q) (x) K"),
            ("S3", "Y = SN(s sum_tokens Q (x) K) (x) K"),
        )
    )

    def __init__(
        self,
        site: Site,
        *,
        aggregate: str = "token",
        carrier: str = "k",
        dwc: str = "parallel",
        scale: float | None = None,
        v_threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.site, self.aggregate = site, one_of("aggregate", aggregate, AGGREGATES)
        self.carrier = one_of("carrier", carrier, "kq")
        summed = site.dim // site.heads if aggregate == "channel" else site.tokens
        self.scale = 2.0 ** round(math.log2(2 / summed)) if scale is None else scale
        self.q, self.k = (Projection(site.dim, site.dim, neuron=site.neuron) for _ in "qk")
        self.fire = site.fires(v_threshold=v_threshold)
        here = one_of("dwc", dwc, DWC) == "parallel"
        self.dwc = DepthwiseConvolution(site.dim) if here else None
        self.out = Projection(site.dim, site.dim, bias=True, neuron=site.neuron)

    @classmethod
    def asks(cls, options: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
        """The depthwise convolution, where it stands in the MLP or the stem."""
        return DWC[one_of("dwc", options.get("dwc", "parallel"), DWC)]

    def forward(self, x: Tokens, onto: Tokens | None = None) -> Tokens:
        """Integers in, spikes out; or their sum with `onto`."""
        q, k = (split_heads(s, self.site.heads) for s in project((self.q, self.k), x))
        mask = self.fire(aggregate_spikes(q, k, self.aggregate, self.scale))
        carrier = k if self.carrier == "k" else q
        grid = (x.shape[-2], x.shape[-1])
        y = merge_heads(mask * carrier, grid)
        if self.dwc is not None:
            y = y + self.dwc(merge_heads(carrier, grid))
        return added(onto, self.out, y)

    def adds(self) -> int:
        """Those of the sum; masking is a choice, not an addition. Linear in N and d."""
        s = self.site
        return s.T * s.tokens * s.dim
