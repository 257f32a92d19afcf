"""Models are timed on both paths; scales say whether they are linear."""

import json
from pathlib import Path

import pytest
import torch

from saccade.bench import Settings, Unequal, bench_model, bench_scale, draw, exponent
from saccade.bench.scale import image_size
from saccade.ops import OPS

NAME = "spikformer_4_384"
OPTIONS = {"dim": 32, "depth": 1, "heads": 4, "T": 2, "image_size": 16, "num_classes": 3}
QUICK = Settings(device="cpu", n=2)


@pytest.mark.parametrize("what", ["train", "infer"])
def test_both_paths_are_measured_in_one_run(what: str):
    result = bench_model(what, NAME, OPTIONS, batch=2, settings=QUICK)
    fast, reference = result.rows
    assert (fast["path"], reference["path"]) == ("fast", "reference")
    assert fast["images_per_s"] == pytest.approx(2 / fast["median_s"])
    assert fast["ratio"] == pytest.approx(reference["median_s"] / fast["median_s"])
    assert reference["ratio"] == 1
    assert fast["images_per_s_q1"] <= fast["images_per_s"] <= fast["images_per_s_q3"]
    assert 0 < fast["resting_bytes"] < fast["peak_bytes"]
    if what == "train":  # autograd keeps the steps of the recurrence
        assert fast["peak_bytes"] < reference["peak_bytes"]
    paths = result.conditions["paths"]
    assert paths["records"] == paths["training"] == (what == "train")
    assert {row["op"] for row in paths["calls"]} >= {"conv", "norm_lif", "ssa"}
    json.dumps(result.as_dict(), allow_nan=False)


def test_a_fused_model_is_timed_for_inference_alone():
    settings = Settings(device="cpu", n=1, products="float32")
    result = bench_model("infer", NAME, OPTIONS, batch=1, paths=["fast"], settings=settings)
    assert result.conditions["products"] == "float32"
    rate = result.conditions["firing_rate"]
    assert 0.005 < rate < 0.98  # with the statistics that it was made with it would be silent
    assert f"neurons fire {rate:.1%} on average" in result.notes
    assert "affine_lif" in {row["op"] for row in result.conditions["paths"]["calls"]}
    with pytest.raises(ValueError, match="training mode"):
        bench_model("train", NAME, OPTIONS, settings=settings)


def test_autocast_is_what_a_short_precision_means():
    settings = Settings(device="cpu", n=1, precision="bfloat16")
    result = bench_model(
        "infer", NAME, OPTIONS, batch=1, paths=["fast"], settings=settings, profile=True
    )
    assert "aten::convolution" in result.profile
    assert result.conditions["paths"]["autocast"] == "bfloat16"
    assert [row["ratio"] for row in result.rows] == [None]


def test_a_model_with_a_wrong_variant_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    wrong = (lambda *args: OPS["ssa_mix"].reference(*args) + 1, lambda *args: None)
    monkeypatch.setitem(OPS["ssa_mix"].variants, "reassociated", wrong)
    with pytest.raises(Unequal, match=r"values 0 of .* differ from the reference by 1 on cpu"):
        bench_model("infer", NAME, OPTIONS, batch=1, settings=QUICK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"what": "trian"}, "unknown 'trian'; did you mean 'train'"),
        ({"paths": ["quick"]}, "unknown 'quick'"),
        ({"batch": 0}, "got batch=0"),
        ({"name": "spikformer_4_383"}, "did you mean 'spikformer_4_384'"),
        ({"options": {"imagesize": 3}}, "did you mean 'image_size'"),
    ],
)
def test_words_that_mean_nothing(change, message: str):
    given = {"what": "train", "name": NAME, "options": OPTIONS, "settings": QUICK} | change
    with pytest.raises(ValueError, match=message):
        bench_model(**given)


def test_a_scale_fits_an_exponent_and_draws_it(tmp_path: Path):
    result = bench_scale(
        "infer", NAME, OPTIONS, axis="T", values=[1, 4], batch=2, paths=["fast"], settings=QUICK
    )
    assert [row["T"] for row in result.rows] == [1, 4]
    assert len(result.notes) == 1
    assert "time grows as T^" in result.notes[0]
    assert "linear)" in result.notes[0]
    draw(result, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().count('id="axes_') == 2
    assert "images/s" in str(result)
    assert result.notes[0] in str(result).replace("\n", " ")


def test_the_exponent_by_hand():
    assert exponent([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert exponent([1, 2, 4], [5, 20, 80]) == pytest.approx(2)
    assert exponent([1, 2, 4], [5, 5, 5]) == pytest.approx(0)


def test_tokens_are_a_size_of_the_picture():
    assert image_size(NAME, OPTIONS, 16) == (16, 16)
    assert image_size(NAME, OPTIONS, 64) == (32, 32)
    assert image_size(NAME, OPTIONS | {"image_size": (16, 32)}, 8) == (8, 16)
    with pytest.raises(ValueError, match="got tokens=15, expected 4\\*4 times"):
        image_size(NAME, OPTIONS, 15)


def test_scales_that_cannot_be():
    common = {"what": "infer", "name": NAME, "options": OPTIONS, "settings": QUICK}
    with pytest.raises(ValueError, match="unknown scale 'token'; did you mean 'tokens'"):
        bench_scale(**common, axis="token", values=[1, 2])
    with pytest.raises(ValueError, match="two different numbers"):
        bench_scale(**common, axis="T", values=[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_as_one_graph():
    settings = Settings(device="cuda", n=2, precision="bfloat16", graph=True)
    result = bench_model("train", NAME, OPTIONS, batch=2, paths=["fast"], settings=settings)
    assert result.rows[0]["images_per_s"] > 0
