"""What the layers of the stem and SSA take on one GPU, forward and backward.

python parts.py FOLDER_OF_SOURCES    prints microseconds, medians, each five times in one CUDA graph

It runs on the commit of this record and on the one before (52c55b6), which has no `conv_lif`.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

sys.path.insert(0, sys.argv[1])
from saccade import ops
from saccade.attention.ssa import fire_mix
from saccade.ops import Fire, Norm, conv, norm_lif
from saccade.ops._packed import remember

T, B = 4, 64
HALF = torch.bfloat16


def timed(run: Callable[[], object], n: int = 5) -> float:
    """Median over nine graphs of n calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for _ in range(n):
            run()
    graph.replay()
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / n * 1e3)
    return sorted(times)[4]


def normal(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    """[T B C H W] of normal numbers, channels last in memory."""
    t, b, c, h, w = shape
    return torch.randn(t, b, h, w, c, device="cuda", dtype=dtype).permute(0, 1, 4, 2, 3)


def norm(N: int) -> Norm:
    """Learned anew, so that each call has leaves of its own."""
    weight, bias = (torch.full((N,), v, device="cuda").requires_grad_() for v in (1.0, 0.5))
    mean, var = torch.zeros(N, device="cuda"), torch.ones(N, device="cuda")
    return Norm(weight=weight, bias=bias, running_mean=mean, running_var=var, training=True)


def report(name: str, run: Callable[[], tuple[Tensor, list[Tensor]]], grad: Tensor) -> None:
    """Forward alone, and what backward adds."""
    forward = timed(lambda: run())

    def both() -> None:
        s, leaves = run()
        torch.autograd.grad(s, leaves, grad)

    print(f"{name:40s} forward {forward:8.1f}  backward {timed(both) - forward:8.1f}", flush=True)


def pooled(C: int, side: int) -> None:
    """Norm, neuron and pool of a layer of the stem."""
    given, grad = normal(T, B, C, side, side), normal(T, B, C, side // 2, side // 2)

    def run() -> tuple[Tensor, list[Tensor]]:
        y, n = given.detach().requires_grad_(), norm(C)
        return norm_lif(y, n, 0.5, 0.5, Fire(), T, True), [y, n.weight, n.bias]

    report(f"norm, neuron and pool, {C} channels, {side} px", run, grad)


def picture(dtype: torch.dtype) -> None:
    """The layer that sees pictures, whole."""
    x, kernel = torch.randn(1, B, 3, 224, 224, device="cuda"), torch.randn(64, 3, 3, 3) / 5
    kernel, grad = kernel.cuda(), normal(T, B, 64, 112, 112, dtype=dtype)
    ways = {"apart": lambda x, w, n, *how: norm_lif(conv(x, w, 1), n, *how)}
    if hasattr(ops, "conv_lif"):
        fused = ops.conv_lif.variants["triton"][0]
        ways["in one"] = lambda x, w, n, *how: fused(x, w, 1, n, *how)
    for name, way in ways.items():

        def run(way: Callable[..., Tensor] = way) -> tuple[Tensor, list[Tensor]]:
            w, n = kernel.detach().requires_grad_(), norm(64)
            with torch.autocast("cuda", HALF, enabled=dtype == HALF):
                s = way(x, w, n, 0.5, 0.5, Fire(), T, True)
            return s, [w, n.weight, n.bias]

        report(f"the picture's layer, {name}, {dtype}", run, grad)


def attention() -> None:
    """SSA of 8 heads on bits, 196 tokens of 512 channels."""
    shape, grad = (T, B, 14, 14, 64), normal(T, B, 512, 14, 14)
    bits = [torch.randint(0, 256, shape, device="cuda", dtype=torch.uint8) for _ in "qkv"]
    given = [normal(T, B, 512, 14, 14) for _ in "qkv"]

    def run() -> tuple[Tensor, list[Tensor]]:
        qkv = [x.detach().requires_grad_() for x in given]
        for x, b in zip(qkv, bits, strict=True):
            remember(x, b)
        return fire_mix(*qkv, 8, 0.125, 0.5, 0.5, Fire(v_threshold=0.5)), qkv

    report("SSA", run, grad)


if __name__ == "__main__":
    torch.backends.cudnn.benchmark = True
    print(torch.cuda.get_device_name(), torch.__version__, sys.argv[1])
    for channels, px in ((128, 112), (256, 56), (512, 28)):
        pooled(channels, px)
    picture(HALF)
    attention()
    picture(torch.float32)
