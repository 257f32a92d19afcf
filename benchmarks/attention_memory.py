"""Peak memory of attention in inference: LRF-Dyn, LRF-SSA, and SSA in both product orders.

python benchmarks/attention_memory.py --out <folder> [--device cuda] [--dim 512] [--T 4] ...

What is measured: one attention module (its projections included) in eval mode under
`torch.inference_mode`, float32, random spikes in. The peak is that of the call alone: what was
held before it (input and weights) is taken off. "product" is the same for the part between the
projections: SSA's Eq. SSA-2, or membrane and local kernels, from spikes that are already there.

On CUDA the peak is the allocator's (`torch.cuda.max_memory_allocated`), library workspaces
included. Elsewhere live tensors are added up operation by operation, without what one operation
holds inside itself; so CPU and CUDA numbers are not to be compared.

Not the protocol of arXiv:2603.19290, whose 49.4 % is given without one: no claim to reproduce it.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saccade.attention import SpikingAttention, create_attention
from saccade.attention.ssa import SSA, mix
from saccade.bench import peak, require_equal
from saccade.nn import split_heads
from saccade.ops import token_scan

MIB = 2**20


@contextmanager
def only(op: Any, variant: str | None) -> Iterator[None]:
    """Inside this block `op` runs one variant, or its reference where that is None."""
    kept = dict(op.variants)
    op.variants.clear()
    if variant is not None:
        op.variants[variant] = (kept[variant][0], lambda *args: None)
    try:
        yield
    finally:
        op.variants.clear()
        op.variants.update(kept)


# label -> (attention, options, op whose path is chosen, variant; None is the reference)
CASES: dict[str, tuple[str, dict[str, Any], Any, str | None]] = {
    "SSA (Q K^T) V, as printed": ("ssa", {}, mix, None),
    "SSA Q (K^T V)": ("ssa", {}, mix, "reassociated"),
    "LRF-SSA Q (K^T V)": ("lrf_ssa", {}, mix, "reassociated"),
    "LRF-Dyn eq12, scan": ("lrf_dyn", {"form": "eq12"}, token_scan, "scan"),
    "LRF-Dyn dendritic, scan": ("lrf_dyn", {}, token_scan, "scan"),
    "LRF-Dyn dendritic, FFT": ("lrf_dyn", {}, token_scan, "fft"),
}


def product(attention: SpikingAttention, spikes: Tensor) -> Callable[[], Any]:
    """The part between the projections, on spikes that are already there."""
    if isinstance(attention, SSA):
        heads = split_heads(spikes, attention.site.heads)
        return lambda: mix(heads, heads, heads, 0.125)
    mixing: nn.Module = attention.get_submodule("mixing")
    single = hasattr(mixing, "membrane")
    return lambda: mixing(spikes) if single else mixing(spikes, spikes, spikes)


@torch.inference_mode()
def measure(label: str, N: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    name, options, op, variant = CASES[label]
    device, side = torch.device(args.device), int(N**0.5)
    sizes = {"dim": args.dim, "heads": args.heads, "T": args.T, "grid": (side, side)}
    torch.manual_seed(0)
    attention = create_attention(name, **sizes, **options).to(device).eval()
    x = torch.rand(args.T, args.batch, args.dim, side, side, device=device).round()
    held = [x, *attention.state_dict().values()]
    with only(op, variant):
        whole = peak(lambda: attention(x), device, held)
        inner = peak(product(attention, x), device, held)
    return {
        "attention": label,
        "N": N,
        "peak_mib": whole / MIB,
        "product_mib": inner / MIB,
        "input_mib": x.nbytes / MIB,
        "state_numbers": attention.state(),
    }


def gate() -> None:
    """No number without equality: the paths that are compared compute the same."""
    for _, _, op, variant in CASES.values():
        require_equal(op, variant or "reference", torch.device("cpu"))


def markdown(rows: list[dict[str, Any]], conditions: dict[str, Any]) -> str:
    """Table with the conditions above it."""
    lines = ["# Peak inference memory of attention", ""]
    lines += [f"- {key}: {value}" for key, value in conditions.items()]
    lines += [
        "",
        "Peaks in MiB beyond input and weights. *module*: the whole attention; *product*: between",
        "its projections. *state*: numbers that one token leaves to the next (sample, step).",
        "",
        "| attention | N | module | product | one map [T B C N] | state |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        lines.append(
            f"| {r['attention']} | {r['N']} | {r['peak_mib']:.1f} | {r['product_mib']:.1f} | "
            f"{r['input_mib']:.1f} | {r['state_numbers']} |"
        )
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[196, 784, 3136])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--T", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    odd = [N for N in args.tokens if int(N**0.5) ** 2 != N]
    if odd:
        parser.error(f"got --tokens {odd}, expected squares: the grid is square")
    return args


def main() -> int:
    args = parse()
    gate()
    cuda = args.device.startswith("cuda")
    conditions = {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
        "counted by": "CUDA allocator" if cuda else "live tensors after each operation",
        "torch": torch.__version__,
        "dtype": "float32",
        "B": args.batch,
        "T": args.T,
        "C": args.dim,
        "heads": args.heads,
        "d = C / heads": args.dim // args.heads,
    }
    rows = [measure(label, N, args) for N in args.tokens for label in CASES]
    args.out.mkdir(parents=True, exist_ok=True)
    text = markdown(rows, conditions)
    (args.out / "attention_memory.md").write_text(text, encoding="utf-8")
    (args.out / "attention_memory.json").write_text(
        json.dumps({"conditions": conditions, "rows": rows}, indent=2) + "\n", encoding="utf-8"
    )
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
