"""Several benchmarks of one source tree in one process, such as the sources of an older commit.

python benchmarks/several.py LABEL FOLDER_OF_SOURCES FOR_RESULTS NAME ...   names: keys of JOBS
"""

import contextlib
import io
import json
import sys
import time
from pathlib import Path

IMAGENET = ["spikformer_8_512", "--batch", "64"]
CIFAR = ["spikformer_4_384", "--batch", "256"]
JOBS = {
    "train": ["train", *IMAGENET, "--graph"],
    "eager": ["train", *IMAGENET],
    "infer8": ["infer", *IMAGENET, "--products", "int8", "--graph"],
    "infer16": ["infer", *IMAGENET, "--products", "bfloat16", "--graph"],
    "c_train": ["train", *CIFAR, "--graph"],
    "c_infer8": ["infer", *CIFAR, "--products", "int8", "--graph"],
    "c_infer16": ["infer", *CIFAR, "--products", "bfloat16", "--graph"],
}
HOW = ["--paths", "fast", "--n", "20", "--device", "cuda", "--precision", "bfloat16"]


def main(label: str, sources: str, out: str, *names: str) -> None:
    sys.path.insert(0, sources)
    import saccade
    from saccade.cli import main as command

    assert saccade.__file__.startswith(sources), saccade.__file__
    for n, name in enumerate(names):
        began, path = time.time(), Path(out, f"{label}_{n}_{name}.json")
        with contextlib.redirect_stdout(io.StringIO()):
            command(["bench", *JOBS[name], *HOW, "--out", str(path)])
        row, batch = json.loads(path.read_text())["rows"][0], int(JOBS[name][3])
        low, middle, high = (batch / row[key] for key in ("q3_s", "median_s", "q1_s"))
        print(
            f"{label} {name} {middle:.1f} ({low:.1f} to {high:.1f}), first step "
            f"{row['first_step_s']:.1f} s, {row['peak_bytes'] / 2**30:.2f} GiB "
            f"[{time.time() - began:.0f} s]",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
