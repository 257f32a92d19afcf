"""Recurrences over tokens: a linear membrane, and causal spiking attention.

Source: Zhang et al., "Neural Dynamics Self-Attention", arXiv:2603.19290. Equations: LRF-11 to
LRF-15. Axes: T time, B batch, C channels, N tokens in raster order, h heads, d = C/h, n
compartments. The recurrences run along the tokens of one picture at one time step; every
picture and every step begins with an empty state.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saccade.ops._op import Op

Tokens = Float[Tensor, "T B C N"]
Heads = Float[Tensor, "T B h N d"]
Matrix = Float[Tensor, "#C n n"]
Vector = Float[Tensor, "#C n"]

MOST_GROWTH = 2.0
"""How many times over the membrane may grow from the first token to the last in the FFT."""

CHUNK = 64
"""Tokens whose mutual scores the causal product holds at once."""


def fft_convolve(x: Float[Tensor, "*dims N"], kernel: Float[Tensor, "#*dims N"]) -> Tensor:
    """Causal convolution along the last axis, y_n = sum_{m <= n} kernel_m x_{n-m}; O(N log N).

    Both are padded with zeros to 2N, so nothing wraps around.
    """
    N = x.shape[-1]
    spectrum = torch.fft.rfft(x, 2 * N) * torch.fft.rfft(kernel, 2 * N)
    y: Tensor = torch.fft.irfft(spectrum, 2 * N)[..., :N]
    return y


def impulse_response(A: Matrix, gamma: Vector, read: Vector, N: int) -> Float[Tensor, "C N"]:
    """Eq. LRF-15, the kernel: K_m = read . A^m gamma for m < N, by repeated squaring of A."""
    z, power = gamma.unsqueeze(-2), A
    while z.shape[-2] < N:
        z, power = torch.cat([z, z @ power.mT], -2), power @ power
    return (z[..., :N, :] @ read.unsqueeze(-1)).squeeze(-1)


def _scan_reference(tok: Tokens, A: Matrix, gamma: Vector, read: Vector) -> Tokens:
    """z_n = A z_{n-1} + gamma tok_n, y_n = read . z_n, one token after the other; z before is 0."""
    z = tok.new_zeros(*tok.shape[:-1], A.shape[-1])
    out = []
    for tok_n in tok.unbind(-1):
        z = _step(z, tok_n, A, gamma)
        out.append((z * read).sum(-1))
    return torch.stack(out, -1)


def _step(z: Tensor, tok_n: Tensor, A: Matrix, gamma: Vector) -> Tensor:
    # one A for all channels is one matrix product; broadcasting it would copy it for each
    kept = z @ A[0].mT if len(A) == 1 else (z.unsqueeze(-2) * A).sum(-1)
    return kept + gamma * tok_n.unsqueeze(-1)


def _example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    tok = torch.rand(2, 2, 3, 21, generator=g).round().double()
    swing = torch.randn(1, 4, 4, generator=g).double().mul(0.4)
    A = torch.matrix_exp(swing - swing.mT - 0.2 * torch.eye(4))
    gamma, read = torch.randn(1, 4, generator=g), torch.randn(3, 4, generator=g)
    return tok, A, gamma.double(), read.double()


def _scan_additions(args: tuple[Any, ...], out: Any) -> float:
    """Every compartment is charged by each token that is not 0; its own update is not counted."""
    return float(args[0].detach().count_nonzero()) * float(args[1].shape[-1])


def _scan_dense(args: tuple[Any, ...]) -> float:
    return float(args[0].numel() * args[1].shape[-1])


token_scan = Op("token_scan", _scan_reference, _example, _scan_additions, _scan_dense)
"""token_scan(tok, A, gamma, read) -> y: a linear membrane of n compartments along the tokens.

The rule of its two fast forms: where autograd records, the parallel form runs ("fft": training);
under `torch.no_grad()` or `inference_mode` the scan, which holds one state and not a spectrum.
They agree to rounding (1e-9 in float64). Where the membrane grows from token to token, rounding
of an FFT is as large as the largest value anywhere, so "fft" refuses and the reference runs.
"""


def _refuses_fft(tok: Tokens, A: Matrix, gamma: Vector, read: Vector) -> str | None:
    if not torch.is_grad_enabled():
        return "autograd does not record: the scan holds less memory"
    if torch.compiler.is_compiling():
        return "a graph cannot depend on how fast the membrane grows"
    if tok.dtype not in (torch.float32, torch.float64):
        return f"the FFT takes float32 or float64, not {tok.dtype}"
    radius, N = spectral_radius(A), tok.shape[-1]
    if not radius <= MOST_GROWTH ** (1 / N):  # also where it is not a number
        return f"the membrane grows {radius:.4g}-fold a token: rounding would swamp early tokens"
    return None


def spectral_radius(A: Matrix) -> float:
    """Largest |eigenvalue| of the matrices."""
    A = A.detach().cpu()
    if not A.isfinite().all():
        return float("nan")
    eigenvalues = A if A.shape[-1] == 1 else torch.linalg.eigvals(A)
    return float(eigenvalues.abs().max())


@token_scan.fast("fft", refuses=_refuses_fft, tolerance=1e-9)
def scan_fft(tok: Tokens, A: Matrix, gamma: Vector, read: Vector) -> Tokens:
    """Eq. LRF-15: convolution with the impulse response, all tokens at once."""
    return fft_convolve(tok, impulse_response(A, gamma, read, tok.shape[-1]))


def _refuses_scan(tok: Tokens, A: Matrix, gamma: Vector, read: Vector) -> str | None:
    learns = any(a.requires_grad for a in (tok, A, gamma, read))
    return "autograd records" if learns and torch.is_grad_enabled() else None


@token_scan.fast("scan", refuses=_refuses_scan)
def scan_in_place(tok: Tokens, A: Matrix, gamma: Vector, read: Vector) -> Tokens:
    """The reference, written into one tensor; holds the state of one token."""
    z = tok.new_zeros(*tok.shape[:-1], A.shape[-1])
    y = torch.empty_like(tok)
    for n, tok_n in enumerate(tok.unbind(-1)):
        z = _step(z, tok_n, A, gamma)
        y[..., n] = (z * read).sum(-1)
    return y


def _causal_reference(q: Heads, k: Heads, v: Heads, scale: float) -> Heads:
    """Eq. LRF-11 read inclusively: S_n = S_{n-1} + k_n^T v_n, y_n = s q_n S_n."""
    state = q.new_zeros(*q.shape[:-2], q.shape[-1], v.shape[-1])
    out = []
    for n in range(q.shape[-2]):
        state = state + k[..., n, :, None] * v[..., n, None, :]
        out.append((q[..., n, None, :] @ state).squeeze(-2))
    return torch.stack(out, -2) * scale


def _causal_example() -> tuple[Tensor, Tensor, Tensor, float]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(2, 1, 2, CHUNK + 6, 5, generator=g).round() for _ in range(3))
    return q, k, v, 0.125


def _causal_additions(args: tuple[Tensor, Tensor, Tensor, float], out: Tensor) -> float:
    """One for each pair of spikes of one token (k, v), then the integers that q selects."""
    k, v, out = (a.detach().double() for a in (args[1], args[2], out))
    return float((k.sum(-1) * v.sum(-1)).sum() + out.sum() / args[3])


def _causal_dense(args: tuple[Tensor, Tensor, Tensor, float]) -> float:
    return float(2 * args[0].numel() * args[0].shape[-1])


causal_mix = Op("causal_mix", _causal_reference, _causal_example, _causal_additions, _causal_dense)
"""causal_mix(q, k, v, scale): spiking attention in which a token hears itself and those before.

Equals s tril(Q K^T) V. [Reconstruction: the printed self term k_n^T v_n of Eq. 11 is d x d and
cannot be added to a row; multiplied by q_n it can, which makes the sum inclusive.]
"""


@causal_mix.fast("chunked", refuses=lambda q, k, v, scale: None)
def causal_chunked(q: Heads, k: Heads, v: Heads, scale: float) -> Heads:
    """Masked product inside a chunk, one state between chunks; bit-equal on spikes."""
    state = q.new_zeros(*q.shape[:-2], q.shape[-1], v.shape[-1])
    out = []
    chunks = (torch.split(a, CHUNK, -2) for a in (q, k, v))
    for q_c, k_c, v_c in zip(*chunks, strict=True):
        out.append(q_c @ state + (q_c @ k_c.mT).tril() @ v_c)
        state = state + k_c.mT @ v_c
    return torch.cat(out, -2) * scale
