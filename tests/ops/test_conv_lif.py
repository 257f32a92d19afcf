"""The layer that sees pictures, while it learns, through Triton's interpreter.

Pictures and kernels lie on grids, so currents are exact; norms are not, so that a spike may differ.
"""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from saccade.ops import Fire, Norm, conv_lif
from saccade.ops._packed import bits_of

pytest.importorskip("triton", reason="Triton is not installed: there are no kernels")
from saccade.ops.conv.packed import unpacked
from saccade.ops.conv_lif import triton as variant

TRITON, COMPOSED = (conv_lif.variants[name][0] for name in ("triton", "composed"))
PLAIN = Fire()
SOFT = Fire(v_reset=None, detach_reset=False, strict=True, surrogate="atan")
HARD = Fire(detach_reset=False, surrogate="triangle", v_threshold=0.5)


@dataclass
class Case:
    """Arguments of the op, anew for each variant, and what takes gradients among them."""

    N: int = 24
    C: int = 3
    size: tuple[int, int] = (9, 10)
    side: int = 3
    stride: int = 1
    steps: int = 4
    pools: bool = True
    fire: Fire = PLAIN
    offset: bool = False
    leak: tuple[float, float] = (0.5, 0.5)
    leaves: list[Tensor] = field(default_factory=list)
    norm: Norm | None = None

    def arguments(self) -> tuple[object, ...]:
        torch.manual_seed(0)
        x = torch.randn(1, 2, self.C, *self.size).mul(8).round() / 8 + 1
        weight = torch.randn(self.N, self.C, self.side, self.side).mul(16).round() / 16
        learned = [torch.rand(self.N) + 0.7, torch.randn(self.N) * 0.3 + 0.5, torch.randn(self.N)]
        self.leaves = [p.requires_grad_() for p in (weight, *learned[: 3 if self.offset else 2])]
        self.norm = Norm(
            weight=learned[0],
            bias=learned[1],
            offset=learned[2] if self.offset else None,
            running_mean=torch.randn(self.N),
            running_var=torch.rand(self.N) + 1,
            training=True,
        )
        return x, weight, self.stride, self.norm, *self.leak, self.fire, self.steps, self.pools

    def outcome(self, run) -> tuple[Tensor, list[Tensor]]:
        s = run(*self.arguments())
        torch.manual_seed(1)
        found = torch.autograd.grad((s * torch.randn(s.shape)).sum(), self.leaves)
        assert self.norm is not None
        return s.detach(), [*found, self.norm.running_mean, self.norm.running_var]


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(pools=False, offset=True),
        Case(fire=SOFT, steps=5, size=(7, 7), leak=(0.75, 0.3)),
        Case(N=80, C=2, fire=HARD, pools=False, stride=2),
        Case(N=8, C=1, side=7, stride=2, steps=1),
        Case(N=16, C=64, side=1, size=(5, 4), steps=9),
    ],
    ids=str,
)
def test_every_variant_equals_the_reference(case: Case):
    want, exact = case.outcome(conv_lif.reference)
    assert 0.02 < want.mean() < 0.98
    for run in (TRITON, COMPOSED):
        got, found = case.outcome(run)
        assert torch.equal(got, want)
        for g, w in zip(found, exact, strict=True):
            # the gradient of an offset is 0; the reference's is rounding noise
            assert float((g - w).abs().max()) <= 4e-5 * float(w.abs().max().clamp(min=1))


@pytest.mark.parametrize("pools", [False, True])
def test_spikes_have_their_bits_where_something_learns(pools: bool):
    case = Case(pools=pools)
    s = TRITON(*case.arguments())
    assert torch.equal(unpacked(bits_of(s), s.dtype).permute(0, 1, 4, 2, 3), s)
    with torch.no_grad():
        assert bits_of(TRITON(*case.arguments())) is None


@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("learns", [("x", "weight", "gamma", "beta"), ("x",), ("gamma",)], ids=str)
def test_whatever_learns_has_its_gradient(pools: bool, learns: tuple[str, ...]):
    case, grads = Case(pools=pools), []
    for run in (TRITON, conv_lif.reference):
        x, *others = case.arguments()
        leaves = dict(zip(("x", "weight", "gamma", "beta"), (x, *case.leaves), strict=True))
        for name, leaf in leaves.items():
            leaf.requires_grad_(name in learns)
        s = run(x, *others)
        torch.manual_seed(1)
        wanted = [leaves[name] for name in learns]
        grads.append(torch.autograd.grad((s * torch.randn(s.shape)).sum(), wanted))
    for g, w in zip(*grads, strict=True):
        assert float((g - w).abs().max()) <= 4e-5 * float(w.abs().max().clamp(min=1))


def test_a_second_derivative_is_refused_and_not_wrong():
    case = Case()
    s = TRITON(*case.arguments())
    weights = torch.ones_like(s).requires_grad_()
    (g,) = torch.autograd.grad((s * weights).sum(), case.leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def refused(monkeypatch: pytest.MonkeyPatch, case: Case, **changed: object) -> str | None:
    """What the variant says where a GPU would be."""
    monkeypatch.setattr(variant, "no_kernel", lambda *args: None)
    names = "x", "weight", "stride", "norm", "decay", "gain", "fire", "steps", "pools"
    given = dict(zip(names, case.arguments(), strict=True))
    for name, value in changed.items():
        if name in given or name == "onto":
            given[name] = value
        else:
            setattr(given["norm"], name, value)
    return variant.refuses(*given.values())


def test_what_it_cannot_run_it_refuses(monkeypatch: pytest.MonkeyPatch):
    case = Case()
    assert "cpu, not cuda" in str(variant.refuses(*case.arguments()))
    x = case.arguments()[0]
    assert isinstance(x, Tensor)
    assert refused(monkeypatch, case) is None
    assert "at every step" in str(refused(monkeypatch, case, x=x.expand(4, -1, -1, -1, -1)))
    assert "with gaps" in str(refused(monkeypatch, case, x=x.mT))
    assert "no middle" in str(refused(monkeypatch, case, weight=torch.ones(24, 3, 2, 2)))
    assert "147 taps" in str(refused(monkeypatch, case, weight=torch.ones(24, 3, 7, 7)))
    assert "this process's batch" in str(refused(monkeypatch, case, training=False))
    assert "this process's batch" in str(refused(monkeypatch, case, join=print))
    assert "added to something" in str(refused(monkeypatch, case, onto=x))
    assert "learned" in str(refused(monkeypatch, case, decay=torch.ones(1)))
    assert "its 12 channels" in str(refused(monkeypatch, Case(N=12)))
    with torch.autocast("cpu", torch.float16):
        assert "float16" in str(refused(monkeypatch, case))


def test_where_it_does_not_pay_the_next_variant_comes_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(variant, "no_kernel", lambda *args: None)
    case = Case()
    currents = 2 * 9 * 10 * 24 * 4
    monkeypatch.setattr(variant, "cache_size", lambda device: currents)
    assert "the cache holds" in conv_lif.explain(*case.arguments())["triton"]
    monkeypatch.setattr(variant, "cache_size", lambda device: currents - 1)
    assert conv_lif.choose(*case.arguments()) == "triton"
