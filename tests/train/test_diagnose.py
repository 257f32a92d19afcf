"""A run that diverges stops, says where, and keeps the last state that was good."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import saccade
from saccade.models import SpikingTransformer
from saccade.train import Diverged, loop, run, train
from saccade.train.diagnose import diagnose
from saccade.train.recipe import Optim
from saccade.train.tasks import Batch
from saccade.train.tasks.classify import Classify
from tests.awake import awake
from tests.train.tiny import MODEL, header, tensors, tiny_data, tiny_recipe, use

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def build() -> SpikingTransformer:
    options = {k: v for k, v in MODEL.items() if k != "name"}
    torch.manual_seed(0)
    size = {"num_classes": 3, "in_channels": 1, "image_size": 8}
    return awake(saccade.create_model("spikformer", **options, **size)).eval()


def test_a_sound_model_is_not_blamed():
    assert diagnose(build(), X).startswith("every layer is finite and fires")


def test_input_that_is_not_finite_is_blamed_alone():
    x = X.clone()
    x[0, 0, 0, 0] = float("inf")
    assert diagnose(build(), x) == "the input itself is not finite"


@pytest.mark.parametrize(("bias", "what"), [(-1e4, "silent"), (1e4, "saturated")])
def test_a_layer_that_never_or_always_fires_is_named(bias: float, what: str):
    model = build()
    model.blocks[0].mlp.fc1.norm.bias.data.fill_(bias)
    found = dict(part.split(": ") for part in diagnose(model, X).split("; "))
    assert found[what].split(", ")[0] == "blocks.0.mlp.fc1.neuron"
    assert "not finite" not in found


def test_a_weight_that_is_not_a_number_is_named_before_what_it_spoils():
    model = build()
    model.blocks[0].attention.v.conv.weight.data[0, 0] = float("nan")
    first = diagnose(model, X).split("; ")[0]
    assert first.startswith("not finite: blocks.0.attention.v.conv.weight (weights), ")
    assert "blocks.0.attention.v.conv" in first.split(", ")[1]
    assert "stem" not in first


def test_statistics_that_overflowed_are_named_though_no_output_shows_it():
    model = build()
    model.stem.stages[1].norm.running_var.fill_(float("inf"))
    assert "not finite: stem.stages.1.norm.running_var (statistics)" in diagnose(model, X)


def test_no_hook_stays_on_the_model():
    model = build()
    diagnose(model, X)
    assert all(not m._forward_hooks for m in model.modules())


class Poisoned(Classify):
    """Spoils a weight in the middle of a run, as a bad kernel would."""

    def __init__(self, at: int, spoil: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.at, self.spoil, self.calls = at, spoil, 0

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == self.at:
            self.spoil(model)
        return super().__call__(model, batch)


def spoil_head(model: nn.Module) -> None:
    model.get_parameter("_forward_module.head.linear.weight").data[0, 0] = float("nan")


def spoil_attention(model: nn.Module) -> None:
    """Behind it stands a neuron, which makes a zero of what is not a number."""
    name = "_forward_module.blocks.0.attention.q.conv.weight"
    model.get_parameter(name).data[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "what", "layer"),
    [
        (spoil_head, "the loss became nan", "head.linear.weight (weights)"),
        (
            spoil_attention,
            "the gradient stopped being finite",
            "blocks.0.attention.q.conv.weight (weights)",
        ),
    ],
)
def test_a_run_whose_weights_are_spoiled_keeps_its_last_good_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[nn.Module], None],
    what: str,
    layer: str,
):
    use(monkeypatch, tiny_data())
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    good: list[bytes] = []
    write = loop.save_run

    def save(folder: Path, *rest: object, **how: object) -> None:
        write(folder, *rest, **how)
        good.append((folder / "last.safetensors").read_bytes())

    monkeypatch.setattr(loop, "save_run", save)
    monkeypatch.setattr(run, "make_task", lambda part: Poisoned(5, spoil))
    with pytest.raises(Diverged) as error:
        train(tiny_recipe(), tmp_path)
    path = tmp_path / "last.safetensors"
    assert str(error.value).startswith(f"{what} at step 4 (epoch 2). Layers: not finite: {layer}")
    assert f"the last good checkpoint is kept: {path}" in str(error.value)
    assert path.read_bytes() == good[-1]
    assert header(path)["position"]["step"] == len(good) == 4
    assert all(t.isfinite().all() for t in tensors(path).values())
    assert not (tmp_path / "metrics.json").exists()
    assert saccade.load(tmp_path)(X).isfinite().all()


@pytest.mark.parametrize("rate", [1e30, 1e10, 1e5, float("inf")])
def test_an_absurd_learning_rate_ends_in_advice_and_never_in_a_bad_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float
):
    use(monkeypatch, tiny_data())
    with pytest.raises(Diverged, match=r"stopped being finite|the loss became (nan|inf)") as error:
        train(tiny_recipe(optim=Optim(lr=rate), epochs=6), tmp_path)
    assert "Layers: not finite: stem.stages.0" in str(error.value)
    assert f"A lower optim.lr (now {rate:g})" in str(error.value)
    path = tmp_path / "last.safetensors"
    kept = "is kept" if path.exists() else "nothing was saved yet"
    assert kept in str(error.value)
    if path.exists():
        assert all(t.isfinite().all() for t in tensors(path).values())
