"""The moving average of the weights: its rule by loops, and where it is used."""

import json
from pathlib import Path

import pytest
import torch

import saccade
from saccade.train import Recipe, outcome, train
from saccade.train.apply import evaluate_run
from saccade.train.average import MovingAverage
from saccade.train.recipe import Average
from saccade.train.run import build_model
from tests.train.tiny import tensors, tiny_data, tiny_recipe, use


def test_the_decay_by_hand():
    model = build_model(tiny_recipe(), tiny_data())
    average = MovingAverage(model, Average(decay=0.9, warmup=10.0))
    assert [average.decay_at(n) for n in (1, 10, 90, 91, 10**9)] == pytest.approx(
        [1 / 11, 0.5, 0.9, 0.9, 0.9]
    )
    assert MovingAverage(model, Average(decay=0.9, warmup=0)).decay_at(1) == 0.9


def test_the_average_follows_weights_and_statistics_by_its_rule_and_copies_counters():
    torch.manual_seed(0)
    model = build_model(tiny_recipe(), tiny_data())
    average = MovingAverage(model, Average(decay=0.6, warmup=1.0))
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    for n in range(1, 5):
        for tensor in model.state_dict().values():
            tensor.copy_(torch.rand_like(tensor.double()) if tensor.is_floating_point() else n)
        average.follow(model, n)
        d = min(0.6, n / (n + 1))
        for k, v in model.state_dict().items():
            expected[k] = d * expected[k] + (1 - d) * v if v.is_floating_point() else v.clone()
    for k, v in average.model.state_dict().items():
        torch.testing.assert_close(v, expected[k])
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.fixture
def recipe() -> Recipe:
    return tiny_recipe(average=Average(decay=0.7, warmup=2.0), validation=0.25, batch_size=6)


def test_the_averaged_weights_are_what_is_validated_tested_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
):
    use(monkeypatch, tiny_data())
    counts, watched, follow, look = [], [], MovingAverage.follow, outcome.observe
    with monkeypatch.context() as patch:
        patch.setattr(
            MovingAverage, "follow", lambda s, model, n: (counts.append(n), follow(s, model, n))
        )
        patch.setattr(
            outcome, "observe", lambda model, x: (watched.append(model), look(model, x))[1]
        )
        metrics = train(recipe, tmp_path / "with")
    assert counts == list(range(1, 10))
    last = train(tiny_recipe(validation=0.25, batch_size=6), tmp_path / "without")
    assert (metrics["weights"], last["weights"]) == ("averaged", "last")
    stored, plain = (tensors(tmp_path / n / "last.safetensors") for n in ("with", "without"))
    # training itself does not know of the average
    assert all(torch.equal(stored[k], plain[k]) for k in plain)
    loaded = saccade.load(tmp_path / "with").state_dict()
    for k, v in loaded.items():
        assert torch.equal(v, stored[f"average/{k}"])
    assert any(not torch.equal(v, stored[k]) for k, v in loaded.items())
    assert all(torch.equal(v, loaded[k]) for k, v in watched[0].state_dict().items())
    assert set(stored) - set(plain) == {f"average/{k}" for k in loaded}
    again = evaluate_run(tmp_path / "with")
    assert again["test_loss"] == metrics["test_loss"] != last["test_loss"]
    rows = [
        [json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("with", "without")
    ]
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]]
    assert rows[0][-1]["validation_loss"] != rows[1][-1]["validation_loss"]


@pytest.mark.parametrize(
    "bad", [{"decay": 1.0}, {"decay": -0.1}, {"warmup": -1.0}, {"decay": float("nan")}], ids=repr
)
def test_values_beyond_their_bounds_are_refused(bad):
    with pytest.raises(ValueError, match=f"got average.{next(iter(bad))}="):
        Average(**bad)
