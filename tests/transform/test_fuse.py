"""Folding norms for inference: the same spikes up to the rounding of the kernel."""

import pytest
import torch

from saccade import streaming
from saccade.analysis import observe, record
from saccade.attention import ATTENTION
from saccade.models import create_model
from saccade.nn import Projection
from saccade.nn.folded import Exact, Folded
from saccade.ops import Fire, project_lif
from saccade.train import save_weights
from saccade.transform import fuse
from tests.awake import awake, firing_rates

MIXERS = {n: a for n in ATTENTION.list() if (a := ATTENTION[n]).kind == "mixer"}
SMALL = {"dim": 64, "depth": 2, "heads": 4, "num_classes": 10, "image_size": 32}


def settled_model(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    model = awake(create_model("spikformer_4_384", **(SMALL | options))).float().eval()
    x = pictures()
    rates = firing_rates(model, lambda: model(x))
    assert all(0.02 < rate < 0.98 for rate in rates.values()), rates
    return model


def pictures() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def projection(**options) -> Projection:
    torch.manual_seed(0)
    built = Projection(16, 32, bias=True, **options).eval()
    for statistic in (built.norm.weight, built.norm.bias):
        statistic.data.copy_(torch.randn(32) / 8 + 0.9)
    built.norm.running_mean.copy_(torch.randn(32) / 8)
    built.norm.running_var.copy_((torch.rand(32) + 0.5) / 16)
    return built


def spikes() -> torch.Tensor:
    return torch.randint(0, 3, (3, 2, 16, 6, 6), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("pools", [False, True])
def test_a_folded_projection_fires_as_the_projection_does(kernel: int, pools: bool):
    layer, x = projection(kernel=kernel, pools=pools), spikes().float()
    with torch.no_grad():
        want, got = layer(x), Folded(layer, torch.float32)(x)
    assert 0.02 < want.mean() < 0.98
    assert (got != want).float().mean() < 1e-3  # the folded kernel is rounded elsewhere


def test_eight_bits_round_weights_and_nothing_else():
    layer, x = projection(), spikes()
    folded = Folded(layer, torch.int8)
    norm, (kernel, bias) = layer.norm, (layer.conv.weight[:, :, 0, 0], layer.conv.bias)
    a = norm.weight / (norm.running_var + 1e-5).sqrt()
    exact = kernel * a[:, None]
    rounded = folded.weight[:, :, 0, 0].float() * folded.scale[:, None]
    step = exact.abs().amax(1, keepdim=True) / 127
    assert ((rounded - exact).abs() <= step / 2 * 1.001).all()
    assert folded.weight.dtype == torch.int8
    assert folded.weight.abs().amax() == 127
    torch.testing.assert_close(folded.shift, norm.bias + (bias - norm.running_mean) * a)
    rows = x.permute(0, 1, 3, 4, 2).double() @ rounded.double().T + folded.shift.double()
    v, fired = torch.zeros_like(rows[0]), []
    for current in rows:  # LIF-1 to LIF-3 with tau = 2
        h = v / 2 + current / 2
        fired.append(h >= 1)
        v = torch.where(h >= 1, 0.0, h)
    want = torch.stack(fired).permute(0, 1, 4, 2, 3)
    got = folded(x.to(torch.int8).permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3))
    assert got.dtype == torch.int8
    assert 0.02 < want.float().mean() < 0.98
    assert (got.bool() != want).float().mean() < 1e-3


@pytest.mark.parametrize(
    ("products", "close"), [("float32", 1e-4), ("bfloat16", 0.2), ("int8", 0.2)]
)
def test_a_fused_model_answers_alike(products: str, close: float):
    model, x = settled_model(), pictures()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    fused = fuse(model, products)
    with torch.no_grad():
        want, got = model(x), fused(x)
    assert (got - want).abs().max() <= close * want.abs().max()
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    assert not any(p.requires_grad for p in fused.parameters())


def test_all_spikes_are_eight_bits():
    fused, heard = fuse(settled_model(), "int8"), {}
    for path, module in fused.named_modules():
        if isinstance(module, Folded):
            module.register_forward_hook(
                lambda m, a, out, path=path: heard.update({path: out.dtype})
            )
    with torch.no_grad():
        fused(pictures())
    assert set(heard.values()) == {torch.int8}
    kernels = {p: m.weight.dtype for p, m in fused.named_modules() if isinstance(m, Folded)}
    # the picture is no integer, and 16 does not divide the eight channels behind it
    assert [p for p, d in kernels.items() if d != torch.int8] == ["stem.stages.0", "stem.stages.1"]


def test_integer_products_are_exact_beyond_float32():
    x = torch.full((1, 1, 4096, 1, 1), 127, dtype=torch.int8)
    weight = torch.full((16, 4096, 1, 1), 127, dtype=torch.int8)
    weight[0, 0] = 126  # 66,064,257 against 66,064,384: one part in 500,000
    shift = torch.full((16,), -float(127 * 127 * 4096 - 64))
    fired = project_lif.reference(x, weight, torch.ones(16), shift, 0.5, 1.0, Fire(), 1, False)
    assert fired.flatten().tolist() == [0] + [1] * 15


@pytest.mark.parametrize(
    ("options", "products", "says"),
    [
        ({}, "int4", "unknown products 'int4'.*int8"),
        ({"neuron": "plif"}, "bfloat16", "learns its time constant"),
        ({"neuron": "ma_lif"}, "float32", "MALIF.*way of its own"),
        ({"depth": 63, "dim": 16, "heads": 1}, "int8", "reach 129.*at most 62 blocks"),
        ({"mlp": {"name": "mlp", "dwc": True}}, "bfloat16", "outside of any projection.*float32"),
        ({"mlp": {"name": "mlp", "dwc": True}}, "int8", "outside of any projection"),
    ],
)
def test_what_cannot_be_fused_is_refused(options: dict, products: str, says: str):
    model = create_model("spikformer_4_384", **(SMALL | options)).eval()
    with pytest.raises(ValueError, match=says):
        fuse(model, products)


def test_a_model_without_projections_is_refused():
    model = create_model("ms_resnet_18", num_classes=10, image_size=32).eval()
    with pytest.raises(ValueError, match="no projection to fuse"):
        fuse(model)


def test_what_stands_beside_projections_stays_as_it_is():
    model, x = settled_model(attention="lrf_ssa"), pictures()
    with torch.no_grad():
        assert (fuse(model, "float32")(x) - model(x)).abs().max() <= 1e-3 * model(x).abs().max()


def test_a_model_in_training_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        fuse(create_model("spikformer_4_384", **SMALL))


@pytest.mark.parametrize("products", ["float32", "bfloat16", "int8"])
def test_a_fused_model_is_counted_layer_by_layer_and_answers_as_unwatched(products: str):
    model, x = settled_model(), pictures()
    fused = fuse(model, products)
    with torch.no_grad():
        want = fused(x)
        with record(fused) as seen:
            got = fused(x)
        with record(model) as whole:
            model(x)
    assert torch.equal(got, want)
    ours, theirs = seen.totals(), whole.totals()
    assert len(seen.layers) == len(whole.layers)
    assert ours["macs"] == theirs["macs"]
    assert ours["paper_rule"]["macs"] == theirs["paper_rule"]["macs"]
    close = 1e-3 if products == "float32" else 0.1  # rounded kernels flip spikes
    for key in ("sops", "energy_mj"):
        assert ours[key] == pytest.approx(theirs[key], rel=close)
    assert ours["paper_rule"]["sops"] == pytest.approx(theirs["paper_rule"]["sops"], rel=close)
    rates = whole.mean_rates()
    for path, rate in seen.mean_rates().items():
        assert rate == pytest.approx(rates[path], abs=1e-3 if products == "float32" else 0.1)


@pytest.mark.parametrize(
    ("name", "products"),
    [("ssa", "float32"), ("ssa", "bfloat16"), *((name, "int8") for name in MIXERS)],
)
def test_a_fused_model_can_be_fed_step_by_step(name: str, products: str):
    fused = fuse(settled_model(attention=name), products)
    frames = torch.randn(4, 2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    stream = streaming(fused)
    with torch.no_grad():
        want = fused.forward_steps(frames)
    got = torch.stack([stream.step(frame) for frame in frames])
    assert want[0].ne(want[-1]).any()
    assert torch.equal(got, want)


@pytest.mark.parametrize("products", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", [n for n, a in MIXERS.items() if not a.takes_integers])
def test_an_attention_that_needs_floating_point_is_float32_within(name: str, products: str):
    model, x = settled_model(attention=name), pictures()
    fused, spikes = fuse(model, products), []
    inside = [m for m in fused.modules() if isinstance(m, Exact)]
    assert len(inside) == SMALL["depth"]
    for module in inside:
        module.register_forward_hook(lambda m, args, out: spikes.append(out.dtype))
        assert {f.emits for f in module.modules() if isinstance(f, Folded)} == {torch.float32}
    with torch.no_grad():
        got = fused(x)
        with record(fused) as seen:
            assert torch.equal(fused(x), got)
        with record(model) as whole:
            model(x)
    assert set(spikes) == {getattr(torch, products)}
    assert seen.totals()["sops"] == pytest.approx(whole.totals()["sops"], rel=0.1)


@pytest.mark.parametrize("name", MIXERS)
def test_eight_bits_round_nothing_but_weights_whatever_the_attention(name: str):
    model, x = settled_model(attention=name), pictures().bfloat16().float()
    eight, exact = fuse(model, "int8"), fuse(model, "float32")
    layers = dict(m for m in exact.named_modules() if isinstance(m[1], Folded))
    for path, module in eight.named_modules():
        if isinstance(module, Folded):  # the same kernel, and floating point around it
            rounded = module.weight.float() * module.scale[:, None, None, None]
            layers[path.replace("attention.attention", "attention")].weight.copy_(rounded)
    with torch.no_grad():
        want, got = exact(x), eight(x)
        plain = model(x)
    assert (got - want).abs().max() <= 1e-2 * want.abs().max()
    assert (plain - want).abs().max() > 1e-2 * want.abs().max()  # rounding shows by itself


def test_a_model_may_be_fused_in_inference_mode():
    model, x = settled_model(), pictures()
    with torch.no_grad():
        want = fuse(model, "int8")(x)
    with torch.inference_mode():
        assert torch.equal(fuse(model, "int8")(x), want)


def test_scores_of_eight_bit_spikes_are_counted_beyond_eight_bits():
    model = create_model("spikformer_4_384", **(SMALL | {"dim": 256, "heads": 1, "depth": 1}))
    ssa = fuse(model.eval(), "int8").get_submodule("blocks.0.attention")
    for layer in (ssa.q, ssa.k):
        layer.shift.fill_(9.0)  # every channel fires
    x = torch.zeros(2, 1, 2, 2, 256, dtype=torch.int8).permute(0, 1, 4, 2, 3)
    assert ssa.scores(x).unique().tolist() == [256 * ssa.scale]


@pytest.mark.parametrize("name", MIXERS)
def test_a_fused_model_shows_as_much_of_itself(name: str):
    model, x = settled_model(attention=name), pictures()
    want = observe(model, x)
    for products in ("float32", "bfloat16", "int8"):
        got = observe(fuse(model, products), x)
        assert got.keys() == want.keys()
        assert all(got[key].shape == want[key].shape for key in want)


def test_what_is_fused_is_not_fused_again_nor_saved(tmp_path):
    fused = fuse(settled_model(), "int8")
    with pytest.raises(ValueError, match="no projection to fuse left: it is fused already"):
        fuse(fused, "float32")
    with pytest.raises(ValueError, match="got a fused model, expected the one that it was made"):
        save_weights(tmp_path / "fused.safetensors", fused, {})
