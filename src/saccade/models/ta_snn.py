"""Golden families of TA-SNN's layer and of SpikingJelly's attention layers: no nets, so far."""

from typing import Any

from torch import Tensor, nn

from saccade._golden import GOLDEN, Arrays, Config, Golden
from saccade._keymap import KeyMap
from saccade.attention import Site, install, spikingjelly, tasnn
from saccade.models.ma_snn import build_layer, inward, outward

TA_LAYER = KeyMap(
    rules=(
        (r"(?:conv2d|linear)\.(weight|bias)", r"conv.\1"),
        (r"BNLayer\.(.+)", r"norm.\1"),
    )
) + tasnn.KEYS.under(r"attention\.", "gate.")
"""One ConvAttLIF or AttLIF of TA-SNN."""


def _build_tlayer(config: Config, arrays: Arrays) -> nn.Module:
    T, args = arrays["input"].shape[1], config["args"]
    return tasnn.TASNN(Site(dim=1, heads=1, T=T), ratio_t=args.get("reduction", 16))


def _build_layer(config: Config, arrays: Arrays) -> nn.Module:
    part = {"name": "ta_snn", "ratio_t": config["reduction"]}
    off = config.get("attention", "T") == "no"
    return build_layer(config, arrays, lambda site: install(site, "none" if off else part))


def _grown(x: Tensor) -> Tensor:
    return x.reshape(*x.shape, *[1] * (5 - x.dim()))


def _build_jelly(config: Config, arrays: Arrays) -> nn.Module:
    args: dict[str, Any] = dict(config["args"])
    x = _grown(arrays["input"])
    site = Site(dim=x.shape[2], heads=1, T=args.pop("T"), grid=(x.shape[3], x.shape[4]))
    if config["cls"] == "TemporalWiseAttention":
        return spikingjelly.TemporalWiseAttention(site, reduction=args.get("reduction", 16))
    reductions = {k: args.get(k, 16) for k in ("reduction_t", "reduction_c")}
    kernel = args.get("kernel_size", 3)
    return spikingjelly.MultiDimensionalAttention(site, kernel_size=kernel, **reductions)


def _as_laid_out(x: Tensor, config: Config) -> Tensor:
    """Without the axes that `_grown` added: the layout names those of the file."""
    return x.flatten(_axes(config) - 1)


def _axes(config: Config) -> int:
    """Axes of the file's tensors; Tlayer's `dimension` counts those that its layout leaves out."""
    layout = str(config["layout"]).split(",")
    return int(config["args"]["dimension"]) if "..." in layout else len(layout)


GOLDEN.add("tasnn_tlayer")(
    Golden(
        build=_build_tlayer,
        keys=tasnn.KEYS,
        inward=lambda x, config: _grown(x.transpose(0, 1)),
        outward=lambda x, config: _as_laid_out(x, config).transpose(0, 1),
    )
)
for _family in ("tasnn_attlif", "tasnn_convattlif"):
    GOLDEN.add(_family)(Golden(build=_build_layer, keys=TA_LAYER, inward=inward, outward=outward))
for _family, _keys in (
    ("sjattn_twa", spikingjelly.KEYS_TWA),
    ("sjattn_mda", spikingjelly.KEYS_MDA),
):
    GOLDEN.add(_family)(
        Golden(
            build=_build_jelly,
            keys=_keys,
            inward=lambda x, config: _grown(x),
            outward=_as_laid_out,
        )
    )
