"""LAMB and Muon against their printed rules by loops, and by arithmetic done by hand."""

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from saccade.models import MODELS, create_model
from saccade.train.moments import COEFFICIENTS, Lamb, Muon, orthogonal, orthogonal_all
from saccade.train.optim import inner_kernels, make_optimizer
from saccade.train.recipe import Optim


def seeded(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moved(optimizer: torch.optim.Optimizer, weights: list[Tensor], steps: int) -> list[Tensor]:
    """The weights after steps whose gradients are fixed numbers."""
    for n in range(steps):
        for i, p in enumerate(weights):
            p.grad = seeded(*p.shape, seed=100 * n + i)
        optimizer.step()
    return [p.detach() for p in weights]


def adam_by_loops(shape: tuple[int, ...], i: int, steps: int, eps: float) -> list[Tensor]:
    """Adam's direction at each step, from its definition as sums over the past."""
    gradients = [seeded(*shape, seed=100 * n + i) for n in range(steps)]
    out = []
    for n in range(1, steps + 1):
        m = sum(0.1 * 0.9 ** (n - 1 - k) * gradients[k] for k in range(n))
        v = sum(0.001 * 0.999 ** (n - 1 - k) * gradients[k] ** 2 for k in range(n))
        out.append((m / (1 - 0.9**n)) / ((v / (1 - 0.999**n)).sqrt() + eps))
    return out


@pytest.mark.parametrize("max_trust", [None, 0.5])
def test_lamb_takes_adams_direction_in_steps_as_long_as_the_weights(max_trust: float | None):
    shapes = [(3, 4), (5,)]
    weights = [nn.Parameter(seeded(*s, seed=7 + i)) for i, s in enumerate(shapes)]
    expected = [p.detach().clone() for p in weights]
    optimizer = Lamb([{"params": weights, "weight_decay": 0.1}], lr=0.01, max_trust=max_trust)
    got = moved(optimizer, weights, 4)
    for i, shape in enumerate(shapes):
        for r in adam_by_loops(shape, i, 4, 1e-6):
            u = r + 0.1 * expected[i]
            ratio = math.sqrt((expected[i] ** 2).sum()) / math.sqrt((u**2).sum())
            expected[i] = expected[i] - 0.01 * min(ratio, max_trust or math.inf) * u
        torch.testing.assert_close(got[i], expected[i], rtol=1e-10, atol=1e-12)


def test_the_first_step_of_lamb_by_hand():
    """Adam's first direction is the sign of the gradient: |w| = 5, |u| = sqrt 2."""
    w = nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))
    zero = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = Lamb([{"params": [w, zero], "weight_decay": 0.0}], lr=0.1, eps=1e-12)
    w.grad, zero.grad = torch.tensor([0.2, 7.0]).double(), torch.full((4,), 3.0).double()
    optimizer.step()
    assert w.tolist() == pytest.approx([3 - 0.5 / math.sqrt(2), -4 - 0.5 / math.sqrt(2)])
    assert zero.tolist() == pytest.approx([-0.1] * 4)  # no weights: the ratio is 1


def test_newton_and_schulz_act_on_each_singular_value_alone():
    """Of a diagonal matrix: s <- a s + b s^3 + c s^5, begun at s / |g|."""
    diagonal = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    got = orthogonal(torch.diag(diagonal)[None], 5)[0]
    a, b, c = COEFFICIENTS
    s = diagonal / math.sqrt(21)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(got, torch.diag(s), rtol=1e-6, atol=1e-9)
    assert (s.min(), s.max()) > (0.6, 0.6)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_singular_vectors_stay_and_singular_values_become_about_one(shape: tuple[int, int]):
    g = seeded(*shape)
    (got,) = orthogonal_all([g])
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    inside = u.mT @ got @ v.mT
    values = inside.diagonal()
    torch.testing.assert_close(inside, torch.diag(values), atol=1e-8, rtol=0)
    assert 0.3 < values.min() <= values.max() < 1.3


def test_matrices_of_one_shape_are_turned_as_if_each_were_alone():
    many = [seeded(*s, seed=i) for i, s in enumerate([(3, 5), (5, 3), (3, 5), (2, 2), (4, 3)])]
    for one, g in zip(orthogonal_all(many), many, strict=True):
        assert one.shape == g.shape
        torch.testing.assert_close(one, orthogonal_all([g])[0])


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_follows_its_printed_rule_on_matrices_kernels_and_the_rest(nesterov: bool):
    kernel, vector = nn.Parameter(seeded(6, 2, 1, 2, seed=8)), nn.Parameter(seeded(3, seed=9))
    w, b = kernel.detach().clone(), vector.detach().clone()
    optimizer = Muon(
        {"params": [kernel], "lr": 0.02, "weight_decay": 0.3},
        [{"params": [vector], "weight_decay": 0.2}],
        lr=0.01,
        nesterov=nesterov,
    )
    got = moved(optimizer, [kernel, vector], 3)
    speed = torch.zeros(6, 4, dtype=torch.float64)
    for n in range(3):
        g = seeded(6, 2, 1, 2, seed=100 * n).reshape(6, 4)
        speed = 0.95 * speed + g
        d = g + 0.95 * speed if nesterov else speed
        turned = orthogonal(d.mT[None])[0].mT
        w = (1 - 0.02 * 0.3) * w - 0.02 * math.sqrt(6 / 4) * turned.reshape(w.shape)
    torch.testing.assert_close(got[0], w, rtol=1e-10, atol=1e-12)
    for u in adam_by_loops((3,), 1, 3, 1e-8):
        b = (1 - 0.01 * 0.2) * b - 0.01 * u
    torch.testing.assert_close(got[1], b, rtol=1e-10, atol=1e-12)


def test_muons_adamw_is_torchs():
    ours, theirs = (nn.Parameter(seeded(4, 3, seed=5)) for _ in "ab")
    dummy = nn.Parameter(seeded(2, 2))
    muon = Muon(
        {"params": [dummy], "weight_decay": 0.0}, [{"params": [ours], "weight_decay": 0.1}], lr=0.01
    )
    torchs = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    a, b = moved(muon, [ours], 5), moved(torchs, [theirs], 5)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_parameter_without_a_gradient_stays_and_is_not_corrected_for_steps_it_missed():
    late, other = nn.Parameter(seeded(2)), nn.Parameter(seeded(3))
    start = late.detach().clone()
    optimizer = Lamb([{"params": [late, other], "weight_decay": 0.0}], lr=0.1)
    other.grad = seeded(3)
    optimizer.step()
    assert torch.equal(late, start)
    late.grad = torch.tensor([2.0, -3.0], dtype=torch.float64)
    optimizer.step()
    step = 0.1 * start.norm() / math.sqrt(2)
    torch.testing.assert_close(
        late.detach(), start - step * torch.tensor([1.0, -1.0]).double(), rtol=1e-5, atol=0
    )


def built(rule: str, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    if rule == "lamb":
        return Lamb([{"params": weights, "weight_decay": 0.1}], lr=0.02)
    matrices = {"params": weights[:1], "weight_decay": 0.1}
    return Muon(matrices, [{"params": weights[1:], "weight_decay": 0.1}], lr=0.02)


def shaped() -> list[nn.Parameter]:
    return [nn.Parameter(seeded(*s, seed=i)) for i, s in enumerate([(4, 3), (5,), (2,)])]


@pytest.mark.parametrize("rule", ["lamb", "muon"])
def test_a_rate_may_be_a_tensor_that_is_filled_before_each_step(rule: str):
    plain, ours = shaped(), shaped()
    by_number, by_tensor = built(rule, plain), built(rule, ours)
    rate = torch.zeros((), dtype=torch.float64)
    for group in by_tensor.param_groups:
        group["lr"] = rate
    for n in range(3):
        for group in by_number.param_groups:
            group["lr"] = 0.01 * (n + 1)
        rate.fill_(0.01 * (n + 1))
        a, b = moved(by_number, plain, 1), moved(by_tensor, ours, 1)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("rule", ["lamb", "muon"])
def test_weights_that_took_the_same_steps_share_a_counter_also_after_a_state_was_read(rule: str):
    weights = shaped()
    optimizer = built(rule, weights)

    def step(by: torch.optim.Optimizer, on: list[nn.Parameter], seed: int, late: bool) -> None:
        for i, p in enumerate(on):
            p.grad = None if late and i == 2 else seeded(*p.shape, seed=seed + i)
        by.step()

    for n in range(3):  # the last weight misses the second step
        step(optimizer, weights, 10 * n, n == 1)
    saved = deepcopy(optimizer.state_dict())
    counts = [slots["step"] for slots in saved["state"].values() if "step" in slots]
    assert counts[-2:] == [3, 2]
    assert all(type(count) is int for count in counts)
    again = [nn.Parameter(p.detach().clone()) for p in weights]
    resumed = built(rule, again)
    resumed.load_state_dict(saved)
    for n in range(3, 5):
        step(optimizer, weights, 10 * n, False)
        step(resumed, again, 10 * n, False)
    for p, q in zip(weights, again, strict=True):
        assert torch.equal(p, q)
    slots = list(resumed.state.values())
    apart = {id(s["step"]) for s in slots if "step" in s}
    assert len(apart) == 2


@pytest.mark.parametrize(
    "name", MODELS.list("*4_384") + MODELS.list("t*_shd") + MODELS.list("ma_*")
)
def test_muon_leaves_the_first_layer_and_the_head_to_adamw(name: str):
    with torch.device("meta"):
        model = create_model(name)
    inner = {id(p) for p in inner_kernels(model)}
    names = [key for key, p in model.named_parameters() if id(p) in inner]
    matrices = [key for key, p in model.named_parameters() if p.dim() > 1]
    assert names
    assert all(model.get_parameter(key).dim() > 1 for key in names)
    assert model.last not in names
    assert matrices[0] not in names


def test_a_muon_without_a_layer_to_move_is_refused():
    with pytest.raises(ValueError, match="muon has nothing to move"):
        make_optimizer(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), Optim(name="muon"))


def test_what_muon_moves_and_how_fast():
    model = create_model("spikformer", dim=16, depth=1, heads=2, image_size=8)
    optim = Optim(name="muon", lr=1e-3, weight_decay=0.3, options={"matrix_lr": 0.05})
    groups = make_optimizer(model, optim).param_groups
    names = {id(p): key for key, p in model.named_parameters()}
    matrices, decayed, plain = ([names[id(p)] for p in g["params"]] for g in groups)
    assert len(matrices + decayed + plain) == len(names)
    assert decayed == ["stem.stages.0.conv.weight", "head.linear.weight"]
    assert all(key.endswith("conv.weight") for key in matrices)
    assert [g["peak_lr"] for g in groups] == [0.05, 1e-3, 1e-3]
    assert [g["weight_decay"] for g in groups] == [0.0, 0.3, 0.0]
