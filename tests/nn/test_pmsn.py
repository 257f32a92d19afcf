"""PMSN: by hand, by loops, and the parallel form against the serial one."""

import pytest
import torch

from saccade.nn import PMSN
from saccade.ops import soma


def neuron(**options) -> tuple[PMSN, torch.Tensor]:
    torch.manual_seed(0)
    pmsn = PMSN(3, **options).double()
    pmsn.D.data = torch.tensor([0.5, -0.4, 0.3]).double()
    return pmsn, torch.randn(60, 2, 3, 2, 2).double()


@pytest.mark.parametrize("path", ["reference", "cumulative"])
def test_a_spike_takes_away_all_whole_thresholds(path: str):
    # 2.5 is two thresholds and a half: one spike, the half stays; -3 counts as 0; 0.5 makes 1.0,
    # a tie, which fires and leaves nothing; 0.75 is below
    y = torch.tensor([2.5, -3.0, 0.5, 0.75, 0.5])
    run = soma.reference if path == "reference" else soma.variants[path][0]
    assert run(y, 1.0).tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]


def test_a_spike_hears_its_own_step_alone():
    y = torch.tensor([0.25, 0.5, -1.0, 0.75], requires_grad=True)
    soma(y, 1.0).sum().backward()
    # before the threshold: 0.25, 0.75, (0.75), 1.5; triangle of the distance, none where y <= 0
    assert y.grad.tolist() == [0.25, 0.75, 0.0, 0.5]


def test_scan_is_the_fft_to_1e_9():
    pmsn, u = neuron()
    parallel, serial = pmsn.current(u), pmsn.scan(u)
    assert (parallel - serial).abs().max() < 1e-9
    assert 0.02 < pmsn(u).mean() < 0.98
    assert torch.equal(pmsn(u), soma.reference(serial, pmsn.theta))


def test_the_chain_is_the_tridiagonal_matrix_that_it_was_made_of():
    n = 4
    pmsn = PMSN(1, compartments=n).double()
    chain = torch.zeros(n, n).double()
    for i in range(n):
        chain[i, i] = -0.5
        if i + 1 < n:
            chain[i, i + 1], chain[i + 1, i] = 5.0 * (i + 1), -5.0 * (i + 1)
    A, dt = torch.matrix_exp(chain * pmsn.log_dt.exp().item()), pmsn.log_dt.exp().item()
    z, got = torch.zeros(n).double(), []
    enter = torch.linalg.solve(chain, (A - torch.eye(n)) @ torch.ones(n).double())
    for u_t in (1.0, 0.0, 0.0, 2.0):
        z = A @ z + enter * u_t
        got.append(z[-1].item())
    assert dt > 0
    u = torch.tensor([1.0, 0.0, 0.0, 2.0]).double().reshape(4, 1, 1)
    expected = (pmsn.current(u) - pmsn.D * u).flatten().tolist()
    assert got == pytest.approx(expected, abs=1e-6)  # parameters are float32


@pytest.mark.parametrize("n", [1, 4, 8])
def test_has_6n_plus_2_numbers_a_channel(n: int):
    assert sum(p.numel() for p in PMSN(5, compartments=n).parameters()) == 5 * (6 * n + 2)


def test_is_causal_keeps_nothing_and_learns():
    pmsn, u = neuron()
    later = torch.cat([u[:-1], -u[-1:]])
    assert torch.equal(pmsn(later)[:-1], pmsn(u)[:-1])
    assert torch.equal(pmsn(u), pmsn(u))
    assert torch.equal(pmsn(u)[:, :1], pmsn(u[:, :1]))
    pmsn(u).sum().backward()
    assert [n for n, p in pmsn.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_takes_tokens_frames_and_bare_channels():
    pmsn, u = neuron()
    assert torch.equal(pmsn(u[..., 0, 0]), pmsn(u)[..., 0, 0])
    assert pmsn(u[..., 0]).shape == u[..., 0].shape


def test_autocast_does_not_reach_it():
    pmsn, u = PMSN(3), torch.randn(20, 2, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pmsn(u), pmsn(u.float()).bfloat16())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "got channels=0"),
        ({"channels": 2, "compartments": 0}, "got compartments=0"),
        ({"channels": 2, "theta": 0.0}, "got theta=0.0"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        PMSN(**options)


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match=r"got input of shape \[4, 1, 2\], expected \[T, B, 3"):
        PMSN(3)(torch.zeros(4, 1, 2))
