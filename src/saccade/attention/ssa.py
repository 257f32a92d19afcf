"""Spiking self-attention: softmax-free attention between spike trains.

Source: Zhou et al., "Spikformer", ICLR 2023, arXiv:2209.15425v2. Equations: SSA-1 to SSA-3.
Axes: T time, B batch, C channel, H W grid, N = H*W tokens, h heads, d = C/h.

Official code (three copies) differs from the paper in its constants only: the scale is 0.125
for CIFAR and ImageNet and 0.25 for CIFAR10-DVS whatever d is; the paper calls it learnable for
event data. The copies multiply in different orders, with equal results.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade._keymap import KeyMap
from saccade._sources import Equation
from saccade.attention._base import ATTENTION, Site, SpikingAttention, Tokens
from saccade.nn import Projection, added, fused_layers, merge_heads, project, split_heads
from saccade.nn.stems import SPIKFORMER
from saccade.ops import Fire, Norm, Op, lif, linear_lif, ssa_numba
from saccade.ops._op import Fn
from saccade.ops._triton import AVAILABLE, MISSING
from saccade.ops.lif.exact import inexact

Heads = Float[Tensor, "T B h N d"]


def _mix_reference(q: Heads, k: Heads, v: Heads, scale: float) -> Heads:
    """Eq. SSA-2 in the order printed, (Q K^T) V s: O(N^2 d) additions."""
    return (q @ k.mT) @ v * scale


def _mix_example() -> tuple[Tensor, Tensor, Tensor, float]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(2, 3, 4, 9, 5, generator=g).round() for _ in range(3))
    return q, k, v, 0.125


def _mix_additions(args: tuple[Any, ...], out: Any) -> float:
    """Coincidences of the first product, then its integers wherever a spike selects them."""
    q, k, v, scale = (a.detach().double() if torch.is_tensor(a) else a for a in args)
    N, d = q.shape[-2:]
    # the cheaper order: coincidences of Q with K, or of K with V, summed without the product
    first = (k.sum(-1) * v.sum(-1)).sum() if d < N else (q.sum(-2) * k.sum(-2)).sum()
    return float(first + out.detach().double().sum() / scale)


def _mix_dense(args: tuple[Any, ...]) -> float:
    """Multiply-accumulates of the cheaper order on dense inputs."""
    q = args[0]
    return float(2 * q.numel() * min(q.shape[-2:]))


mix = Op("ssa_mix", _mix_reference, _mix_example, _mix_additions, _mix_dense)


def _too_few_tokens(q: Heads, k: Heads, v: Heads, scale: float) -> str | None:
    N, d = q.shape[-2:]
    return None if d < N else f"{N} tokens are not more than {d} channels a head"


@mix.fast("reassociated", refuses=_too_few_tokens)
def _mix_reassociated(q: Heads, k: Heads, v: Heads, scale: float) -> Heads:
    """Q (K^T V) s: O(N d^2). Bit-equal, because sums of spikes are integers below 2**24."""
    return q @ (k.mT @ v) * scale


def _holds(
    q: Tokens, heads: int, scale: float, decay: float | Tensor, gain: float | Tensor, fire: Fire
) -> torch.dtype:
    """The type in which no count of spikes and no membrane of constant decay is rounded."""
    if isinstance(decay, Tensor) or isinstance(gain, Tensor):
        return torch.float32
    most = q[0, 0].numel() // heads
    rounds = inexact(len(q), most, scale, decay, gain, fire)
    return torch.float64 if rounds else torch.float32


def _fire_with(mix: Callable[..., Tensor], lif: Callable[..., tuple[Tensor, Tensor]]) -> Fn:
    """Eq. SSA-2 whole: the product, and the neuron that it charges, on [T B C H W]."""

    def fire_mix(
        q: Tokens,
        k: Tokens,
        v: Tokens,
        heads: int,
        scale: float,
        decay: float | Tensor,
        gain: float | Tensor,
        fire: Fire,
    ) -> Tokens:
        exact = torch.promote_types(q.dtype, _holds(q, heads, scale, decay, gain, fire))
        # products of 16 bits, as autocast makes them, would round counts
        with torch.autocast(q.device.type, enabled=False):
            current = mix(*(split_heads(x.to(exact), heads) for x in (q, k, v)), scale)
            merged = merge_heads(current, (q.shape[-2], q.shape[-1]))
            spikes: Tensor = lif(merged, None, decay, gain, fire)[0]
        return spikes.to(q.dtype)

    return fire_mix


def _fire_example() -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(0)
    spikes = (torch.rand(3, 2, 4, 5, 32, generator=g).round() for _ in range(3))
    return *(s.permute(0, 1, 4, 2, 3) for s in spikes), 2, 0.125, 0.5, 0.5, Fire(v_threshold=2.0)


fire_mix = Op("ssa", _fire_with(_mix_reference, lif.reference), _fire_example)
"""fire_mix(q, k, v, heads, scale, decay, gain, fire) -> spikes [T B C H W]."""

if AVAILABLE:
    from saccade.ops import ssa as kernels

    fire_mix.fast("triton", refuses=kernels.refuses)(kernels.scan)
    """The current never reaches memory; K^T V is counted once a head."""
else:
    fire_mix.lacks("triton", MISSING)

fire_mix.fast("numba", refuses=ssa_numba.refuses)(ssa_numba.scan)
"""The same on a CPU."""

fire_mix.fast("composed", refuses=lambda *args: None)(_fire_with(mix, lif))
"""Whatever variants of `mix` and `lif` run; in float64 where float32 has not the bits."""


def _linear_with(linear_lif: Callable[..., tuple[Tensor, ...]], fire_mix: Fn) -> Fn:
    """Eq. SSA-1, then SSA-2."""

    def linear_mix(
        x: Tokens,
        steps: int,
        heads: int,
        scale: float,
        decay: float | Tensor,
        gain: float | Tensor,
        fire: Fire,
        *layers: Any,
    ) -> Tokens:
        spikes: Tensor = fire_mix(*linear_lif(x, steps, *layers), heads, scale, decay, gain, fire)
        return spikes

    return linear_mix


def _linear_example() -> tuple[Any, ...]:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 16, (3, 4, 5, 6, 16), generator=g).float().permute(0, 1, 4, 2, 3)
    layers: list[Any] = []
    for _ in "qkv":
        weight = torch.randn(16, 16, 1, 1, generator=g).mul(128).round()
        gamma, beta = (torch.randn(16, generator=g) / 8 + k for k in (1, 0.7))
        mean, var = torch.zeros(16), torch.ones(16)
        norm = Norm(weight=gamma, bias=beta, running_mean=mean, running_var=var, training=True)
        layers += [weight, norm, 0.5, 0.5, Fire()]
    return x, 3, 2, 0.5, 0.5, 0.5, Fire(v_threshold=0.5), *layers


linear_mix = Op(
    "linear_ssa", _linear_with(linear_lif.reference, fire_mix.reference), _linear_example
)
"""linear_mix(x, steps, heads, scale, decay, gain, fire, *layers) -> spikes [T B C H W].

One step of x stands for `steps` equal ones; layers are those of q, k and v, as for `linear_lif`.
"""

if AVAILABLE:
    from saccade.ops import linear_ssa

    linear_mix.fast("triton", refuses=linear_ssa.refuses, slower=linear_ssa.slower)(linear_ssa.scan)
    """q, k and v are written as bits alone."""
else:
    linear_mix.lacks("triton", MISSING)

linear_mix.fast("composed", refuses=lambda *args: None)(_linear_with(linear_lif, fire_mix))
"""Whatever variants of `linear_lif` and `ssa` run."""


@ATTENTION.add("ssa")
class SSA(SpikingAttention):
    """Eq. SSA-1 to SSA-3: q, k, v are spikes; their product is a current, which fires again.

    Args:
        site: where the mechanism sits.
        scale: s in Eq. SSA-2, outside the product. A power of two keeps it exact.
        qkv_bias: whether the projections of q, k and v have a bias: they do in the official
            CIFAR code, and do not in the others.
        out_bias: whether the output projection has one; TIM's copy of the code does without.
        v_threshold: of the neuron behind the product; 0.5 in paper and code.
        query: a module on q [T B h N d], such as TIM's temporal interaction; None leaves q.

    Raises:
        ValueError: for a scale that is not above 0.
    """

    source = SPIKFORMER
    golden = "official"
    takes_integers = adds_onto = True
    equations = (
        Equation(
            name="SSA-1",
            text="Q = SN(BN(X W_Q)), K = SN(BN(X W_K)), V = SN(BN(X W_V))",
            source=SPIKFORMER,
            where="section and printed number not verified",
            code="saccade.attention.ssa.SSA",
        ),
        Equation(
            name="SSA-2",
            text="SSA'(Q, K, V) = SN(Q K^T V * s)",
            source=SPIKFORMER,
            where="section and printed number not verified",
            code="saccade.attention.ssa.mix",
        ),
        Equation(
            name="SSA-3",
            text="SSA(Q, K, V) = SN(BN(Linear(SSA'(Q, K, V))))",
            source=SPIKFORMER,
            where="section and printed number not verified",
            code="saccade.attention.ssa.SSA",
        ),
    )

    def __init__(
        self,
        site: Site,
        *,
        scale: float = 0.125,
        qkv_bias: bool = False,
        out_bias: bool = True,
        v_threshold: float = 0.5,
        query: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"got scale={scale}, expected a number above 0 (the paper's is 0.125)")
        self.site, self.scale = site, scale
        self.q, self.k, self.v = (
            Projection(site.dim, site.dim, bias=qkv_bias, neuron=site.neuron) for _ in "qkv"
        )
        self.query = nn.Identity() if query is None else query
        self.fire = site.fires(v_threshold=v_threshold)
        self.out = Projection(site.dim, site.dim, bias=out_bias, neuron=site.neuron)

    def forward(self, x: Tokens, onto: Tokens | None = None) -> Tokens:
        """Integers in, spikes out; or their sum with `onto`."""
        s = self._fused(x) if self.apart() is None else self.fire(self.current(x)).to(x.dtype)
        return added(onto, self.out, s)

    def _fused(self, x: Tokens) -> Tokens:
        """Product and neuron as one operation, and the projections with them where they can."""
        how = self.site.heads, self.scale, *self.fire.charge(), self.fire.fire
        layers = fused_layers((self.q, self.k, self.v), x)
        if layers is None:
            s: Tensor = fire_mix(*(p(x) for p in (self.q, self.k, self.v)), *how)
        else:
            s = linear_mix(*layers[:2], *how, *layers[2:])
        return s

    def apart(self) -> str | None:
        """Why product and neuron run one by one, or None where they run fused."""
        if type(self.query) is not nn.Identity:
            return f"{type(self.query).__name__} acts on the query"
        return self.fire.unfusable()

    def current(self, x: Tokens) -> Float[Tensor, "T B C H W"]:
        """The product; a method of its own, so that q, k and v are free before it fires."""
        q, k, v = (split_heads(s, self.site.heads) for s in project((self.q, self.k, self.v), x))
        exact = torch.promote_types(q.dtype, torch.float32)
        q = self.query(q)
        with torch.autocast(x.device.type, enabled=False):
            y = mix(*(t.to(exact) for t in (q, k, v)), self.scale)
        return merge_heads(y, (x.shape[-2], x.shape[-1]))

    def adds(self) -> int:
        """Additions of the cheaper of the two orders of Eq. SSA-2."""
        s = self.site
        return 2 * s.T * s.tokens * s.dim * min(s.tokens, s.dim // s.heads)

    def state(self) -> int:
        """K^T V of each head, summed token by token: h (C/h)^2 = d C."""
        return self.site.dim * self.site.dim // self.site.heads

    def scores(self, x: Tokens) -> Float[Tensor, "T B h N N"]:
        """Q K^T s: non-negative, rows are queries."""
        q, k = (split_heads(s, self.site.heads) for s in project((self.q, self.k), x))
        q, exact = self.query(q), torch.promote_types(q.dtype, torch.float32)
        scores: Tensor = q.to(exact) @ k.mT.to(exact) * self.scale
        return scores


_STEMS = (("q", "q"), ("k", "k"), ("v", "v"), ("proj", "out"))
KEYS = KeyMap(
    rules=tuple(
        rule
        for official, ours in _STEMS
        for rule in (
            (rf"{official}_(?:linear|conv)\.(weight|bias)", rf"{ours}.conv.\1"),
            (rf"{official}_bn\.(.+)", rf"{ours}.norm.\1"),
        )
    )
)
"""Parameters of the official SSA; the CIFAR copy has Linear layers, the others convolutions."""

NEURONS = KeyMap(
    rules=(
        *((f"{official}_lif", f"{ours}.neuron") for official, ours in _STEMS),
        ("attn_lif", "fire"),
    )
)
"""Its spiking layers."""
