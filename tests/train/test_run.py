"""What cannot be trained is refused before anything is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade.data import Augment, _download
from saccade.train import run, train
from saccade.train.apply import evaluate_run, open_run, predict_files
from saccade.train.checkpoint import save_weights
from saccade.train.curriculum import Stage
from saccade.train.devices import check_device
from saccade.train.evaluate import evaluate
from saccade.train.recipe import Optim
from saccade.train.run import build_model
from tests.train.tiny import MODEL, log_rows, tiny_data, tiny_recipe, use, write_pictures


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 16}, r"model.image_size=\(16, 16\), but data set 'tiny' has \(8, 8\)"),
        ({"image_size": [8, 9]}, r"model.image_size=\(8, 9\)"),
        ({"num_classes": 10}, r"model.num_classes=10, but data set 'tiny' has 3"),
        ({"in_channels": 3}, r"model.in_channels=3, but data set 'tiny' has 1"),
        ({"T": 0}, r"got T=0, expected a whole number of 1 or more"),
        ({"dim": "big"}, r"got dim='big'"),
        ({"heads": 3}, r"got dim=16 and heads=3, expected heads that divide dim"),
        ({"depht": 3}, r"no option 'depht'; did you mean 'depth'\?"),
        ({"name": "spikformr"}, r"unknown model 'spikformr'; did you mean 'spikformer'\?"),
        ({"attention": "sssa"}, r"unknown attention 'sssa'; did you mean 'ssa'\?"),
        ({"attention": {"scal": 1}}, r"'ssa' has no option 'scal'; did you mean 'scale'\?"),
        ({"attention": {"name": "ssa", "scale": "x"}}, r"'ssa': got scale='x', expected float"),
        ({"neuron": "liff"}, r"unknown neuron 'liff'; did you mean 'lif'\?"),
        ({"mlp_ratio": -1}, r"got mlp_ratio=-1, expected a number that leaves the MLP 1 channel"),
        ({"mlp_ratio": 0.01}, r"got mlp_ratio=0.01, expected .* of dim=16"),
        ({"mlp_ratio": float("nan")}, r"got mlp_ratio=nan, expected"),
        ({"mlp_ratio": "4"}, r"got mlp_ratio='4', expected"),
        ({"mlp_ratio": [1]}, r"recipe's model has a value of a wrong type"),
        ({"stem": {"name": "sps", "pools": [True] * 4}}, r"expected multiples of 16"),
    ],
)
def test_a_model_that_cannot_be_built_for_the_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
):
    use(monkeypatch, tiny_data())
    with pytest.raises(ValueError, match=message):
        train(tiny_recipe(model=MODEL | changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"name": "clasify"}}, r"unknown task 'clasify'; did you mean 'classify'\?"),
        ({"task": {"name": "classify", "smoothing": 1}}, r"no option 'smoothing'"),
        ({"task": {"name": "classify", "label_smoothing": 1}}, r"expected a share from 0"),
        ({"task": {"name": "classify", "label_smoothing": "a"}}, r"smoothing='a', expected float"),
        ({"optim": Optim(name="sdg")}, r"unknown optimizer 'sdg'; did you mean 'sgd'\?"),
        ({"optim": Optim(options={"beta1": "a"})}, r"'adamw': got beta1='a', expected float"),
        ({"optim": Optim(schedule="cosin")}, r"unknown schedule 'cosin'; did you mean 'cosine'\?"),
        ({"curriculum": (Stage(until=0.5, size=6),)}, r"size 6, which model 'spikformer' cannot"),
    ],
)
def test_a_part_that_there_is_not_is_answered_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
):
    use(monkeypatch, tiny_data())
    with pytest.raises(ValueError, match=message):
        train(tiny_recipe(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_fails_in_its_first_step_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, tiny_data())
    with pytest.raises(ValueError, match="got shift=9 for images of 8x8 pixels"):
        train(tiny_recipe(augment=Augment(shift=9)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(tiny_recipe(epochs=1), tmp_path / "run")
    (tmp_path / "run" / "kept").write_text("")
    monkeypatch.setattr(run, "fit", lambda session: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny_recipe(epochs=1), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "last.safetensors").exists()


def test_what_is_odd_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    use(monkeypatch, tiny_data())
    train(tiny_recipe(epochs=1, batch_size=1000), tmp_path / "run")
    assert "batch_size=1000 is more than the" in caplog.text
    (tmp_path / "run" / "last.safetensors").unlink()
    train(tiny_recipe(epochs=1, batch_size=1000), tmp_path / "run", resume=True)
    assert "holds no checkpoint: the run begins anew" in caplog.text


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cudda", r"unknown device 'cudda'; did you mean 'cuda'\?"),
        ("tpu", r"unknown device 'tpu'"),
        ("mps", r"got device mps, which torch does not find here; expected cpu"),
    ],
)
def test_a_device_that_is_not_here_is_refused(device: str, message: str):
    with pytest.raises(ValueError, match=message):
        check_device(device)


def test_the_sources_of_all_parts_are_cited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, tiny_data())
    metrics = train(tiny_recipe(epochs=1, model=MODEL | {"attention": "sasa"}), tmp_path / "run")
    assert metrics["citation"].count("@") == 2
    assert "2412.13553" in metrics["citation"]


def test_a_size_that_agrees_with_the_data_may_be_said():
    said = {"num_classes": 3, "in_channels": 1, "image_size": [8, 12]}
    model = build_model(tiny_recipe(model=MODEL | said), tiny_data(W=12))
    assert model.config.size == (8, 12)
    with pytest.raises(ValueError, match=r"image_size=\(8, 8\).*has \(8, 12\)"):
        build_model(tiny_recipe(model=MODEL | {"image_size": 8}), tiny_data(W=12))


def test_a_change_that_does_not_fit_the_pictures_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, tiny_data())
    with pytest.raises(ValueError, match="got shift=9 for images of 8x8 pixels"):
        train(tiny_recipe(augment=Augment(shift=9)), tmp_path / "run")


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_an_empty_data_folder_is_answered_with_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    def no_network(url: str) -> None:
        raise OSError("the network is down")

    monkeypatch.setattr(_download, "_open", no_network)
    with pytest.raises(FileNotFoundError, match=r"the network is down.*by hand") as error:
        train(tiny_recipe(data={"name": name}), tmp_path / "run", data_root=tmp_path / "data")
    lines = [line for line in str(error.value).splitlines() if " -> " in line]
    assert lines
    for line in lines:
        address, _, file = line.strip().partition(" -> ")
        assert address.startswith("https://")
        assert Path(file).parent.parent == tmp_path / "data"
        assert Path(file).name == address.rpartition("/")[2]
    assert "--data-root" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"name": "digts"}, r"unknown dataset 'digts'; did you mean 'digits'\?"),
        ({"name": "folder"}, r"expected the option path"),
        ({"name": "folder", "pth": "x"}, r"no option 'pth'; did you mean 'path'\?"),
        ({"name": "folder", "path": 3}, r"data has a value of a wrong type"),
    ],
)
def test_data_that_there_is_not_is_refused(tmp_path: Path, part: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        train(tiny_recipe(data=part), tmp_path / "run")


def test_the_metrics_are_those_of_the_test_set_and_can_be_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = tiny_data(N=48)
    use(monkeypatch, data)
    metrics = train(tiny_recipe(epochs=6), tmp_path)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["test_accuracy"] > 0.5  # a third by chance
    with np.load(tmp_path / "observations.npz") as seen:
        confusion, steps = seen["confusion"], seen["steps_accuracy"]
        wrong = seen["sample_labels"] != seen["sample_probabilities"].argmax(-1)
    assert confusion.sum() == metrics["test_images"] == 12
    assert confusion.sum(1).tolist() == [4, 4, 4]
    assert confusion.trace() / 12 == metrics["test_accuracy"] == steps[-1]
    assert wrong.sum() == min(6, 12 - confusion.trace())
    again = evaluate_run(tmp_path)
    for key in ("test_accuracy", "test_loss", "firing_rates", "sops", "macs", "energy_mj"):
        assert again[key] == metrics[key], key


def test_a_run_in_bfloat16_is_tested_again_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, tiny_data())
    metrics = train(tiny_recipe(precision="bf16-mixed"), tmp_path)
    assert evaluate_run(tmp_path)["test_loss"] == metrics["test_loss"]


def test_a_run_is_not_tested_on_data_of_another_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, tiny_data())
    train(tiny_recipe(epochs=1), tmp_path)
    use(monkeypatch, tiny_data(K=4))
    with pytest.raises(ValueError, match=r"\(4, 1, \(8, 8\)\), expected \(3, 1, \(8, 8\)\)"):
        evaluate_run(tmp_path)


def test_the_validation_share_is_measured_after_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, tiny_data())
    metrics = train(tiny_recipe(validation=0.25), tmp_path)
    assert metrics["train_images"] == 18
    rows = log_rows(tmp_path)
    assert [row["validation_accuracy"] * 6 % 1 for row in rows] == [0.0] * 3
    assert all(row["validation_loss"] > 0 for row in rows)


def test_pictures_of_any_size_are_named_with_classes_and_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    use(monkeypatch, tiny_data(N=48))
    train(tiny_recipe(epochs=6), tmp_path / "run")
    shown = sorted(write_pictures(tmp_path / "shown", N=6, side=24).rglob("*.png"))
    answers = predict_files(tmp_path / "run", shown, top=9)
    assert [a["file"] for a in answers] == [str(path) for path in shown]
    for answer in answers:
        shares = [p for _, p in answer["top"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert {name for name, _ in answer["top"]} == {"class 0", "class 1", "class 2"}
    swapped = predict_files(tmp_path / "run", shown, invert=True)
    assert [a["top"] for a in swapped] != [a["top"] for a in answers]
    assert all(len(a["top"]) == 1 for a in predict_files(tmp_path / "run", shown, top=0))


def test_a_converted_model_says_that_it_knows_no_data(tmp_path: Path):
    model = build_model(tiny_recipe(), tiny_data())
    save_weights(tmp_path / "w.safetensors", model, {})
    with pytest.raises(ValueError, match="holds a converted model, which knows no data set"):
        open_run(tmp_path / "w.safetensors")


def test_every_picture_is_counted_however_many_batches_there_are(
    monkeypatch: pytest.MonkeyPatch,
):
    from saccade.train import evaluate as module
    from saccade.train.batches import Pictures

    data = tiny_data()
    model = build_model(tiny_recipe(), data)
    pictures = Pictures.of(data.test, data, next(model.parameters()).device)
    whole = evaluate(model, pictures)
    monkeypatch.setattr(module, "_BATCH", 5)
    told: list[tuple[int, int]] = []
    parts = evaluate(model, pictures, tell=lambda shown, of: told.append((shown, of)))
    assert told == [(5, 12), (10, 12), (12, 12)]
    assert parts["accuracy"] == whole["accuracy"]
    assert np.array_equal(parts["confusion"], whole["confusion"])
    assert parts["recording"].mean_rates() == pytest.approx(whole["recording"].mean_rates())
