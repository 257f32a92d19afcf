"""How much of a recorded step's speed the whole training loop keeps, on random pictures in memory.

python benchmarks/train_loop.py [--T 4 1] [--optimizers adamw muon] [--augment light heavy] \
    [--devices 4] [--out loop.json]

For every combination two rates in pictures a second, over all devices: of `saccade.train` (batches,
augmentation, schedule, log and all; epochs after the first), and of the very step that it takes,
alone, on one batch that lies ready. Where steps are recorded as a CUDA graph the latter is its bare
replay. --devices starts that many processes by torchrun.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saccade.bench.timing import interleaved
from saccade.data import Augment, ImageData, Images, Mix
from saccade.data._base import DATA
from saccade.data.randaugment import RandAugment
from saccade.train import Recipe, run
from saccade.train.capture import WARM, Recorded
from saccade.train.checkpoint import Position
from saccade.train.devices import close_fabric, open_fabric, tuned
from saccade.train.flight import Flight, flying
from saccade.train.loop import fit
from saccade.train.outcome import hardware, versions
from saccade.train.recipe import Average, Optim
from saccade.train.run import Silent
from saccade.train.session import Session

AUGMENT: dict[str, dict[str, Any]] = {
    "light": {"augment": Augment(shift=4, flip=True, cutout=8)},
    "heavy": {
        "augment": Augment(
            shift=4,
            flip=True,
            randaugment=RandAugment(
                layers=1,
                magnitude=9,
                spread=0.4,
                probability=0.5,
                operations=("equalize", "rotate", "shear_x", "translate_x", "translate_y"),
            ),
            erase=0.25,
        ),
        "mix": Mix(mixup=0.5, cutmix=1.0),
        "average": Average(decay=0.999),
    },
}
"""light is that of recipe cifar10_paper; heavy is the official recipe's, with averaged weights."""


@DATA.add("random")
def random_pictures(root: Path, *, count: int, side: int = 32) -> ImageData:
    """Noise of CIFAR's shape."""
    chance = np.random.default_rng(0)

    def split(n: int) -> Images:
        images = chance.integers(0, 256, (n, 3, side, side), dtype=np.uint8)
        return Images(images=images, labels=np.arange(n, dtype=np.int64) % 10)

    return ImageData(
        name="random",
        classes=tuple(f"class {k}" for k in range(10)),
        train=split(count),
        test=split(64),
        white=255.0,
        mean=(0.5,) * 3,
        std=(0.29,) * 3,
        source=None,
    )


class Watch(Silent):
    """Keeps the lines of the log, and when the first step was heard of."""

    def __init__(self) -> None:
        self.first, self.lines = 0.0, []

    def step(self, position: Position, steps: int, loss: float) -> None:
        self.first = self.first or position.seconds

    def epoch(self, line: dict[str, Any]) -> None:
        self.lines.append(line)


def recipe_of(args: argparse.Namespace, T: int, rule: str, augment: str) -> Recipe:
    return Recipe(
        name="random",
        model={"name": args.model, "T": T},
        data={"name": "random", "count": args.batch * args.steps, "side": args.side},
        optim=Optim(name=rule, lr=5e-4, weight_decay=0.06, clip=args.clip),
        epochs=args.epochs,
        batch_size=args.batch,
        precision=args.precision,
        **AUGMENT[augment],
    )


def opened(args: argparse.Namespace, recipe: Recipe, folder: Path, watch: Silent) -> Session:
    """What `saccade.train` opens; the processes of several devices stay together between runs."""
    fabric = open_fabric(device=args.device, precision=recipe.precision)
    data = run.load_data(recipe.data)
    return run._open(recipe, folder, data, run.build_model(recipe, data), fabric, watch, 0)


def loop_rate(args: argparse.Namespace, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Of the epochs after the first, in which steps are recorded and algorithms chosen."""
    watch = Watch()
    session = opened(args, recipe, folder, watch)
    folder.mkdir(parents=True, exist_ok=True)
    fit(session)
    later = watch.lines[1:]
    rates = [line["images_per_second"] for line in later]
    return {
        "loop_per_s": statistics.median(rates) if rates else None,
        "loop_spread": [min(rates), max(rates)] if rates else None,
        "epochs": len(rates),
        "data_wait": statistics.median(line["data_wait"] for line in later) if later else None,
        "first_step_s": watch.first,
        "first_epoch_s": watch.lines[0]["seconds"] if watch.lines else None,
    }


def step_rate(args: argparse.Namespace, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Of the step alone."""
    session = opened(args, recipe, folder, Silent())
    fabric = session.fabric
    with flying(session) as flight:
        for _ in range(WARM + 1):
            if flight.launch(False, False) is not None:
                raise SystemExit("a batch does not fit")
            flight.land()
        step, how = alone(flight)
        timing = interleaved({"step": step}, fabric.device, n=args.samples)["step"]
        hidden = hardware(fabric.device) | {"devices": fabric.world_size}
    first, third = timing.quartiles()
    return {
        "step_per_s": args.batch / timing.median,
        "step_ms": timing.median * 1e3,
        "step_ms_quartiles": [first * 1e3, third * 1e3],
        "n": args.samples,
        "step_is": how,
        "hardware": hidden,
    }


def alone(flight: Flight) -> tuple[Callable[[], Any], str]:
    """The step without what the loop does around it."""
    take = flight.take
    if isinstance(take, Recorded) and take.replay is not None:
        return take.replay, "replay of a CUDA graph"
    steps = iter(range(flight.next, 10**9))

    def step() -> None:
        flight.next = next(steps) % flight.s.steps
        flight.launch(False, False)
        flight.land()

    return step, "single operations, with the batch"


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for T in args.T:
        for rule in args.optimizers:
            for augment in args.augment:
                recipe = recipe_of(args, T, rule, augment)
                with tempfile.TemporaryDirectory() as folder, tuned():
                    row = {"T": T, "optimizer": rule, "augment": augment}
                    row |= loop_rate(args, recipe, Path(folder) / "run")
                    row |= step_rate(args, recipe, Path(folder) / "alone")
                if row["loop_per_s"] is not None:
                    row["ratio"] = row["loop_per_s"] / row["step_per_s"]
                    sys.stderr.write(f"{show(row)}\n")
                rows.append(row | {"recipe": asdict(recipe)})
    return rows


def show(row: dict[str, Any]) -> str:
    return (
        f"T={row['T']} {row['optimizer']:6} {row['augment']:5}  loop {row['loop_per_s']:9,.0f}/s  "
        f"step {row['step_per_s']:9,.0f}/s ({row['step_ms']:.2f} ms, {row['step_is']})  "
        f"ratio {row['ratio']:.3f}  data_wait {row['data_wait']:.1%}  "
        f"first step {row['first_step_s']:.1f} s"
    )


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    cuda = torch.cuda.is_available()
    p.add_argument("--model", default="spikformer_4_384" if cuda else "spikformer_2_384")
    p.add_argument("--T", type=int, nargs="+", default=[4, 1])
    p.add_argument("--optimizers", nargs="+", default=["adamw"])
    p.add_argument("--augment", nargs="+", default=["light"], choices=list(AUGMENT))
    p.add_argument("--batch", type=int, default=256 if cuda else 8, help="over all devices")
    p.add_argument("--side", type=int, default=32, help="of the pictures, in pixels")
    p.add_argument("--steps", type=int, default=60 if cuda else 2, help="an epoch")
    p.add_argument("--epochs", type=int, default=4 if cuda else 2)
    p.add_argument("--clip", type=float, default=0.0)
    p.add_argument(
        "--samples", type=int, default=50 if cuda else 3, help="samples of the step alone"
    )
    p.add_argument("--precision", default="bf16-mixed" if cuda else "32-true")
    p.add_argument("--device", default="auto")
    p.add_argument("--devices", type=int, default=1)
    p.add_argument("--out", type=Path)
    return p.parse_args()


def relaunched(args: argparse.Namespace) -> int:
    """This very command in a process for each device."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(args.devices)]
    return subprocess.call([sys.executable, *words, *sys.argv])


def main() -> int:
    args = parse()
    if args.devices > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return relaunched(args)
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("saccade").setLevel(logging.INFO)  # says why a step is not recorded
    began = time.perf_counter()
    rows = measure(args)
    close_fabric(open_fabric(device=args.device, precision=args.precision))
    if int(os.environ.get("RANK", "0")):
        return 0
    report = {"rows": rows, "versions": versions(), "seconds": time.perf_counter() - began}
    text = json.dumps(report, indent=1)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
