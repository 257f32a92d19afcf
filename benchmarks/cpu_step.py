"""Spikformer 2-128 on a CPU: whole training steps and inference, by path and precision.

python benchmarks/cpu_step.py [--keep-memory] [--against lines.json] ...

Paths are timed in turns (A B C A B C ...), so that a busy machine slows all of them:
    kernels    whatever variant each op chooses
    torch      the same model without the CPU kernels and without the channels-last convolutions
    products   the model's convolutions alone, channels last, with their gradients: a ceiling

--against takes lines of JSON with "mode", "precision" and "per_second", such as benchmarks of other
libraries print; medians are divided by theirs. --clock cpu counts the processor time of one thread
instead of the wall clock: what to compare kernels by where other programs run.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import conv2d, cross_entropy

import saccade
from saccade.ops import OPS, conv, listening, norm_lif
from saccade.train.allocator import keep_freed_memory

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CPU_VARIANTS = ("numba", "onednn")


@contextmanager
def without_kernels() -> Iterator[None]:
    """Inside this block no op has its CPU variants."""
    kept = {name: dict(op.variants) for name, op in OPS.items()}
    for op in OPS.values():
        for name in CPU_VARIANTS:
            op.variants.pop(name, None)
    try:
        yield
    finally:
        for name, variants in kept.items():
            OPS[name].variants.clear()
            OPS[name].variants.update(variants)


def gate() -> None:
    """No number without equality: the paths that are compared compute the same."""
    for op in (conv, norm_lif):
        args = op.example()
        if not torch.equal(op(*args), op.reference(*args)):
            raise SystemExit(f"{op.name} differs from its reference: no measurement")


def products(model: Any, x: torch.Tensor, dtype: torch.dtype) -> Callable[[bool], None]:
    """The convolutions that a step of the model takes, on inputs like theirs."""
    seen: list[tuple[Any, ...]] = []
    with torch.no_grad(), listening(lambda op, args, out: seen.append((op, args, out))):
        model(x)
    cases = []
    for k, (frames, weight, stride, out) in enumerate(
        (a[0].flatten(0, 1), a[1], a[2], out.flatten(0, 1)) for op, a, out in seen if op is conv
    ):
        layout = {"dtype": dtype, "memory_format": torch.channels_last}
        inputs = [frames.detach().to(**layout).requires_grad_(k > 0)]
        inputs.append(weight.detach().to(**layout).requires_grad_())
        cases.append((inputs, stride, torch.randn_like(out).to(**layout)))

    def run(train: bool) -> None:
        with torch.set_grad_enabled(train):
            for inputs, stride, gradient in cases:
                y = conv2d(*inputs, None, stride, inputs[1].shape[-1] // 2)
                if train:
                    torch.autograd.grad(y, [i for i in inputs if i.requires_grad], gradient)

    return run


def steps(args: argparse.Namespace) -> dict[tuple[str, str, str], Callable[[], None]]:
    """(mode, precision, path) -> one step."""
    torch.manual_seed(0)
    sizes = {"dim": args.dim, "depth": args.depth, "heads": args.heads, "T": args.T}
    model = saccade.create_model("spikformer", num_classes=10, image_size=args.size, **sizes)
    x = torch.randn(args.batch, 3, args.size, args.size)
    y = torch.randint(10, (args.batch,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(mode: str, precision: str, path: str) -> None:
        autocast = torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "float32")
        with without_kernels() if path == "torch" else nullcontext():
            model.train(mode == "train")
            with torch.set_grad_enabled(mode == "train"), autocast:
                logits = model(x)
                if mode == "train":
                    optimizer.zero_grad(set_to_none=True)
                    cross_entropy(logits, y).backward()
                    optimizer.step()

    found: dict[tuple[str, str, str], Callable[[], None]] = {}
    for mode in args.modes:
        for precision in args.precisions:
            for path in ("kernels", "torch"):
                key = (mode, precision, path)
                found[key] = lambda key=key: step(*key)
            alone = products(model, x, PRECISIONS[precision])
            found[mode, precision, "products"] = lambda alone=alone, m=mode: alone(m == "train")
    return found


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, value in {"dim": 128, "depth": 2, "heads": 8, "T": 4, "size": 32}.items():
        p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--n", type=int, default=9, help="samples of each path")
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--modes", nargs="+", default=["train", "infer"])
    p.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    p.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    p.add_argument("--keep-memory", action="store_true", help="as the command line does")
    p.add_argument("--against", type=Path, help="lines of JSON of another library")
    return p.parse_args()


def theirs(path: Path | None) -> dict[tuple[str, str], float]:
    """(mode, precision) -> pictures a second of another library."""
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    return {(r["mode"], r["precision"]): r["per_second"] for r in rows}


def main() -> int:
    args = parse()
    gate()
    torch.set_num_threads(1 if args.clock == "cpu" else args.threads)
    kept = keep_freed_memory() if args.keep_memory else False
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    todo, seconds, first = steps(args), {}, {}
    for key, step in todo.items():
        began = time.perf_counter()
        step()
        first[key], seconds[key] = time.perf_counter() - began, []
    for _ in range(args.n):
        for key, step in todo.items():
            began = clock()
            step()
            seconds[key].append(clock() - began)
    rates = {key: args.batch / statistics.median(s) for key, s in seconds.items()}
    other = theirs(args.against)
    rows = [
        {
            "mode": mode,
            "precision": precision,
            "path": path,
            "unit": "images/s",
            "per_second": round(rates[mode, precision, path], 1),
            "spread": [
                round(args.batch / f(seconds[mode, precision, path]), 1) for f in (max, min)
            ],
            "n": args.n,
            "first_step_s": round(first[mode, precision, path], 2),
            "of_products": round(
                rates[mode, precision, path] / rates[mode, precision, "products"], 3
            ),
            "against": {
                f"{m} {p}": round(rates[mode, precision, path] / r, 2)
                for (m, p), r in other.items()
                if m == mode
            },
        }
        for mode, precision, path in rates
    ]
    names = [line for line in _cpuinfo() if line.startswith(("model name", "model\t"))]
    report = {
        "rows": rows,
        "sizes": {k: getattr(args, k) for k in ("dim", "depth", "heads", "T", "size", "batch")},
        "conditions": {
            "clock": args.clock,
            "keeps_freed_memory": kept,
            "threads": torch.get_num_threads(),
            "cpu": [name.partition(":")[2].strip() for name in names[:2]],
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("saccade", "torch", "numba")},
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(main())
