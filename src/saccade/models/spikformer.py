"""Spikformer V1: named configurations, published results, official keys and golden families.

Source: Zhou et al., ICLR 2023, arXiv:2209.15425v2; code ZK-Zhou/spikformer @6212689, which has
three copies of the model. They are one implementation here, told apart by options:

    copy      pools after stages   scale   bias of q, k, v   initialisation of the blocks
    cifar     3, 4                 0.125   yes               trunc_normal
    dvs       1, 2, 3, 4           0.25    no                kaiming_uniform
    imagenet  1, 2, 3, 4           0.125   no                kaiming_uniform

The official checkpoints also hold parameters that no forward pass reads; they are dropped.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from saccade._golden import GOLDEN, Arrays, Config, Golden
from saccade._keymap import KeyMap
from saccade._registry import Part
from saccade._sources import Result
from saccade.attention import Site
from saccade.attention import ssa as ssa_file
from saccade.models._base import MODELS, ModelEntry
from saccade.models.transformer import Block, SpikingTransformer, TransformerConfig
from saccade.nn import MLP, SPS
from saccade.nn.stems import SPIKFORMER

HALF, ALL = (False, False, True, True), (True, True, True, True)
VARIANTS: dict[str, dict[str, Any]] = {
    "cifar": {
        "stem": {"name": "sps", "pools": HALF},
        "attention": {"name": "ssa", "scale": 0.125, "qkv_bias": True},
        "projection_init": "trunc_normal",
        "in_channels": 3,
        "image_size": 32,
        "num_classes": 10,
        "T": 4,
    },
    "dvs": {
        "stem": {"name": "sps", "pools": ALL},
        "attention": {"name": "ssa", "scale": 0.25, "qkv_bias": False},
        "in_channels": 2,
        "image_size": 128,
        "num_classes": 10,
        "T": 16,
    },
    "imagenet": {
        "stem": {"name": "sps", "pools": ALL},
        "attention": {"name": "ssa", "scale": 0.125, "qkv_bias": False},
        "in_channels": 3,
        "image_size": 224,
        "num_classes": 1000,
        "T": 4,
    },
}
"""The three copies of the official code."""

Build = Callable[[Config, Arrays], nn.Module]

_CONV = r"(weight|bias)"
_STEM = KeyMap(
    rules=(
        (rf"proj_conv\.{_CONV}", r"stages.0.conv.\1"),
        (rf"proj_conv([123])\.{_CONV}", r"stages.\1.conv.\2"),
        (r"proj_bn\.(.+)", r"stages.0.norm.\1"),
        (r"proj_bn([123])\.(.+)", r"stages.\1.norm.\2"),
        (rf"rpe_conv\.{_CONV}", r"position.conv.\1"),
        (r"rpe_bn\.(.+)", r"position.norm.\1"),
        # names of the first upload, September 2022
        *((rf"block{i + 1}_conv\.{_CONV}", rf"stages.{i}.conv.\1") for i in range(4)),
        *((rf"block{i + 1}_bn\.(.+)", rf"stages.{i}.norm.\1") for i in range(4)),
    )
)
_MLP = KeyMap(
    rules=(
        (rf"(fc[12])_(?:linear|conv)\.{_CONV}", r"\1.conv.\2"),
        (r"(fc[12])_bn\.(.+)", r"\1.norm.\2"),
    )
)
NEVER_CALLED = "the official forward never calls it"


def block_keys(attention: KeyMap) -> KeyMap:
    """A block of the official code around an attention with these keys."""
    idle = KeyMap(drops=((r"norm[12]\.(weight|bias)", f"LayerNorm: {NEVER_CALLED}"),))
    return idle + attention.under(r"attn\.", "attention.") + _MLP.under(r"mlp\.", "mlp.")


def model_keys(attention: KeyMap, stem: str = "stem.") -> KeyMap:
    """A whole official model around an attention with these keys; `stem` is where our SPS is."""
    return (
        _STEM.under(r"patch_embed\.", stem)
        + block_keys(attention).under(r"block\.(\d+)\.", r"blocks.\1.")
        + KeyMap(
            rules=((rf"head\.{_CONV}", r"head.linear.\1"),),
            drops=(
                (r"norm\.(weight|bias)", f"final LayerNorm of the DVS copy: {NEVER_CALLED}"),
                (
                    r"pos_embed",
                    f"position table of the DVS copy: {NEVER_CALLED}",
                ),
            ),
        )
    )


_BLOCK = block_keys(ssa_file.KEYS)
KEYS = model_keys(ssa_file.KEYS)
"""An official checkpoint of any of the three copies."""

NEURONS_STEM = KeyMap(
    rules=(
        (r"proj_lif", "stages.0.neuron"),
        (r"proj_lif([123])", r"stages.\1.neuron"),
        (r"rpe_lif", "position.neuron"),
    )
)
NEURONS_MLP = KeyMap(rules=((r"(fc[12])_lif", r"\1.neuron"),))
_NEURONS_BLOCK = ssa_file.NEURONS.under(r"attn\.", "attention.") + NEURONS_MLP.under(
    r"mlp\.", "mlp."
)


def _cifar(acc10: float, acc100: float) -> tuple[Result, ...]:
    return (
        Result(dataset="CIFAR-10", metric="top-1 %", value=acc10),
        Result(dataset="CIFAR-100", metric="top-1 %", value=acc100),
    )


def _imagenet(top1: float, sops: float, energy: float) -> tuple[Result, ...]:
    return (
        Result(dataset="ImageNet, 224 px", metric="top-1 %", value=top1),
        Result(dataset="ImageNet, 224 px", metric="SOPs (G)", value=sops),
        Result(dataset="ImageNet, 224 px", metric="energy (mJ)", value=energy),
    )


_DVS = (
    Result(dataset="CIFAR10-DVS", metric="top-1 %", value=80.9, note="T=16"),
    Result(dataset="CIFAR10-DVS", metric="top-1 %", value=78.9, note="T=10"),
    Result(dataset="DVS128 Gesture", metric="top-1 %", value=98.3, note="T=16, other head count"),
)
# variant, blocks, channels, heads, results of the paper (section 4 and its tables)
_NAMED = (
    ("cifar", 4, 256, 8, _cifar(93.94, 75.96)),
    ("cifar", 2, 384, 12, _cifar(94.80, 76.95)),
    ("cifar", 4, 384, 12, _cifar(95.19, 77.86)),
    ("dvs", 2, 256, 16, _DVS),
    ("imagenet", 8, 384, 8, _imagenet(70.24, 6.82, 7.734)),
    ("imagenet", 6, 512, 8, _imagenet(72.46, 8.69, 9.417)),
    ("imagenet", 8, 512, 8, _imagenet(73.38, 11.09, 11.577)),
    ("imagenet", 10, 512, 8, _imagenet(73.68, 13.67, 13.899)),
    ("imagenet", 8, 768, 12, _imagenet(74.81, 22.09, 21.477)),
)
for _variant, _depth, _dim, _heads, _results in _NAMED:
    MODELS.add(f"spikformer_{_depth}_{_dim}{'_dvs' if _variant == 'dvs' else ''}")(
        ModelEntry(
            config=TransformerConfig(dim=_dim, depth=_depth, heads=_heads, **VARIANTS[_variant]),
            source=SPIKFORMER,
            about=f"Spikformer, {_depth} blocks of {_dim} channels, {_variant} copy of the code",
            results=_results,
            keys=KEYS,
        )
    )
MODELS.add("spikformer")(
    ModelEntry(
        config=TransformerConfig(dim=64, depth=2, heads=4, **VARIANTS["cifar"]),
        source=SPIKFORMER,
        about="a small Spikformer (CIFAR copy) to be sized by its options",
        keys=KEYS,
        note="No paper reports this size.",
    )
)


def _neuron(config: Config) -> Part:
    lif = config.get("lif", {})
    options = {k: lif[k] for k in ("tau", "v_reset", "decay_input", "detach_reset") if k in lif}
    if "surrogate" in lif:
        options |= {"surrogate": lif["surrogate"], "alpha": lif.get("surrogate_alpha")}
    return {"name": "lif", **options}


def _inward(x: Tensor, config: Config) -> Tensor:
    """[T B N C] (cifar) or [T B C N] (dvs) to [T B C N 1]; [T B C H W] stays."""
    if x.dim() == 5:
        return x
    return (x.mT if config["variant"] == "cifar" else x).unsqueeze(-1)


def _outward(x: Tensor, config: Config) -> Tensor:
    """Tokens as each copy lays them out."""
    if config["variant"] == "imagenet":
        return x
    return x.flatten(3).mT if config["variant"] == "cifar" else x.flatten(3)


def _mid_outward(x: Tensor, config: Config, name: str) -> Tensor:
    """The ImageNet copy flattens the grid between q, k, v and the neuron behind the product."""
    inside = name.rpartition(".")[2] in ("q_lif", "k_lif", "v_lif", "attn_lif")
    if inside and config["variant"] == "imagenet":
        return x.flatten(3)
    return _outward(x, config)


def _site(config: Config, arrays: Arrays) -> Site:
    T, _, dim, H, W = _inward(arrays["input"], config).shape
    heads = config["ctor"].get("num_heads", 8)
    return Site(dim=dim, heads=heads, T=T, grid=(H, W), neuron=_neuron(config))


def _attention(config: Config) -> dict[str, Any]:
    part: dict[str, Any] = VARIANTS[config["variant"]]["attention"]
    return part


def _build_ssa(config: Config, arrays: Arrays) -> nn.Module:
    options = {k: v for k, v in _attention(config).items() if k != "name"}
    return ssa_file.SSA(_site(config, arrays), **options)


def _build_block(config: Config, arrays: Arrays) -> nn.Module:
    ratio = config["ctor"].get("mlp_ratio", 4.0)
    return Block(_site(config, arrays), attention=_attention(config), mlp_ratio=ratio)


def _build_mlp(config: Config, arrays: Arrays) -> nn.Module:
    ctor = config["ctor"]
    dim = ctor["in_features"]
    hidden, out = ctor.get("hidden_features") or dim, ctor.get("out_features") or dim
    return MLP(dim, hidden, out=out, neuron=_neuron(config))


def _build_stem(config: Config, arrays: Arrays) -> nn.Module:
    _, _, channels, H, W = arrays["input"].shape
    dim = config["ctor"]["embed_dims"]
    pools = VARIANTS[config["variant"]]["stem"]["pools"]
    return SPS(channels, dim, image_size=(H, W), pools=pools, neuron=_neuron(config))


def _build_model(config: Config, arrays: Arrays) -> nn.Module:
    ctor, variant = config["ctor"], VARIANTS[config["variant"]]
    sizes = {
        "dim": ctor["embed_dims"],
        "depth": ctor["depths"],
        "heads": ctor["num_heads"],
        "mlp_ratio": ctor.get("mlp_ratios", 4),
        "in_channels": ctor["in_channels"],
        "image_size": (ctor["img_size_h"], ctor["img_size_w"]),
        "num_classes": ctor["num_classes"],
        "T": config["T"],
    }
    return SpikingTransformer(TransformerConfig(**variant | sizes, neuron=_neuron(config)))


def _frames(x: Tensor, config: Config) -> Tensor:
    """The DVS copy takes [B T C H W]; pictures [B C H W] stay."""
    return x.transpose(0, 1) if x.dim() == 5 else x


def _token_golden(build: Build, keys: KeyMap, neurons: KeyMap) -> Golden:
    return Golden(
        build=build,
        keys=keys,
        neurons=neurons,
        inward=_inward,
        outward=_outward,
        mid_outward=_mid_outward,
    )


def _families() -> dict[str, Golden]:
    model = Golden(build=_build_model, keys=KEYS, inward=_frames)
    return {
        "ssa": _token_golden(_build_ssa, ssa_file.KEYS, ssa_file.NEURONS),
        "mlp": _token_golden(_build_mlp, _MLP, NEURONS_MLP),
        "block": _token_golden(_build_block, _BLOCK, _NEURONS_BLOCK),
        "sps": Golden(build=_build_stem, keys=_STEM, neurons=NEURONS_STEM, outward=_outward),
        "model": model,
        "model_train": model,
    }


for _family, _golden in _families().items():
    for _variant in VARIANTS:
        GOLDEN.add(f"spikformer_{_family}_{_variant}")(_golden)
