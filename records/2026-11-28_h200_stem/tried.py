"""What was tried and not kept, in part: microseconds, medians of CUDA graphs, on one GPU.

python tried.py    fits the commit of this record

A tidied copy of the scripts that ran (`logs/tried.log`). `window_sums` finds both sums of the
gradient behind a norm through its max-pool from the windows: each hands its gradient to one pixel
a step, so that fewer slopes are needed, but reads that pixel wherever it lies.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import conv2d, linear

from saccade.kernels.neuron import after, charged, fires, slope
from saccade.ops import Fire
from saccade.ops.lif.constants import constants
from saccade.ops.norm_lif import passes

M = 50176
BACK = torch.ops.aten.convolution_backward


def timed(run: Callable[[], object], n: int = 10) -> float:
    """Median over seven graphs of n calls."""
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
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / n * 1e3)
    return sorted(times)[3]


def report(name: str, run: Callable[[], object]) -> None:
    print(f"{name:56s} {timed(run):9.1f}", flush=True)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def products() -> None:
    """Gradients of rows by weights as they lie, and by weights turned over first."""
    for N, K in ((512, 512), (1536, 512), (2048, 512), (512, 2048)):
        g, w = normal(M, N), normal(N, K)
        turned = w.T.contiguous()
        report(f"{N} -> {K}, weights as they lie", lambda g=g, w=w: g @ w)
        report(f"{N} -> {K}, turned", lambda g=g, w=turned: linear(g, w))


def convolutions() -> None:
    """The gradient of the input by cuDNN, and as the convolution that it is."""
    for C, N, side in ((64, 128, 112), (128, 256, 56), (256, 512, 28), (512, 512, 14)):
        last = {"memory_format": torch.channels_last}
        g, x = (normal(256, n, side, side).contiguous(**last) for n in (N, C))
        w = normal(N, C, 3, 3).contiguous(**last)
        turned = w.flip(2, 3).transpose(0, 1).contiguous(**last)
        how = None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, False, False]
        report(f"{C} <- {N}, {side} px", lambda g=g, x=x, w=w, how=how: BACK(g, x, w, *how)[0])
        report(f"{C} <- {N}, as convolution", lambda g=g, w=turned: conv2d(g, w, None, 1, 1))


@triton.jit
def onto(
    x, s, row, res, out, M, N: tl.constexpr, K: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """x s + row + res, of [M K] and a symmetric [N K]."""
    k = tl.arange(0, BK)
    tall = tl.cdiv(M, BM)
    for program in tl.range(tl.program_id(0), N // BN * tall, tl.num_programs(0), flatten=True):
        m = program // (N // BN) * BM + tl.arange(0, BM)
        n = program % (N // BN) * BN + tl.arange(0, BN)
        block = tl.zeros([BM, BN], tl.float32)
        for start in range(0, K, BK):
            at = m[:, None] * K + (start + k)[None, :]
            a = tl.load(x + at, (m < M)[:, None], 0.0)
            b = tl.load(s + n[None, :] * K + (start + k)[:, None])
            block = tl.dot(a, b, block)
        at = m[:, None] * N + n[None, :]
        block += tl.load(res + at, (m < M)[:, None], 0.0).to(tl.float32)
        block += tl.load(row + n).to(tl.float32)[None, :]
        tl.store(out + at, block.to(out.dtype.element_ty), (m < M)[:, None])


def residual() -> None:
    """The residual stream's gradient added within the product with a matrix, and behind it."""
    x, s, row, res = normal(M, 512), normal(512, 512), normal(512), normal(M, 512)
    out = torch.empty_like(res)
    report("product", lambda: torch.addmm(row, x, s))
    report("addition", lambda: res + x)
    how = {"N": 512, "K": 512, "BM": 128, "BN": 128, "BK": 64, "num_warps": 4, "num_stages": 3}
    report("product that adds", lambda: onto[(264,)](x, s, row, res, out, M, **how))


@triton.jit
def window_sums(
    y, coef, grad_s, code, partial, frames, H, W, h, w, decay, theta, alpha,
    T: tl.constexpr, C: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Both sums, of a neuron of hard reset at 0 that starts at 0."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    a, b = (0.5 * tl.load(coef + k * C + c)[None, :] for k in (2, 3))
    mean = tl.load(coef + c)[None, :]
    first, second = tl.zeros([BR, BC], tl.float32), tl.zeros([BR, BC], tl.float32)
    step_y, step_s = tl.cast(frames, tl.int64) * H * W * C, tl.cast(frames, tl.int64) * h * w * C
    line = tl.program_id(0)
    while line < frames * h:
        frame, i = (line // h).to(tl.int64), line % h
        above, middle = (frame * h + i) * w * C, (frame * H + 2 * i) * W * C
        start = 0
        while start < w:
            j = start + tl.arange(0, BR)
            inside = (j < w)[:, None] & (c < C)[None, :]
            at = j[:, None] * C + c[None, :]
            word = tl.load(code + above + at, inside, 0).to(tl.int32)
            for t in tl.static_range(T):
                tap = word >> 4 * t & 15
                down = tap * 11 >> 5
                pixel = middle + 2 * j[:, None] * C + c[None, :]
                pixel += ((down - 1) * W + tap - 3 * down - 1) * C
                grad = tl.load(grad_s + above + t * step_s + at, inside, 0.0).to(tl.float32)
                v, ones = tl.zeros([BR, BC], tl.float32), tl.full([BR, BC], 1.0, tl.float32)
                y_s = tl.load(y + pixel, inside, 0.0).to(tl.float32)
                offs = y_s - mean
                for s in tl.static_range(t):
                    u = charged(a * y_s + b, v, decay, 0.5, None, True)
                    f = fires(u, theta, False)
                    v = after(u, f, theta, 0.0, True)
                    keep = tl.where(f, 0.0, decay)
                    y_s = tl.load(y + (s + 1) * step_y + pixel, inside, 0.0).to(tl.float32)
                    ones = tl.fma(keep, ones, 1.0)
                    offs = tl.fma(keep, offs, y_s - mean)
                u = charged(a * y_s + b, v, decay, 0.5, None, True)
                g = slope(u, theta, alpha, "sigmoid") * grad
                first, second = tl.fma(g, ones, first), tl.fma(g, offs, second)
            start += BR
        line += tl.num_programs(0)
    to = partial + tl.program_id(0) * (2 * C) + c
    tl.store(to, tl.sum(first, 0))
    tl.store(to + C, tl.sum(second, 0))


def through_the_pool() -> None:
    """The gradient and its correction, against sums by windows first, and then the gradient."""
    T, B, neuron = 4, 64, constants(0.5, 0.5, Fire()) | {"DETACH": True, "KIND": "sigmoid"}
    for C, side in ((128, 112), (256, 56), (512, 28)):
        h = side // 2
        y, gs = (normal(T, B, n, n, C).permute(0, 1, 4, 2, 3) for n in (side, h))
        taps = torch.randint(0, 9, (T, B, h, h, C), device="cuda", dtype=torch.int32)
        taps[:, :, 0] = taps[:, :, :, 0] = 4  # those of the middle are everywhere in the picture
        words = sum(tap << 4 * t for t, tap in enumerate(taps)).to(torch.int16)
        coef = torch.stack([torch.full((C,), v) for v in (0.0, 1.0, 1.0, 0.5)]).cuda()
        g, partial = torch.empty_like(y), torch.empty(64 * h, 2, C, device="cuda")
        for name, word in (("any", words), ("the middle", torch.full_like(words, 0x4444))):
            code = word[None].permute(0, 1, 4, 2, 3)
            given = y, coef, gs, code, partial, B, side, side, h, h, 0.5, 1.0, 4.0
            how = {"T": T, "C": C, "BR": 4, "BC": 64}
            grid = (min(B * h, 2112 * 64 // C), C // 64)
            report(
                f"{C}, sums, taps {name}", lambda v=given, k=how, n=grid: window_sums[n](*v, **k)
            )
        last = y, coef, gs, code, g, T, 0.0, neuron
        report(f"{C}, gradient behind the norm", lambda v=last: passes.back_pool(*v))
        sums = torch.zeros(4, C, device="cuda")
        rest = g, y, coef, sums, T, 0.5, True
        report(f"{C}, its correction", lambda v=rest: passes.correct(*v))


if __name__ == "__main__":
    torch.backends.cudnn.benchmark = True
    print(torch.cuda.get_device_name(), torch.__version__, triton.__version__)
    products()
    convolutions()
    residual()
    through_the_pool()
