"""Does it pay to skip silent inputs? Layers and a whole Spikformer 2-128 on a CPU, by firing rate.

python benchmarks/cpu_silent.py out.json [--rates 0.05 0.1 0.2] [--spikingjelly PYTHON]

Layers, ms of 256 frames (64 pictures, T = 4), what is compared taking turns:
    bf16      the convolution and the neuron, folded, as `fuse(model, "bfloat16")` runs them
    int8      the layer of `fuse(model, "int8")`, which skips inputs that are 0
    dense     eight-bit products alone (torch._int_mm), without the neuron; linear maps only
The model's biases are moved until every layer fires at the rate; residual sums are denser than
that. With --spikingjelly its inference takes turns too (it costs the same at any rate).
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from compare import HERE, SMALL
from compare import run as run_apart

import saccade
from saccade.nn import Projection
from saccade.ops import Fire, affine_lif, conv, listening, project_lif
from saccade.train.outcome import hardware
from saccade.transform import fuse

LAYERS = [  # side of the kernel, inputs, outputs, side of the grid
    *((1, K, N, 8) for K, N in ((128, 128), (128, 512), (512, 128), (384, 384), (1536, 384))),
    *((3, K, N, H) for K, N, H in ((16, 32, 32), (32, 64, 32), (64, 128, 16), (128, 128, 8))),
]
SIZES = {"dim": 128, "depth": 2, "heads": 8, "T": 4}
CELL = 0.5, 0.5, Fire()


def turns(todo: dict[str, Callable[[], object]], n: int) -> dict[str, list[float]]:
    """Seconds of each, forth and back."""
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    for run in todo.values():
        run(), run()
    for i in range(n):
        for name in list(todo)[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            todo[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def layer(side: int, K: int, N: int, H: int, rate: float, n: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    spikes = (torch.rand(4, 64, H, H, K, generator=g) < rate).to(torch.int8)
    weight = torch.randint(-127, 128, (N, side, side, K), generator=g).to(torch.int8)
    scale, shift = torch.full((N,), 2.0**-6 / (rate * K * side * side) ** 0.5), torch.ones(N) / 2
    x, w = spikes.permute(0, 1, 4, 2, 3), weight.permute(0, 3, 1, 2)
    x16, w16 = x.bfloat16(), w.bfloat16()

    def folded() -> torch.Tensor:
        y = conv(x16, w16, 1)
        return affine_lif(y, scale, shift, *CELL, 4, False, torch.bfloat16)

    todo = {"bf16": folded, "int8": lambda: project_lif(x, w, scale, shift, *CELL, 1, False)}
    few = x[:, :1], w, scale, shift, *CELL, 1, False
    if (ran := project_lif.choose(*few)) != "numba":
        raise SystemExit(f"project_lif runs {ran} here, expected its kernel: saccade doctor")
    got = project_lif(*few)
    if not torch.equal(got, project_lif.reference(*few)):
        raise SystemExit("project_lif differs from its reference: no measurement")
    if side == 1:
        rows, matrix = spikes.view(-1, K), weight.view(N, K).t().contiguous()
        todo["dense"] = lambda: torch._int_mm(rows, matrix)
    seconds = turns(todo, n)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    return {
        "kernel": side, "inputs": K, "outputs": N, "grid": H, "rate": rate,
        "fires": float(got.float().mean()), "seconds": seconds, "median_s": median,
        "int8 over bf16": median["bf16"] / median["int8"],
    }  # fmt: skip


Pick = Callable[[Any, Any], torch.Tensor]


def heard_by(name: str, run: Callable[[], object], of: Pick) -> list[float]:
    """Share of numbers that are not 0 in what `of` picks from each call of an op."""
    shares: list[float] = []

    def listen(op: Any, args: Any, out: Any) -> None:
        if op.name == name:
            shares.append(float((of(args, out) != 0).float().mean()))

    with torch.no_grad(), listening(listen):
        run()
    return shares


def model_at(
    rate: float, sizes: dict[str, int] = SIZES, batch: int = 64
) -> tuple[torch.nn.Module, torch.Tensor, list[float]]:
    """A Spikformer each of whose layers fires at about a rate, pictures, and the rates."""
    torch.manual_seed(0)
    model = saccade.create_model("spikformer", num_classes=10, image_size=32, **sizes)
    x = torch.randn(batch, 3, 32, 32)
    layers = [m for m in model.modules() if isinstance(m, Projection)]
    for m in layers:
        m.norm.momentum = 1.0  # statistics are those of the last batch
    for _ in range(40):
        rates = heard_by("norm_lif", lambda: model(x), lambda args, out: out)
        for m, fired in zip(layers, rates, strict=True):
            m.norm.bias.data += (0.7 if m.pools else 1.5) * (rate - fired)
    rates = heard_by("norm_lif", lambda: model(x), lambda args, out: out)
    return model.eval(), x, rates


def whole(rate: float, n: int, theirs: Path | None) -> dict[str, Any]:
    model, x, fires = model_at(rate)
    half, eight = fuse(model, "bfloat16"), fuse(model, "int8")
    dense = heard_by("project_lif", lambda: eight(x), lambda args, out: args[0])

    def plain(enabled: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return model(x)

    todo = {
        "float32": lambda: plain(False),
        "bf16": lambda: plain(True),
        "bf16, folded": lambda: half(x),
        "int8": lambda: eight(x),
    }
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(3):
        with torch.no_grad():
            for name, s in turns(todo, n).items():
                seconds[name] += s
        for precision in ("float32", "bfloat16") if theirs else ():
            words = [str(theirs), str(HERE / "spikingjelly" / "run.py"), *SMALL]
            words += ["--mode", "infer", "--precision", precision, "--n", "5"]
            seconds.setdefault(f"SpikingJelly {precision}", []).extend(run_apart(words)["seconds"])
    rates = {name: len(x) / statistics.median(s) for name, s in seconds.items()}
    return {
        "rate": rate, "fires": fires, "inputs that are not 0": dense,
        "images_per_second": rates, "seconds": seconds,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2])
    parser.add_argument("--n", type=int, default=9, help="samples of each")
    parser.add_argument("--spikingjelly", type=Path, help="python of benchmarks/environment.py")
    parser.add_argument("--skip-layers", action="store_true")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "hardware": hardware(torch.device("cpu")),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("saccade", "torch", "numba")},
        "layers": [], "models": [],
    }  # fmt: skip
    for case in () if args.skip_layers else LAYERS:
        for rate in args.rates:
            found = layer(*case, rate, args.n)
            result["layers"].append(found)
            ms = {k: round(v * 1e3, 2) for k, v in found["median_s"].items()}
            print(case, f"{rate:.0%}", ms, f"fires {found['fires']:.1%}", flush=True)
    for rate in args.rates:
        found = whole(rate, args.n, args.spikingjelly)
        result["models"].append(found)
        print(f"{rate:.0%}", {k: round(v, 1) for k, v in found["images_per_second"].items()})
        print("inputs", [round(d, 2) for d in found["inputs that are not 0"]], flush=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
