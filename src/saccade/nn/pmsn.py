"""PMSN: a neuron of several compartments that is trained in parallel over time.

Source: Chen et al., arXiv:2408.14917; code xychen-comp/PMSN @5288a94. Equations: PMSN-1 to
PMSN-3. The parallel training of LRF-Dyn (`saccade.attention.lrf_dyn`) rests on it.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from saccade._golden import GOLDEN, Arrays, Config, Golden
from saccade._keymap import KeyMap
from saccade._sources import Equation, Source
from saccade.ops import fft_convolve, soma

PMSN_SOURCE = Source(
    key="chen2024pmsn",
    title="PMSN: A Parallel Multi-compartment Spiking Neuron for Multi-scale Temporal Processing",
    authors="Chen, Xinyi and Wu, Jibin and Ma, Chenxiang and Yan, Yinsong and Wu, Yujie and "
    "Tan, Kay Chen",
    venue="arXiv",
    year=2024,
    id="arXiv:2408.14917",
)
EQUATIONS = tuple(
    Equation(
        name=name,
        text=text,
        source=PMSN_SOURCE,
        where="read in the official code; printed number not verified",
        code=code,
    )
    for name, text, code in (
        (
            "PMSN-1",
            "z_t = exp(A dt) z_{t-1} + (exp(A dt) - 1) A^-1 B u_t, y_t = Re(C z_t) + D u_t",
            "saccade.nn.pmsn.PMSN.scan",
        ),
        ("PMSN-2", "y = K * u + D u, K_l = Re(C exp(A dt)^l Bbar)", "saccade.nn.pmsn.PMSN"),
        (
            "PMSN-3",
            "v_t = (v_{t-1} mod theta) + relu(y_t), s_t = 1[v_t >= theta]",
            "saccade.ops.pmsn.soma",
        ),
    )
)


class PMSN(nn.Module):
    """Currents [T B C *grid] in, spikes out: a chain of compartments, then an integrating soma.

    Each channel (axis 2) has parameters of its own, 6 n + 2 numbers. It is therefore no entry of
    the neuron registry: parts there are built from options alone, know no number of channels and
    carry one membrane, whereas this one is made for a number of channels and carries n complex
    states and the soma.

    Args:
        channels: C.
        compartments: n; 8 in LRF-Dyn.
        theta: threshold of the soma; 1 in the official code.

    Raises:
        ValueError: for sizes below 1, or a threshold that is not above 0.
    """

    def __init__(self, channels: int, *, compartments: int = 8, theta: float = 1.0) -> None:
        super().__init__()
        for name, size in (("channels", channels), ("compartments", compartments)):
            if size < 1:
                raise ValueError(f"got {name}={size}, expected 1 or more")
        if not theta > 0:
            raise ValueError(f"got theta={theta}, expected a threshold above 0 (1 in the paper)")
        self.theta = theta
        rates, enter, read = _chain(compartments)

        def each(x: Tensor) -> nn.Parameter:
            return nn.Parameter(x.to(torch.get_default_dtype()).repeat(channels, 1))

        self.D = nn.Parameter(torch.randn(channels))
        self.log_dt = nn.Parameter(torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1)))
        self.log_A_real, self.A_imag = each((-rates.real).log()), each(rates.imag)
        self.VinvB_real, self.VinvB_imag = each(enter.real), each(enter.imag)
        self.CV_real, self.CV_imag = each(read.real), each(read.imag)

    def forward(self, u: Float[Tensor, "T B C *grid"]) -> Float[Tensor, "T B C *grid"]:
        """Spikes of all steps at once; at rest before the first.

        In the precision of the parameters whatever the autocast: there is no FFT of halves.
        """
        with torch.autocast(u.device.type, enabled=False):
            spikes: Tensor = soma(self.current(u.to(self.D.dtype)), self.theta)
        return spikes.to(u.dtype)

    def current(self, u: Float[Tensor, "T B C *grid"]) -> Float[Tensor, "T B C *grid"]:
        """Eq. PMSN-2: what reaches the soma, by FFT over time."""
        self._expect(u)
        kernel = self.kernel(len(u)).reshape(1, u.shape[2], *[1] * (u.dim() - 3), len(u))
        y = fft_convolve(u.movedim(0, -1), kernel).movedim(-1, 0)
        return y + _per_channel(self.D, u[0]) * u

    def kernel(self, T: int) -> Float[Tensor, "C T"]:
        """Answer of the last compartment to one input at step 0."""
        rate, enter, read = self._system()
        steps = torch.arange(T, device=rate.device)
        powers = (rate.unsqueeze(-1) * steps).exp()
        return torch.einsum("cn,cnt->ct", read * enter, powers).real

    def scan(self, u: Float[Tensor, "T B C *grid"]) -> Float[Tensor, "T B C *grid"]:
        """The current step by step, Eq. PMSN-1: the inference form, equal to `current`."""
        self._expect(u)
        rate, enter, read = (_per_channel(a, u[0]) for a in self._system())
        z = torch.zeros_like(u[0]).unsqueeze(-1) * rate
        out = []
        for u_t in u:
            z = rate.exp() * z + enter * u_t.unsqueeze(-1)
            out.append((read * z).real.sum(-1))
        return torch.stack(out) + _per_channel(self.D, u[0]) * u

    def _system(self) -> tuple[Complex[Tensor, "C n"], ...]:
        """A dt, its discretised input (zero-order hold), and the read-out."""
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        rate = A * self.log_dt.exp().unsqueeze(-1)
        enter = (rate.exp() - 1) * torch.complex(self.VinvB_real, self.VinvB_imag) / A
        return rate, enter, torch.complex(self.CV_real, self.CV_imag)

    def _expect(self, u: Tensor) -> None:
        if u.dim() < 3 or u.shape[2] != len(self.D):
            raise ValueError(
                f"got input of shape {list(u.shape)}, expected [T, B, {len(self.D)}, ...]: the "
                "parameters are per channel"
            )


def _chain(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues of the official chain, its input and its read-out in their coordinates.

    Diagonal -0.5, couplings +5(i+1) upwards and -5(i+1) downwards; all compartments hear the
    input, the last is read.
    """
    couplings = 5.0 * torch.arange(1, n, dtype=torch.float64)
    chain = torch.diag(couplings, 1) - torch.diag(couplings, -1)
    rates, V = torch.linalg.eig(chain - 0.5 * torch.eye(n, dtype=torch.float64))
    return rates, torch.linalg.solve(V, torch.ones_like(rates)), V[-1]


def _per_channel(a: Tensor, like: Float[Tensor, "B C *grid"]) -> Tensor:
    """[C ...] beside the grid of `like`, to broadcast."""
    return a.reshape(len(a), *[1] * (like.dim() - 2), *a.shape[1:])


def _golden_build(config: Config, arrays: Arrays) -> PMSN:
    channels, compartments = arrays["state/kernel.log_A_real"].shape
    return PMSN(channels, compartments=compartments)


def _golden_extras(module: nn.Module, arrays: Arrays, config: Config) -> dict[str, Tensor]:
    """The official code keeps what reaches the soma, and runs a serial mode beside."""
    assert isinstance(module, PMSN)
    u = _time_first(arrays["input"], config)
    with torch.no_grad():
        serial = soma.reference(module.scan(u), module.theta)
        return {
            "kernel": module.kernel(len(u)),
            "output_y": _time_last(module.current(u), config),
            "output_serial": _time_last(serial, config),
        }


def _time_first(x: Tensor, config: Config) -> Tensor:
    """[B C L] to [T B C]."""
    return x.movedim(-1, 0)


def _time_last(x: Tensor, config: Config) -> Tensor:
    return x.movedim(0, -1)


GOLDEN.add("pmsn_neuron")(
    Golden(
        build=_golden_build,
        keys=KeyMap(rules=((r"kernel\.(.+)", r"\1"), ("D", "D"))),
        inward=_time_first,
        outward=_time_last,
        extras=_golden_extras,
    )
)
