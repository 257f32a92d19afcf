"""The scripts that compare with other libraries, as far as they run without these."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = ["--n", "2", "--warmup", "0", "--batch", "2", "--elements", "16", "--size", "16", "--T", "2"]
FAKE = """
import torch

class Spikformer(torch.nn.Module):
    def __init__(self, T, num_classes, **sizes):
        super().__init__()
        self.T, self.head = T, torch.nn.Linear(3, num_classes)

    def forward(self, x):
        return self.head(x.mean((2, 3))).expand(self.T, -1, -1)
"""


def load(name: str) -> ModuleType:
    path = BENCHMARKS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A runner may reach the protocol beside it; what it sets in this process is put back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    yield
    sys.modules.pop("measure", None)


def test_the_benchmark_of_cpu_paths_runs_its_gate_and_takes_kernels_away():
    benchmark = load("cpu_step")
    benchmark.gate()
    with benchmark.without_kernels():
        assert "numba" not in benchmark.norm_lif.variants
    assert "numba" in benchmark.norm_lif.variants


def test_the_benchmark_of_silent_inputs_sets_rates_and_compares_first(here: None):
    sys.path.insert(0, str(BENCHMARKS))
    benchmark = load("cpu_silent")
    found = benchmark.layer(1, 16, 16, 2, 0.2, n=1)
    assert set(found["median_s"]) == {"bf16", "int8", "dense"}
    assert 0.02 < found["fires"] < 0.98
    _, _, rates = benchmark.model_at(
        0.1, sizes={"dim": 32, "depth": 1, "heads": 2, "T": 2}, batch=4
    )
    assert all(0.05 < rate < 0.2 for rate in rates), rates


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(BENCHMARKS / name / "run.py"), *words]
    return subprocess.run(script, capture_output=True, text=True)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An unpacked wheel whose packages cannot be imported whole, as on a machine without h5py."""
    base = tmp_path / "site" / "spikingjelly" / "activation_based"
    for package in ("", "model", "distributed", "distributed/vision", "functional"):
        (base / package).mkdir(parents=True, exist_ok=True)
        (base / package / "__init__.py").touch()
    (base.parent / "__init__.py").touch()
    for package in ("model", "distributed/vision"):
        (base / package / "__init__.py").write_text("import a_library_that_is_not_here")
    (base / "functional" / "__init__.py").write_text("def reset_net(net): net.was_reset = True")
    (base / "model" / "spikformer.py").write_text(FAKE)
    about = tmp_path / "site" / "spikingjelly-2.0.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: spikingjelly\nVersion: 2.0.0\n")
    return tmp_path / "site"


def test_spikingjelly_runs_from_an_unpacked_wheel(site: Path):
    done = run("spikingjelly", "--site", str(site), *TINY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["library"], found["versions"]["spikingjelly"]) == ("spikingjelly", "2.0.0")
    assert (found["model"], found["mode"], found["n"]) == ("spikformer", "train", 2)
    assert found["parameters"] == 3 * 10 + 10
    low, high = found["spread"]
    assert low <= found["per_second"] <= high
    assert found["hardware"]["threads"] >= 1


def test_a_site_that_is_not_there_is_refused(tmp_path: Path, here: None):
    with pytest.raises(SystemExit, match="expected a folder with a wheel unpacked"):
        load("measure").use_site(tmp_path / "nothing")


@pytest.mark.parametrize("task", ["spikformer", "lif"])
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_ours_runs_by_the_same_protocol(
    task: str, mode: str, here: None, capsys: pytest.CaptureFixture[str]
):
    ours = load("ours/run")
    sizes = ["--dim", "16", "--depth", "1", "--heads", "2"]
    args = ours.measure.parser("").parse_args(["--task", task, "--mode", mode, *sizes, *TINY])
    tasks = {"spikformer": ours.spikformer, "lif": ours.lif}
    assert ours.measure.main("saccade", "0", args, tasks) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unit"] == ("images/s" if task == "spikformer" else "elements/s")
    assert (found["mode"], len(found["seconds"])) == (mode, 2)


def test_ratios_and_their_spread_by_hand():
    compare = load("compare")
    rounds = [
        {"ours": {"seconds": [1.0, 2.0, 3.0]}, "norse": {"seconds": [4.0]}},
        {"ours": {"seconds": [1.0]}, "norse": {"seconds": [3.0]}},
    ]
    assert compare.spread(rounds, "norse") == [2.0, 3.0]
    row = {
        "case": "lif",
        "median_s": {"ours": 0.001},
        "ratio": {"norse": 2.5},
        "ratio_of_rounds": {"norse": [2.0, 3.0]},
    }
    assert "norse takes 2.50 times as long (2.00 to 3.00)" in compare.line(row)


def test_a_runner_that_fails_is_not_passed_over():
    with pytest.raises(SystemExit, match=r"failed:\n(.|\n)*boom"):
        load("compare").run([sys.executable, "-c", "raise ValueError('boom')"])


def test_libraries_take_turns_in_another_order_each_round(monkeypatch: pytest.MonkeyPatch):
    compare = load("compare")
    heard: list[str] = []

    def fake(words: list[str]) -> dict[str, list[float]]:
        heard.append(Path(words[1]).parent.name)
        return {"seconds": [2.0 if heard[-1] == "norse" else 1.0]}

    monkeypatch.setattr(compare, "run", fake)
    args = type("Args", (), {"rounds": 2, "n": 1, "more": [], "site": Path(), "environments": None})
    found = compare.compare(("lif", [], ("norse", "snntorch")), ["norse"], args)
    assert heard == ["ours", "norse", "norse", "ours"]
    assert found["ratio"] == {"norse": 2.0}


def test_the_loop_and_its_step_alone_are_timed_on_the_same_recipe(tmp_path: Path):
    out = tmp_path / "loop.json"
    sizes = ["--model", "spikformer_2_384", "--T", "1", "--batch", "4", "--side", "16"]
    words = ["--device", "cpu", "--augment", "heavy", *sizes, "--out", str(out)]
    script = [sys.executable, str(BENCHMARKS / "train_loop.py"), *words]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["T"], row["augment"], row["epochs"], row["n"]) == (1, "heavy", 1, 3)
    assert row["step_is"] == "single operations, with the batch"
    assert row["ratio"] == pytest.approx(row["loop_per_s"] / row["step_per_s"])
    assert row["recipe"]["mix"]["cutmix"] == 1.0


def finished(folder: Path, seed: int, accuracy: float, **others: object) -> Path:
    """The folder of a run that has ended, as far as a record reads it."""
    folder.mkdir()
    metrics = {
        "recipe": "tiny",
        "model": "spikformer",
        "dataset": "digits",
        "epochs": 3,
        "train_images": 90,
        "test_images": 10,
        "weights": "last",
        "T": 2,
        "seed": seed,
        "test_accuracy": accuracy,
        "train_seconds": 1.5,
        "images_per_second": 180.0,
        "versions": {},
        "hardware": {},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics | others))
    for name in ("recipe.yaml", "log.jsonl"):
        (folder / name).write_text(f"{name} of {seed}")
    return folder


def record(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["record.py", *words, "--command", "saccade train tiny"])
    assert load("record").main() == 0


def test_a_record_says_which_seeds_are_done_and_which_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runs = [finished(tmp_path / f"r{seed}", seed, a) for seed, a in ((2, 0.9), (0, 0.8))]
    out = tmp_path / "record"
    record(monkeypatch, *map(str, runs), "--out", str(out), "--seeds", "0,1,2")
    said = json.loads((out / "summary.json").read_text())
    assert (said["seeds_done"], said["seeds_left"], said["n"]) == ([2, 0], [1], 2)
    assert said["mean"] == pytest.approx(0.85)
    assert said["sd"] == pytest.approx(0.05 * 2**0.5)  # of two numbers, 0.1 apart
    assert (out / "s2" / "log.jsonl").read_text() == "log.jsonl of 2"
    assert (out / "s0" / "recipe.yaml").exists()


@pytest.mark.parametrize(("seed", "epochs", "says"), [(1, 4, "one recipe"), (0, 3, "once at most")])
def test_runs_that_do_not_belong_together_make_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, epochs: int, says: str
):
    runs = [finished(tmp_path / "a", 0, 0.8), finished(tmp_path / "b", seed, 0.9, epochs=epochs)]
    with pytest.raises(SystemExit, match=says):
        record(monkeypatch, *map(str, runs), "--out", str(tmp_path / "record"))
    assert not (tmp_path / "record").exists()
