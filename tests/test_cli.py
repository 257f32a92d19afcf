"""The command line, from the outside; the flags are frozen here."""

import argparse
import json
import re
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from saccade.attention import ATTENTION
from saccade.cli import build_parser, main
from saccade.ops import OPS
from saccade.train.recipe import parse_recipe
from tests.train.tiny import MODEL, log_rows, write_pictures, write_recipe

FLAGS = {
    "train": [
        *("--data-root", "--device", "--devices", "--log", "--nodes", "--out", "--resume"),
        *("--seed", "--seeds", "--strategy", "--workers"),
    ],
    "eval": ["--data-root", "--device", "--json", "--products"],
    "predict": ["--invert", "--json", "--top"],
    "list": ["--json"],
    "show": ["--paths"],
    "cite": [],
    "verify": ["--json"],
    "convert": ["--model", "--out"],
    "report": ["--figures"],
    "bench": [
        *(
            "--batch",
            "--device",
            "--graph",
            "--json",
            "--n",
            "--out",
            "--paths",
            "--precision",
            "--products",
        ),
        *("--profile", "--scale", "--size"),
    ],
    "doctor": ["--json"],
}
"""A flag that goes away or changes its name breaks somebody's script: say so in the changelog."""
Captured = pytest.CaptureFixture[str]
by_command = pytest.mark.parametrize("command", FLAGS)


def parsers() -> dict[str, argparse.ArgumentParser]:
    actions = build_parser()._actions
    (commands,) = [a for a in actions if isinstance(a, argparse._SubParsersAction)]
    return dict(commands.choices)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second, and two test runs may share it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, a recipe for them and a run of it; nobody writes into them."""
    top = tmp_path_factory.mktemp("scene")
    recipe = write_recipe(top / "tiny.yaml", write_pictures(top / "pictures"), epochs=2)
    assert main(["train", str(recipe), "--out", str(top / "run"), "--device", "cpu"]) == 0
    return top


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refuse(words: list[str], capsys: Captured) -> str:
    """The error of a command that fails, in one line and without a traceback."""
    assert main(words) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("saccade: error: ")
    assert "Traceback" not in printed
    return printed


def test_the_flags_are_these():
    got = {
        name: sorted(o for a in p._actions for o in a.option_strings if o not in ("-h", "--help"))
        for name, p in parsers().items()
    }
    assert got == FLAGS


@by_command
def test_every_command_explains_itself_and_its_flags(command: str, capsys: Captured):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert len(text) > 200 or command in ("report", "show", "doctor")
    for action in parsers()[command]._actions:
        assert action.help, action.dest
        assert all(option in text for option in action.option_strings)


def test_the_program_explains_itself(capsys: Captured):
    for words in (["--help"], ["--version"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
        assert "saccade" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        *([], ["trian"], ["train"], ["train", "digits", "--sed", "1"], ["show", "ssa", "a=1"]),
        *(["train", "digits", "--seed", "one"], ["train", "digits", "--seed", "1", "epochs"]),
        ["eval", "run", "--jsn"],
    ],
)
def test_words_that_no_command_takes_end_with_status_2(words: list[str], capsys: Captured):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "usage: saccade" in capsys.readouterr().err


def test_an_override_may_stand_before_and_behind_options(scene: Path):
    words = ["train", str(scene / "tiny.yaml"), "epochs=1", "--out", "run", "--seed", "7"]
    assert main([*words, "optim.lr=1e-3", "--device", "cpu", "model.attention.scale=0.5"]) == 0
    recipe = parse_recipe(Path("run/recipe.yaml").read_text())
    assert (recipe.epochs, recipe.seed, recipe.optim.lr) == (1, 7, 0.001)
    assert recipe.model == MODEL | {"attention": {"name": "ssa", "scale": 0.5}}


def test_a_run_goes_into_a_folder_of_its_own_and_never_over_another(scene: Path):
    words = ["train", str(scene / "tiny.yaml"), "epochs=1", "--seed", "3"]
    for folder in ("tiny-s3", "tiny-s3-2", "tiny-s3-3"):
        assert main(words) == 0
        assert sorted(p.name for p in Path("runs").iterdir())[-1] == folder
        assert (Path("runs") / folder / "report.html").stat().st_size > 1000
    first = Path("runs/tiny-s3/last.safetensors")
    before = first.stat().st_mtime_ns
    assert main([*words, "--resume"]) == 0
    assert first.stat().st_mtime_ns == before


def test_a_folder_that_holds_a_run_is_refused_unless_resumed_with_its_own_recipe(
    scene: Path, capsys: Captured
):
    shutil.copytree(scene / "run", "run [1]")
    words = ["train", str(scene / "tiny.yaml"), "--out", "run [1]"]
    assert "run [1] already holds a run" in refuse(words, capsys)
    changed = refuse([*words, "--resume", "optim.lr=0.5"], capsys)
    assert "run [1] was started with another optim;" in changed
    assert main(["train", "run [1]", "--resume"]) == 0
    assert len(log_rows(Path("run [1]"))) == 2


@pytest.mark.parametrize("out", [None, "three"])
def test_several_seeds_give_a_run_each_and_a_summary(
    scene: Path, capsys: Captured, out: str | None
):
    words = ["train", str(scene / "tiny.yaml"), "epochs=2", "--seeds", "0,1,5"]
    assert main(words + (["--out", out] if out else [])) == 0
    runs = [Path(out or "runs") / (f"s{n}" if out else f"tiny-s{n}") for n in (0, 1, 5)]
    metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
    summary = json.loads((Path(out or "runs/tiny-seeds") / "summary.json").read_text())
    accuracies = [m["test_accuracy"] for m in metrics]
    assert summary["runs"] == [str(run) for run in runs]
    assert (summary["seeds"], summary["test_accuracy"]) == ([0, 1, 5], accuracies)
    mean = sum(accuracies) / 3
    assert summary["mean"] == pytest.approx(mean)
    assert summary["sd"] == pytest.approx((sum((a - mean) ** 2 for a in accuracies) / 2) ** 0.5)
    assert f"{mean:.2%} ± {statistics.stdev(accuracies):.2%}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "digts"], "no recipe 'digts'"),
        (["train", "digts"], "did you mean 'digits'?"),
        (["train", "digits", "epoch=3"], "unknown key 'epoch'; did you mean 'epochs'?"),
        (["train", "digits", "epochs=["], "not valid YAML"),
        (["train", "digits", "model.dim=[1]"], "got dim=[1], expected a whole number"),
        (["train", "digits", "model.mlp_ratio=[1]"], "a value of a wrong type"),
        (["train", "digits", "--seeds", "a"], "got --seeds a, expected numbers like 0,1,2"),
        (["train", "digits", "--seeds", "1,1"], "expected each number once"),
        (["train", "digits", "--seed", "1", "--seeds", "1"], "expected one of them"),
        (["train", "digits", "--seed", "-1"], "got seed=-1, expected 0 or more"),
        (["train", "digits", "--device", "gpuu"], "gpuu"),
        (["eval", "nothing"], "no checkpoint at nothing"),
        (["predict", "nothing", "a.png"], "no checkpoint at nothing"),
        (["report", "nothing"], "nothing"),
        (["list", "model"], "unknown kind 'model'; did you mean 'models'?"),
        (["show", "spikformer_8_511"], "did you mean 'spikformer_8_512'?"),
        (["bench", "train", "spikformer_4_383"], "did you mean 'spikformer_4_384'?"),
        (["bench", "train"], "takes the name of a model"),
        (["bench", "ops", "--batch", "2"], "bench ops takes no batch; it has --size"),
        (["bench", "infer", "ssa", "--scale", "T=a"], "expected a list like T=1,2,4,8"),
        (["bench", "ops", "--graph", "--device", "cpu"], "got a CUDA graph on cpu"),
        (["convert", "a.pth", "--model", "spikformer", "--out", "b"], "no checkpoint at a.pth"),
    ],
)
def test_an_error_is_one_line_that_says_what_was_expected(
    words: list[str], message: str, capsys: Captured
):
    assert message in refuse(words, capsys)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "kind",
    ["models", "attention", "neurons", "recipes", "data", "tasks", "optimizers", "schedules"],
)
def test_lists_come_as_a_table_and_as_json(kind: str, capsys: Captured):
    assert main(["list", kind, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert main(["list", kind]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table] == [row["name"] for row in rows]
    assert all(line.endswith(row["about"]) for line, row in zip(table, rows, strict=True))
    assert main(["list", kind, rows[0]["name"]]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["list", kind, "[no]such*"]) == 0
    assert "no such" not in (printed := capsys.readouterr().out)
    assert f"no {kind} match '[no]such*'" in printed


def test_show_prints_parameters_published_results_and_the_paper(capsys: Captured):
    assert main(["show", "spikformer_8_512"]) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in ("29,689,384", "73.38", "2209.15425"))
    assert main(["show", "digits"]) == 0
    assert parse_recipe(capsys.readouterr().out).data == {"name": "digits"}


def test_the_doctor_answers_in_words_and_in_json(capsys: Captured):
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert all(value in printed for rows in facts.values() for value in rows.values())


def test_the_doctor_says_why_a_variant_cannot_run(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(OPS["lif"].absent, "quantum", "no such machine")
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["lif:", "quantum"] and "no such" in line for line in lines)
    assert any("triton" in line for line in lines)
    assert any(line.split()[0] == "numba" for line in lines)


def test_show_says_which_paths_a_model_takes(capsys: Captured):
    assert main(["show", "spikformer_2_256_dvs", "--paths"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("one forward pass") == 2
    assert printed.index("training mode") < printed.index("evaluation mode")
    assert "norm_lif" in printed


SMALL = ["dim=16", "depth=1", "heads=2", "T=2", "image_size=16", "num_classes=3"]


def test_bench_prints_a_table_and_writes_json(capsys: Captured):
    words = ["bench", "infer", "spikformer_4_384", *SMALL, "--batch", "2", "--n", "1"]
    assert main([*words, "--device", "cpu", "--out", "deep/a.json"]) == 0
    assert "images/s" in capsys.readouterr().out
    written = json.loads(Path("deep/a.json").read_text())
    assert [row["path"] for row in written["rows"]] == ["fast", "reference"]
    assert written["conditions"]["model"]["config"]["dim"] == 16
    assert main(["bench", "ops", "lif", "--n", "1", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["op"] == "lif"


def test_bench_over_a_scale_draws_it(capsys: Captured):
    words = ["bench", "train", "spikformer_4_384", *SMALL, "--batch", "2", "--n", "1"]
    words += ["--device", "cpu", "--scale", "T=1,3", "--out", "t.json", "--paths", "fast"]
    assert main(words) == 0
    assert "time grows as T^" in capsys.readouterr().out.replace("\n", " ")
    assert Path("t.png").read_bytes().startswith(b"\x89PNG")
    assert [row["T"] for row in json.loads(Path("t.json").read_text())["rows"]] == [1, 3]


def test_verify_reports_broken_and_unknown_files_as_json_and_fails(capsys: Captured):
    Path("nonsense_a.npz").write_bytes(b"PK\x03\x04 cut")
    Path("spikformer_ssa_cifar_a.npz").write_bytes(b"PK\x03\x04 cut")
    np.savez("spikformer_ssa_cifar_b.npz", config=np.array("{}"), input=np.zeros((1, 1, 1, 1)))
    files = [*sorted(str(p) for p in Path().glob("*.npz")), "missing_a.npz"]
    assert main(["verify", *files, "--json"]) == 1
    verdicts = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))
    keys = {"file", "family", "case", "ok", "max_error", "worst", "reason"}
    assert [set(v) for v in verdicts] == [keys] * len(files)
    assert [v["file"] for v in verdicts] == files
    assert all(v["ok"] is False and v["reason"] for v in verdicts)
    assert "unknown family 'nonsense'" in verdicts[0]["reason"]
    assert main(["verify", *files]) == 1
    assert f"0 of {len(files)} files equal" in capsys.readouterr().out


OWN = """
from saccade.attention import ATTENTION
from saccade.attention.ssa import SSA

@ATTENTION.add("own")
class Own(SSA):
    pass

@ATTENTION.add("own_broken")
class Broken(SSA):
    def forward(self, x):
        return super().forward(x).cumsum(0)
"""


@pytest.fixture
def own() -> Iterator[None]:
    Path("own.py").write_text(OWN)
    yield
    for name in ("own", "own_broken"):
        ATTENTION._entries.pop(name, None)
    sys.modules.pop("own", None)


def test_an_attention_of_ones_own_is_imported_verified_and_trained(own: None, capsys: Captured):
    assert main(["verify", "own"]) == 1
    assert main(["--import", "own.py", "verify", "own", "ssa"]) == 0
    said = capsys.readouterr().out
    assert "kept   own: every parameter learns" in said
    assert re.search(r"(\d+) of \1 promises kept", said)
    assert main(["verify", "own_broken", "missing.npz"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"fails  own_broken: runs step by step .*expected scan", said)
    assert "0 of 1 files equal" in said
    words = ["model.attention=own", "epochs=1", "model.dim=16", "model.T=1", "model.depth=1"]
    assert main(["train", "digits", *words, "--out", "run"]) == 0
    ATTENTION._entries.pop("own")
    assert main(["eval", "run"]) == 1
    assert "has to be imported first" in capsys.readouterr().err
    for missing in ("gone.py", "gone"):
        assert main(["--import", missing, "doctor"]) == 1
        assert f"got --import {missing}, expected a Python file" in capsys.readouterr().err


def test_verify_passes_a_golden_file(golden: Path, capsys: Captured):
    file = next(iter(sorted(golden.rglob("spikformer_ssa_cifar_a.npz"))))
    assert main(["verify", str(file), "--json"]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)
    assert (verdict["ok"], verdict["reason"]) == (True, "")
    assert verdict["max_error"] < 1e-9


def test_eval_measures_what_the_metrics_say(scene: Path, capsys: Captured):
    metrics = json.loads((scene / "run" / "metrics.json").read_text())
    assert main(["eval", str(scene / "run"), "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    for key in ("test_accuracy", "test_loss", "test_images", "firing_rates", "energy_mj"):
        assert result[key] == metrics[key], key
    assert main(["eval", str(scene / "run" / "last.safetensors")]) == 0
    assert f"{metrics['test_accuracy']:.2%} of 12" in capsys.readouterr().out


def test_eval_says_what_folding_and_eight_bits_change(scene: Path, capsys: Captured):
    run = str(scene / "run")
    assert main(["eval", run, "--products", "int8", "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    fused = result["fused"]
    assert fused["products"] == "int8"
    assert 0 <= fused["answers_changed"] <= result["test_images"]
    gap = abs(fused["test_accuracy"] - result["test_accuracy"]) * result["test_images"]
    assert round(gap) <= fused["answers_changed"]
    assert fused["energy_mj"] == pytest.approx(result["energy_mj"], rel=0.2)
    assert main(["eval", run, "--products", "int8", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"products change {fused['answers_changed']} of 12 answers" in said
    assert main(["eval", run, "--products", "int9"]) != 0
    assert "int8" in capsys.readouterr().err


def test_the_report_is_written_again(scene: Path, capsys: Captured):
    shutil.copytree(scene / "run", "run")
    page = Path("run/report.html")
    whole = page.read_bytes()
    page.unlink()
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out == "run/report.html\n"
    assert page.read_bytes() == whole


def test_a_report_of_a_run_that_is_not_finished_is_refused(scene: Path, capsys: Captured):
    shutil.copytree(scene / "run", "run")
    Path("run/metrics.json").unlink()
    assert "run" in refuse(["report", "run"], capsys)


@pytest.mark.slow
def test_a_digit_in_a_picture_file_is_read(capsys: Captured):
    """As the README does it: train, then ask about a picture of any size."""
    from PIL import Image
    from sklearn.datasets import load_digits

    small = ["epochs=6", "model.dim=32", "model.depth=1", "model.heads=4", "model.T=2"]
    small += ["model.neuron={name: lif, tau: 1.1, v_threshold: 0.3}", "augment={}"]
    assert main(["train", "digits", *small, "--out", "run", "--device", "cpu"]) == 0
    digits, files = load_digits(), []
    for n in range(10):
        pixels = np.rint(digits.images[n] * 255 / 16).astype(np.uint8)
        files.append(f"{digits.target[n]} [{n}].png")
        Image.fromarray(pixels).resize((80, 80), Image.Resampling.NEAREST).save(files[-1])
    capsys.readouterr()
    assert main(["predict", "run", *files, "--json", "--top", "2"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert all(len(answer["top"]) == 2 for answer in answers)
    right = [answer["top"][0][0] == answer["file"][0] for answer in answers]
    assert sum(right) >= 6  # one by chance
    assert main(["predict", "run", files[0]]) == 0
    printed = capsys.readouterr().out
    best, share = answers[0]["top"][0]
    assert printed.startswith(f"{files[0]}: {best} {share:.1%}  (")
    # of the model's own size, so that no resizing rounds otherwise
    pixels = np.rint(digits.images[0] * 255 / 16).astype(np.uint8)
    Image.fromarray(pixels).save("light.png")
    Image.fromarray(255 - pixels).save("paper.png")
    shares = []
    for words in (["light.png"], ["paper.png", "--invert"], ["paper.png"]):
        assert main(["predict", "run", *words, "--json"]) == 0
        shares.append(json.loads(capsys.readouterr().out)[0]["top"])
    assert shares[0] == shares[1] != shares[2]
    assert "no such file" in refuse(["predict", "run", "mine.png"], capsys)
