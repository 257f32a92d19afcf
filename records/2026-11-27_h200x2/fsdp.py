"""Spikformer-V2-16-768 spread over two GPUs, on random pictures of 224 px.

torchrun --nproc-per-node 2 fsdp.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch

from saccade.data import ImageData, Images
from saccade.train import Recipe, run
from saccade.train.recipe import Optim


def split(n: int, seed: int) -> Images:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (n, 3, 224, 224)).astype(np.uint8)
    return Images(images=pictures, labels=np.arange(n, dtype=np.int64) % 10)


class Printed:
    def step(self, *args) -> None:
        pass

    def epoch(self, line) -> None:
        held = torch.cuda.max_memory_allocated() / 2**30
        print({k: line[k] for k in ("epoch", "loss", "images_per_second")}, f"{held:.2f} GiB")


if __name__ == "__main__":
    data = ImageData(
        name="random",
        classes=tuple("0123456789"),
        train=split(256, 0),
        test=split(64, 1),
        white=255.0,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        source=None,
    )
    run.load_data = lambda part, root=None: data
    recipe = Recipe(
        model={"name": "spikformer_v2_16_768"},
        data={"name": "random"},
        optim=Optim(lr=1e-4),
        batch_size=64,
        precision="bf16-mixed",
        epochs=3,
    )
    metrics = run.train(
        recipe, Path(sys.argv[1]), device="cuda", devices=2, strategy="fsdp", progress=Printed()
    )
    print(metrics["parameters"], "parameters", metrics["test_accuracy"])
