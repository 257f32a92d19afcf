"""What every library is measured with: one protocol, one output, no import but torch.

A runner (benchmarks/<library>/run.py) says how its library builds the two tasks:

    spikformer   a training step (cross-entropy, AdamW) or inference on random pictures
    lif          T steps of a leaky integrate-and-fire layer alone, forward and backward or forward
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NEURONS = {"BaseNode", "Neuron"}
"""What neurons are derived from, in SpikingJelly and in saccade."""
Build = Callable[[argparse.Namespace], Callable[[Tensor], Tensor]]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that all runners share."""
    p = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    p.add_argument("--task", default="spikformer", choices=["spikformer", "lif"])
    p.add_argument("--mode", default="train", choices=["train", "infer"])
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--precision", default="float32", choices=list(PRECISIONS))
    p.add_argument("--n", type=int, default=5, help="samples")
    p.add_argument("--warmup", type=int, default=2)
    p.add_argument("--T", type=int, default=4)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--dim", type=int, default=128)
    p.add_argument("--depth", type=int, default=2)
    p.add_argument("--heads", type=int, default=8)
    p.add_argument("--size", type=int, default=32, help="side of the picture, in pixels")
    p.add_argument("--patch", type=int, default=4, choices=[4, 16], help="pixels a token is wide")
    p.add_argument("--classes", type=int, default=10)
    p.add_argument("--elements", type=int, default=1 << 20, help="neurons of the LIF layer")
    p.add_argument("--site", type=Path, help="folder with the library's wheel unpacked")
    return p


def use_site(folder: Path | None) -> None:
    """Import from a folder with unpacked wheels before anything that is installed.

    Raises:
        SystemExit: where there is no such folder.
    """
    if folder is None:
        return
    if not folder.is_dir():
        raise SystemExit(f"got --site {folder}, expected a folder with a wheel unpacked")
    sys.path.insert(0, str(folder.resolve()))


def main(library: str, version: str, args: argparse.Namespace, tasks: dict[str, Build]) -> int:
    """Build, measure, and print one line of JSON.

    Args:
        library, version: of what is measured.
        args: of `parser`.
        tasks: task -> maker of a function of x: pictures [B 3 H W] to logits [B K], or currents
            [T n] to spikes [T n]; what a library needs between two calls belongs into it.
    """
    if args.task not in tasks:
        raise SystemExit(f"{library} has no {args.task}, expected --task {' or '.join(tasks)}")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    call = tasks[args.task](args)
    step, facts = (_model if args.task == "spikformer" else _layer)(call, args)
    for _ in range(args.warmup):
        step()
    seconds = [_sample(step, args.device) for _ in range(args.n)]
    sys.stdout.write(json.dumps(_report(library, version, args, seconds, facts)) + "\n")
    return 0


def _model(
    call: nn.Module, args: argparse.Namespace
) -> tuple[Callable[[], None], dict[str, float]]:
    model: nn.Module = getattr(call, "model", call)
    x = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    facts: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters())}
    if args.mode == "infer":
        facts["firing_rate"] = _settle(call, x)
    model.train(args.mode == "train")
    y = torch.randint(args.classes, (args.batch,), device=args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with _cast(args):
            logits = call(x)
        nn.functional.cross_entropy(logits.float(), y).backward()
        optimizer.step()

    def infer() -> None:
        with torch.no_grad(), _cast(args):
            call(x)

    return train if args.mode == "train" else infer, facts


@torch.no_grad()
def _settle(call: nn.Module, x: Tensor) -> float:
    """Take the statistics of all norms from a batch; the mean rate of its neurons with them.

    With those that it was made with, an untrained model is silent behind its first layer.
    """
    for norm in call.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = 1.0
    call.train()(x)
    rates: list[float] = []
    nodes = [m for m in call.modules() if NEURONS & {kind.__name__ for kind in type(m).__mro__}]
    hooks = [m.register_forward_hook(lambda m, a, y: rates.append(float(y.mean()))) for m in nodes]
    call.eval()(x)
    for hook in hooks:
        hook.remove()
    return statistics.mean(rates)


def _layer(
    call: Callable[[Tensor], Tensor], args: argparse.Namespace
) -> tuple[Callable[[], None], dict[str, float]]:
    x = torch.randn(args.T, args.elements, device=args.device, dtype=PRECISIONS[args.precision])
    ones = torch.ones_like(x)

    def train() -> None:
        currents = x.detach().requires_grad_()
        call(currents).backward(ones)

    def infer() -> None:
        with torch.no_grad():
            call(x)

    return train if args.mode == "train" else infer, {}


def _cast(args: argparse.Namespace) -> AbstractContextManager[object]:
    if args.precision == "float32":
        return nullcontext()
    return torch.autocast(args.device, PRECISIONS[args.precision])


def _sample(step: Callable[[], None], device: str) -> float:
    if device != "cuda":
        began = time.perf_counter()
        step()
        return time.perf_counter() - began
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def _report(
    library: str,
    version: str,
    args: argparse.Namespace,
    seconds: list[float],
    facts: dict[str, float],
) -> dict:
    done = args.batch if args.task == "spikformer" else args.T * args.elements
    sizes = ("T", "batch", "dim", "depth", "heads", "size", "patch", "classes")
    return {
        "library": library,
        "model": args.task,
        "mode": args.mode,
        "precision": args.precision,
        "unit": "images/s" if args.task == "spikformer" else "elements/s",
        "per_second": done / statistics.median(seconds),
        "spread": [done / max(seconds), done / min(seconds)],
        "n": len(seconds),
        "seconds": seconds,
        "sizes": {k: getattr(args, k) for k in (sizes if facts else ("T", "elements"))},
        **facts,
        "versions": {
            library: version,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "hardware": {
            "device": torch.cuda.get_device_name() if args.device == "cuda" else _cpu(),
            "threads": torch.get_num_threads(),
        },
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"
