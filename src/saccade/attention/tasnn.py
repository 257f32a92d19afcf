"""TA-SNN's temporal-wise attention: the gate over time that came before MA-SNN's.

Source: Yao et al., "Temporal-wise Attention Spiking Neural Networks for Event Streams
Classification", ICCV 2021, arXiv:2107.11711; code BICLab/TA-SNN. Equations: TA-SNN-1.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade._keymap import KeyMap
from saccade._sources import Equation, Source
from saccade.attention._base import ATTENTION, Site, SpikingAttention
from saccade.attention.ma import checked_ratio, same_steps
from saccade.nn import check_maps

TA_SNN = Source(
    key="yao2021temporal",
    title="Temporal-wise Attention Spiking Neural Networks for Event Streams Classification",
    authors="Yao, Man and Gao, Huanhuan and Zhao, Guangshe and Wang, Dingheng and Lin, Yihan and "
    "Yang, Zhaoxu and Li, Guoqi",
    venue="ICCV",
    year=2021,
    id="arXiv:2107.11711",
)


@ATTENTION.add("ta_snn")
class TASNN(SpikingAttention):
    """TA-SNN's gate over time: means alone, and biases; no ReLU behind it.

    Args:
        site: where the mechanism sits.
        ratio_t: T over the hidden width: 16 for Gesture, 5 for CIFAR10-DVS and SHD. None: 16, or T
            if that is less. (The code builds an empty layer where the ratio is above T.)

    Raises:
        ValueError: for a ratio above T, or another T in a call.
    """

    source = TA_SNN
    kind = "gate"
    causal = False
    golden = "official"
    equations = (
        Equation(
            name="TA-SNN-1",
            text="d = sigma(W1 relu(W0 avg_chw X + b0) + b1), X'_t = d_t X_t",
            source=TA_SNN,
            where="section and printed number not verified",
            code="saccade.attention.tasnn.TASNN",
        ),
    )

    def __init__(self, site: Site, *, ratio_t: int | None = None) -> None:
        super().__init__()
        self.site = site
        hidden = site.T // checked_ratio("ratio_t", ratio_t, 16, T=site.T)
        self.down, self.up = nn.Linear(site.T, hidden), nn.Linear(hidden, site.T)

    def forward(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C H W"]:
        """Each step times its gate."""
        check_maps(x)
        same_steps(x, self.site.T)
        mean = x.mean((2, 3, 4)).T
        d: Tensor = torch.sigmoid(self.up(self.down(mean).relu())).T
        return d[..., None, None, None] * x

    def adds(self) -> int:
        """Multiply-accumulates: the two layers, and one product an element."""
        s = self.site
        made = self.down.weight.numel() + self.up.weight.numel()
        return int(made + s.T * s.dim * s.tokens)

    @classmethod
    def for_vectors(cls, site: Site, **options: Any) -> SpikingAttention:
        """The same."""
        return cls(site, **options)


KEYS = KeyMap(
    rules=(
        (r"temporal_excitation\.0\.(weight|bias)", r"down.\1"),
        (r"temporal_excitation\.2\.(weight|bias)", r"up.\1"),
    )
)
"""Parameters of the official Tlayer."""
