"""Training steps and inference of a model on one GPU: images/s, peak memory, first step."""

import argparse
import json
import statistics
import time

import torch

import saccade


def timed(step, n: int, warmup: int) -> list[float]:
    """Seconds of each of n steps."""
    for _ in range(warmup):
        step()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(n):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        seconds.append((start, end))
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in seconds]


def graphed(step):
    """The step as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="spikformer_8_512")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--mode", default="train", choices=["train", "infer"])
    parser.add_argument("--products", default="")
    parser.add_argument("--graph", action="store_true")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    began = time.perf_counter()
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model = saccade.create_model(args.model, num_classes=args.classes, image_size=args.size)
    model = model.cuda().to(memory_format=torch.channels_last)
    x = torch.randn(args.batch, 3, args.size, args.size, device="cuda")
    y = torch.randint(args.classes, (args.batch,), device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=True)

    def train() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def infer() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=not args.products):
            model(x)

    model.train(args.mode == "train")
    if args.products:
        with torch.autocast("cuda", torch.bfloat16):
            for _ in range(20):
                model.train()(x)
        from saccade.attention.ssa import fire_mix
        from saccade.nn.folded import Folded
        from saccade.ops import affine_lif
        from saccade.transform import fuse

        model.eval()
        spikes = {}

        def seen(name):
            return lambda m, a, out: spikes.setdefault(name, []).append(out.to(torch.int8))

        fused = {p: fuse(model, p) for p in {args.products, "bfloat16"}}
        for p, f in fused.items():
            for n, m in f.named_modules():
                if isinstance(m, Folded):
                    m.register_forward_hook(seen(n))
            with torch.no_grad():
                f(x)

        def report(what):
            counts = [(int((a != b).sum()), a.numel()) for a, b in spikes.values()]
            print(
                what,
                "flips",
                sum(c for c, _ in counts),
                "of",
                sum(n for _, n in counts),
                "layers",
                [f"{c / n:.1e}" for c, n in counts][:12],
                "rate",
                sum(float(a.float().mean()) for a, _ in spikes.values()) / len(spikes),
            )

        if len(fused) == 2:
            report("int8 against bf16")
        spikes.clear()
        kept = [(op, dict(op.variants)) for op in (affine_lif, fire_mix)]
        f = fused["bfloat16"]
        with torch.no_grad():
            f(x[:16])
            affine_lif.variants.clear()
            fire_mix.variants.pop("triton")
            f(x[:16])
        report("bf16 fused against op by op")
        for op, variants in kept:
            op.variants.clear()
            op.variants.update(variants)
        spikes.clear()
        model = fuse(model, args.products)
    step = train if args.mode == "train" else infer
    step()
    torch.cuda.synchronize()
    first = time.perf_counter() - began
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 2**30
    if args.profile:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as prof:
            for _ in range(3):
                step()
            torch.cuda.synchronize()
        print(
            prof.key_averages().table(
                sort_by="self_cuda_time_total", row_limit=32, max_name_column_width=70
            )
        )
    if args.graph:
        step = graphed(step)
    seconds = timed(step, args.steps, 5)
    rate = [args.batch / s for s in seconds]
    print(
        json.dumps(
            {
                "model": args.model,
                "mode": args.mode,
                "graph": args.graph,
                "batch": args.batch,
                "images_per_second": round(statistics.median(rate), 1),
                "spread": [round(min(rate), 1), round(max(rate), 1)],
                "n": len(rate),
                "peak_gib": round(peak, 2),
                "first_step_s": round(first, 1),
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
