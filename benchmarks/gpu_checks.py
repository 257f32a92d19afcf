"""What has to hold on a GPU: exact spikes, gradients, flips, streams, torch.compile and export.

python benchmarks/gpu_checks.py out.json [PART ...]   all parts, or those named
"""

import copy
import json
import sys
import time
from pathlib import Path

import torch

import saccade
from saccade.attention.ssa import fire_mix, linear_mix
from saccade.bench.models import settle
from saccade.bench.timing import graphed
from saccade.nn.folded import Folded
from saccade.ops import Fire, Norm, affine_lif, conv_lif, convs, lif, linear_lif, norm_lif
from saccade.ops._packed import remember
from saccade.ops._triton import channels_last
from saccade.transform import fuse

DEVICE = "cuda"


def currents(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[T B C H W] on a grid of 1/64, channels-last."""
    T, B, C, H, W = shape
    x = torch.randn(T, B, H, W, C, device=DEVICE).mul(100).add(32).round() / 64
    return x.to(dtype).permute(0, 1, 4, 2, 3)


def worst(got, want) -> float:
    return max(
        float((g.float() - w.float()).abs().max() / w.float().abs().max().clamp(min=1e-6))
        for g, w in zip(got, want, strict=True)
    )


def exact_lif() -> dict[str, int]:
    """Spikes that differ from float64, of integer currents up to 255 eighths, by type and T."""
    counts = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for T in (1, 4, 12, 16):
            x = torch.randint(0, 32, (T, 1 << 16), device=DEVICE).to(dtype) / 8
            got = lif(x, None, 0.5, 0.5, Fire())[0].double()
            want = lif.reference(x.double(), None, 0.5, 0.5, Fire())[0]
            counts[f"{str(dtype)[6:]}, T={T}"] = int((got != want).sum())
    return counts


def gradients() -> dict[str, float]:
    """Largest error of values and gradients against the reference: float32; `convs` float64."""
    errors = {}
    cases = [(pools, t, False) for pools in (False, True) for t in (4, 1)]
    for pools, t, adds in [*cases, (False, 4, True), (False, 1, True)]:
        outs = []
        y, stream = currents(t, 2, 64, 10, 12), currents(4, 2, 64, 10, 12).round()
        for f in (norm_lif.variants["triton"][0], norm_lif.reference):
            torch.manual_seed(1)
            learned = [
                torch.rand(64, device=DEVICE) + 0.7,
                torch.randn(64, device=DEVICE) / 3 + 0.5,
            ]
            learned = [p.requires_grad_() for p in learned]
            running = torch.zeros(64, device=DEVICE), torch.ones(64, device=DEVICE)
            norm = Norm(weight=learned[0], bias=learned[1], running_mean=running[0],
                        running_var=running[1], training=True)  # fmt: skip
            x = y.detach().requires_grad_()
            onto = [stream.detach().requires_grad_()] if adds else []
            s = f(x, norm, 0.5, 0.5, Fire(), 4, pools, *onto)
            g = torch.autograd.grad(
                (s * torch.randn(s.shape, device=DEVICE)).sum(), [x, *learned, *onto]
            )
            outs.append((s.detach(), *running, *g))
        errors[f"norm_lif pools={pools} steps={t} adds={adds}"] = worst(*outs)
    outs = []
    x = (torch.rand(4, 2, 14, 14, 128, device=DEVICE) < 0.3).double().permute(0, 1, 4, 2, 3)
    given = [x, *(torch.randn(64, 128, 1, 1, device=DEVICE).double() for _ in "qkv")]
    for f in (convs.variants["packed"][0], convs.reference):
        inputs = [t.detach().requires_grad_() for t in given]
        ys = f(inputs[0], 1, *inputs[1:])
        g = torch.autograd.grad(sum(y.square().sum() * (n + 1) for n, y in enumerate(ys)), inputs)
        outs.append((*(y.detach() for y in ys), *g))
    errors["convs"] = worst(*outs)
    qkv = [
        (torch.rand(4, 2, 14, 14, 128, device=DEVICE) < 0.3)
        .float()
        .permute(0, 1, 4, 2, 3)
        .requires_grad_()
        for _ in "qkv"
    ]
    outs = []
    for f in (fire_mix.variants["triton"][0], fire_mix.reference):
        torch.manual_seed(1)
        s = f(*qkv, 2, 0.125, 0.5, 0.5, Fire(v_threshold=20.0))
        outs.append(
            (s.detach(), *torch.autograd.grad((s * torch.randn(s.shape, device=DEVICE)).sum(), qkv))
        )
    errors["ssa"] = worst(*outs)
    return errors


def linear() -> dict[str, float]:
    """Norms from Gram matrices (`gram`) and from passes over currents (`passes`): q, k, v of 512.

    Against the reference in float32 on the same rounded weights: the share of spikes that differ,
    and the largest relative error of a gradient in the Euclidean norm.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    shape = 4, 64, 14, 14, 512
    rate = torch.rand(512, device=DEVICE)
    x = torch.poisson(rate.expand(shape)).permute(0, 1, 4, 2, 3)
    weights = [torch.randn(512, 512, 1, 1, device=DEVICE).bfloat16().float() / 16 for _ in "qkv"]
    learned = [(torch.rand(512, device=DEVICE) + 0.5, rate - 0.2) for _ in "qkv"]
    grads = [torch.randn(shape, device=DEVICE).bfloat16().permute(0, 1, 4, 2, 3) for _ in "qkv"]

    def run(f, dtype: torch.dtype) -> tuple[list[torch.Tensor], ...]:
        leaves, layers = [x.to(dtype).requires_grad_()], []
        for w, affine in zip(weights, learned, strict=True):
            own = [p.clone().requires_grad_() for p in (w, *affine)]
            known = {"running_mean": rate * 0, "running_var": rate * 0 + 1}
            layers += [own[0], Norm(weight=own[1], bias=own[2], training=True, **known)]
            layers += [0.5, 0.5, Fire()]
            leaves += own
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
            s = f(leaves[0], 4, *layers)
        return list(s), list(torch.autograd.grad(s, leaves, [g.to(dtype) for g in grads]))

    gram, passes = (linear_lif.variants[name][0] for name in ("triton", "composed"))
    spikes, want = run(linear_lif.reference, torch.float32)
    result = {"spikes": float(torch.stack(spikes).mean())}
    for name, f in (("gram", gram), ("passes", passes)):
        for dtype in (torch.float32, torch.bfloat16):
            got, found = run(f, dtype)
            differ = [(g.float() != s).float().mean() for g, s in zip(got, spikes, strict=True)]
            errors = [(g.float() - w).norm() / w.norm() for g, w in zip(found, want, strict=True)]
            result[f"{name} {dtype}: spikes"] = float(torch.stack(differ).mean())
            result[f"{name} {dtype}: gradients"] = float(torch.stack(errors).max())
    return result


def picture() -> dict[str, float]:
    """The layer that sees pictures, in one kernel (`fused`) and as convolution and passes.

    Against the reference in float32 on the same rounded pictures and weights, as in `linear`.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    result = {}
    for pools in (True, False):
        x = (torch.randn(1, 16, 3, 112, 112, device=DEVICE) + 0.5).bfloat16().float()
        weight = torch.randn(64, 3, 3, 3, device=DEVICE).bfloat16().float() / 4
        affine = torch.rand(64, device=DEVICE) + 0.5, torch.rand(64, device=DEVICE) / 2
        side = 56 if pools else 112
        grad = torch.randn(4, 16, side, side, 64, device=DEVICE).bfloat16().permute(0, 1, 4, 2, 3)

        def run(f, bf16: bool, x=x, weight=weight, affine=affine, grad=grad, pools=pools):
            leaves = [p.clone().requires_grad_() for p in (weight, *affine)]
            known = {"running_mean": affine[0] * 0, "running_var": affine[0] * 0 + 1}
            norm = Norm(weight=leaves[1], bias=leaves[2], training=True, **known)
            with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
                s = f(x, leaves[0], 1, norm, 0.5, 0.5, Fire(), 4, pools)
            return s.detach(), torch.autograd.grad(s, leaves, grad.to(s.dtype))

        spikes, want = run(conv_lif.reference, False)
        result[f"pools={pools} spikes"] = float(spikes.mean())
        for name, variant in (("fused", "triton"), ("passes", "composed")):
            for bf16 in (False, True):
                got, found = run(conv_lif.variants[variant][0], bf16)
                label = f"pools={pools} {name} {'bf16' if bf16 else 'float32'}"
                result[f"{label}: spikes"] = float((got.float() != spikes).float().mean())
                errors = [(g - w).norm() / w.norm() for g, w in zip(found, want, strict=True)]
                result[f"{label}: gradients"] = float(torch.stack(errors).max())
    return result


def learning(steps: int = 100) -> dict[str, list[float]]:
    """Losses of Spikformer-4-384 on noisy pictures of ten classes, with each kind of norm.

    The first five, the mean of the last ten, and the share of new pictures that are right.
    """
    ops, result = (linear_lif, linear_mix, conv_lif), {}
    refused = [op.slower["triton"] for op in ops]
    for name, slower in (("gram", lambda *args: None), ("passes", lambda *args: "not here")):
        for op in ops:
            op.slower["triton"] = slower
        torch.manual_seed(0)
        model = saccade.create_model("spikformer_4_384").to(DEVICE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)
        templates, losses = torch.randn(10, 3, 32, 32, device=DEVICE), []
        for step in range(steps + 1):
            y = torch.randint(10, (256,), device=DEVICE)
            x = templates[y] / 2 + torch.randn(256, 3, 32, 32, device=DEVICE)
            with torch.autocast(DEVICE, torch.bfloat16):
                logits = model(x)
                loss = torch.nn.functional.cross_entropy(logits, y)
            if step < steps:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss))
        right = float((logits.argmax(1) == y).float().mean())
        result[name] = [*losses[:5], sum(losses[-10:]) / 10, right]
    for op, slower in zip(ops, refused, strict=True):
        op.slower["triton"] = slower
    return result


def flips() -> dict[str, float]:
    """Share of spikes that differ between the bf16 kernel and float32 arithmetic on its inputs."""
    y = torch.randn(4, 64, 28, 28, 512, device=DEVICE).bfloat16().permute(0, 1, 4, 2, 3)
    rates = {}
    outs = []
    for x in (y, y.float()):
        weight, bias, mean, var = (torch.full((512,), v, device=DEVICE) for v in (1.3, 0.4, 0, 1))
        norm = Norm(weight=weight, bias=bias, running_mean=mean * 1.0, running_var=var * 1.0,
                    training=True)  # fmt: skip
        f = norm_lif if x is y else norm_lif.reference
        outs.append(f(x, norm, 0.5, 0.5, Fire(), 4, False).float())
    rates["norm_lif bf16 against float32"] = float((outs[0] != outs[1]).float().mean())
    rates["spikes"] = float(outs[1].mean())
    rates["of"] = outs[1].numel()
    return rates


def packed(s: torch.Tensor) -> torch.Tensor:
    """Spikes [T B C H W] as bits, eight channels a byte, [T B H W C/8]."""
    eights = s.permute(0, 1, 3, 4, 2).unflatten(-1, (-1, 8)).to(torch.uint8)
    return (eights << torch.arange(8, dtype=torch.uint8, device=s.device)).sum(-1).to(torch.uint8)


def attention_core() -> dict[str, object]:
    """SSA from q, k, v spikes to output spikes: ours and SpikingJelly's, ms forward and both ways.

    64 pictures, T = 4, 196 tokens, 8 heads of 64, bf16, 7 % firing; all from the same spikes, each
    in its own layout: ours as bits, as the layers before it leave them while training, and once
    more as tensors alone. Launched from Python, and as one CUDA graph, without Python's waits.
    """
    sys.path.append(str(Path(__file__).parent))  # last: its folders bear the names of libraries
    from triton.testing import do_bench

    spikes = [torch.rand(4, 64, 512, 14, 14, device=DEVICE) < 0.07 for _ in "qkv"]
    ours = [channels_last(s.bfloat16()).requires_grad_() for s in spikes]
    theirs = torch.stack([s.bfloat16().reshape(4, 64, 8, 64, 196) for s in spikes], 2)
    theirs.requires_grad_()
    unpacked = [x.detach().clone().requires_grad_() for x in ours]
    for x in ours:
        remember(x, packed(x.detach()))

    def attend(qkv: list[torch.Tensor]) -> torch.Tensor:
        return fire_mix(*qkv, 8, 0.125, 0.5, 0.5, Fire(v_threshold=0.5))

    runs = {"saccade": (lambda: attend(ours), ours)}
    runs["saccade, no bits"] = lambda: attend(unpacked), unpacked
    note = ""
    try:
        from spikingjelly.activation_based import functional
        from spikingjelly.activation_based.layer.attention import SpikingSelfAttention

        layer = SpikingSelfAttention(512, 8).to(DEVICE)

        def core() -> torch.Tensor:
            functional.reset_net(layer)
            return layer.attn_lif(layer._ssa_kernel_torch(theirs, 0.125))

        runs["spikingjelly"] = core, [theirs]
    except Exception as error:
        note = f"SpikingJelly did not run: {error!r}"[:300]
    result: dict[str, object] = {"note": note}
    outputs, steps = {}, {}
    # leaves belong to the stream of their first step, and a graph cannot be captured on the default
    torch.cuda.set_stream(torch.cuda.Stream())
    for name, (run, inputs) in runs.items():
        out = run()
        outputs[name] = out.detach().float().mean().item()
        g = torch.randn_like(out)

        def forward(run=run) -> None:
            with torch.no_grad():
                run()

        def both(run=run, inputs=inputs, g=g) -> None:
            torch.autograd.grad(run(), inputs, g)

        steps[name] = {"forward": forward, "both": both}
        result[name] = {
            f"{k}_ms": do_bench(f, return_mode="median") for k, f in steps[name].items()
        }
    for name in steps:  # last: where one cannot be captured, nothing more may run
        for k, f in steps[name].items():
            try:
                result[name][f"{k}_graph_ms"] = do_bench(graphed(f), return_mode="median")
            except Exception as error:
                result[name][f"{k}_graph_ms"] = f"cannot be captured: {error!r}"[:200]
    return result | {"firing rate of the output": outputs}


def awake_model() -> torch.nn.Module:
    """Spikformer-8-512 whose neurons fire: norms by the statistics of a batch, biases raised."""
    torch.manual_seed(0)
    model = saccade.create_model("spikformer_8_512").to(DEVICE)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.bias, 0.4)
            torch.nn.init.constant_(module.weight, 1.3)
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        for _ in range(60):
            model(torch.randn(16, 3, 224, 224, device=DEVICE))
    return model.eval()


@torch.no_grad()
def inference() -> dict[str, object]:
    """Fused bf16 against the same weights op by op; 8-bit against bf16: flips by layer."""
    model, x = awake_model(), torch.randn(16, 3, 224, 224, device=DEVICE)
    heard: dict[str, list[torch.Tensor]] = {}

    def listen(fused) -> None:
        for path, module in fused.named_modules():
            if isinstance(module, Folded):
                name = path.replace("stem.stem.", "stem.")
                module.register_forward_hook(
                    lambda m, a, out, name=name: heard.setdefault(name, []).append(
                        out.to(torch.int8)
                    )
                )

    half, eight = fuse(model, "bfloat16"), fuse(model, "int8")
    unheard = half(x), eight(x)  # adds spikes to the stream as they fire
    listen(half), listen(eight)
    watched = half(x), eight(x)
    kept = [(op, dict(op.variants)) for op in (affine_lif, fire_mix)]
    affine_lif.variants.clear()
    fire_mix.variants.pop("triton")
    half(x)
    for op, variants in kept:
        op.variants.clear()  # in the order in which they are tried
        op.variants.update(variants)
    share = {
        n: [float((a != b).float().mean()), float((a != c).float().mean()), float(a.float().mean())]
        for n, (a, b, c) in heard.items()
    }
    return {
        "bf16 fused against op by op, flips": sum(
            int((a != c).sum()) for a, _, c in heard.values()
        ),
        "of": sum(a.numel() for a, _, _ in heard.values()),
        "logits, nobody watching": worst(unheard, watched),
        "int8 against bf16, share by layer": {n: round(v[0], 5) for n, v in share.items()},
        "firing rate by layer": {n: round(v[2], 4) for n, v in share.items()},
    }


@torch.no_grad()
def streamed() -> dict[str, dict[str, float]]:
    """Fed step by step: largest difference of logits from the whole sequence's, and ms a step."""
    torch.manual_seed(0)
    model = saccade.create_model("spikformer_2_256_dvs").to(DEVICE)
    T, rows = model.config.T, {}
    x = (torch.rand(T, 4, *model.frame, device=DEVICE) < 0.05).float()
    rate = settle(model, x)
    nets = {"float32": model, "fused bf16": fuse(model, "bfloat16"), "int8": fuse(model, "int8")}
    for name, net in nets.items():
        whole, stream = net(x), saccade.streaming(net)
        steps = [stream.step(frame) for frame in x]
        torch.cuda.synchronize()
        began = time.perf_counter()
        for frame in x:
            stream.step(frame)
        torch.cuda.synchronize()
        spent = (time.perf_counter() - began) / T * 1e3
        apart = worst([torch.stack(steps).mean(0)], [whole])
        rows[name] = {"apart": apart, "ms a step": spent, "neurons fire": rate}
    return rows


def compiled() -> dict[str, object]:
    """Small model on the GPU: whole graph, with autograd; and export."""
    torch.manual_seed(0)
    small = {"dim": 64, "depth": 1, "heads": 4, "num_classes": 10, "image_size": 32}
    model = saccade.create_model("spikformer_4_384", **small).to(DEVICE)
    x, result = torch.randn(8, 3, 32, 32, device=DEVICE), {}
    for backend in ("aot_eager", "inductor"):
        a, b = copy.deepcopy(model), copy.deepcopy(model)
        got = torch.compile(a, backend=backend, fullgraph=True)(x)
        want = b(x)
        got.square().sum().backward()
        want.square().sum().backward()
        pairs = [(p.grad, q.grad) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
        result[backend] = {
            "logits": worst([got.detach()], [want.detach()]),
            "gradients": max(float((p - q).abs().max()) for p, q in pairs),
        }
    model.eval()
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        result["export"] = worst([program.module()(x)], [model(x)])
        result["kernels in the exported graph"] = sorted(
            {str(n.target) for n in program.graph.nodes if "saccade" in str(n.target)}
        )
    return result


if __name__ == "__main__":
    results = {}
    parts = exact_lif, gradients, linear, picture, learning, flips, inference, streamed, compiled
    named = sys.argv[2:]
    for part in [p for p in (*parts, attention_core) if p.__name__ in named or not named]:
        try:
            results[part.__name__] = part()
        except Exception as error:
            results[part.__name__] = f"FAILED: {error!r}"[:600]
        print(part.__name__, json.dumps(results[part.__name__])[:1500], flush=True)
    Path(sys.argv[1]).write_text(json.dumps(results, indent=1))
