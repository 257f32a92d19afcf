"""Every fast variant of every op equals its reference, values and gradients."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import saccade.attention  # noqa: F401  (registers the ops)
from saccade.ops import OPS, Fire, Op, lif, listening, reference_only, within

NO_GPU = "the tensors are on cpu, not cuda"
CASES = [(op, name) for op in OPS.values() for name in op.variants]


def run(fn: Any, args: tuple[Any, ...]) -> list[torch.Tensor]:
    """Outputs, then gradients of the inputs under uneven weights."""
    args = tuple(a.clone().requires_grad_() if torch.is_tensor(a) else a for a in args)
    out = fn(*args)
    outs = out if isinstance(out, tuple) else (out,)
    weights = [torch.arange(o.numel()).reshape(o.shape).remainder(7).to(o.dtype) for o in outs]
    sum((o * w).sum() for o, w in zip(outs, weights, strict=True)).backward()
    leaves = [a for a in args if torch.is_tensor(a)]
    return [*outs, *(torch.zeros_like(a) if a.grad is None else a.grad for a in leaves)]


@pytest.mark.parametrize(("op", "name"), CASES, ids=lambda c: getattr(c, "name", c))
def test_variant_equals_reference(op: Op, name: str):
    fast, refuses = op.variants[name]
    args = op.example()
    # kernels run through Triton's interpreter where there is no GPU
    assert refuses(*args) in (None, NO_GPU), "the example must exercise the variant"
    if not op.learns:
        assert torch.equal(fast(*args), op.reference(*args))
        return
    got, want = run(fast, args), run(op.reference, args)
    outputs = len(got) - sum(torch.is_tensor(a) for a in args)
    for g, w in zip(got[:outputs], want[:outputs], strict=True):
        tolerance = op.tolerances[name]
        torch.testing.assert_close(g, w, rtol=tolerance, atol=tolerance)  # 0: bit-equal
        if w.unique().numel() <= 2:  # spikes
            assert 0.02 < w.mean() < 0.98, "nothing can differ in a network that is silent"
    for g, w in zip(got[outputs:], want[outputs:], strict=True):
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-6)


def fires() -> list[Fire]:
    soft = Fire(v_reset=None)
    cut = Fire(v_reset=-0.25, detach_membrane=True)
    hard = [Fire(), Fire(v_reset=-0.25), Fire(v_threshold=0.5, surrogate="atan"), cut]
    hard += [Fire(strict=True), Fire(v_reset=1.0, v_rest=-0.25)]
    return [f for fire in (soft, *hard) for f in (fire, replace(fire, detach_reset=False))]


@pytest.mark.parametrize("fire", fires(), ids=str)
@pytest.mark.parametrize(("decay", "gain"), [(0.5, 0.5), (0.75, 1.0), (1.0, 1.0), (2 / 3, 1 / 3)])
@pytest.mark.parametrize("at_rest", [True, False])
def test_analytic_backward_equals_autograd(fire: Fire, decay: float, gain: float, at_rest: bool):
    x, v0, *_ = (a.double() if torch.is_tensor(a) else a for a in lif.example())
    args = (x, None if at_rest else v0, decay, gain, fire)
    got, want = run(lif.variants["analytic"][0], args), run(lif.reference, args)
    assert 0.02 < got[0].mean() < 0.98
    assert torch.equal(got[0], want[0])
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12)


def test_analytic_refuses_learned_constants():
    x, v0, _, gain, fire = lif.example()
    assert lif.choose(x, v0, torch.tensor(0.5), gain, fire) == "reference"
    assert "learned" in lif.explain(x, v0, torch.tensor(0.5), gain, fire)["analytic"]


def test_reference_only_turns_variants_off():
    op = OPS["ssa_mix"]
    assert op.choose(*op.example()) == "reassociated"
    with reference_only():
        assert op.choose(*op.example()) == "reference"
        assert op.explain(*op.example())["reassociated"] == "inside reference_only()"
    assert op.explain(*op.example())["reassociated"] == "runs"


def test_a_listener_hears_every_call_and_no_more():
    op, heard = OPS["ssa_mix"], []
    with listening(lambda op, args, out: heard.append((op.name, out))):
        out = op(*op.example())
    op(*op.example())
    assert [name for name, _ in heard] == ["ssa_mix"]
    assert heard[0][1] is out


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="already registered"):
        Op("lif", lambda x: x, lambda: (1,))


def test_a_listener_knows_inside_which_ops_a_call_runs():
    op, heard = OPS["ssa"], []
    # in float64, which no kernel takes
    args = [x.double() if torch.is_tensor(x) else x for x in op.example()]
    with listening(lambda op, args, out: heard.append((op.name, [o.name for o in within()]))):
        op(*args)
    assert heard == [("ssa_mix", ["ssa"]), ("lif", ["ssa"]), ("ssa", [])]
    assert within() == ()


def test_a_variant_that_is_missing_is_named_with_the_reason():
    op = Op("lonely", lambda x: x, lambda: (1,))
    try:
        op.lacks("fast", "no such package")
        assert op.explain(1) == {"fast": "no such package", "reference": "runs"}
        assert op.choose(1) == "reference"
    finally:
        del OPS["lonely"]
