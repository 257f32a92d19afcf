"""What is not a whole checkpoint of this model is refused by name, and left as it is."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import saccade
from saccade.models import create_model
from saccade.train import load_model, save_weights, train
from saccade.train.checkpoint import Position, State, read_run, save_run
from saccade.train.optim import make_optimizer
from saccade.train.recipe import Optim
from tests.awake import awake, firing_rates
from tests.train.tiny import MODEL, header, tiny_data, tiny_recipe, use

SIZE = {"num_classes": 3, "in_channels": 1, "image_size": 8}


def build(**changes: Any) -> saccade.models.SpikingModel:
    torch.manual_seed(0)
    options = {k: v for k, v in MODEL.items() if k != "name"}
    return awake(create_model("spikformer", **options | SIZE | changes))


def save_trained(folder: Path, **changes: Any) -> Path:
    """A checkpoint of a run that has taken one step."""
    folder.mkdir(exist_ok=True)
    model = build(**changes)
    optimizer = make_optimizer(model, Optim())
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    state = State(model=model, optimizer=optimizer)
    save_run(folder, state, Position(step=1, loss_sum=0.1 + 0.2), {})
    return folder / "last.safetensors"


def restore(
    folder: Path, model: saccade.models.SpikingModel, optimizer: torch.optim.Optimizer
) -> Position | None:
    """As a run does that goes on."""
    saved = read_run(folder)
    if saved is None:
        return None
    saved.restore_weights(model)
    saved.restore_rest(State(model=model, optimizer=optimizer))
    return saved.position


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_saved_run_comes_back_with_its_optimizer_and_its_place(tmp_path: Path):
    save_trained(tmp_path)
    model = build()
    optimizer = make_optimizer(model, Optim())
    assert restore(tmp_path, model, optimizer) == Position(step=1, loss_sum=0.1 + 0.2)
    state = optimizer.state_dict()["state"]
    assert len(state) == len(list(model.parameters()))
    assert all(slot["step"] == 1 for slot in state.values())
    assert any(slot["exp_avg"].abs().sum() > 0 for slot in state.values())


def test_a_folder_without_a_checkpoint_restores_nothing(tmp_path: Path):
    model = build()
    assert restore(tmp_path, model, make_optimizer(model, Optim())) is None


@pytest.mark.parametrize("stated", ["file", "folder"])
def test_loading_gives_the_logits_that_were_saved(tmp_path: Path, stated: str):
    model, x = build().eval(), torch.rand(2, 1, 8, 8)
    save_weights(tmp_path / "last.safetensors", model, {"classes": ["a"]})
    loaded = saccade.load(tmp_path / "last.safetensors" if stated == "file" else tmp_path)
    assert not loaded.training
    assert min(firing_rates(loaded, lambda: loaded(x)).values()) > 0
    assert torch.equal(loaded(x), model(x))
    assert load_model(tmp_path / "last.safetensors")[1] == {"classes": ["a"]}


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 0.5, 0.99, -1])
def test_a_truncated_checkpoint_is_refused_and_kept(tmp_path: Path, kept: float):
    path = save_trained(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * kept) if isinstance(kept, float) else kept])
    before = digest(path)
    for read in (saccade.load, lambda p: restore(p.parent, build(), optimizer_of(build()))):
        with pytest.raises(ValueError, match="expected a checkpoint of saccade") as error:
            read(path)
        assert str(path) in str(error.value)
    assert digest(path) == before


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return make_optimizer(model, Optim())


def test_a_text_file_is_refused(tmp_path: Path):
    path = tmp_path / "last.safetensors"
    path.write_text("epoch 1, loss 0.3\n" * 40)
    with pytest.raises(ValueError, match="not a whole safetensors file") as error:
        saccade.load(path)
    assert str(path) in str(error.value)


WELL = {"name": "spikformer", "config": {"dim": 16}}


@pytest.mark.parametrize(
    "metadata",
    [
        *(None, {"format": "pt"}, {"saccade": "{}"}, {"saccade": "not json"}, {"saccade": "[1]"}),
        {"saccade": json.dumps({"model": "spikformer"})},
        {"saccade": json.dumps({"model": {"name": "spikformer"}})},
        {"saccade": json.dumps({"model": WELL, "more": 1})},
        {"saccade": json.dumps({"model": WELL, "data": []})},
        {"saccade": json.dumps({"model": WELL, "position": {"steps": 1}})},
        {"saccade": json.dumps({"model": WELL, "position": 3})},
        {"saccade": json.dumps({"model": WELL, "optim": {}})},
        {"saccade": json.dumps({"model": WELL, "optim": 3})},
    ],
)
def test_a_safetensors_file_of_another_program_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None
):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(2)}, path, metadata)
    before = digest(path)
    with pytest.raises(ValueError, match=r"foreign\.safetensors.*(another program|checkpoint)"):
        saccade.load(path)
    assert digest(path) == before


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no checkpoint at .*nothing\.safetensors"):
        saccade.load(tmp_path / "nothing.safetensors")


def test_weights_that_are_no_numbers_are_named(tmp_path: Path):
    model = build()
    model.head.linear.weight.data[0, 0] = torch.nan
    save_weights(tmp_path / "lost.safetensors", model, {})
    with pytest.raises(ValueError, match=r"holds what is no finite number in head\.linear\.weight"):
        saccade.load(tmp_path / "lost.safetensors")


def test_weights_alone_are_not_resumed_from(tmp_path: Path):
    model = build()
    save_weights(tmp_path / "last.safetensors", model, {})
    with pytest.raises(ValueError, match="holds weights alone, not the state of a run"):
        restore(tmp_path, model, optimizer_of(model))


@pytest.mark.parametrize("other", [{"dim": 32}, {"depth": 2}, {"num_classes": 4}])
def test_a_checkpoint_of_another_model_is_refused_and_kept(tmp_path: Path, other: dict[str, Any]):
    path = save_trained(tmp_path, **other)
    before, model = digest(path), build()
    with pytest.raises(ValueError, match="does not fit model 'spikformer'") as error:
        restore(tmp_path, model, optimizer_of(model))
    assert str(path) in str(error.value)
    assert digest(path) == before


def test_resuming_from_a_broken_checkpoint_says_so_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, tiny_data())
    train(tiny_recipe(epochs=1), tmp_path)
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = {p.name: digest(p) for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        train(tiny_recipe(epochs=1), tmp_path, resume=True)
    assert {p.name: digest(p) for p in tmp_path.iterdir()} == before


def test_the_header_holds_the_whole_model_and_no_numbers_that_are_not_json(tmp_path: Path):
    stored = header(save_trained(tmp_path))
    assert stored["model"]["name"] == "spikformer"
    assert stored["model"]["config"]["image_size"] == [8, 8]
    assert stored["position"]["loss_sum"] == 0.1 + 0.2


def save_in_parts(folder: Path, **changes: Any) -> saccade.models.SpikingModel:
    folder.mkdir(exist_ok=True)
    model = build(**changes)
    size = sum(t.nbytes for t in model.state_dict().values())
    save_weights(folder / "weights.safetensors", model, {"part": {"name": "x"}}, most=size // 3)
    return model


def test_weights_in_parts_are_small_and_load_from_their_folder_or_any_of_them(tmp_path: Path):
    model = save_in_parts(tmp_path)
    files = sorted(tmp_path.iterdir())
    n = len(files)
    assert n > 2
    assert [f.name for f in files] == [f"weights-{i + 1}-of-{n}.safetensors" for i in range(n)]
    for path in (tmp_path, *files):
        loaded, data = load_model(path)
        assert data == {"part": {"name": "x"}}
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_missing_part_is_named(tmp_path: Path):
    save_in_parts(tmp_path)
    lost = sorted(tmp_path.iterdir())[1]
    lost.unlink()
    with pytest.raises(ValueError, match=f"no checkpoint at .*{lost.name}"):
        saccade.load(tmp_path)


def test_parts_of_different_weights_are_not_mixed(tmp_path: Path):
    save_in_parts(tmp_path / "a")
    save_in_parts(tmp_path / "b", T=3)
    stray = sorted((tmp_path / "b").iterdir())[1]
    stray.replace(tmp_path / "a" / stray.name)
    with pytest.raises(ValueError, match="part of other weights"):
        saccade.load(tmp_path / "a")
