"""Charts and tables of a run as files that stand alone."""

import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from saccade.report import write_figures
from tests.report.synthetic import make_run

HOSTILE = "<b>&\"',\n"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_chart_stands_alone_and_every_number_is_there(tmp_path: Path):
    run = make_run(tmp_path / "run")
    files = write_figures(run, tmp_path / "paper" / "figures")
    assert all(file.is_file() for file in files)
    charts = {file.stem for file in files if file.suffix == ".svg"}
    assert charts >= {"loss", "accuracy", "confusion", "rates", "energy"}
    for file in (f for f in files if f.suffix == ".svg"):
        root = ElementTree.parse(file).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert float(root.attrib["width"]) > 100
        text = file.read_text(encoding="utf-8")
        assert "var(" not in text
        assert "currentColor" not in text
        assert not re.search(r"#01020[0-9a]", text)  # a stand-in colour
    told = json.loads((run / "metrics.json").read_text())["layers"]
    rows = table(tmp_path / "paper" / "figures" / "layers.csv")
    assert [(r["path"], float(r["sops"])) for r in rows] == [(m["path"], m["sops"]) for m in told]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rows = table(tmp_path / "paper" / "figures" / "curves.csv")
    assert [float(r["loss"]) for r in rows] == [row["loss"] for row in log]


def test_what_a_run_has_not_kept_is_left_out(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "observations.npz").unlink()
    (run / "log.jsonl").unlink()
    written = {file.name for file in write_figures(run, tmp_path / "figures")}
    assert "layers.csv" in written
    assert not written & {"confusion.csv", "confusion.svg", "rates.csv", "curves.csv", "loss.svg"}


def test_class_names_may_hold_anything(tmp_path: Path):
    run = make_run(tmp_path / "run", classes=[HOSTILE, *"abcdefghi"])
    write_figures(run, tmp_path / "figures")
    ElementTree.parse(tmp_path / "figures" / "confusion.svg")
    assert table(tmp_path / "figures" / "confusion.csv")[0]["class"] == HOSTILE


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"metrics\.json"):
        write_figures(tmp_path, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()
