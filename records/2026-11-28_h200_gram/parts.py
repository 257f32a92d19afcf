"""What the parts of a linear layer with its norm take, and what a second stream saves; one GPU.

python parts.py    prints microseconds, medians, each ten times in one CUDA graph

A tidied copy of the scripts that ran; it fits commit 695295e, whose kernels it calls.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from saccade.ops import Fire
from saccade.ops.conv.packed import _unpacked
from saccade.ops.lif.constants import constants
from saccade.ops.norm_lif import triton as passes

T, B, SIDE = 4, 64, 14
ROWS = T * B * SIDE * SIDE
NEURON = constants(0.5, 0.5, Fire()) | {"DETACH": True, "KIND": "sigmoid"}
CODE = torch.empty(0, dtype=torch.uint8, device="cuda")


@triton.jit
def gram(x, out, total, M, K: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr):
    """x^T x, blocks on or below the diagonal, and sums of x, of this program's share of rows."""
    i, j = 0, tl.program_id(0)
    for n in tl.static_range(1, K // BK):
        if tl.program_id(0) >= n * (n + 1) // 2:
            i, j = n, tl.program_id(0) - n * (n + 1) // 2
    k = tl.arange(0, BK)
    acc, count = tl.zeros([BK, BK], tl.float32), tl.zeros([BK, 16], tl.float32)
    ones = tl.full([BM, 16], 1.0, x.dtype.element_ty)
    for start in range(tl.program_id(1) * BM, M, tl.num_programs(1) * BM):
        m = start + tl.arange(0, BM)
        a = tl.trans(tl.load(x + m[:, None] * K + (i * BK + k)[None, :], (m < M)[:, None], 0.0))
        b = tl.load(x + m[:, None] * K + (j * BK + k)[None, :], (m < M)[:, None], 0.0)
        acc, count = tl.dot(a, b, acc), tl.dot(a, ones, count)
    to = out + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * BK * BK
    tl.store(to + k[:, None] * BK + k[None, :], acc)
    if i == j:
        tl.store(total + tl.program_id(1) * K + i * BK + k, tl.sum(count, 1) / 16)


def timed(run: Callable[[], object], n: int = 10) -> float:
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


class Layer:
    """N outputs of K inputs."""

    def __init__(self, N: int, K: int) -> None:
        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device="cuda").bfloat16()

        self.y, self.grad = (normal(T, B, SIDE, SIDE, N).permute(0, 1, 4, 2, 3) for _ in "yg")
        self.x, self.weight = normal(ROWS, K), normal(N, K)
        self.affine = torch.ones(N, device="cuda"), torch.zeros(N, device="cuda")
        self.coef = self.measure()
        shape = T, B, SIDE, SIDE, K // 8
        self.bits = torch.randint(0, 255, shape, device="cuda", dtype=torch.uint8)

    def measure(self) -> torch.Tensor:
        one, zero = self.affine
        running = zero.clone(), one.clone()
        return passes._measure.eager(self.y, one, zero, None, *running, 0.1, 1e-5, T)

    def back(self) -> torch.Tensor:
        found = passes._back_plain(self.y, self.coef, self.grad, CODE, True, T, 0.0, NEURON, None)
        return found[0].permute(0, 1, 3, 4, 2).flatten(0, 3)

    def of_weight(self, g: torch.Tensor) -> torch.Tensor:
        return g.T @ _unpacked.eager(self.bits, torch.bfloat16).flatten(0, 3)


def parts() -> None:
    for N in (512, 1536, 2048):
        layer = Layer(N, 512)
        g, x, weight = layer.back(), layer.x, layer.weight
        out = torch.empty_like(x)
        print(N, "product", timed(lambda x=x, w=weight: x @ w.T))
        print(N, "sums and statistics", timed(layer.measure))
        print(N, "back, two passes", timed(layer.back))
        print(N, "gradient of x", timed(lambda g=g, w=weight: g @ w))
        print(N, "gradient of x, added", timed(lambda g=g, w=weight, o=out: o.addmm_(g, w)))
        print(N, "of the weight", timed(lambda g=g, x=x: torch.mm(g.T, x, out_dtype=torch.float32)))
    x = torch.randint(0, 5, (ROWS, 512), device="cuda").bfloat16()
    products = torch.empty(26, 10, 128, 128, device="cuda")
    sums = torch.empty(26, 512, device="cuda")
    print("x^T x, cuBLAS", timed(lambda: torch.mm(x.T, x, out_dtype=torch.float32)))
    how = {"K": 512, "BK": 128, "BM": 64, "num_warps": 4, "num_stages": 3}
    print("x^T x and sums", timed(lambda: gram[(10, 26)](x, products, sums, ROWS, **how)))


def blocks(second: torch.cuda.Stream | None, n: int = 4) -> None:
    """Backward of n blocks; gradients of weights in a second stream where one is given."""
    main, kept = torch.cuda.current_stream(), []
    for _ in range(n):
        for layer in LAYERS:
            g = layer.back()
            if second is None:
                layer.of_weight(g)
            else:
                second.wait_stream(main)
                kept.append(g)
                with torch.cuda.stream(second):
                    layer.of_weight(g)
            _ = g @ layer.weight
    if second is not None:
        main.wait_stream(second)


if __name__ == "__main__":
    print(torch.cuda.get_device_name(), torch.__version__, triton.__version__)
    parts()
    LAYERS = [Layer(512, 2048), Layer(2048, 512), *(Layer(512, 512) for _ in range(4))]
    print("four blocks back, one stream", timed(lambda: blocks(None), 1))
    print("two streams", timed(lambda: blocks(torch.cuda.Stream()), 1))
