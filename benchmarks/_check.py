import torch
from triton.testing import do_bench, do_bench_cudagraph as dbg

from saccade.attention.ssa import fire_mix
from saccade.ops import Fire, Norm, lif, norm_lif

dev = "cuda"
torch.manual_seed(0)


def cl(*s, dt=torch.float32):
    T, B, C, H, W = s
    return (
        (torch.randn(T, B, H, W, C, device=dev).mul(100).add(32).round() / 64)
        .to(dt)
        .permute(0, 1, 4, 2, 3)
    )


def cmp(name, got, want):
    d = [
        (float((g.float() - w.float()).abs().max() / w.float().abs().max().clamp(min=1e-6)))
        for g, w in zip(got, want)
    ]
    print(name, ["%.1e" % v for v in d])


for pools in (False, True):
    for t in (4, 1):
        y = cl(t, 2, 64, 10, 12)
        outs = []
        for f in (norm_lif.variants["triton"][0], norm_lif.reference):
            torch.manual_seed(1)
            w = (torch.rand(64, device=dev) + 0.7).requires_grad_()
            b = (torch.randn(64, device=dev) * 0.3 + 0.5).requires_grad_()
            yy = y.detach().requires_grad_()
            rm = torch.zeros(64, device=dev)
            rv = torch.ones(64, device=dev)
            s = f(
                yy,
                Norm(weight=w, bias=b, running_mean=rm, running_var=rv, training=True),
                0.5,
                0.5,
                Fire(),
                4,
                pools,
            )
            g = torch.autograd.grad((s * torch.randn(s.shape, device=dev)).sum(), [yy, w, b])
            outs.append((s, rm, rv, *g))
        cmp(f"norm_lif pools={pools} t={t}", *outs)
        print("flips", int((outs[0][0] != outs[1][0]).sum()), float(outs[0][0].mean()))
q, k, v = (
    (torch.rand(4, 2, 14, 14, 128, device=dev) < 0.3)
    .float()
    .permute(0, 1, 4, 2, 3)
    .requires_grad_()
    for _ in range(3)
)
outs = []
for f in (fire_mix.variants["triton"][0], fire_mix.reference):
    torch.manual_seed(1)
    s = f(q, k, v, 2, 0.125, 0.5, 0.5, Fire(v_threshold=20.0))
    outs.append((s, *torch.autograd.grad((s * torch.randn(s.shape, device=dev)).sum(), [q, k, v])))
cmp("ssa", *outs)
print(float(outs[0][0].mean()))
# bandwidth
n = 103 * 2**20 // 4 * 4
a = torch.randn(4, n // 4, device=dev).bfloat16()
b = torch.empty_like(a)
t = dbg(lambda: b.copy_(a), return_mode="median")
print("copy GB/s", 2 * a.numel() * 2 / t / 1e6)
copy = 2 * a.numel() * 2 / t / 1e6
fw = dbg(lambda: lif(a, None, 0.5, 0.5, Fire()), return_mode="median")
print(
    "lif fwd ms",
    fw,
    "bw share",
    (4 * a.numel() + a.numel()) / fw / 1e6 / copy,
    lif.choose(a, None, 0.5, 0.5, Fire()),
)
ar = a.clone().requires_grad_()
gs = torch.randn_like(a)


def fb():
    s, _ = lif(ar, None, 0.5, 0.5, Fire())
    torch.autograd.grad(s, ar, gs)


t = dbg(fb, return_mode="median")
print("lif fwd+bwd ms", t, "share", (10 + 1) * a.numel() / t / 1e6 / copy)


# norm_lif at 8-512 block size
def nl(shape, pools, steps=None, dt=torch.bfloat16):
    y = cl(*shape, dt=dt).requires_grad_()
    C = shape[2]
    w = torch.ones(C, device=dev, requires_grad=True)
    b = torch.zeros(C, device=dev, requires_grad=True)
    norm = Norm(
        weight=w,
        bias=b,
        running_mean=torch.zeros(C, device=dev),
        running_var=torch.ones(C, device=dev),
        training=True,
    )
    steps = steps or shape[0]
    f = lambda: norm_lif(y, norm, 0.5, 0.5, Fire(), steps, pools)
    s = f()
    g = torch.randn_like(s)
    with torch.no_grad():
        tf = dbg(f, return_mode="median")
    t = dbg(lambda: torch.autograd.grad(f(), [y, w, b], g), return_mode="median")
    ny, ns = y.numel() * 2, s.numel() * 2
    bf = 2 * ny + ns
    bb = 2 * ny + 2 * ns * (1.5 if pools else 1) + ny
    import time

    for _ in range(3):
        torch.autograd.grad(f(), [y, w, b], g)
    torch.cuda.synchronize()
    t0 = time.perf_counter()
    for _ in range(10):
        torch.autograd.grad(f(), [y, w, b], g)
    cpu = (time.perf_counter() - t0) * 100
    torch.cuda.synchronize()
    print("cpu ms", round(cpu, 2), end=" ")
    print(
        shape,
        pools,
        norm_lif.choose(y, norm, 0.5, 0.5, Fire(), steps, pools),
        "fwd %.3f ms share %.2f | fwd+bwd %.3f ms share %.2f"
        % (tf, bf / tf / 1e6 / copy, t, (bf + bb) / t / 1e6 / copy),
    )


nl((4, 64, 512, 14, 14), False)
nl((4, 64, 2048, 14, 14), False)
nl((4, 64, 128, 112, 112), True)
nl((4, 64, 256, 56, 56), True)
nl((4, 64, 512, 28, 28), True)
nl((1, 64, 64, 224, 224), True, 4)
nl((4, 256, 384, 8, 8), False)
nl((1, 256, 48, 32, 32), False, 4)
q, k, v = (
    (torch.rand(4, 64, 14, 14, 512, device=dev) < 0.2)
    .bfloat16()
    .permute(0, 1, 4, 2, 3)
    .requires_grad_()
    for _ in range(3)
)
for nm in ("triton", "composed"):
    f = lambda: fire_mix.variants[nm][0](q, k, v, 8, 0.125, 0.5, 0.5, Fire(v_threshold=0.5))
    g = torch.randn_like(f())
    with torch.no_grad():
        tf = dbg(f, return_mode="median")
    print(
        "ssa",
        nm,
        tf,
        dbg(lambda: torch.autograd.grad(f(), [q, k, v], g), return_mode="median"),
    )
