"""What is read from a run folder, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from saccade.report.run import read_run
from tests.report.synthetic import log, make_run, metrics, observations


def replace(run: Path, **arrays: object) -> Path:
    np.savez_compressed(run / "observations.npz", **(observations() | arrays))
    return run


def test_reads_all_files(tmp_path: Path):
    run = read_run(make_run(tmp_path / "seed7"))
    assert (run.name, len(run.log), run.metrics["seed"]) == ("seed7", 30, 7)
    assert run.recipe is not None
    assert run.recipe.startswith("model: spikformer")
    assert [layer.path for layer in run.observations.attention] == [
        "blocks.0.attention",
        "blocks.1.attention",
    ]
    assert run.observations.class_name(3) == "3"


def test_layers_come_in_the_order_of_their_numbers(tmp_path: Path):
    paths = [layer.path for layer in read_run(make_run(tmp_path)).observations.rasters]
    assert paths == observations()["neurons"].tolist()  # 14 layers: 10 comes after 9, not after 1


def test_metrics_are_indispensable(tmp_path: Path):
    with pytest.raises(ValueError, match=r"without metrics\.json; expected the folder of a fin"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holding a list; expected one object"),
        ("{}", "without the text 'recipe'"),
        ('{"recipe": "digits"}', "test_accuracy None; expected a number"),
        ('{"recipe": "digits", "test_accuracy": 98.6}', "test_accuracy 98.6; expected a number"),
        ('{"recipe": "digits", "test_accuracy": NaN}', "test_accuracy nan; expected a number"),
        ('{"recipe": "d", "test_accuracy": 1, "layers": [{}]}', "objects that have a 'path'"),
        ('{"recipe": "d", "test_accuracy": 1, "hardware": "fast"}', "expected an object"),
    ],
)
def test_broken_metrics_are_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_run(tmp_path)
    assert "metrics.json" in str(error.value)


def test_a_log_cut_off_in_its_last_line_is_read_up_to_there(tmp_path: Path):
    run = make_run(tmp_path)
    lines = [json.dumps(line) for line in log()]
    (run / "log.jsonl").write_text("\n".join([*lines[:5], lines[5][:20]]))
    assert len(read_run(run).log) == 5


@pytest.mark.parametrize("line", ["{", "3"])
def test_a_log_broken_in_the_middle_is_refused(tmp_path: Path, line: str):
    run = make_run(tmp_path)
    (run / "log.jsonl").write_text(f'{line}\n{{"epoch": 1}}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl whose line 1"):
        read_run(run)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"confusion": np.zeros((10, 9), int)}, r"confusion int64\[10, 9\]; .*where K = 10"),
        ({"classes": np.arange(10)}, "expected text of shape"),
        ({"sample_images": np.zeros((12, 2, 8, 8), np.uint8)}, "expected uint8 .* C 1 or 3"),
        ({"sample_images": np.zeros((12, 1, 8, 8))}, "expected uint8"),
        ({"sample_labels": np.full(12, 10)}, "sample label outside 0..9"),
        ({"rates": np.zeros((3, 4))}, "where L = 14"),
        ({"grid": np.array([4, 4, 4])}, "with grid"),
        ({"attention_0": np.zeros((4, 4, 2, 5, 5), np.float32)}, "got 5 tokens at 'blocks.0.att"),
        ({"attention_1": np.zeros((4, 16, 16), np.float32)}, r"expected .*\[S', T, h, N, N\]"),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, dict) else "",
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        read_run(replace(make_run(tmp_path), **arrays))
    assert "observations.npz" in str(error.value) or "tokens" in message


def test_a_coarser_grid_of_the_same_aspect_is_understood(tmp_path: Path):
    run = replace(make_run(tmp_path), attention_1=np.ones((4, 4, 2, 4, 4), np.float32))
    assert read_run(run).observations.attention[1].values.shape[-1] == 4


def test_pickles_are_refused(tmp_path: Path):
    run = make_run(tmp_path)
    np.savez(run / "observations.npz", classes=np.array([{}], object))
    with pytest.raises(ValueError, match=r"observations\.npz that cannot be read"):
        read_run(run)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x93NUMPY"])
def test_a_broken_npz_is_named(tmp_path: Path, content: bytes):
    run = make_run(tmp_path)
    (run / "observations.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"observations\.npz that cannot be read"):
        read_run(run)


def test_one_array_in_place_of_an_npz_is_named(tmp_path: Path):
    run = make_run(tmp_path)
    with (run / "observations.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=r"observations\.npz that cannot be read"):
        read_run(run)


def test_only_metrics_are_needed(tmp_path: Path):
    (tmp_path / "metrics.json").write_text(json.dumps(metrics()))
    run = read_run(tmp_path)
    assert (run.log, run.recipe, dict(run.observations.arrays)) == ((), None, {})
