"""Membranes along the tokens of one picture: linear, without threshold, empty before the first.

Source: "Neural Dynamics Self-Attention", arXiv:2603.19290, Eq. LRF-12, LRF-13, LRF-15, read in
secondary sources. Eq. LRF-12 is literal. The dendritic form is a reconstruction: the printed
A := C^T tridiag(-1/tau, beta) does not say how it becomes a step from token to token.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saccade.ops import token_scan


class TokenMembrane(nn.Module, ABC):
    """Abstract. z_n = A z_{n-1} + gamma tok_n, y_n = read . z_n over tokens in raster order."""

    @abstractmethod
    def system(
        self,
    ) -> tuple[Float[Tensor, "#C n n"], Float[Tensor, "#C n"], Float[Tensor, "#C n"]]:
        """A, gamma and the read-out."""

    @abstractmethod
    def state(self) -> int:
        """Numbers that one token leaves to the next, per sample and time step."""

    def forward(self, tok: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C H W"]:
        """Membrane at every token: by FFT where autograd records, else by the scan.

        In the precision of the parameters whatever the autocast: rounding adds up over tokens.
        """
        with torch.autocast(tok.device.type, enabled=False):
            A, gamma, read = self.system()
            y: Tensor = token_scan(tok.flatten(3).to(gamma.dtype), A, gamma, read)
        return y.reshape_as(tok).to(tok.dtype)


class Decay(TokenMembrane):
    """Eq. LRF-12, literally: X_n = A X_{n-1} + Gamma tok_n with one A and Gamma a channel.

    Initialisation is ours (the paper's is not known): A from U(0.5, 0.9), Gamma from U(0.75, 1.25).
    Gamma = 1 would tie: a lone token would charge a neuron of tau 2 to just 0.5, the threshold
    behind attention, and the rounding of the FFT would decide. Nothing keeps A below 1 in
    training; beyond it the parallel form is refused (`saccade.ops.lrf`).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(channels).uniform_(0.5, 0.9))
        self.Gamma = nn.Parameter(torch.empty(channels).uniform_(0.75, 1.25))

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """One compartment a channel, read as it is."""
        return self.A[:, None, None], self.Gamma[:, None], torch.ones_like(self.A)[:, None]

    def state(self) -> int:
        """One membrane a channel."""
        return len(self.A)


class Dendrites(TokenMembrane):
    """Eq. LRF-13 and LRF-15: dendrites in a chain, whose weighted sum is the soma.

    A = expm(delta tridiag(-1/tau; beta)), H_n = C_c . z_n [reconstruction]. As in the neuron it
    descends from (PMSN) the continuous chain is discretised by its exponential; raw -1/tau would
    turn the sign at every token. A and Gamma are shared over channels, C is per channel: fewer
    than the 29 numbers a channel by which published parameter counts grow.

    Initialisation is ours: tau from U(1, 12), beta_up from N(0, 0.6) and beta_down = -beta_up,
    which makes every eigenvalue of A less than 1; Gamma = 1, and C from U(0, 2/n), so that a
    single token charges the soma by about 1.

    Args:
        channels: C.
        compartments: n; 8 in the paper.
        delta: the step from one token to the next, in units of tau.

    Raises:
        ValueError: for no compartment, or a step that is not above 0.
    """

    def __init__(self, channels: int, *, compartments: int = 8, delta: float = 0.5) -> None:
        super().__init__()
        n = compartments
        if n < 1:
            raise ValueError(f"got compartments={n}, expected 1 or more (the paper has 8)")
        if not delta > 0:
            raise ValueError(f"got delta={delta}, expected a step above 0 (0.5 by default)")
        self.delta = delta
        self.log_tau = nn.Parameter(torch.empty(n).uniform_(1, 12).log())
        self.beta_up = nn.Parameter(torch.randn(n - 1) * 0.6)
        self.beta_down = nn.Parameter(-self.beta_up.detach())
        self.Gamma = nn.Parameter(torch.ones(n))
        self.C = nn.Parameter(torch.rand(channels, n) * 2 / n)

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """The chain over one token, its input and its read-out."""
        chain = torch.diag(-torch.exp(-self.log_tau))
        chain = chain + torch.diag(self.beta_up, 1) + torch.diag(self.beta_down, -1)
        return torch.matrix_exp(self.delta * chain)[None], self.Gamma[None], self.C

    def state(self) -> int:
        """n dendrites a channel: O(kd) in the paper, with k = n."""
        return self.C.numel()
