"""What README.md and CONTRIBUTING.md show works: every command, every example."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saccade.cli import main
from tests.official import write_checkpoint

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FAST = ["epochs=1", "model.dim=16", "model.heads=2"]
"""What is added to a training command, so that it takes seconds."""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands() -> list[list[str]]:
    lines = "".join(blocks(README, "")).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("saccade ")]


@pytest.fixture
def desk(tmp_path: Path, golden: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the commands name: a photo, photos by class, an official checkpoint."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for k in range(2):
        (tmp_path / "photos" / f"class{k}").mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(0, 255, (40, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"class{k}" / f"{i}.png")
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    (tmp_path / "golden").symlink_to(golden)
    (tmp_path / "records").symlink_to(ROOT / "records")
    write_checkpoint(tmp_path / "official.pth", "spikformer_4_384")
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_readme_runs_in_order(desk: Path):
    ran = []
    for words in commands():
        resumed = "--resume" in words
        assert main([*words, *(FAST if words[0] == "train" and not resumed else [])]) == 0, words
        ran.append(words[0])
    assert set(ran) == {
        *("train", "eval", "predict", "list", "show", "cite", "verify", "convert"),
        *("report", "bench", "doctor"),
    }
    run = desk / "runs" / "digits-s0"
    files = {path.name for path in run.iterdir()}
    assert files == {
        *("recipe.yaml", "log.jsonl", "metrics.json", "last.safetensors", "state.json"),
        *("observations.npz", "report.html"),
    }


def test_the_python_example_runs_and_is_short(tmp_path: Path):
    (example,) = blocks(README, "python")
    code = [
        line for line in example.splitlines() if line and not line.startswith(("import", "from"))
    ]
    assert len(code) <= 15
    path = tmp_path / "example.py"
    path.write_text(example)
    names = runpy.run_path(str(path))
    assert names["logits"].shape == (2, 10)
    assert names["steps"].shape == (4, 2, 10)


def test_the_contributing_example_is_an_attention_that_passes_the_contract(tmp_path: Path):
    (example,) = blocks((ROOT / "CONTRIBUTING.md").read_text(), "python")
    (tmp_path / "mine.py").write_text(example)
    script = "import mine, pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    contract = str(ROOT / "tests" / "attention" / "test_contract.py")
    options = ["-q", "-k", "mine", "-p", "no:cacheprovider"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # it is imported first
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-c", script, contract, *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"1[0-9] passed", result.stdout), result.stdout


def test_readme_is_short_and_its_links_exist():
    assert README.count("\n") <= 150
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_generated_pages_are_fresh():
    check = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    result = subprocess.run(check, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
