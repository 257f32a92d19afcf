"""Recurrences over tokens: printed equations by loops, and one form against the other."""

import pytest
import torch

from saccade.ops import causal_mix, fft_convolve, reference_only, token_scan
from saccade.ops.lrf import CHUNK, causal_chunked, impulse_response, spectral_radius
from tests.awake import spikes


def system(C: int, n: int, *, shared: bool, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """A stable membrane: a decaying rotation of n compartments."""
    g = torch.Generator().manual_seed(seed)
    turn = torch.randn(1 if shared else C, n, n, generator=g).double()
    A = torch.matrix_exp(0.5 * (turn - turn.mT) - 0.1 * torch.eye(n))
    gamma, read = (torch.randn(C, n, generator=g).double() for _ in "gr")
    return A, gamma, read


def test_reference_is_the_recurrence_by_loops():
    tok = spikes(2, 1, 2, 5)
    A, gamma, read = system(2, 3, shared=False)
    expected = torch.zeros_like(tok)
    for t in range(2):
        for c in range(2):
            z = [0.0, 0.0, 0.0]
            for n in range(5):
                z = [
                    sum(A[c, i, j].item() * z[j] for j in range(3))
                    + gamma[c, i].item() * tok[t, 0, c, n].item()
                    for i in range(3)
                ]
                expected[t, 0, c, n] = sum(read[c, i].item() * z[i] for i in range(3))
    torch.testing.assert_close(token_scan.reference(tok, A, gamma, read), expected)


def test_a_membrane_that_halves():
    # 1, then half of it, then half of that and a new token of 1: 1, 0.5, 1.25
    half, one = torch.full((1, 1, 1), 0.5), torch.ones(1, 1)
    tok = torch.tensor([1.0, 0.0, 1.0]).reshape(1, 1, 1, 3)
    with torch.no_grad():
        assert token_scan(tok, half, one, one).flatten().tolist() == [1.0, 0.5, 1.25]


@pytest.mark.parametrize("N", [1, 2, 7, 196, 1000])
@pytest.mark.parametrize("shared", [True, False])
def test_fft_is_the_scan_to_1e_9(N: int, shared: bool):
    tok, args = spikes(2, 2, 3, N), system(3, 8, shared=shared)
    fft = token_scan.variants["fft"][0](tok, *args)
    scan = token_scan.variants["scan"][0](tok, *args)
    assert (fft - scan).abs().max() < 1e-9 * max(1, scan.abs().max())
    assert torch.equal(scan, token_scan.reference(tok, *args))


def test_gradients_of_the_fft_are_those_of_the_scan():
    tok = spikes(2, 1, 3, 20).requires_grad_()
    args = [a.requires_grad_() for a in system(3, 4, shared=True)]
    weights = torch.linspace(-1, 1, tok.numel()).reshape(tok.shape).double()
    fft = torch.autograd.grad((token_scan(tok, *args) * weights).sum(), [tok, *args])
    with reference_only():
        scan = torch.autograd.grad((token_scan(tok, *args) * weights).sum(), [tok, *args])
    for f, s in zip(fft, scan, strict=True):
        torch.testing.assert_close(f, s, rtol=1e-9, atol=1e-9)


def test_autograd_decides_between_the_two_forms():
    tok, args = spikes(1, 1, 3, 5), system(3, 2, shared=True)
    learned = (args[0].requires_grad_(), *args[1:])
    assert token_scan.choose(tok, *learned) == "fft"
    with torch.no_grad():
        assert token_scan.choose(tok, *learned) == "scan"
        assert "holds less memory" in token_scan.explain(tok, *learned)["fft"]


def test_a_growing_membrane_is_not_left_to_the_fft():
    tok = spikes(1, 1, 1, 400)
    one, A = torch.ones(1, 1).double(), torch.full((1, 1, 1), 1.2).double().requires_grad_()
    assert token_scan.choose(tok, A, one, one) == "reference"
    assert "grows 1.2-fold" in token_scan.explain(tok, A, one, one)["fft"]
    assert token_scan.choose(tok, A / 1.2, one, one) == "fft"
    assert token_scan.choose(tok, A * torch.nan, one, one) == "reference"
    turned = torch.tensor([[[0.0, 2.0], [-2.0, 0.0]]])
    assert spectral_radius(turned) == pytest.approx(2.0)


def test_halves_are_left_to_the_scan():
    tok, args = spikes(1, 1, 2, 5).bfloat16(), system(2, 2, shared=True)
    assert "not torch.bfloat16" in token_scan.explain(tok, *args)["fft"]


def test_impulse_response_is_the_powers():
    A, gamma, read = system(2, 3, shared=False)
    K = impulse_response(A, gamma, read, 6)
    for m in range(6):
        power = torch.linalg.matrix_power(A, m)
        expected = torch.stack([read[c] @ power[c] @ gamma[c] for c in range(2)])
        torch.testing.assert_close(K[:, m], expected)


def test_convolution_is_causal_and_does_not_wrap():
    x, kernel = torch.eye(4).double()[-1], torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    torch.testing.assert_close(fft_convolve(x, kernel), x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("N", [1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_causal_attention_is_the_masked_product(N: int):
    q, k, v = (spikes(2, 1, 2, N, 5, seed=s) for s in (1, 2, 3))
    masked = (q @ k.mT).tril() @ v * 0.25
    assert torch.equal(causal_mix.reference(q, k, v, 0.25), masked)
    assert torch.equal(causal_chunked(q, k, v, 0.25), masked)


def test_causal_additions_are_counted_one_by_one():
    q, k, v = (spikes(1, 1, 1, 7, 3, seed=s) for s in (1, 2, 3))
    counted, state = 0.0, torch.zeros(3, 3).double()
    for n in range(7):
        pairs = k[0, 0, 0, n, :, None] * v[0, 0, 0, n]
        state = state + pairs
        counted += pairs.sum().item() + (q[0, 0, 0, n] @ state).sum().item()
    args = (q, k, v, 0.125)
    assert causal_mix.additions(args, causal_mix(*args)) == counted
