"""The page of a synthetic run: what it says, what it must not load, and what it can do without."""

import html.parser
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup

from saccade.report import plots, write_report
from tests.report.synthetic import LAYERS, log, make_run, metrics, observations

HOSTILE = "<script>alert('$x_1^')</script>&\"'"
CHARTS = ("line_chart", "confusion_chart", "rate_chart", "energy_chart")
VOID = {"meta", "link", "img", "br", "wbr", "input"}


class Parser(html.parser.HTMLParser):
    """Collects the addresses that a browser would load and the ids; checks that tags pair up."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.scripts = 0
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "srcset", "data") or (name in ("href", "xlink:href") and tag != "a"):
                self.loads.append(value or "")
            assert not name.startswith("on"), f"{tag} {name}"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(run: Path) -> str:
    """Write the report, check what holds for every page, and return its text."""
    path = write_report(run)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    seen = Parser(text)
    assert seen.scripts == 1
    assert [x[:40] for x in seen.loads if not x.startswith(("data:", "#"))] == []
    addresses = re.findall(r"url\(\s*(.{5})", text)
    assert all(x.startswith(("data:", "#")) for x in addresses), set(addresses)
    assert "@import" not in text
    assert len(seen.ids) == len(set(seen.ids))
    assert len(text) < 3_000_000
    return text


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the charts blank: drawing them is nine tenths of the time that a page takes."""
    for chart in CHARTS:
        monkeypatch.setattr(plots, chart, lambda *_, **__: Markup("<svg></svg>"))


def save(run: Path, arrays: dict) -> Path:
    np.savez_compressed(run / "observations.npz", **arrays)
    return run


def test_says_the_numbers(tmp_path: Path):
    text = page(make_run(tmp_path / "run"))
    assert "<title>digits: 98.6 % test accuracy</title>" in text
    for number in ("355 of 360", "123 k", "1 min 20 s", "712", "1,437", "0.0731"):
        assert number in text
    for words in ("Spikformer App. C.2", "45 nm, Horowitz 2014", "0.9 pJ", "4.6 pJ"):
        assert words in text
    assert '<a href="https://arxiv.org/abs/2209.15425">' in text
    assert "saccade train run/recipe.yaml --seed 7" in text
    assert "@article{zhou2022spikformer" in text
    assert "Left out" not in text
    assert str(tmp_path) not in text
    assert page(tmp_path / "run") == text  # the same files give the same page


@pytest.mark.usefixtures("blank")
def test_names_silent_and_saturated_layers(tmp_path: Path):
    words = re.sub(r"<wbr>", "", page(make_run(tmp_path)))
    assert f'<span class="path">{LAYERS[4]}</span>: 0.40 %' in words
    assert f'<span class="path">{LAYERS[9]}</span>: 93.0 %' in words


@pytest.mark.usefixtures("blank")
def test_tells_the_worst_confusion(tmp_path: Path):
    confusion = np.diag(np.full(10, 20))
    confusion[3, 5], confusion[8, 1] = 5, 2
    text = page(save(make_run(tmp_path), observations() | {"confusion": confusion}))
    assert "7 mistakes in 207 images" in text
    assert text.index("“3” taken for “5”") < text.index("“8” taken for “1”")
    assert "(20 % of its 25 images)" in text


@pytest.mark.usefixtures("blank")
def test_marks_wrong_answers(tmp_path: Path):
    arrays = observations(samples=3)
    arrays["sample_probabilities"] = np.eye(10, dtype=np.float32)[[0, 7, 2]]
    text = page(save(make_run(tmp_path), arrays))
    assert (text.count("✗ wrong"), text.count("✓ right")) == (1, 2)
    assert "1 of these 3 are wrong" in text


@pytest.mark.usefixtures("blank")
def test_replaces_an_older_page_and_leaves_nothing_else(tmp_path: Path):
    run = make_run(tmp_path)
    before = {path.name for path in run.iterdir()}
    (run / "report.html").write_text("OLDER")
    assert "OLDER" not in page(run)
    assert {path.name for path in run.iterdir()} == before | {"report.html"}


def test_untrusted_text_is_escaped(tmp_path: Path):
    names = [f"{HOSTILE}{k}" for k in range(10)]
    numbers = metrics(recipe=HOSTILE, about=HOSTILE, paper=HOSTILE, citation=HOSTILE)
    numbers["layers"][0]["path"] = numbers["layers"][1]["kind"] = HOSTILE
    numbers["hardware"]["cpu"] = numbers["paper_rule"]["name"] = HOSTILE
    run = make_run(tmp_path, numbers=numbers)
    arrays = observations(classes=names)
    arrays["neurons"] = np.array([HOSTILE] * len(LAYERS))
    for kind in ("attention", "raster", "response"):
        arrays[f"{kind}_0_path"] = np.array(HOSTILE)
    (run / "recipe.yaml").write_text(HOSTILE)
    text = page(save(run, arrays))  # counts the script elements
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_class_names_of_any_script_and_mathematics(tmp_path: Path):
    names = ["猫", "κύων", r"$\frac{", "_^{}", "", "a" * 200, "🐎", "%s", "{{ 1 }}", "\\"]
    text = page(make_run(tmp_path, classes=names))
    assert "猫" in text
    assert "{{ 1 }}" in text


OPTIONAL = (
    *("classes", "confusion", "sample_images", "sample_labels", "sample_probabilities"),
    *("neurons", "rates", "steps_accuracy", "grid", "attention", "raster", "response"),
)


@pytest.mark.usefixtures("blank")
@pytest.mark.parametrize("absent", OPTIONAL)
def test_every_array_is_optional(tmp_path: Path, absent: str):
    arrays = {name: a for name, a in observations().items() if not name.startswith(absent)}
    assert len(arrays) < len(observations())
    text = page(save(make_run(tmp_path), arrays))
    sections = ("confusion", "sample_labels", "attention", "raster", "response")
    assert ("Left out: this run kept no" in text) is absent.startswith(("sample_", *sections))


@pytest.mark.usefixtures("blank")
@pytest.mark.parametrize("absent", ["recipe.yaml", "log.jsonl", "observations.npz"])
def test_every_other_file_is_optional(tmp_path: Path, absent: str):
    run = make_run(tmp_path)
    (run / absent).unlink()
    assert "Left out: this run kept no" in page(run)


@pytest.mark.usefixtures("blank")
@pytest.mark.parametrize("absent", sorted(set(metrics()) - {"recipe", "test_accuracy"}))
def test_every_other_metric_is_optional(tmp_path: Path, absent: str):
    for value in ({}, {absent: None}):
        numbers = metrics()
        del numbers[absent]
        run = tmp_path / str(len(value))
        run.mkdir()
        (run / "metrics.json").write_text(json.dumps(numbers | value))
        assert "98.6 %" in page(run)


def test_the_least_run_has_a_page(tmp_path: Path):
    (tmp_path / "metrics.json").write_text('{"recipe": "digits", "test_accuracy": 1}')
    assert page(tmp_path).count("Left out: this run kept no") == 9


@pytest.mark.parametrize(
    "seen",
    [
        {"channels": 3, "image": (20, 300), "grid": (2, 30)},
        {"channels": 1, "image": (28, 14), "grid": (7, 3)},
        {"T": 8, "heads": 2, "grid": (14, 14), "watched": 1},
        {"samples": 2, "watched": 3},
    ],
    ids=lambda seen: " ".join(seen),
)
@pytest.mark.usefixtures("blank")
def test_images_and_grids_of_all_sorts(tmp_path: Path, seen: dict):
    assert "Left out" not in page(make_run(tmp_path, **seen))


@pytest.mark.parametrize(
    "seen",
    [
        {
            "classes": [f"class {k}" for k in range(100)],
            "channels": 3,
            "image": (32, 32),
            "grid": (8, 8),
        },
        {"classes": ["no", "yes"], "T": 1, "heads": 1, "samples": 1, "watched": 1},
        {"T": 24},
    ],
    ids=lambda seen: " ".join(seen),
)
def test_charts_of_all_sizes(tmp_path: Path, seen: dict):
    assert "Left out" not in page(make_run(tmp_path, **seen))


def test_a_diverged_run_has_a_page(tmp_path: Path):
    run = make_run(tmp_path, numbers=metrics(test_loss=float("nan")))
    lines = [line | {"loss": float("nan"), "accuracy": None} for line in log(3, validation=False)]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arrays = observations()
    arrays["rates"] *= 0
    arrays["attention_0"] *= np.nan
    assert "learning rate" in page(save(run, arrays))


@pytest.mark.usefixtures("blank")
def test_the_matrices_open_where_something_is_heard(tmp_path: Path):
    arrays = observations()
    last = max(name for name in arrays if re.fullmatch(r"attention_\d+", name))
    arrays[last][0] = 0
    arrays[last][0, 2, 1] = 1
    text = page(save(make_run(tmp_path), arrays))
    frames = re.findall(r'<img class="map" data-frame="(\d+-\d+)"[^>]*?( hidden)?>', text)
    assert len(frames) > 2
    assert [name for name, hidden in frames if not hidden] == ["2-1"]
    assert "head 2, step 3" in text
    assert re.search(r'id="step"[^>]*value="2"', text)
    assert re.search(r'id="head"[^>]*value="1"', text)


@pytest.mark.usefixtures("blank")
def test_an_empty_log(tmp_path: Path):
    run = make_run(tmp_path)
    (run / "log.jsonl").write_text("")
    assert "no training log" in page(run)


def test_one_epoch(tmp_path: Path):
    (tmp_path / "metrics.json").write_text('{"recipe": "digits", "test_accuracy": 1}')
    (tmp_path / "log.jsonl").write_text(json.dumps(log(1)[0]))
    assert "no training log" not in page(tmp_path)


@pytest.mark.usefixtures("blank")
def test_very_deep_models_draw_their_dearest_layers(tmp_path: Path):
    layer = {"kind": "conv", "macs": 0.0}
    layers = [layer | {"path": f"blocks.{i}.conv", "sops": 1e3 + i} for i in range(60)]
    text = page(make_run(tmp_path, numbers=metrics(layers=layers)))
    assert "20 cheaper layers are not drawn" in text


def test_rates_fall_back_on_the_means_of_the_metrics(tmp_path: Path):
    arrays = {k: a for k, a in observations().items() if k not in ("rates", "neurons")}
    text = page(save(make_run(tmp_path), arrays))
    assert ">mean</text>" in text
    assert LAYERS[3] in text


def test_a_missing_library_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "saccade.report")
    with pytest.raises(ImportError, match=r'pip install "saccade\[report\]"'):
        importlib.import_module("saccade.report")
