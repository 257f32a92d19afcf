"""SSA with its projections, through Triton's interpreter: values, gradients, refusals."""

import pytest
import torch
from torch import Tensor

from saccade.attention.ssa import linear_mix
from saccade.ops import Fire, Norm
from saccade.ops._packed import bits_of, remember

pytest.importorskip("triton", reason="Triton is not installed: there are no kernels")
from saccade.ops import linear_ssa as variant
from saccade.ops.conv.packed import unpacked
from saccade.ops.linear_lif import triton as linear

TRITON, COMPOSED = (linear_mix.variants[name][0] for name in ("triton", "composed"))
SOFT = Fire(v_reset=None, detach_reset=False, strict=True, surrogate="atan")


def arguments(
    *, K: int = 16, heads: int = 2, most: int = 15, fire: Fire | None = None
) -> tuple[tuple[object, ...], list[Tensor]]:
    """Whole numbers and weights on a grid, so that currents are exact; and the leaves."""
    torch.manual_seed(0)
    x = torch.randint(0, most + 1, (3, 2, 4, 3, K)).float().permute(0, 1, 4, 2, 3).requires_grad_()
    leaves, layers = [x], []
    for _ in "qkv":
        weight = torch.randn(K, K, 1, 1).mul(16).round()
        learned = [weight, torch.rand(K) + 0.7, torch.randn(K) * 0.3 + 1.5]
        learned = [p.requires_grad_() for p in learned]
        known = {"running_mean": torch.zeros(K), "running_var": torch.ones(K), "training": True}
        layers += [learned[0], Norm(weight=learned[1], bias=learned[2], **known)]
        layers += [0.5, 0.5, fire or Fire()]
        leaves += learned
    after = Fire(v_threshold=0.5) if fire is None else fire
    return (x, 3, heads, 0.5, 0.5, 0.5, after, *layers), leaves


def outcome(run, **how) -> tuple[Tensor, list[Tensor]]:
    given, leaves = arguments(**how)
    s = run(*given)
    torch.manual_seed(1)
    return s.detach(), list(torch.autograd.grad((s * torch.randn(s.shape)).sum(), leaves))


@pytest.mark.parametrize("how", [{}, {"K": 48, "heads": 3, "most": 1}, {"fire": SOFT}], ids=str)
def test_every_variant_equals_the_reference(how):
    want, exact = outcome(linear_mix.reference, **how)
    assert 0.02 < want.mean() < 0.98
    for run in (TRITON, COMPOSED):
        got, found = outcome(run, **how)
        assert torch.equal(got, want)
        for g, w in zip(found, exact, strict=True):
            assert float((g - w).abs().max()) <= 4e-5 * float(w.abs().max().clamp(min=1))


def test_q_k_and_v_are_kept_as_bits_and_so_is_the_input():
    given, _ = arguments(most=1)
    x = given[0]
    eight = x.detach().permute(0, 1, 3, 4, 2).unflatten(-1, (2, 8)).to(torch.uint8)
    remember(x, (eight << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8))
    s = TRITON(*given)
    kept = s.grad_fn.saved_tensors
    assert [t.dtype for t in kept[:4]] == [torch.uint8] * 4
    maps = [t for t in kept if t.dim() == 5 and t.is_floating_point()]
    assert [t.shape[2] for t in maps] == [3 * x.shape[2]]  # the currents of q, k and v
    want, exact = outcome(linear_mix.reference, most=1)
    assert torch.equal(s, want)
    torch.manual_seed(1)
    (g,) = torch.autograd.grad((s * torch.randn(s.shape)).sum(), [x])
    assert float((g - exact[0]).abs().max()) <= 4e-5 * float(exact[0].abs().max())


def test_spikes_have_their_bits_where_something_learns():
    given, _ = arguments()
    s = TRITON(*given)
    assert torch.equal(unpacked(bits_of(s), s.dtype).permute(0, 1, 4, 2, 3), s)
    with torch.no_grad():
        assert bits_of(TRITON(*given)) is None


def test_what_either_part_refuses_it_refuses(monkeypatch: pytest.MonkeyPatch):
    given, _ = arguments()
    assert "cpu, not cuda" in str(variant.refuses(*given))
    monkeypatch.setattr(linear, "no_kernel", lambda *args: None)
    monkeypatch.setattr(variant.ssa, "no_kernel", lambda *args: None)
    assert variant.refuses(*given) is None
    x, steps, heads, *others = given
    assert "heads of 4 channels" in str(variant.refuses(x, steps, 4, *others))
    assert "read once anyway" in str(variant.refuses(x, 9, heads, *others))
    wide = [torch.ones(24, 16, 1, 1) if isinstance(a, Tensor) else a for a in others]
    assert "as wide as" in str(variant.refuses(x, steps, heads, *wide))
    assert "float32" in str(variant.slower(*given))
