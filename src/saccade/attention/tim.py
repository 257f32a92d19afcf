"""Temporal interaction module: each step's query listens to the query of the step before.

Source: Shen et al., "TIM", IJCAI 2024, arXiv:2401.11687; code BrainCog-X/Brain-Cog @3998fd5,
examples/TIM. Equations: TIM-1, TIM-2. Axes: T time, B batch, h heads, N tokens, d = C/h.

Code and paper differ. The paper's equation has no neurons; the code has the two of Eq. TIM-1.
The code means thresholds 0.3, 0.5 and 0.5, but hands them over under a name that the node does
not read, so every threshold is 1.0 and the module is silent after the first step: preset
"as_released" (the arithmetic is in docs/known-bugs-elsewhere.md).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade._keymap import KeyMap
from saccade._registry import Part, keywords, nearest, split_part
from saccade._sources import Equation, Source
from saccade.attention._base import ATTENTION, Site, SpikingAttention, Tokens, install
from saccade.nn import Neuron, added

PAPER = Source(
    key="shen2024tim",
    title="TIM: An Efficient Temporal Interaction Module for Spiking Transformer",
    authors="Shen, Sicheng and Zhao, Dongcheng and Shen, Guobin and Zeng, Yi",
    venue="IJCAI",
    year=2024,
    id="arXiv:2401.11687",
)
PRESETS = {"intended": (0.3, 0.5, 0.5), "as_released": (1.0, 1.0, 1.0)}
"""Thresholds of the two neurons of the interaction and of the one behind the product."""

State = tuple[Tensor, Tensor | None, Tensor | None]


class TemporalInteraction(nn.Module):
    """Eq. TIM-1 on queries [T B h N d]: a recurrence over T.

    The convolution slides along the d features of a head; its channels are the N tokens. The
    official code sizes it by d and so needs N = d; here it is sized by N, and its weights load.

    Args:
        tokens: N.
        neuron_in, neuron_out: behind the convolution and behind the sum.
        alpha: weight of the step before.
        kernel: of the convolution, along d.

    Raises:
        ValueError: for alpha outside 0..1, or an even kernel.
    """

    def __init__(
        self,
        tokens: int,
        *,
        neuron_in: Neuron,
        neuron_out: Neuron,
        alpha: float = 0.5,
        kernel: int = 5,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            best = min(max(alpha, 0.0), 1.0)
            raise ValueError(f"got alpha={alpha}, expected 0 to 1; the nearest is {best:g}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(
                f"got kernel={kernel}, expected an odd number (the padding keeps d); the nearest "
                f"is {max(1, kernel + 1)}"
            )
        self.alpha = alpha
        self.conv = nn.Conv1d(tokens, tokens, kernel, padding=kernel // 2)
        self.neuron_in, self.neuron_out = neuron_in, neuron_out

    def forward(self, q: Float[Tensor, "T B h N d"]) -> Float[Tensor, "T B h N d"]:
        """Spikes in, spikes out; step 0 passes as it is."""
        return self.scan(q)[0]

    def scan(
        self, q: Float[Tensor, "T B h N d"], state: State | None = None
    ) -> tuple[Float[Tensor, "T B h N d"], State]:
        """Queries, and what the next step needs: the last query and two membranes."""
        steps = []
        for q_t in q:
            if state is None:
                state = (q_t, None, None)
            else:
                before, v_in, v_out = state
                listened = self._listen(before)[None]
                heard, v_in = self.neuron_in(listened, v_in, with_membrane=True)
                current = self.alpha * heard + (1 - self.alpha) * q_t
                spikes, v_out = self.neuron_out(current, v_out, with_membrane=True)
                state = (spikes[0], v_in, v_out)
            steps.append(state[0])
        assert state is not None
        return torch.stack(steps), state

    def _listen(self, q_t: Float[Tensor, "B h N d"]) -> Float[Tensor, "B h N d"]:
        if q_t.shape[-2] != self.conv.in_channels:
            raise ValueError(
                f"got {q_t.shape[-2]} tokens, expected {self.conv.in_channels}: the tokens of the "
                "grid that this TIM was built for"
            )
        y: Tensor = self.conv(q_t.flatten(0, 1))
        return y.reshape(q_t.shape)


@ATTENTION.add("tim")
class TIM(SpikingAttention):
    """Eq. TIM-1 and TIM-2: an attention whose queries pass a temporal interaction first.

    Args:
        site: where the mechanism sits; its grid fixes the size of the convolution.
        alpha: weight of the step before; the paper's best are 0.6 (CIFAR10-DVS) and 0.4
            (N-Caltech101), the code's default 0.5.
        kernel: of the convolution.
        preset: "intended" (thresholds 0.3, 0.5, 0.5, as written in the source) or "as_released"
            (all 1.0, as the released code runs: silent from the second step on).
        inner: the attention whose query path is used: any that takes `query`.

    Raises:
        ValueError: for alpha outside 0..1, an even kernel, or an unknown preset.
    """

    source = PAPER
    golden = "official"
    adds_onto = True
    equations = (
        Equation(
            name="TIM-1",
            text="Q'_0 = Q_0;  Q'_t = SN(a SN(f(Q'_{t-1})) + (1 - a) Q_t)",
            source=PAPER,
            where="section and printed number not verified; the paper has no SN here",
            code="saccade.attention.tim.TemporalInteraction",
        ),
        Equation(
            name="TIM-2",
            text="attention = Q' K^T V * s",
            source=PAPER,
            where="section and printed number not verified",
            code="saccade.attention.tim.TIM",
        ),
    )

    def __init__(
        self,
        site: Site,
        *,
        alpha: float = 0.5,
        kernel: int = 5,
        preset: str = "intended",
        inner: Part = "ssa",
    ) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}; {nearest(preset, list(PRESETS))}")
        first, second, behind = PRESETS[preset]
        interaction = TemporalInteraction(
            site.tokens,
            neuron_in=site.fires(v_threshold=first),
            neuron_out=site.fires(v_threshold=second),
            alpha=alpha,
            kernel=kernel,
        )
        name, options = split_part(inner)
        wraps = [a for a in ATTENTION if {"query", "v_threshold"} <= {*keywords(ATTENTION[a])}]
        if name in ATTENTION and name not in wraps:
            raise ValueError(
                f"got inner={name!r}, expected an attention that takes a query: {', '.join(wraps)}"
            )
        defaults: dict[str, Any] = {"v_threshold": behind}
        self.site, self.kernel = site, kernel
        self.inner = install(site, {"name": name, **defaults, **options, "query": interaction})

    def forward(self, x: Tokens, onto: Tokens | None = None) -> Tokens:
        """Integers in, spikes out; or their sum with `onto`."""
        return added(onto, self.inner, x)

    def adds(self) -> int:
        """Those of the inner attention, and the convolution's from the second step on."""
        s = self.site
        return self.inner.adds() + (s.T - 1) * s.tokens * s.dim * s.tokens * self.kernel

    def state(self) -> int | None:
        """That of the inner attention."""
        return self.inner.state()

    def scores(self, x: Tokens) -> Float[Tensor, "T B h N N"] | None:
        """Those of the inner attention."""
        return self.inner.scores(x)


KEYS = KeyMap(rules=((r"interactor\.(weight|bias)", r"conv.\1"),))
"""Parameters of the official module; thresholds are read apart."""

NEURONS = KeyMap(rules=(("(in|out)_lif", r"neuron_\1"),))
"""Its spiking layers."""
