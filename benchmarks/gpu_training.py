"""What has to hold of `saccade train` on a GPU: types, recorded steps, resuming, a full memory.

python benchmarks/gpu_training.py out.json   exit 1 where something fails
python benchmarks/gpu_training.py out.json --device cpu   a rehearsal of this script, on less

On made-up pictures of CIFAR's shape; how long runs take is not looked at.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from saccade.data import Augment, ImageData, Images, Mix
from saccade.train import Interrupted, Recipe, loop, run, train
from saccade.train.capture import CudaGraphs
from saccade.train.memory import TooLarge
from saccade.train.recipe import Average, Optim
from saccade.train.run import Silent

MODEL = {"name": "spikformer_2_384", "dim": 128, "heads": 8, "T": 4}
RECIPE = Recipe(
    name="checks",
    model=MODEL,
    data={"name": "made up"},
    augment=Augment(shift=4, flip=True, cutout=8),
    mix=Mix(mixup=0.5, cutmix=1.0, probability=0.5),
    optim=Optim(name="muon", lr=1e-3),
    average=Average(decay=0.9),
    epochs=3,
    batch_size=64,
    precision="bf16-mixed",
)


def pictures(n: int, seed: int) -> Images:
    """Each class has a colour of its own, which no shift, flip or cutout takes away."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 10
    images = rng.integers(0, 160, (n, 3, 32, 32), dtype=np.uint8)
    for k in range(10):
        red, green, blue = k % 3, k // 3 % 3, k // 9
        colour = np.array([red, green, blue], dtype=np.uint8) * 47
        images[labels == k] += colour[:, None, None]
    return Images(images=images, labels=labels.astype(np.int64))


def data(n: int) -> ImageData:
    return ImageData(
        name="made up",
        classes=tuple("abcdefghij"),
        train=pictures(n, 0),
        test=pictures(128, 1),
        white=255.0,
        mean=(0.4,) * 3,
        std=(0.3,) * 3,
        source=None,
    )


class Checks:
    """Trains on one device, each time in a folder of its own."""

    def __init__(self, device: str, folder: Path) -> None:
        self.device, self.folder, self.made = device, folder, 0
        self.count = 640 if device == "cuda" else 192
        self.recipe = RECIPE if device == "cuda" else replace(RECIPE, model=MODEL | {"T": 1})

    def run(self, recipe: Recipe, n: int = 0, **more: Any) -> Path:
        self.made += 1
        path = more.pop("path", self.folder / str(self.made))
        held = data(n or self.count)
        with patch.object(run, "load_data", lambda part, root=None: held):
            train(recipe, path, device=self.device, progress=Silent(), **more)
        return path

    def types(self) -> dict[str, Any]:
        """Loss of the last epoch and test accuracy in each precision."""
        said = {}
        for precision in ("32-true", "bf16-mixed", "16-mixed"):
            path = self.run(replace(self.recipe, precision=precision, epochs=12))
            metrics = json.loads((path / "metrics.json").read_text())
            said[precision] = [log(path)[-1]["loss"], metrics["test_accuracy"]]
        losses, accuracies = zip(*said.values(), strict=True)
        learned = max(losses) < 2.0 and min(accuracies) > 0.5
        return said | {"ok": learned and max(losses) - min(losses) < 0.1}

    def recorded(self) -> dict[str, Any]:
        """Largest difference of a loss, and of a weight, between recorded steps and single ones."""
        teacher = str(self.run(self.recipe))
        taught = {"teacher": teacher, "alpha": 0.5}
        tasks: list[dict[str, Any]] = [
            {"name": "classify", "label_smoothing": 0.1},
            {"name": "tet"},
            {"name": "distill", **taught},
            {"name": "distill_hard", **taught},
        ]
        said: dict[str, Any] = {}
        recorded = True
        for task in tasks:
            recipe = replace(self.recipe, task=task, precision="32-true")
            with counting_records() as records:
                a = self.run(recipe)
            recorded = recorded and (bool(records) or self.device != "cuda")
            with patch.object(run, "refusal", lambda *given: "it was asked for"):
                b = self.run(recipe)
            losses = max(abs(x["loss"] - y["loss"]) for x, y in zip(log(a), log(b), strict=True))
            said[task["name"]] = [losses, apart(a, b)]
        close = all(loss < 1e-3 for loss, _ in said.values())
        return said | {"recorded": recorded, "ok": recorded and close}

    def resumed(self) -> dict[str, Any]:
        """Whether a run that was stopped and went on is the one that was not, bit for bit."""
        whole, stopped = self.run(self.recipe), self.folder / "stopped"
        with stopping_after(4), suppress(Interrupted):
            self.run(self.recipe, path=stopped)
        taken = json.loads((stopped / "state.json").read_text())["position"]["step"]
        self.run(self.recipe, path=stopped, resume=True)
        ends = json.loads((stopped / "state.json").read_text())["position"]["step"]
        same = [x["loss"] == y["loss"] for x, y in zip(log(whole), log(stopped), strict=True)]
        worst = apart(whole, stopped)
        ok = all(same) and not worst and taken < ends
        return {"stopped at": [taken, ends], "weights apart": worst, "ok": ok}

    def full(self) -> dict[str, Any]:
        """What is said of a batch that does not fit, and whether what it advises does."""
        if self.device != "cuda":
            return {"skipped": "needs a memory that can be made small", "ok": True}
        recipe = replace(self.recipe, batch_size=4096, epochs=1)
        with little_memory(gib=2.0):
            try:
                self.run(recipe, n=4096)
            except TooLarge as error:
                said = str(error)
            else:
                return {"said": "nothing: it fits", "ok": False}
            pieces = int(said.partition("accumulate=")[2].split()[0])
            self.run(replace(recipe, accumulate=pieces), n=4096)
        return {"said": said, "ok": True}


@contextmanager
def counting_records() -> Iterator[list[bool]]:
    """A list that grows with each CUDA graph that is recorded."""
    record, made = CudaGraphs.record, []

    def recording(self: CudaGraphs, run: Callable[[], None]) -> Callable[[], None]:
        replay = record(self, run)
        made.append(True)
        return replay

    with patch.object(CudaGraphs, "record", recording):
        yield made


@contextmanager
def stopping_after(steps: int) -> Iterator[None]:
    """Ask a run to stop as if by a signal once so many steps are on record."""
    heard: Callable[..., Any] = loop._heard

    def hear(session: Any, tallies: Any) -> Any:
        out = heard(session, tallies)
        if session.position.step >= steps:
            signals[0].append(1)
        return out

    signals: list[list[int]] = []
    listen = loop._signals

    @contextmanager
    def listening() -> Iterator[list[int]]:
        with listen() as stop:
            signals.append(stop)
            yield stop

    with patch.object(loop, "_heard", hear), patch.object(loop, "_signals", listening):
        yield


@contextmanager
def little_memory(gib: float) -> Iterator[None]:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def apart(a: Path, b: Path) -> float:
    """The largest difference of a weight."""
    from saccade.train import load_model

    ours, theirs = (load_model(path)[0].state_dict() for path in (a, b))
    return max(float((x.double() - theirs[k].double()).abs().max()) for k, x in ours.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        checks = Checks(args.device, Path(folder))
        for check in (checks.types, checks.recorded, checks.resumed, checks.full):
            try:
                results[check.__name__] = check()
            except Exception as error:
                results[check.__name__] = {"error": f"{type(error).__name__}: {error}", "ok": False}
            print(check.__name__, json.dumps(results[check.__name__]), flush=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(result["ok"] for result in results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
