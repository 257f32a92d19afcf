"""No attention: the vanilla convolutional nets that MA-SNN is compared with."""

from jaxtyping import Float
from torch import Tensor

from saccade._sources import Equation
from saccade.attention._base import ATTENTION, Site, SpikingAttention
from saccade.nn.released import MA_SNN


@ATTENTION.add("none")
class NoGate(SpikingAttention):
    """The current as it is: the vanilla net of MA-SNN's ablation."""

    source = MA_SNN
    kind = "gate"
    golden = "official"
    equations = (
        Equation(
            name="MA-0",
            text="X' = X",
            source=MA_SNN,
            where="the vanilla net",
            code="saccade.attention.none.NoGate",
        ),
    )

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site

    def forward(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C H W"]:
        """Nothing happens."""
        return x

    def adds(self) -> int:
        """None."""
        return 0
