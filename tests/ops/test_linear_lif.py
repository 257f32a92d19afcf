"""Linear layers whose norms know the Gram matrix of their input, through Triton's interpreter.

Inputs are whole numbers and weights lie on a grid, so currents are exact and spikes are equal bit
by bit.
"""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from saccade.ops import Fire, Norm, linear_lif
from saccade.ops._packed import bits_of, remember
from saccade.ops._triton import launch

pytest.importorskip("triton", reason="Triton is not installed: there are no kernels")
from saccade.kernels import gram as kernels
from saccade.ops import _gram as gram
from saccade.ops.conv.packed import unpacked
from saccade.ops.linear_lif import triton as variant

TRITON, COMPOSED = (linear_lif.variants[name][0] for name in ("triton", "composed"))
SOFT = Fire(v_reset=None, detach_reset=False, strict=True, surrogate="atan")


@dataclass
class Case:
    """Arguments of the op, anew for each variant, and what takes gradients among them."""

    K: int
    outputs: tuple[int, ...]
    fires: tuple[Fire, ...] = (Fire(), Fire(), Fire())
    offset: bool = False
    most: int = 15
    T: int = 3
    leaves: list[Tensor] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)

    def arguments(self) -> tuple[object, ...]:
        torch.manual_seed(0)
        x = torch.randint(0, self.most + 1, (self.T, 2, 4, 3, self.K)).float()
        self.leaves, self.norms = [x.permute(0, 1, 4, 2, 3).requires_grad_()], []
        layers: list[object] = []
        for n, fire in zip(self.outputs, self.fires, strict=False):
            weight = torch.randn(n, self.K, 1, 1).mul(16).round()
            learned = [weight, torch.rand(n) + 0.7, torch.randn(n) * 0.3 + 0.5, torch.randn(n)]
            learned = [p.requires_grad_() for p in learned[: 4 if self.offset else 3]]
            self.norms.append(
                Norm(
                    weight=learned[1],
                    bias=learned[2],
                    offset=learned[3] if self.offset else None,
                    running_mean=torch.randn(n),
                    running_var=torch.rand(n) + 1,
                    training=True,
                )
            )
            self.leaves += learned
            layers += [learned[0], self.norms[-1], 0.5, 0.5, fire]
        return self.leaves[0], self.T, *layers

    def outcome(self, run, used: slice = slice(None)) -> dict[str, list[Tensor]]:
        spikes = run(*self.arguments())
        torch.manual_seed(1)
        loss = sum((s * torch.randn(s.shape)).sum() for s in spikes[used])
        found = torch.autograd.grad(loss, self.leaves, allow_unused=True)
        pairs = zip(found, self.leaves, strict=True)
        running = [r for n in self.norms for r in (n.running_mean, n.running_var)]
        return {
            "spikes": list(spikes),
            "gradients": [torch.zeros_like(p) if g is None else g for g, p in pairs],
            "running": running,
        }


def agree(got: dict[str, list[Tensor]], want: dict[str, list[Tensor]]) -> None:
    for g, w in zip(got["spikes"], want["spikes"], strict=True):
        assert torch.equal(g, w)
        assert 0.02 < w.mean() < 0.98
    for what in ("gradients", "running"):
        for g, w in zip(got[what], want[what], strict=True):
            # the gradient of an offset is 0; the reference's is rounding noise
            assert float((g - w).abs().max()) <= 4e-5 * float(w.abs().max().clamp(min=1))


@pytest.mark.parametrize(
    "case",
    [
        Case(16, (40,)),
        Case(16, (24, 16), offset=True),
        Case(24, (24, 24, 24), (SOFT, SOFT, SOFT)),
        Case(16, (16, 32), (Fire(v_threshold=0.5), SOFT), most=1),
        Case(136, (16, 8), T=5),
        Case(264, (8,)),
    ],
    ids=str,
)
def test_every_variant_equals_the_reference(case: Case):
    want = case.outcome(linear_lif.reference)
    agree(case.outcome(TRITON), want)
    agree(case.outcome(COMPOSED), want)


@pytest.mark.parametrize("used", [slice(1), slice(1, 2)], ids=["first", "second"])
def test_a_layer_whose_spikes_nobody_uses_has_no_gradient(used: slice):
    case = Case(16, (24, 16))
    agree(case.outcome(TRITON, used), case.outcome(linear_lif.reference, used))


def test_the_input_is_kept_as_bits_where_it_has_them():
    case = Case(16, (40,), most=1)

    def packed(x: Tensor, *others: object) -> tuple[Tensor, ...]:
        eight = x.detach().permute(0, 1, 3, 4, 2).unflatten(-1, (2, 8)).to(torch.uint8)
        remember(x, (eight << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8))
        spikes = TRITON(x, *others)
        kept = spikes[0].grad_fn.saved_tensors
        assert kept[0].dtype == torch.uint8
        return spikes

    agree(case.outcome(packed), case.outcome(linear_lif.reference))


def test_spikes_have_their_bits_where_something_learns():
    case = Case(16, (24, 16))
    for s in TRITON(*case.arguments()):
        assert torch.equal(unpacked(bits_of(s), s.dtype).permute(0, 1, 4, 2, 3), s)
    with torch.no_grad():
        assert all(bits_of(s) is None for s in TRITON(*case.arguments()))


def test_a_frozen_input_leaves_what_learns_its_gradients():
    case, grads = Case(16, (40,)), []
    for run in (TRITON, linear_lif.reference):
        x, *others = case.arguments()
        (s,) = run(x.detach(), *others)
        torch.manual_seed(1)
        grads.append(torch.autograd.grad((s * torch.randn(s.shape)).sum(), case.leaves[1:]))
    for g, w in zip(*grads, strict=True):
        assert float((g - w).abs().max()) <= 2e-5 * float(w.abs().max())


def test_a_second_derivative_is_refused_and_not_wrong():
    case = Case(16, (40,))
    (s,) = TRITON(*case.arguments())
    weights = torch.ones_like(s).requires_grad_()
    (g,) = torch.autograd.grad((s * weights).sum(), case.leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize("K", [16, 128, 136, 264])
@pytest.mark.parametrize("multiprocessors", [1, 9])
def test_moments_are_exact_for_whole_numbers(
    K: int, multiprocessors: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gram, "multiprocessors", lambda device: multiprocessors)
    torch.manual_seed(0)
    x = torch.randint(0, 18, (300, K))
    mean, cov = gram.moments(x.float())
    exact = x.double()
    assert torch.equal(mean, exact.mean(0).float())
    want = (exact.T @ exact / 300 - exact.mean(0)[:, None] * exact.mean(0)).float()
    assert cov.shape == (1, K, K)
    torch.testing.assert_close(cov[0], want, rtol=2e-7, atol=1e-9)


def test_three_parts_of_bfloat16_are_as_exact_as_float32():
    torch.manual_seed(0)
    x = torch.randint(0, 18, (300, 128)).float()
    products, sums = (x.T @ x)[None, None].contiguous(), x.sum(0)[None]
    parts, mean = torch.empty(3, 128, 128, dtype=torch.bfloat16), torch.empty(128)
    launch(
        kernels.covariance, (1, 8), products, sums, mean, parts, 300, P=1, K=128, SIDE=1, PARTS=3,
        BR=16, BK=128,
    )  # fmt: skip
    want = torch.cov(x.double().T, correction=0)
    torch.testing.assert_close(parts.double().sum(0), want, rtol=2e-7, atol=1e-7)


def refused(case: Case, monkeypatch: pytest.MonkeyPatch, **changed: object) -> str | None:
    """What the variant says where a GPU would be."""
    monkeypatch.setattr(variant, "no_kernel", lambda *args: None)
    x, T, *layers = case.arguments()
    for name, value in changed.items():
        if name in ("weight", "decay", "fire"):
            layers[{"weight": 0, "decay": 2, "fire": 4}[name]] = value
        elif name != "T":
            setattr(layers[1], name, value)
    return variant.refuses(x, changed.get("T", T), *layers)


def test_what_it_cannot_run_it_refuses(monkeypatch: pytest.MonkeyPatch):
    case = Case(16, (40,))
    assert "cpu, not cuda" in str(variant.refuses(*case.arguments()))
    assert refused(case, monkeypatch) is None
    assert "read once anyway" in str(refused(case, monkeypatch, T=9))
    assert "this process's batch" in str(refused(case, monkeypatch, training=False))
    assert "this process's batch" in str(refused(case, monkeypatch, join=print))
    assert "several taps" in str(refused(case, monkeypatch, weight=torch.ones(40, 16, 3, 3)))
    assert "learned" in str(refused(case, monkeypatch, decay=torch.ones(1)))
    assert "detach_membrane" in str(refused(case, monkeypatch, fire=Fire(detach_membrane=True)))
    assert "its 12 inputs" in str(refused(Case(12, (40,)), monkeypatch))
    assert "its 12 channels" in str(refused(Case(16, (40, 12)), monkeypatch))
    with torch.autocast("cpu", torch.float16):
        assert "float16" in str(refused(case, monkeypatch))


def test_where_it_does_not_pay_the_next_variant_comes_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(variant, "cache_size", lambda device: 1000)
    monkeypatch.setattr(variant, "no_kernel", lambda *args: None)
    case = Case(8, (40,))
    assert "float32 take longer" in linear_lif.explain(*case.arguments())["triton"]
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_lif.choose(*case.arguments()) == "triton"
        assert "15 outputs of 72 rows" in str(variant.slower(*Case(8, (15,)).arguments()))
        assert "40 outputs of 72 rows" in str(variant.slower(*Case(16, (40,)).arguments()))
        monkeypatch.setattr(variant, "cache_size", lambda device: 72 * 40 * 2)
        said = linear_lif.explain(*case.arguments())
        assert said["triton"] == "the cache holds its 0 MiB of currents"
        assert linear_lif.choose(*case.arguments()) == "composed"
