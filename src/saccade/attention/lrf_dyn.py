"""LRF-Dyn: attention as a membrane that is charged token after token, with local neighbours.

Source: Zhang et al., "Neural Dynamics Self-Attention", ICLR 2026, arXiv:2603.19290. Equations:
LRF-12, LRF-13, LRF-15. Neither q nor k is left: a token is heard through the membrane state
that it leaves behind, and the local kernels act on states X, not on values.

No official code is known, and the equations were read in secondary sources. Form "eq12" is the
literal Eq. LRF-12. Form "dendritic" is a reconstruction of Eq. LRF-13 and LRF-15
(`saccade.nn.tokens.Dendrites` says which parts). In both, what a token is was never defined: here
it is SN(BN(Conv1x1(x))), the former path of V [reconstruction]. Published parameter counts do not
fall as they would without the projections of q and k, so the authors may keep them; we do not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from saccade._golden import GOLDEN, Arrays, Config, Golden
from saccade._keymap import KeyMap
from saccade._registry import one_of
from saccade._sources import Equation
from saccade.attention._base import ATTENTION, Site, SpikingAttention, Tokens
from saccade.attention.lrf_ssa import (
    LOCAL_KEYS,
    NDSA,
    READ,
    Maps,
    golden_field,
    local_field,
    off_grid,
    on_grid,
)
from saccade.nn import Decay, Dendrites, LocalField, Projection, TokenMembrane, added
from saccade.nn.local import taps

FORMS = ("dendritic", "eq12")


class DynMix(nn.Module):
    """Eq. LRF-12 before the neuron: X + LRF(X), where X is the membrane at every token."""

    def __init__(self, membrane: TokenMembrane, local: LocalField | None) -> None:
        super().__init__()
        self.membrane, self.local = membrane, local

    def forward(self, tok: Maps) -> Maps:
        """Tokens in, a current out."""
        X: Tensor = self.membrane(tok)
        return X if self.local is None else X + self.local(X)


@ATTENTION.add("lrf_dyn")
class LRFDyn(SpikingAttention):
    """Eq. LRF-12 to LRF-15: a recurrence over tokens in place of attention; N-free state.

    Trained in parallel by FFT; under `torch.no_grad()` scanned token by token. The two agree to
    rounding: 1e-9 in float64, about 1e-6 in float32, where a membrane that close to the threshold
    may fire in one and not in the other.

    Args:
        site: where the mechanism sits.
        form: "dendritic", n compartments a channel [reconstruction], or "eq12", literally
            X_n = A X_{n-1} + Gamma tok_n.
        compartments: n of the dendritic form; 8 in the paper.
        preset, dilations, norm, shared_heads: the local kernels, as in "lrf_ssa".
        v_threshold: of the neuron behind the membrane; 0.5 as in SSA [reconstruction].

    Raises:
        ValueError: for unknown names, no compartment, or dilations that reach no neighbour.
    """

    source = NDSA
    golden = "reconstruction"
    adds_onto = True
    equations = tuple(
        Equation(name=name, text=text, source=NDSA, where=READ, code=code)
        for name, text, code in (
            (
                "LRF-12",
                "X_n = A X_{n-1} + Gamma Token_n, sattn'_n = X_n + sum_d r^d_ij X_rho",
                "saccade.attention.lrf_dyn.DynMix",
            ),
            (
                "LRF-13",
                "A := C^T tridiag(-1/tau; beta), n = 8; as expm(delta tridiag): reconstruction",
                "saccade.nn.tokens.Dendrites",
            ),
            (
                "LRF-15",
                "H = F^-1(F(K) F(X)), K_m = C^T A^m Gamma (powers: reconstruction)",
                "saccade.ops.lrf.scan_fft",
            ),
        )
    )

    def __init__(
        self,
        site: Site,
        *,
        form: str = "dendritic",
        compartments: int = 8,
        preset: str = "text",
        dilations: Sequence[int] | None = None,
        norm: bool | None = None,
        shared_heads: bool = False,
        v_threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.site, self.form = site, one_of("form", form, FORMS)
        local, self.dilations = local_field(site, preset, dilations, norm, shared_heads)
        membrane = (
            Decay(site.dim) if form == "eq12" else Dendrites(site.dim, compartments=compartments)
        )
        self.token = Projection(site.dim, site.dim, neuron=site.neuron)
        self.mixing = DynMix(membrane, local)
        self.fire = site.fires(v_threshold=v_threshold)
        self.out = Projection(site.dim, site.dim, bias=True, neuron=site.neuron)

    def forward(self, x: Tokens, onto: Tokens | None = None) -> Tokens:
        """Integers in, spikes out; or their sum with `onto`."""
        return added(onto, self.out, self.fire(self.mixing(self.token(x))))

    def adds(self) -> int:
        """One for each compartment that a token charges, and each kernel entry that meets a state.

        States are real-valued, so the second kind multiplies; the membrane's own update is not
        counted, as in every neuron of the library.
        """
        s = self.site
        return s.T * (s.tokens * self.state() + s.dim * taps(self.dilations, s.grid))

    def state(self) -> int:
        """n * C, or C in the form of Eq. LRF-12; the neighbours of the local term aside."""
        return self.mixing.membrane.state()

    def extra_repr(self) -> str:
        """What the options came to, for printing."""
        return f"form={self.form}, dilations={self.dilations}"


def _golden_build(config: Config, arrays: Arrays) -> nn.Module:
    channels = len(arrays["state/A"])
    return DynMix(Decay(channels), golden_field(config, channels))


def _golden_extras(module: nn.Module, arrays: Arrays, config: Config) -> dict[str, Tensor]:
    assert isinstance(module, DynMix)
    with torch.no_grad():
        return {"output_X": off_grid(module.membrane(on_grid(arrays["input"], config)), config)}


GOLDEN.add("lrf_dyn_eq12_core")(
    Golden(
        build=_golden_build,
        keys=LOCAL_KEYS + KeyMap(rules=((r"(A|Gamma)", r"membrane.\1"),)),
        inward=on_grid,
        outward=off_grid,
        extras=_golden_extras,
        backward=False,
    )
)
