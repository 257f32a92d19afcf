"""Several benchmarks of one source tree in one process.

python several.py LABEL FOLDER_OF_SOURCES FOR_RESULTS NAME ...   names are the keys of JOBS
"""

import contextlib
import io
import json
import sys
import time
from pathlib import Path

label, src, out, *which = sys.argv[1:]
sys.path.insert(0, src)
import saccade  # noqa: E402
from saccade.cli import main  # noqa: E402

assert saccade.__file__.startswith(src), saccade.__file__
imagenet = ["spikformer_8_512", "--batch", "64"]
cifar = ["spikformer_4_384", "--batch", "256"]
JOBS = {
    "train": ["train", *imagenet],
    "infer8": ["infer", *imagenet, "--products", "int8"],
    "infer16": ["infer", *imagenet, "--products", "bfloat16"],
    "c_train": ["train", *cifar],
    "c_infer8": ["infer", *cifar, "--products", "int8"],
    "c_infer16": ["infer", *cifar, "--products", "bfloat16"],
    "eager": ["train", *imagenet],
}
HOW = ["--paths", "fast", "--n", "20", "--device", "cuda", "--precision", "bfloat16"]
for n, name in enumerate(which):
    began, path = time.time(), f"{out}/{label}_{n}_{name}.json"
    with contextlib.redirect_stdout(io.StringIO()):
        main(["bench", *JOBS[name], *HOW, *(["--graph"] * (name != "eager")), "--out", path])
    row = json.loads(Path(path).read_text())["rows"][0]
    low, mid, high = (64 / row[k] if "c_" not in name else 256 / row[k]
                      for k in ("q3_s", "median_s", "q1_s"))  # fmt: skip
    print(
        f"{label} {name} {mid:.1f} ({low:.1f} to {high:.1f}) first {row['first_step_s']:.1f} s, "
        f"{row['peak_bytes'] / 2**30:.2f} GiB [{time.time() - began:.0f} s]",
        flush=True,
    )
