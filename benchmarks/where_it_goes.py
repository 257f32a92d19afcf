"""Where the time of a training step and of inference goes on a GPU, against the roofline.

    python benchmarks/where_it_goes.py measure out.json    on the GPU
    python benchmarks/where_it_goes.py draw out.json docs/roofline.png

Kernels are put in groups by name. Operations and bytes are counted from the shapes of every call,
each tensor once for every pass that must read or write it; nothing in them is measured.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch

import saccade
from saccade.ops import listening, within
from saccade.transform import fuse

GROUPS = {
    "convolution": ("xmma", "cudnn", "implicit", "nchwToNhwc", "nhwcToNchw", "sense", "product"),
    "matrix product": ("nvjet", "gemm", "cutlass", "splitK"),
    "norm + neuron, forward": ("sums", "statistics", "fire", "pool"),
    "norms by Gram matrices": ("gram", "moments", "covariance", "spread", "measure", "turn"),
    "norm + neuron, backward": ("back_pool", "back_norm", "back", "total"),
    "attention": ("pairs", "back_queries", "back_pairs"),
    "8-bit product + neuron": ("project",),
    "bits": ("unpack",),
    "optimiser": ("adam", "multi_tensor"),
}
EXACT = {
    "attention", "norm + neuron, forward", "norm + neuron, backward", "norms by Gram matrices",
    "bits",
}  # fmt: skip


def group(kernel: str) -> str:
    for name, marks in GROUPS.items():
        if name in EXACT and kernel in marks:
            return name
    for name, marks in GROUPS.items():
        if name not in EXACT and any(mark in kernel for mark in marks):
            return name
    return "element-wise, copies, rest"


def counted(model: torch.nn.Module, x: torch.Tensor, *, train: bool) -> dict[str, list[float]]:
    """[operations, bytes] of each group in one step, from shapes."""
    counts: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def hear(op, args, out) -> None:
        size = [t.numel() * t.element_size() for t in (*args, out) if torch.is_tensor(t)]
        if op.name in ("linear_lif", "linear_ssa") and op.choose(*args) == "triton":
            x, whole = args[0], op.name == "linear_lif"
            weights = args[2::5] if whole else args[7::5]
            size, rows, K = x.element_size(), x.numel() // x.shape[2], x.shape[2]
            inner, N = rows * K, sum(len(w) for w in weights)
            for w in weights:
                outer = rows * len(w)
                counts["matrix product"][0] += 6 * outer * K
                counts["matrix product"][1] += 3 * size * (inner + outer + w.numel())
                counts["norm + neuron, forward"][1] += size * outer * (1 + whole + 1 / 16)
                counts["norm + neuron, backward"][1] += 3 * size * outer
            counts["matrix product"][0] += 2 * inner * K  # the input times a K x K matrix
            counts["matrix product"][1] += size * 2 * inner
            counts["norms by Gram matrices"][0] += inner * (K + 128) + 12 * N * K * K
            counts["norms by Gram matrices"][1] += size * inner
            if not whole:
                counts["attention"][1] += (3 / 16 + 1 + 1 / 16 + 7) * size * out.numel()
        elif op.name == "conv_lif" and op.choose(*args) == "triton":
            x, w, stride = args[:3]
            places, s = x.numel() // x.shape[2] // stride**2, size[-1]
            y, picture = places * len(w) * out.element_size(), size[0]
            counts["convolution"][0] += 4 * places * w.numel()  # forward, and g^T x
            counts["convolution"][1] += 2 * (picture + y)
            counts["norms by Gram matrices"][0] += 2 * places * w[0].numel() ** 2
            counts["norms by Gram matrices"][1] += picture
            counts["norm + neuron, forward"][1] += s * (1 + 1 / 16)
            counts["norm + neuron, backward"][1] += 2 * y + s
        elif op.name in ("conv", "convs") and not any(o.name == "convs" for o in within()):
            x, passes = args[0], 3 if train else 1
            weights, ys = (args[2:], out) if op.name == "convs" else (args[1:2], (out,))
            for w, y in zip(weights, ys, strict=True):
                kind = "matrix product" if w.shape[-1] == 1 else "convolution"
                counts[kind][0] += 2 * y.numel() * w[0].numel() * passes
                counts[kind][1] += sum(t.numel() * t.element_size() for t in (x, w, y)) * passes
        elif op.name == "project_lif":
            x, w, stride = args[0], args[1], args[7]
            places = x.numel() // x.shape[2] // stride**2
            counts["8-bit product + neuron"][0] += 2 * places * w.numel()
            counts["8-bit product + neuron"][1] += sum(size)
        elif op.name in ("norm_lif", "affine_lif"):
            y, s = size[0], size[-1]
            counts["norm + neuron, forward"][1] += y * (1 + train) + s * (1 + train / 16)
            if train:  # y and the gradient twice, the gradient before the norm once
                counts["norm + neuron, backward"][1] += 3 * y + 2 * s
        elif op.name == "ssa":
            q = size[0]
            counts["attention"][1] += 4 * q if not train else (3 / 16 + 1 + 1 / 16) * q + 7 * q

    with listening(hear), torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=train):
        model(x)
    return counts


def profiled(step, n: int = 5) -> dict[str, list[float]]:
    """[ms, calls] of each group in one step."""
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(n):
            step()
        torch.cuda.synchronize()
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in record.key_averages():
        if event.self_device_time_total > 0:
            spent[group(event.key)][0] += event.self_device_time_total / 1000 / n
            spent[group(event.key)][1] += event.count / n
    return spent


def measure(out: Path, batch: int = 64) -> None:
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model = saccade.create_model("spikformer_8_512").cuda()
    x = torch.randn(batch, 3, 224, 224, device="cuda")
    y = torch.randint(1000, (batch,), device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def train() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    result = {"train": {"spent": profiled(train), "counted": counted(model, x, train=True)}}
    for products in ("bfloat16", "int8"):
        fused = fuse(model.eval(), products)

        @torch.no_grad()
        def infer(fused=fused) -> None:
            fused(x)

        result[products] = {"spent": profiled(infer), "counted": counted(fused, x, train=False)}
    a = torch.randn(2**28, device="cuda", dtype=torch.bfloat16)
    b = torch.empty_like(a)
    m = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    copy, product = (timed(f) for f in (lambda: b.copy_(a), lambda: m @ m))
    result["ceilings"] = {
        "copy_gb_s": 2 * a.numel() * 2 / copy / 1e6,
        "bf16_tflops": 2 * 8192**3 / product / 1e9,
    }
    result["device"] = torch.cuda.get_device_name()
    result["batch"] = batch
    out.write_text(json.dumps(result, indent=1))
    print(json.dumps({k: v for k, v in result.items() if k in ("ceilings", "train")}, indent=1))


def timed(f, n: int = 20) -> float:
    """Median ms."""
    for _ in range(3):
        f()
    events = [[torch.cuda.Event(enable_timing=True) for _ in "ab"] for _ in range(n)]
    for start, end in events:
        start.record()
        f()
        end.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in events)[n // 2]


def draw(data: Path, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    result = json.loads(data.read_text())
    figure, axes = plt.subplots(
        2, 2, figsize=(12, 6.4), width_ratios=(1.25, 1), height_ratios=(1.6, 1)
    )
    (bars, roof), (none, shares) = axes
    bars.remove()
    none.remove()
    bars = figure.add_subplot(axes[0, 0].get_gridspec()[:, 0])
    names = list(
        dict.fromkeys(g for run in ("train", "bfloat16", "int8") for g in result[run]["spent"])
    )
    colours = {name: plt.get_cmap("tab10")(i) for i, name in enumerate(names)}
    titles = {"train": "training, bf16", "bfloat16": "inference, bf16", "int8": "inference, 8 bit"}
    for row, run in enumerate(titles):
        left = 0.0
        for name, (ms, _) in sorted(result[run]["spent"].items(), key=lambda kv: -kv[1][0]):
            bars.barh(row, ms, left=left, color=colours[name], edgecolor="white")
            if ms > 1.6:
                bars.text(left + ms / 2, row, f"{ms:.1f}", ha="center", va="center", fontsize=8)
            left += ms
        bars.text(left + 0.4, row, f"{left:.1f} ms", va="center", fontsize=9)
    bars.set_yticks(range(3), list(titles.values()))
    bars.invert_yaxis()
    bars.set_xlabel(
        f"ms of kernels in a step of {result['batch']} pictures, Spikformer-8-512, 224 px"
    )
    bars.legend([plt.Rectangle((0, 0), 1, 1, color=c) for c in colours.values()], colours,
                fontsize=7, loc="lower right")  # fmt: skip
    bars.spines[["top", "right"]].set_visible(False)
    copy, peak = result["ceilings"]["copy_gb_s"] * 1e9, result["ceilings"]["bf16_tflops"] * 1e12
    knee = peak / copy
    roof.plot([10, knee, 3000], [copy * 10 / 1e12, peak / 1e12, peak / 1e12], color="black", lw=1)
    bytewise = []
    for run, mark in {"train": "o", "bfloat16": "s", "int8": "^"}.items():
        for name, (ops, size) in result[run]["counted"].items():
            ms = result[run]["spent"].get(name, [0])[0]
            if ms and ops:
                label = f"{name}, {titles[run]}: {ops / ms / 1e9:.0f}"
                roof.plot(ops / size, ops / ms / 1e9, mark, color=colours[name], ms=7, label=label)
            elif ms and name != "attention":  # whose firing kernel shares the norm's name
                bytewise.append((f"{name}\n{titles[run]}", size / ms * 1e3 / copy, colours[name]))
    roof.legend(fontsize=6.5, loc="lower right")
    roof.set(xscale="log", yscale="log", xlim=(10, 3000), ylim=(40, 1500))
    roof.set_xlabel("operations a byte (counted)")
    roof.set_ylabel("Top/s")
    title = f"{copy / 1e12:.2f} TB/s copy, {peak / 1e12:.0f} TFLOP/s bf16"
    roof.set_title(f"{result['device']}: {title}", fontsize=9)
    for row, (_, share, colour) in enumerate(bytewise):
        shares.barh(row, share, color=colour)
        shares.text(share + 0.01, row, f"{share:.0%}", va="center", fontsize=8)
    shares.set_yticks(range(len(bytewise)), [label for label, _, _ in bytewise], fontsize=7)
    shares.set(xlim=(0, 1), xlabel="share of copy bandwidth, least bytes")
    for axis in (roof, shares):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["measure", "draw"])
    parser.add_argument("files", nargs="+", type=Path)
    given = parser.parse_args()
    measure(*given.files) if given.what == "measure" else draw(*given.files)
