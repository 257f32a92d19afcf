"""What one step does: parts of a batch, blends, rates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from saccade.data import Augment, Mix
from saccade.train.flight import staged
from saccade.train.loop import fit
from saccade.train.recipe import Optim
from saccade.train.session import Session
from saccade.train.step import add_gradients
from saccade.train.tasks import Batch
from tests.train.tiny import in_float64, opened, tiny_recipe


def pieces(s: Session) -> list[Batch]:
    """Of the step that is next."""
    step = s.position.step
    return staged(s, s.batches.at(step), step)


def gradients(folder: Path, **changes: Any) -> tuple[float, int, dict[str, torch.Tensor]]:
    """Of one batch, in float64 and with the norms' statistics fixed."""
    s = opened(folder, tiny_recipe(augment=Augment(), **changes))
    in_float64(s.model).eval().train = lambda mode=True: s.model  # type: ignore[method-assign]
    loss, correct = add_gradients(s, pieces(s)).tolist()
    return loss, correct, {k: p.grad for k, p in s.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mix", [Mix(), Mix(mixup=1.0)], ids=["labels", "mixed"])
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parts_add_up_to_the_gradient_of_the_whole_batch(tmp_path: Path, parts: int, mix: Mix):
    whole = gradients(tmp_path, mix=mix)
    cut = gradients(tmp_path, mix=mix, accumulate=parts)
    assert cut[0] == pytest.approx(whole[0], rel=1e-12)
    assert cut[1] == whole[1]
    assert cut[2].keys() == whole[2].keys()
    assert max(g.abs().max() for g in whole[2].values()) > 1e-3
    for name, gradient in whole[2].items():
        torch.testing.assert_close(cut[2][name], gradient, rtol=1e-9, atol=1e-14)


def test_an_update_sees_the_batch_size_whatever_the_parts(tmp_path: Path):
    for accumulate in (1, 4):
        s = opened(tmp_path / str(accumulate), tiny_recipe(accumulate=accumulate, epochs=1))
        (tmp_path / str(accumulate)).mkdir()
        fit(s)
        assert (s.position.step, s.position.images) == (3, 24)


def test_blends_end_with_their_share_of_the_steps_and_are_functions_of_the_step(tmp_path: Path):
    recipe = tiny_recipe(mix=Mix(mixup=1.0, until=0.5))
    s = opened(tmp_path, recipe)
    blended = []
    for step in range(9):
        s.position.step = step
        (first,), (second,) = pieces(s), pieces(s)
        assert torch.equal(first.x, second.x)
        blended.append(first.soft is not None)
        if first.soft is not None:
            assert torch.equal(first.soft, second.soft)
            torch.testing.assert_close(first.soft.sum(1), torch.ones(8))
    assert blended == [True] * 4 + [False] * 5  # 4.5 is rounded to 4


def test_another_seed_blends_otherwise(tmp_path: Path):
    soft = []
    for seed in (0, 1):
        (batch,) = pieces(opened(tmp_path, tiny_recipe(mix=Mix(mixup=1.0), seed=seed)))
        soft.append(batch.soft.sort(-1).values)
    assert not torch.equal(*soft)


def test_each_group_has_its_own_rate_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    optim = Optim(name="muon", lr=0.01, schedule="linear", warmup=0.0, final=0.0)
    s = opened(tmp_path, tiny_recipe(optim=optim, epochs=1))
    step = s.optimizer.step
    monkeypatch.setattr(
        s.optimizer,
        "step",
        lambda *a: (seen.append([g["lr"] for g in s.optimizer.param_groups]), step(*a)),
    )
    fit(s)
    assert seen == [pytest.approx([0.02 * k, 0.01 * k, 0.01 * k]) for k in (1, 2 / 3, 1 / 3)]


def test_clipping_bounds_the_norm_of_the_sum_of_parts(tmp_path: Path, monkeypatch):
    norms = []
    recipe = tiny_recipe(optim=Optim(name="sgd", lr=1e-3, clip=0.01), accumulate=2, epochs=1)
    s = opened(tmp_path, recipe)
    step = s.optimizer.step

    def watched(*arguments: Any) -> Any:
        norms.append(
            nn.utils.get_total_norm([p.grad for p in s.model.parameters() if p.grad is not None])
        )
        return step(*arguments)

    monkeypatch.setattr(s.optimizer, "step", watched)
    fit(s)
    assert [float(n) for n in norms] == pytest.approx([0.01] * 3, rel=1e-3)
