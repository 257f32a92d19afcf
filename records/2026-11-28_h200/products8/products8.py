"""Products of a training step in 8 bits: what each takes, beside cuBLAS, cuDNN and the sums.

python products8.py   prints microseconds, medians; one GPU

i8: int8 spikes and weights; b2i: bf16 spikes made int8 in registers; b16: bf16. All three leave
bf16 currents and sums of each channel, which save the pass that measures a batch norm.
"""

import torch
import triton
import triton.language as tl
from torch.nn.functional import conv2d, linear
from triton.testing import do_bench

from saccade.ops.norm_lif import triton as norm_lif

FRAMES = 256
SHAPES = {  # output channels, input channels, side of the kernel, side of the frame
    "512-512": (512, 512, 1, 14),
    "512-2048": (2048, 512, 1, 14),
    "2048-512": (512, 2048, 1, 14),
    "c64-128": (128, 64, 3, 112),
    "c128-256": (256, 128, 3, 56),
    "c256-512": (512, 256, 3, 28),
    "c512-512": (512, 512, 3, 14),
}
TILES = {  # rows, columns, inputs, warps, stages
    "wide": [
        (128, 128, 128, 8, 3),
        (128, 128, 128, 4, 3),
        (128, 256, 128, 8, 3),
        (128, 128, 64, 4, 4),
        (64, 256, 128, 8, 3),
    ],
    "narrow": [(128, 128, 64, 8, 4), (128, 128, 64, 4, 4), (256, 128, 64, 8, 3)],
    "b16": [(128, 256, 64, 8, 3), (128, 128, 64, 4, 3), (128, 128, 64, 8, 4)],
}
MAKE_EIGHT = """{
    .reg .b32 a, b, c;
    mov.b32 c, 0x43004300;  // 128, whose sum with n < 128 ends in n
    add.rn.bf16x2 a, $1, c;
    add.rn.bf16x2 b, $2, c;
    prmt.b32 $0, a, b, 0x6420;
}"""


@triton.jit
def currents(
    x, weight, scale, y, partial, M, H, W,
    N: tl.constexpr, K: tl.constexpr, SIDE: tl.constexpr, MODE: tl.constexpr, ASM: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """y [M N] of x [M K] and weight [N SIDE SIDE K]; partial [tiles of M, 2, N]: its sums."""
    columns, tall = tl.cdiv(N, BN), tl.cdiv(M, BM)
    k = tl.arange(0, BK)
    kind = tl.float32 if MODE == "b16" else tl.int32
    for program in tl.range(tl.program_id(0), columns * tall, tl.num_programs(0), flatten=True):
        first = program // (GROUP * columns) * GROUP
        height = tl.minimum(tall - first, GROUP)
        tile = first + program % (GROUP * columns) % height
        m = tile * BM + tl.arange(0, BM)
        n = program % (GROUP * columns) // height * BN + tl.arange(0, BN)
        row = tl.minimum(m, M - 1)
        i, j = row % (H * W) // W, row % W
        kernel = weight + tl.minimum(n, N - 1)[None, :] * (SIDE * SIDE * K) + k[:, None]
        acc = tl.zeros([BM, BN], kind)
        for chunk in range(0, SIDE * SIDE * (K // BK)):
            tap, start = chunk // (K // BK), chunk % (K // BK) * BK
            w = tl.load(kernel + (tap * K + start))
            down, right = tap // SIDE - SIDE // 2, tap % SIDE - SIDE // 2
            at = (row.to(tl.int64) + (down * W + right))[:, None] * K + (start + k)[None, :]
            there = (i + down >= 0) & (i + down < H) & (j + right >= 0) & (j + right < W)
            a = tl.load(x + at) if SIDE == 1 else tl.load(x + at, there[:, None], 0)
            if MODE == "b2i":
                a = tl.inline_asm_elementwise(ASM, "=r,r,r", [a], tl.int8, is_pure=True, pack=4)
            acc = tl.dot(a, w, acc, out_dtype=kind)
        v = acc.to(tl.float32)
        if MODE != "b16":
            v = v * tl.load(scale + n, n < N, 0.0)[None, :]
        out = v.to(tl.bfloat16)
        inside = (m < M)[:, None] & (n < N)[None, :]
        tl.store(y + m.to(tl.int64)[:, None] * N + n[None, :], out, inside)
        v = tl.where((m < M)[:, None], out.to(tl.float32), 0.0)
        tl.store(partial + tile * (2 * N) + n, tl.sum(v, 0), n < N)
        tl.store(partial + tile * (2 * N) + N + n, tl.sum(v * v, 0), n < N)


def tiles(mode: str, K: int) -> list[tuple[int, ...]]:
    return TILES["b16" if mode == "b16" else "wide" if K > 64 else "narrow"]


def us(run) -> float:
    return do_bench(run, warmup=10, rep=60, return_mode="median") * 1e3


def backward(name: str, x, weight, g) -> None:
    """Gradients of a linear map, bf16 and e4m3 with and without cuBLAS's fast accumulation."""
    eight, one = torch.float8_e4m3fn, torch.ones((), device="cuda")
    g8, w8, gT, xT = (t.to(eight) for t in (g, weight.T.contiguous(), g.T, x.T))
    gT, xT = gT.contiguous(), xT.contiguous()
    took = [us(lambda: g @ weight), us(lambda: g.T @ x)]
    for fast in (False, True):
        how = {"scale_a": one, "scale_b": one, "use_fast_accum": fast}
        took += [
            us(lambda how=how: torch._scaled_mm(g8, w8.T, out_dtype=torch.bfloat16, **how)),
            us(lambda how=how: torch._scaled_mm(gT, xT.T, out_dtype=torch.float32, **how)),
        ]
    print(name, "of x and weight: bf16, e4m3, e4m3 fast:", *(f"{t:.1f}" for t in took))


def forward(name: str, x, weight, library, N: int, K: int, kernel: int, side: int) -> None:
    M, processors = len(x), torch.cuda.get_device_properties(0).multi_processor_count
    scale = weight.float().abs().amax(1) / 127
    w8 = (weight / scale[:, None]).round().to(torch.int8)
    y, partial = x.new_empty(M, N), torch.empty(M // 64 * 2 * N, device="cuda")
    seen = y.view(4, -1, side, side, N).permute(0, 1, 4, 2, 3)
    print(name, f"library {us(library):.1f}, sums {us(lambda: norm_lif._sums(seen)):.1f}")
    given = {"i8": (x.to(torch.int8), w8), "b2i": (x, w8), "b16": (x, weight)}
    for mode, (a, b) in given.items():
        for BM, BN, BK, warps, stages in tiles(mode, K):
            if BN > N or (mode == "b16" and kernel > 1):
                continue
            places = min(-(-M // BM) * -(-N // BN), 8 // warps * processors)
            how = {"BM": BM, "BN": BN, "BK": BK, "GROUP": 16, "num_warps": warps}

            def run(a=a, b=b, how=how, mode=mode, places=places, stages=stages):
                currents[places,](
                    a, b, scale, y, partial, M, side, side, N=N, K=K, SIDE=kernel, MODE=mode,
                    ASM=MAKE_EIGHT, num_stages=stages, **how,
                )  # fmt: skip

            run()
            want = library().float()
            error = float((y.float() - want).norm() / want.norm())
            print(f"   {mode} {(BM, BN, BK, warps, stages)}: {us(run):.1f} us, error {error:.1e}")


def main() -> None:
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), torch.__version__, triton.__version__)
    for name, (N, K, kernel, side) in SHAPES.items():
        M = FRAMES * side * side
        x = (torch.rand(M, K, device="cuda") < 0.15).bfloat16()
        weight = torch.randn(N, kernel * kernel * K, device="cuda").bfloat16()
        frames = x.view(FRAMES, side, side, K).permute(0, 3, 1, 2)
        taps = weight.view(N, kernel, kernel, K).permute(0, 3, 1, 2)
        if kernel == 1:
            backward(name, x, weight, torch.randn(M, N, device="cuda").bfloat16())

        def library(x=x, weight=weight, frames=frames, taps=taps, kernel=kernel, N=N):
            if kernel == 1:
                return linear(x, weight)
            return conv2d(frames, taps, None, 1, 1).permute(0, 2, 3, 1).reshape(-1, N)

        forward(name, x, weight, library, N, K, kernel, side)


if __name__ == "__main__":
    main()
