"""The two attention layers that the SpikingJelly library ships: MA-SNN's gates, rewired.

Source: Fang et al., "SpikingJelly", Science Advances 2023, arXiv:2310.16620;
spikingjelly.activation_based.layer, release 2.0.0. Equations: SJ-1, SJ-2.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from saccade._keymap import KeyMap
from saccade._sources import Equation, Source
from saccade.attention import ma
from saccade.attention._base import ATTENTION, Site, SpikingAttention

SPIKINGJELLY = Source(
    key="fang2023spikingjelly",
    title="SpikingJelly: An Open-source Machine Learning Infrastructure Platform for Spike-based "
    "Intelligence",
    authors="Fang, Wei and Chen, Yanqi and Ding, Jianhao and Yu, Zhaofei and Masquelier, Timothee "
    "and Chen, Ding and Huang, Liwei and Zhou, Huihui and Li, Guoqi and Tian, Yonghong",
    venue="Science Advances",
    year=2023,
    id="arXiv:2310.16620",
)
REDUCTION = 16


class SpikingJellyLayer(SpikingAttention):
    """Abstract: one of MA-SNN's gates under the library's own settings."""

    source = SPIKINGJELLY
    kind = "gate"
    causal = False
    golden = "official"

    def __init__(self, gate: ma.MultiDimensionalGate) -> None:
        super().__init__()
        self.site, self.gate = gate.site, gate

    def forward(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C H W"]:
        """The gated current."""
        y: Tensor = self.gate(x)
        return y

    def adds(self) -> int:
        """Those of the gate."""
        return self.gate.adds()


@ATTENTION.add("sj_twa")
class TemporalWiseAttention(SpikingJellyLayer):
    """SpikingJelly's TemporalWiseAttention: MA-SNN's gate over time without its last ReLU.

    It is named after TA-SNN's layer and is not that: it pools maxima too and has no biases.

    Args:
        site: where the mechanism sits.
        reduction: T over the hidden width. None: 16, or T if that is less.

    Raises:
        ValueError: for a reduction above T, or another T in a call.
    """

    equations = (
        Equation(
            name="SJ-1",
            text="X' = sigma(W1 relu(W0 avg_chw X) + W1 relu(W0 max_chw X)) X",
            source=SPIKINGJELLY,
            where="code, layer.TemporalWiseAttention",
            code="saccade.attention.spikingjelly.TemporalWiseAttention",
        ),
    )

    def __init__(self, site: Site, *, reduction: int | None = None) -> None:
        ratio = ma.checked_ratio("reduction", reduction, REDUCTION, T=site.T)
        super().__init__(ma.TA(site, ratio_t=ratio, post_relu=False))

    @classmethod
    def for_vectors(cls, site: Site, **options: Any) -> SpikingAttention:
        """The same: its dimension 2."""
        return cls(site, **options)


@ATTENTION.add("sj_mda")
class MultiDimensionalAttention(SpikingJellyLayer):
    """SpikingJelly's MultiDimensionalAttention: MA-SNN's released TCSA.

    Args:
        site: where the mechanism sits.
        reduction_t, reduction_c: T and C over the hidden widths. None: 16, or T or C if less.
        kernel_size: of the convolution over space.

    Raises:
        ValueError: for a reduction above T or C, an even kernel, or another T in a call.
    """

    equations = (
        Equation(
            name="SJ-2",
            text="X' = relu(g_s g_c g_t X), statistics over all steps",
            source=SPIKINGJELLY,
            where="code, layer.MultiDimensionalAttention",
            code="saccade.attention.spikingjelly.MultiDimensionalAttention",
        ),
    )

    def __init__(
        self,
        site: Site,
        *,
        reduction_t: int | None = None,
        reduction_c: int | None = None,
        kernel_size: int = 3,
    ) -> None:
        super().__init__(
            ma.TCSA(
                site,
                ratio_t=ma.checked_ratio("reduction_t", reduction_t, REDUCTION, T=site.T),
                ratio_c=ma.checked_ratio("reduction_c", reduction_c, REDUCTION, C=site.dim),
                kernel=kernel_size,
            )
        )

    @classmethod
    def for_vectors(cls, site: Site, *, reduction_t: int | None = None, **options: Any) -> ma.TA:
        """The gate over time alone."""
        return ma.TA(
            site, ratio_t=ma.checked_ratio("reduction_t", reduction_t, REDUCTION, T=site.T)
        )


KEYS_TWA = KeyMap(
    rules=(
        (r"sharedMLP\.0\.weight", "gate.t.mlp.down.weight"),
        (r"sharedMLP\.2\.weight", "gate.t.mlp.up.weight"),
    )
)
KEYS_MDA = ma.KEYS.under("", "gate.")
