"""TIM: named configurations, official keys and golden families.

Source: Shen et al., IJCAI 2024, arXiv:2401.11687; code BrainCog-X/Brain-Cog @3998fd5,
examples/TIM: Spikformer's DVS copy with BrainCog's neurons (no gradient through membrane time),
without biases in the attention, at 64 px; for spoken digits (SHD) a stem that folds 700 channels.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from saccade._golden import GOLDEN, Arrays, Config, Golden
from saccade._keymap import KeyMap
from saccade._sources import Result
from saccade.attention import Site
from saccade.attention import ssa as ssa_file
from saccade.attention import tim as tim_file
from saccade.models import spikformer
from saccade.models._base import MODELS, ModelEntry
from saccade.models.transformer import SpikingTransformer, TransformerConfig
from saccade.nn import Neuron

NEURON = {"name": "lif", "detach_membrane": True}
ATTENTION = {
    "name": "tim",
    "alpha": 0.5,
    "inner": {"name": "ssa", "scale": 0.25, "qkv_bias": False, "out_bias": False},
}
COMMON: dict[str, Any] = {"attention": ATTENTION, "neuron": NEURON, "in_channels": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "dvs": COMMON | {"stem": {"name": "sps", "pools": spikformer.ALL}, "image_size": 64},
    "shd": COMMON | {"stem": {"name": "folded_sps"}, "image_size": 16},
}
"""The two models of the official code."""

_CONSTANTS = KeyMap(
    drops=((r".+\.(threshold|act_fun\.alpha)", "a constant of a neuron, which the preset states"),)
)
_UNUSED = KeyMap(drops=((r"res_lif\..+", f"a neuron that {spikformer.NEVER_CALLED}"),))
_SSA = (
    ssa_file.KEYS.under("", "inner.")
    + tim_file.KEYS.under(r"TIM\.", "inner.query.")
    + _UNUSED
    + _CONSTANTS
)
_NEURONS = ssa_file.NEURONS.under("", "inner.") + tim_file.NEURONS.under(r"TIM\.", "inner.query.")
SPS_AT = {"dvs": "stem.", "shd": "stem.sps."}
KEYS = {v: _CONSTANTS + spikformer.model_keys(_SSA, stem) for v, stem in SPS_AT.items()}
"""Official checkpoints of either model."""

_NEURONS_BLOCKS = (
    _NEURONS.under(r"block\.(\d+)\.attn\.", r"blocks.\1.attention.")
    + spikformer.NEURONS_MLP.under(r"block\.(\d+)\.mlp\.", r"blocks.\1.mlp.")
    + KeyMap(drops=((r"block\.\d+\.attn\.res_lif", spikformer.NEVER_CALLED),))
)


_NEURONS_MODEL = {
    v: spikformer.NEURONS_STEM.under(r"patch_embed\.", stem) + _NEURONS_BLOCKS
    for v, stem in SPS_AT.items()
}


def implied(official: Mapping[str, Tensor]) -> dict[str, Any]:
    """The preset that the thresholds of an official checkpoint mean."""
    thresholds = [float(v) for k, v in official.items() if k.endswith("TIM.in_lif.threshold")]
    released = bool(thresholds) and all(v == 1.0 for v in thresholds)
    return {"attention": {"name": "tim", "preset": "as_released" if released else "intended"}}


_RESULTS = {
    "dvs": (
        Result(dataset="CIFAR10-DVS", metric="top-1 %", value=81.6, note="T=10, alpha 0.6"),
        Result(dataset="N-Caltech101", metric="top-1 %", value=79.0, note="alpha 0.4"),
    ),
    "shd": (),
}
for _variant, _classes in (("dvs", 10), ("shd", 20)):
    MODELS.add(f"tim_2_256_{_variant}")(
        ModelEntry(
            config=TransformerConfig(
                dim=256, depth=2, heads=16, num_classes=_classes, T=10, **VARIANTS[_variant]
            ),
            source=tim_file.PAPER,
            about=f"Spikformer with temporal interaction, 2 blocks of 256 channels, {_variant}",
            results=_RESULTS[_variant],
            keys=KEYS[_variant],
            implied=implied,
            note="The released code runs with other thresholds than it means; see "
            "docs/known-bugs-elsewhere.md. Preset 'intended' is the default here.",
        )
    )


def _with_constants(module: nn.Module, neurons: KeyMap, arrays: Arrays) -> nn.Module:
    """Set each neuron's threshold and sharpness to what the official state holds."""
    for key, value in arrays.items():
        official, _, constant = key.removeprefix("state/").rpartition(".")
        if not key.startswith("state/") or constant != "threshold":
            continue
        path = neurons.rename(official)
        if path is not None:
            neuron = module.get_submodule(path)
            assert isinstance(neuron, Neuron)
            alpha = float(arrays[f"state/{official}.act_fun.alpha"])
            neuron.fire = replace(neuron.fire, v_threshold=float(value), alpha=alpha)
    return module


def _build_module(config: Config, arrays: Arrays) -> nn.Module:
    tokens = arrays["input"].shape[-2]
    site = Site(dim=1, heads=1, neuron=NEURON)
    module = tim_file.TemporalInteraction(
        tokens,
        neuron_in=site.fires(),
        neuron_out=site.fires(),
        alpha=config["ctor"].get("TIM_alpha", 0.5),
        kernel=arrays["state/interactor.weight"].shape[-1],
    )
    return _with_constants(module, tim_file.NEURONS, arrays)


def _build_ssa(config: Config, arrays: Arrays) -> nn.Module:
    T, _, dim, N = arrays["input"].shape
    ctor = config["ctor"]
    site = Site(dim=dim, heads=ctor.get("num_heads", 8), T=T, grid=(N, 1), neuron=NEURON)
    inner = ATTENTION["inner"] | {"scale": config.get("scale", 0.25)}  # type: ignore[operator]
    module = tim_file.TIM(site, alpha=ctor.get("TIM_alpha", 0.5), inner=inner)
    return _with_constants(module, _NEURONS + _RES, arrays)


_RES = KeyMap(drops=(("res_lif", spikformer.NEVER_CALLED),))


def _build_model(config: Config, arrays: Arrays) -> nn.Module:
    ctor = config["ctor"]
    variant = "shd" if arrays["input"].dim() == 3 else "dvs"
    options = VARIANTS[variant] | {
        "dim": ctor["embed_dims"],
        "depth": ctor["depths"],
        "heads": ctor["num_heads"],
        "mlp_ratio": ctor.get("mlp_ratios", 4),
        "num_classes": ctor["num_classes"],
        "T": config["T"],
        "attention": ATTENTION | {"alpha": ctor.get("TIM_alpha", 0.5)},
    }
    if variant == "dvs":
        options["image_size"] = (ctor["img_size_h"], ctor["img_size_w"])
    model = SpikingTransformer(TransformerConfig(**options))
    return _with_constants(model, _NEURONS_MODEL[variant], arrays)


def _time_first(x: Tensor, config: Config) -> Tensor:
    return x.transpose(0, 1)


def _one_column(x: Tensor, config: Config) -> Tensor:
    return x.unsqueeze(-1)


def _flat(x: Tensor, config: Config) -> Tensor:
    return x.flatten(3)


def _mid_flat(x: Tensor, config: Config, name: str) -> Tensor:
    """The node joins steps and samples: [T*B C N]; the interaction's queries are as they are."""
    return x if name.startswith("TIM.") else x.flatten(3).flatten(0, 1)


GOLDEN.add("tim_module")(
    Golden(build=_build_module, keys=tim_file.KEYS + _CONSTANTS, neurons=tim_file.NEURONS)
)
GOLDEN.add("tim_ssa")(
    Golden(
        build=_build_ssa,
        keys=_SSA,
        inward=_one_column,
        outward=_flat,
        neurons=_NEURONS,
        mid_outward=_mid_flat,
    )
)
for _variant in VARIANTS:
    GOLDEN.add(f"tim_model_{_variant}")(
        Golden(build=_build_model, keys=KEYS[_variant], inward=_time_first)
    )
