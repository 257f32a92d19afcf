"""Make a record of finished runs of one recipe: what can be checked, and what is still to do.

python benchmarks/record.py RUN [RUN ...] --out records/DATE_NAME --seeds 0,1,2 --command "..."

Each run's recipe, log and metrics are copied into sN, N its seed; summary.json says which seeds are
done and which are left, mean and sd of those done, hardware, versions and commit. The test accuracy
is that of the last epoch, as the run measured it once; nothing is chosen here. --weights keeps the
judged weights of the first run in files of less than 16 MB: kernels in bfloat16, all else as it is.
"""

import argparse
import json
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch

from saccade.train import save_weights
from saccade.train.apply import open_run

KEPT = ("recipe.yaml", "log.jsonl", "metrics.json")
MOST = 15_000_000
"""Bytes of a weights file."""


def read(run: Path) -> dict[str, Any]:
    """The metrics of a finished run."""
    if not (run / "metrics.json").exists():
        raise SystemExit(f"got {run}, expected the folder of a run that has ended (metrics.json)")
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return metrics


def check(found: list[dict[str, Any]], seeds: list[int]) -> None:
    for name in ("recipe", "model", "dataset", "epochs", "train_images", "weights", "T"):
        if len({m[name] for m in found}) > 1:
            raise SystemExit(
                f"got runs with {name} {[m[name] for m in found]}, expected one recipe"
            )
    done = [m["seed"] for m in found]
    if len(set(done)) < len(done) or not set(done) <= set(seeds):
        raise SystemExit(f"got runs of seeds {done}, expected each of {seeds} once at most")


def summary(found: list[dict[str, Any]], seeds: list[int], command: str) -> dict[str, Any]:
    accuracy = [m["test_accuracy"] for m in found]
    done = [m["seed"] for m in found]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "recipe": found[0]["recipe"],
        "command": command,
        "commit": commit.stdout.strip(),
        "seeds_done": done,
        "seeds_left": [s for s in seeds if s not in done],
        "test_accuracy": accuracy,
        "mean": statistics.mean(accuracy),
        "sd": statistics.stdev(accuracy) if len(accuracy) > 1 else None,
        "n": len(accuracy),
        "test_images": found[0]["test_images"],
        "train_images": found[0]["train_images"],
        "train_seconds": [m["train_seconds"] for m in found],
        "images_per_second": [m["images_per_second"] for m in found],
        "versions": found[0]["versions"],
        "hardware": [m["hardware"] for m in found],
    }


def keep_weights(run: Path, out: Path) -> None:
    """weights-1-of-N.safetensors and so on, of what `saccade.load` reads from the run."""
    model, data = open_run(run)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.to(torch.bfloat16)
    save_weights(out / "weights.safetensors", model, data, most=MOST)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2", help="all that the record is to hold")
    parser.add_argument("--command", required=True, help="that made the runs")
    parser.add_argument("--weights", action="store_true")
    args = parser.parse_args()
    found, seeds = [read(run) for run in args.runs], [int(s) for s in args.seeds.split(",")]
    check(found, seeds)
    for run, metrics in zip(args.runs, found, strict=True):
        folder = args.out / f"s{metrics['seed']}"
        folder.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (run / name).resolve() != (folder / name).resolve():
                shutil.copyfile(run / name, folder / name)
    if args.weights:
        keep_weights(args.runs[0], args.out)
    said = summary(found, seeds, args.command)
    (args.out / "summary.json").write_text(json.dumps(said, indent=2) + "\n")
    print(f"{said['mean']:.2%}, n = {said['n']}, left: {said['seeds_left'] or 'none'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
