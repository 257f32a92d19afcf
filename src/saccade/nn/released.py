"""The neurons of MA-SNN's two released codes: event nets (`ma_lif`), ImageNet nets (`mem_update`).

Source: Yao et al., "Attention Spiking Neural Networks", TPAMI 2023, arXiv:2209.13929v1; code
BICLab/Attention-SNN. Their state is the membrane after its decay, ours the one before it: the
sequences of spikes are the same.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade._golden import GOLDEN, Arrays, Config, Golden
from saccade._registry import one_of
from saccade._sources import Equation, Source
from saccade.nn.neurons import NEURON, Gate, Neuron, make_neuron

MA_SNN = Source(
    key="yao2023attention",
    title="Attention Spiking Neural Networks",
    authors="Yao, Man and Zhao, Guangshe and Zhang, Hengyu and Hu, Yifan and Deng, Lei and Tian, "
    "Yonghong and Xu, Bo and Li, Guoqi",
    venue="IEEE TPAMI",
    year=2023,
    id="arXiv:2209.13929",
)
MS_RESNET = Source(
    key="hu2024advancing",
    title="Advancing Spiking Neural Networks Toward Deep Residual Learning",
    authors="Hu, Yifan and Deng, Lei and Wu, Yujie and Yao, Man and Li, Guoqi",
    venue="IEEE TNNLS",
    year=2024,
    id="arXiv:2112.08954",
)
EQUATIONS = (
    Equation(
        name="MA-LIF-1",
        text="u_t = h_{t-1} + x_t, s_t = 1[u_t >= V_th], h_t = V_reset s_t + beta u_t (1 - s_t)",
        source=MA_SNN,
        where="(4)",
        code="saccade.nn.released.MALIF",
    ),
    Equation(
        name="MA-LIF-2",
        text="h_t = alpha (V_th s_t + u_t (1 - s_t)) + beta",
        source=MA_SNN,
        where="released code, in place of MA-LIF-1",
        code="saccade.nn.released.MALIF",
    ),
    Equation(
        name="MEM-1",
        text="u_t = decay u_{t-1} (1 - s_{t-1}) + x_t, s_t = 1[u_t > V_th]",
        source=MS_RESNET,
        where="released code",
        code="saccade.nn.released.MemUpdate",
    ),
)
RESETS = ("official_code", "paper")
OUTPUTS = ("spike", "membrane", "excess")


@NEURON.add("ma_lif")
class MALIF(Neuron):
    """The LIF of TA-SNN and MA-SNN: the input is added whole, the membrane decays after the spike.

    Args:
        decay: share of the membrane that the next step finds; alpha in the code (0.3), beta in
            the paper.
        drift: beta of the code, added to the membrane after each step.
        reset: "official_code" sets the membrane to v_threshold, which then decays (Eq. MA-LIF-2;
            its Vreset is read and never used); "paper" leaves v_reset, undecayed (Eq. MA-LIF-1).
        output: "spike"; or the charged membrane through a ReLU (the code's mode "mem", a LIAF
            neuron), as it is ("membrane") or less v_threshold ("excess", its TR model).
        v_threshold: 0.3 in the code's configurations.
        v_reset: of the paper's rule.
        detach_reset: False in the code: the gradient flows through the reset.
        surrogate: the rectangle.
        alpha: 1 / (2 lens): 2 for Gesture and Gait, 1 for CIFAR10-DVS.

    Raises:
        ValueError: for a decay outside [0, 1], an unknown reset or output, or a v_reset that the
            rule does not use or that no membrane decays to.
    """

    about = "LIF of TA-SNN and MA-SNN: resets to the threshold, then decays"

    def __init__(
        self,
        *,
        decay: float = 0.3,
        drift: float = 0.0,
        reset: str = "official_code",
        output: str = "spike",
        v_threshold: float = 0.3,
        v_reset: float = 0.0,
        detach_reset: bool = False,
        surrogate: str = "rectangle",
        alpha: float | None = 2.0,
    ) -> None:
        _check_decay(decay)
        one_of("reset", reset, RESETS)
        if v_reset and reset != "paper":
            raise ValueError(f"got v_reset={v_reset} with reset={reset!r}, expected reset='paper'")
        if v_reset and not decay:
            raise ValueError(
                f"got v_reset={v_reset} with decay=0, expected v_reset=0 or a decay above 0"
            )
        left = v_reset / decay if v_reset else 0.0  # what decays to v_reset
        super().__init__(
            v_threshold=v_threshold,
            v_reset=v_threshold if reset == "official_code" else left,
            v_rest=0.0,
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
        )
        self.decay, self.drift, self.output = decay, drift, one_of("output", output, OUTPUTS)

    def charge(self) -> tuple[float, float]:
        """Both are constants."""
        return self.decay, 1.0

    def forward(
        self,
        x: Float[Tensor, "T *dims"],
        v0: Float[Tensor, "*dims"] | None = None,
        *,
        with_membrane: bool = False,
        gate: Gate | None = None,
    ) -> Float[Tensor, "T *dims"] | tuple[Float[Tensor, "T *dims"], Float[Tensor, "*dims"]]:
        """Spikes, or membranes above 0; the drift meets every step but the very first."""
        if self.drift:
            x = x + self.drift if v0 is not None else torch.cat([x[:1], x[1:] + self.drift])
        if self.output == "spike":
            return super().forward(x, v0, with_membrane=with_membrane, gate=gate)
        charged: list[Tensor] = []

        def keep(u: Tensor) -> Tensor:
            charged.append(u if gate is None else gate(u))
            return charged[-1]

        _, v = super().forward(x, v0, with_membrane=True, gate=keep)
        above = self.fire.v_threshold if self.output == "excess" else 0.0
        y = (torch.stack(charged) - above).relu()
        return (y, v) if with_membrane else y

    def extra_repr(self) -> str:
        """Constants, for printing."""
        return f"decay={self.decay}, output={self.output!r}, {super().extra_repr()}"


@NEURON.add("mem_update")
class MemUpdate(Neuron):
    """The neuron of MS-ResNet and Att-Res-SNN, Eq. MEM-1: only more than the threshold fires.

    Args:
        decay: share of the membrane that the next step finds; 0.25 in the code.
        v_threshold: 0.5 in the code.
        v_reset: where a spike sets the membrane before it decays.
        detach_reset: True in the code.
        surrogate: the rectangle.
        alpha: 1 / (2 lens) with lens 0.5: 1 where the membrane is in (0, 1).
        strict: whether a membrane that only equals v_threshold stays silent.

    Raises:
        ValueError: for a decay outside [0, 1].
    """

    about = "LIF of MS-ResNet and Att-Res-SNN: strict threshold"

    def __init__(
        self,
        *,
        decay: float = 0.25,
        v_threshold: float = 0.5,
        v_reset: float = 0.0,
        detach_reset: bool = True,
        surrogate: str = "rectangle",
        alpha: float | None = 1.0,
        strict: bool = True,
    ) -> None:
        _check_decay(decay)
        super().__init__(
            v_threshold=v_threshold,
            v_reset=v_reset,
            v_rest=0.0,
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
            strict=strict,
        )
        self.decay = decay

    def charge(self) -> tuple[float, float]:
        """Both are constants."""
        return self.decay, 1.0

    def extra_repr(self) -> str:
        """Constants, for printing."""
        return f"decay={self.decay}, {super().extra_repr()}"


def _check_decay(decay: float) -> None:
    if not 0 <= decay <= 1:
        raise ValueError(
            f"got decay={decay}, expected a number from 0 to 1; the nearest is "
            f"{0.0 if decay < 0 else 1.0:g}"
        )


def ma_lif_part(config: Config) -> dict[str, Any]:
    """The neuron that a golden file of MA-SNN or TA-SNN names, with its constants."""
    constants = config.get("pa_dict") or config
    membrane = "excess" if config.get("TR_model") == "TR" else "membrane"
    return {
        "name": "ma_lif",
        "decay": constants["alpha"],
        "drift": constants["beta"],
        "v_threshold": constants["Vthres"],
        "alpha": 1 / (2 * config["lens"]),
        "output": "spike" if config.get("mode_select", "spike") == "spike" else membrane,
    }


def mem_update_part(config: Config) -> dict[str, Any]:
    """The neuron that a golden file of Att-Res-SNN or MS-ResNet names, with its constants."""
    c = config["lif"]
    alpha = 1 / (2 * c["lens"])
    return {"name": "mem_update", "decay": c["decay"], "v_threshold": c["thresh"], "alpha": alpha}


def _build_ma_lif(config: Config, arrays: Arrays) -> nn.Module:
    return make_neuron(ma_lif_part(config))


def _build_mem_update(config: Config, arrays: Arrays) -> nn.Module:
    return make_neuron(mem_update_part(config))


def batch_first(x: Tensor, config: Config) -> Tensor:
    """[B T ...] of the golden files to [T B ...], and back."""
    return x.transpose(0, 1)


def _states(module: nn.Module, arrays: Arrays, config: Config) -> dict[str, Tensor]:
    """What the official code carries to the next step: our membrane, decayed."""
    assert isinstance(module, MALIF)
    v, states = None, []
    for x_t in arrays["input"].transpose(0, 1):
        v = module.scan(x_t[None], v)[1]
        states.append(module.decay * v + module.drift)
    return {"h_seq": torch.stack(states, 1)}


GOLDEN.add("masnn_convifcell")(
    Golden(build=_build_ma_lif, inward=batch_first, outward=batch_first, extras=_states)
)
GOLDEN.add("attres_memupdate")(Golden(build=_build_mem_update))
