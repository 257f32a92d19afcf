"""LRF-SSA: spiking self-attention with a learned local receptive field beside it.

Source: Zhang et al., "Neural Dynamics Self-Attention", ICLR 2026, arXiv:2603.19290. Equations:
LRF-8, LRF-11, LRF-14, with Q, K, V and the output as in SSA-1 and SSA-3.
Axes: T time, B batch, C channel, H W grid, N = H*W tokens in raster order, h heads, d = C/h.

No official code is known, and the equations were read in secondary sources that agree with one
another. Not stated there, and so options or choices of ours [reconstruction]:

    kernels   the text says two, dilations 3 and 5; published parameter counts grow by 29 numbers
              a value channel, which is three (1, 3, 5) and a batch norm: presets "text", "counts"
    scale     Eq. LRF-14 multiplies the local term by s too, Eq. LRF-8 does not
    heads     one published count fits kernels that heads share
    padding   zeros; no bias; initialisation as `saccade.nn.local` says
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade._golden import GOLDEN, Arrays, Config, Golden
from saccade._keymap import KeyMap
from saccade._registry import one_of
from saccade._sources import Equation, Source
from saccade.attention._base import ATTENTION, Site, SpikingAttention, Tokens
from saccade.attention.ssa import mix
from saccade.nn import LIF, LocalField, Projection, added, merge_heads, project, split_heads
from saccade.nn.local import checked, fitted, taps
from saccade.ops import causal_mix

NDSA = Source(
    key="zhang2026neural",
    title="Neural Dynamics Self-Attention for Spiking Transformers",
    authors="Zhang, Dehao and Guo, Fukai and Wang, Shuai and Wang, Jingya and Zhang, Jieyuan and "
    "Shan, Yimeng and Zhang, Malu and Yang, Yang and Li, Haizhou",
    venue="ICLR",
    year=2026,
    id="arXiv:2603.19290",
)
READ = "printed number as secondary sources give it"
READINGS = ("eq8", "eq14")

Maps = Float[Tensor, "T B C H W"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A reading of which kernels the local receptive field has."""

    dilations: tuple[int, ...]
    norm: bool


PRESETS = {
    "text": Preset(dilations=(3, 5), norm=False),
    "counts": Preset(dilations=(1, 3, 5), norm=True),
}
"""As the text says, and as published parameter counts say (29 numbers a value channel)."""


def local_field(
    site: Site,
    preset: str,
    dilations: Sequence[int] | None,
    norm: bool | None,
    shared_heads: bool,
) -> tuple[LocalField | None, tuple[int, ...]]:
    """The local receptive field of a site, and its dilations; None where there are none."""
    p = PRESETS[one_of("preset", preset, PRESETS)]
    wanted = fitted(p.dilations, site.grid) if dilations is None else checked(dilations, site.grid)
    if not wanted:
        return None, ()
    normed = p.norm if norm is None else norm
    field = LocalField(site.dim, wanted, heads=site.heads, shared_heads=shared_heads, norm=normed)
    return field, wanted


class LocalMix(nn.Module):
    """Eq. LRF-8 or LRF-14 before the neuron: spikes q, k, v in, a current out."""

    def __init__(
        self,
        local: LocalField | None,
        *,
        heads: int,
        scale: float,
        reading: str = "eq8",
        causal_tokens: bool = False,
        query: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.local, self.heads, self.scale = local, heads, scale
        self.query = nn.Identity() if query is None else query
        self.reading, self.causal_tokens = one_of("reading", reading, READINGS), causal_tokens

    def forward(self, q: Maps, k: Maps, v: Maps) -> Maps:
        """Attention over all tokens (or those up to each), and the neighbours of each."""
        product = causal_mix if self.causal_tokens else mix
        a, b, c = (split_heads(x, self.heads) for x in (q, k, v))
        grid = (v.shape[-2], v.shape[-1])
        current = merge_heads(product(self.query(a), b, c, self.scale), grid)
        if self.local is None:
            return current
        heard: Tensor = self.local(v)
        return current + (heard * self.scale if self.reading == "eq14" else heard)

    def scores(self, q: Maps, k: Maps) -> Float[Tensor, "T B h N N"]:
        """s Q K^T plus the mean local kernel of each head."""
        a, b = (split_heads(x, self.heads) for x in (q, k))
        scores: Tensor = self.query(a) @ b.mT * self.scale
        if self.causal_tokens:
            scores = scores.tril()
        if self.local is None:
            return scores
        local = self.local.matrix((q.shape[-2], q.shape[-1]), self.heads)
        return scores + (local * self.scale if self.reading == "eq14" else local)


@ATTENTION.add("lrf_ssa")
class LRFSSA(SpikingAttention):
    """Eq. LRF-8: SSA, and dilated depth-wise kernels on the values, which give it locality.

    Without dilations it is SSA; with `causal_tokens` and none, the causal SSA of the ablation.

    Args:
        site: where the mechanism sits.
        scale: s of the global term, as in SSA.
        reading: "eq8" leaves the local term as it is, "eq14" multiplies it by s too. One is the
            other with kernels rescaled by s.
        preset: which kernels: "text" is dilations (3, 5), "counts" (1, 3, 5) and batch norm. On
            a grid on which a dilation reaches no neighbour, it is lowered to the widest that
            does (the longer side less 1).
        dilations: kernels by hand, each less than the longer side of the grid; () for none.
        norm: batch norm behind the sum of the kernels; None as the preset has it.
        shared_heads: whether heads share the kernels of their d channels.
        causal_tokens: whether a token hears only itself and those before it in raster order,
            Eq. LRF-11 [reconstruction]; the local term still hears both sides.
        qkv_bias: whether the projections of q, k and v have a bias, as in SSA.
        v_threshold: of the neuron behind the product, as in SSA.
        query: a module on q [T B h N d], as in SSA; None leaves q.

    Raises:
        ValueError: for a scale that is not above 0, unknown names, or dilations that reach no
            neighbour.
    """

    source = NDSA
    golden = "independent reference"
    adds_onto = True
    equations = tuple(
        Equation(name=name, text=text, source=NDSA, where=READ, code=code)
        for name, text, code in (
            (
                "LRF-8",
                "sattn'_n = q_n sum_j k_j^T v_j s + sum_d sum_{Omega_d} r^d_ij V_rho",
                "saccade.attention.lrf_ssa.LocalMix",
            ),
            (
                "LRF-11",
                "sattn'_n = q_n sum_{j<=n} k_j^T v_j s + local (inclusive: reconstruction)",
                "saccade.ops.lrf.causal_mix",
            ),
            (
                "LRF-14",
                "Attn = SN(s (Q K^T + sum_d r^d_ij) V)",
                "saccade.attention.lrf_ssa.LocalMix",
            ),
        )
    )

    def __init__(
        self,
        site: Site,
        *,
        scale: float = 0.125,
        reading: str = "eq8",
        preset: str = "text",
        dilations: Sequence[int] | None = None,
        norm: bool | None = None,
        shared_heads: bool = False,
        causal_tokens: bool = False,
        qkv_bias: bool = False,
        v_threshold: float = 0.5,
        query: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"got scale={scale}, expected a number above 0 (SSA's is 0.125)")
        self.site = site
        local, self.dilations = local_field(site, preset, dilations, norm, shared_heads)
        self.q, self.k, self.v = (
            Projection(site.dim, site.dim, bias=qkv_bias, neuron=site.neuron) for _ in "qkv"
        )
        self.mixing = LocalMix(
            local,
            heads=site.heads,
            scale=scale,
            reading=reading,
            causal_tokens=causal_tokens,
            query=query,
        )
        self.fire = site.fires(v_threshold=v_threshold)
        self.out = Projection(site.dim, site.dim, bias=True, neuron=site.neuron)

    def forward(self, x: Tokens, onto: Tokens | None = None) -> Tokens:
        """Integers in, spikes out; or their sum with `onto`."""
        return added(onto, self.out, self.fire(self.mixing(*project((self.q, self.k, self.v), x))))

    def adds(self) -> int:
        """Additions of the product, and one for each value and kernel entry that meet."""
        s = self.site
        d = s.dim // s.heads
        across = d if self.mixing.causal_tokens else min(s.tokens, d)
        return s.T * s.dim * (2 * s.tokens * across + taps(self.dilations, s.grid))

    def state(self) -> int:
        """K^T V of each head, as in SSA: d * C."""
        return self.site.dim * self.site.dim // self.site.heads

    def scores(self, x: Tokens) -> Float[Tensor, "T B h N N"]:
        """s Q K^T plus the local kernels, averaged over each head's channels; rows are queries.

        Kernels may be negative.
        """
        return self.mixing.scores(self.q(x), self.k(x))

    def extra_repr(self) -> str:
        """What the options came to, for printing."""
        m = self.mixing
        return f"dilations={self.dilations}, reading={m.reading}, scale={m.scale}"


LOCAL_KEYS = KeyMap(rules=((r"lrf_d(\d+)", r"local.kernels.\1.weight"),))
"""Kernels in golden files."""


def golden_field(config: Config, channels: int) -> LocalField:
    """The local receptive field of a golden file, whatever its grid."""
    return LocalField(channels, config["dilations"])


def _golden_build(config: Config, arrays: Arrays) -> nn.Module:
    local = golden_field(config, arrays["input"].shape[-2])
    return LocalMix(local, heads=config["heads"], scale=config["scale"])


def on_grid(x: Float[Tensor, "*dims N"], config: Config) -> Float[Tensor, "*dims H W"]:
    """Tokens in raster order to a grid."""
    return x.reshape(*x.shape[:-1], config["H"], config["W"])


def off_grid(x: Float[Tensor, "*dims H W"], config: Config) -> Float[Tensor, "*dims N"]:
    """Inverse of `on_grid`."""
    return x.flatten(-2)


def _golden_extras(module: nn.Module, arrays: Arrays, config: Config) -> dict[str, Tensor]:
    assert isinstance(module, LocalMix)
    other = LocalMix(module.local, heads=module.heads, scale=module.scale, reading="eq14")
    q, k, v = on_grid(arrays["input"], config)
    with torch.no_grad():
        return {
            "output_eq14": off_grid(other(q, k, v), config),
            "output_spike": off_grid(LIF(v_threshold=0.5)(module(q, k, v)), config),
        }


GOLDEN.add("lrf_ssa_core")(
    Golden(
        build=_golden_build,
        keys=LOCAL_KEYS,
        inward=on_grid,
        outward=off_grid,
        call=lambda module, qkv, config: module(*qkv),
        input_grads=lambda grad: dict(zip(("grad_q", "grad_k", "grad_v"), grad, strict=True)),
        extras=_golden_extras,
    )
)
