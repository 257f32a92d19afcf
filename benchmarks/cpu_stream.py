"""A net of event frames on a CPU, fed step by step: milliseconds a step, by type of products.

python benchmarks/cpu_stream.py out.json

One sample at a time, 2 % of the events there, norms that know the sample's statistics. `whole` is
a step's share of the time that the whole sequence takes at once.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import saccade
from saccade.bench.models import settle
from saccade.train.outcome import hardware, versions
from saccade.transform import fuse

NAME, SHARE, ROUNDS = "spikformer_2_256_dvs", 0.02, 60


def milliseconds(run: Callable[[], object], n: int) -> list[float]:
    for _ in range(3):
        run()
    samples = []
    for _ in range(n):
        began = time.perf_counter()
        run()
        samples.append((time.perf_counter() - began) * 1e3)
    return samples


@torch.no_grad()
def main(out: Path) -> None:
    torch.manual_seed(0)
    model = saccade.create_model(NAME)
    x = (torch.rand(model.config.T, 1, *model.frame) < SHARE).float()
    rate = settle(model, x)
    nets = {"unfused": model} | {name: fuse(model, name) for name in ("bfloat16", "int8")}
    rows = {}
    for name, net in nets.items():
        stream, steps = saccade.streaming(net), iter(list(x) * ROUNDS)
        each = milliseconds(lambda s=stream, t=steps: s.step(next(t)), ROUNDS)
        whole = milliseconds(lambda n=net: n(x), 9)
        rows[name] = {
            "step_ms": statistics.median(each),
            "quartiles": statistics.quantiles(each, n=4)[::2],
            "whole_ms": statistics.median(whole) / len(x),
            "n": ROUNDS,
        }
        print(name, json.dumps({k: v for k, v in rows[name].items() if k != "n"}))
    about = {"model": NAME, "batch": 1, "events": SHARE, "firing_rate": rate}
    about |= {"versions": versions(), "hardware": hardware(torch.device("cpu"))}
    out.write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
