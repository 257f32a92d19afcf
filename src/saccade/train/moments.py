"""Two rules that torch does not have everywhere: LAMB, and Muon with AdamW beside it.

Nothing that changes from step to step is a number of Python's: steps are counted by tensors beside
the weights, and a rate may be a tensor. So a step can be recorded once and replayed.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5, which drives singular values from 0..1 to about 0.7..1.2 in
five rounds: Jordan, "Muon", https://kellerjordan.github.io/posts/muon, 2024."""

Group = dict[str, Any]


class _Counting(torch.optim.Optimizer):
    """Abstract: weights that have taken the same steps share a counter; outside it is a number."""

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with plain numbers for counters."""
        given = super().state_dict()
        counters = {id(s["step"]): s["step"] for s in given["state"].values() if "step" in s}
        known = {key: int(count) for key, count in counters.items()}
        given["state"] = {
            i: {**s, "step": known[id(s["step"])]} if "step" in s else s
            for i, s in given["state"].items()
        }
        return given

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            shared: dict[float, Tensor] = {}
            for p in group["params"]:
                if "step" in self.state[p]:
                    n = float(self.state[p]["step"])
                    self.state[p]["step"] = shared.setdefault(n, _counter(p, n))


class Lamb(_Counting):
    """LAMB: Adam's direction u, in steps as long as the layer's weights are.

    u = m^ / (sqrt(v^) + eps) + decay w, then w <- w - lr min(|w| / |u|, max_trust) u, where a
    norm of 0 makes the ratio 1.

    Source: You et al., ICLR 2020, arXiv:1904.00962, Algorithm 2, with phi(z) = z and each
    parameter tensor as a layer; vectors too, as printed. `max_trust=1` is the "trust clip" of
    later recipes.

    Args:
        groups: of parameters, with their weight_decay.
        lr, betas, eps: as Adam's.
        max_trust: largest ratio; None sets no bound.
    """

    def __init__(
        self,
        groups: list[Group],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        max_trust: float | None = None,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "max_trust": max_trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step, for every parameter that has a gradient."""
        loss = _evaluated(closure)
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            update = adam_direction(weights, self.state, group["betas"], group["eps"])
            torch._foreach_add_(update, weights, alpha=group["weight_decay"])
            w, u = (torch.stack(torch._foreach_norm(t)) for t in (weights, update))
            # no branch on a number of the device: that would wait for it
            ratio = torch.where((w > 0) & (u > 0), w / u, torch.ones_like(w))
            ratio = ratio if group["max_trust"] is None else ratio.clamp(max=group["max_trust"])
            torch._foreach_mul_(update, list((group["lr"] * ratio).unbind()))
            torch._foreach_sub_(weights, update)
        return loss


class Muon(_Counting):
    """Muon: momentum made orthogonal; AdamW for what is no inner matrix.

    A kernel [out, in, k, k] is taken as the matrix [out, in k k]. With g its gradient,
    m <- momentum m + g and d = g + momentum m (Nesterov), it moves by
    -lr sqrt(max(1, rows / columns)) orthogonal(d), after w <- (1 - lr decay) w.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024,
    https://kellerjordan.github.io/posts/muon. There, and here: first layer, head, vectors and
    scalars are AdamW's.

    Args:
        matrices: the group of inner matrices, with lr and weight_decay of its own.
        rest: groups for AdamW.
        lr, betas, eps: of AdamW.
        momentum: of the matrices.
        nesterov: whether the gradient is counted once more.
        iterations: rounds of Newton and Schulz.
    """

    def __init__(
        self,
        matrices: Group,
        rest: list[Group],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
        nesterov: bool = True,
        iterations: int = 5,
    ) -> None:
        own = {"momentum": momentum, "nesterov": nesterov, "iterations": iterations}
        adam = {"betas": betas, "eps": eps}
        super().__init__([{**matrices, **own}, *({**group, **adam} for group in rest)], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step, for every parameter that has a gradient."""
        loss = _evaluated(closure)
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            if "momentum" in group:
                self._turn(weights, group)
            else:
                update = adam_direction(weights, self.state, group["betas"], group["eps"])
                torch._foreach_mul_(update, group["lr"])
                torch._foreach_sub_(weights, update)
        return loss

    def _turn(self, weights: list[Tensor], group: Group) -> None:
        gradients = [p.grad for p in weights if p.grad is not None]
        for p in weights:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        speed = [self.state[p]["momentum"] for p in weights]
        torch._foreach_mul_(speed, group["momentum"])
        torch._foreach_add_(speed, gradients)
        ahead = torch._foreach_mul(speed, group["momentum"]) if group["nesterov"] else speed
        if group["nesterov"]:
            torch._foreach_add_(ahead, gradients)
        turned = orthogonal_all([d.flatten(1) for d in ahead], group["iterations"])
        torch._foreach_mul_(turned, [max(1.0, d.shape[0] / d.shape[1]) ** 0.5 for d in turned])
        torch._foreach_mul_(turned, group["lr"])
        torch._foreach_sub_(weights, [d.view_as(p) for d, p in zip(turned, weights, strict=True)])


def orthogonal_all(matrices: list[Tensor], iterations: int = 5) -> list[Tensor]:
    """`orthogonal` of each, those of one shape (or its transpose) in one batch."""
    flat = [m if m.shape[0] <= m.shape[1] else m.mT for m in matrices]
    by_shape: dict[Any, list[int]] = defaultdict(list)
    for i, m in enumerate(flat):
        by_shape[m.shape, m.dtype, m.device].append(i)
    for same in by_shape.values():
        turned = orthogonal(torch.stack([flat[i] for i in same]), iterations)
        for i, m in zip(same, turned, strict=True):
            flat[i] = m if m.shape == matrices[i].shape else m.mT
    return flat


def orthogonal(g: Float[Tensor, "n R C"], iterations: int = 5) -> Float[Tensor, "n R C"]:
    """About the nearest matrix with orthonormal rows, by Newton-Schulz rounds (R <= C).

    From X = g / |g|, each round is X <- a X + (b A + c A A) X with A = X X^T. Singular values
    land between about 0.7 and 1.2, not at 1: the coefficients are chosen for speed. Those below
    about a thousandth of |g| stay below. The products are taken in bfloat16 on a GPU and in
    float32 (or wider) elsewhere.
    """
    a, b, c = COEFFICIENTS
    x = g.bfloat16() if g.is_cuda else g.to(torch.promote_types(g.dtype, torch.float32))
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(iterations):
        A = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(A, A, A, beta=b, alpha=c), x, beta=a)
    return x.to(g.dtype)


def adam_direction(
    weights: list[Tensor],
    state: dict[Tensor, Any],
    betas: tuple[float, float],
    eps: float,
) -> list[Tensor]:
    """m^ / (sqrt(v^) + eps) of each, moving the moments on: Adam's step without its rate."""
    new = [p for p in weights if not state[p]]
    first = _counter(new[0], 0.0) if new else None
    for p in new:
        state[p].update(step=first, mean=torch.zeros_like(p), square=torch.zeros_like(p))
    gradients = [p.grad for p in weights if p.grad is not None]
    mean, square = ([state[p][slot] for p in weights] for slot in ("mean", "square"))
    torch._foreach_lerp_(mean, gradients, 1 - betas[0])
    torch._foreach_mul_(square, betas[1])
    torch._foreach_addcmul_(square, gradients, gradients, 1 - betas[1])
    update, below = ([torch.empty(0)] * len(weights) for _ in "mv")
    for count, places in _advanced(weights, state):
        for out, moment, beta in ((update, mean, betas[0]), (below, square, betas[1])):
            mine = [moment[i] for i in places]
            seen = (1 - beta**count).to(mine[0].dtype)
            for i, corrected in zip(places, torch._foreach_div(mine, seen), strict=True):
                out[i] = corrected
    torch._foreach_sqrt_(below)
    torch._foreach_add_(below, eps)
    torch._foreach_div_(update, below)
    return update


def _counter(like: Tensor, n: float) -> Tensor:
    """In float64: near 1, a power of beta in float32 leaves nothing behind the point."""
    exact = torch.float32 if like.device.type == "mps" else torch.float64
    return torch.full((), n, dtype=exact, device=like.device)


def _advanced(weights: list[Tensor], state: dict[Tensor, Any]) -> list[tuple[Tensor, list[int]]]:
    """Count a step of each weight; the counters, and the places of the weights that share each."""
    sharing = Counter(id(slots["step"]) for slots in state.values() if "step" in slots)
    together: dict[int, list[int]] = defaultdict(list)
    for i, p in enumerate(weights):
        together[id(state[p]["step"])].append(i)
    found = []
    for places in together.values():
        count = state[weights[places[0]]]["step"]
        if sharing[id(count)] > len(places):  # a layer that has no gradient lags behind
            count = count.clone()
            for i in places:
                state[weights[i]]["step"] = count
        count += 1
        found.append((count, places))
    return found


def _evaluated(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
