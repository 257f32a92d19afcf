"""MS-ResNet and Att-Res-SNN: named configurations, official keys, golden families.

Sources: MS-ResNet, arXiv:2112.08954, code Ariande1/MS-ResNet; Att-Res-SNN, arXiv:2209.13929v1,
code BICLab/Attention-SNN, folder Att_Res_SNN, which holds the first placement only.
"""

from typing import Any

import torch
from torch import Tensor, nn

from saccade._golden import GOLDEN, Arrays, Config, Golden
from saccade._keymap import KeyMap
from saccade._sources import Result
from saccade.attention import Site, install, ma
from saccade.models._base import MODELS, ModelEntry
from saccade.models.resnet import ResidualBlock, ResNetConfig, SpikingResNet
from saccade.nn.released import MA_SNN, MS_RESNET, mem_update_part

BLOCK = KeyMap(
    rules=(
        (r"residual_function\.1\.weight", "layer1.conv.weight"),
        (r"residual_function\.2\.bn\.(.+)", r"layer1.norm.\1"),
        (r"residual_function\.4\.weight", "layer2.conv.weight"),
        (r"residual_function\.5\.bn\.(.+)", r"layer2.norm.\1"),
        (r"shortcut\.0\.weight", "shortcut.conv.weight"),
        (r"shortcut\.1\.weight", "shortcut.conv.1.weight"),
        (r"shortcut\.[12]\.bn\.(.+)", r"shortcut.norm.\1"),
    )
) + ma.KEYS.under(r"residual_function\.6\.attention\.", "gate.")
"""One BasicBlock of either code."""
PRUNING_CELL = ma.KEYS.under(r"attention\.", "")


def _net_keys() -> KeyMap:
    keys = KeyMap(
        rules=(
            (r"conv1\.(\d)\.(weight|bias)", r"stem.conv.\1.\2"),
            (r"conv1\.\d\.bn\.(.+)", r"stem.norm.\1"),
            (r"fc\.(weight|bias)", r"head.linear.\1"),
        )
    )
    for stage in range(4):
        keys += BLOCK.under(rf"conv{stage + 2}_x\.(\d+)\.", rf"stages.{stage}.\1.")
    return keys


KEYS = _net_keys()
"""An official checkpoint of either code."""

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 104: (3, 8, 32, 8)}


def _imagenet(*rows: tuple[float, str]) -> tuple[Result, ...]:
    return tuple(
        Result(
            dataset="ImageNet, 288 px" if "288" in note else "ImageNet, 224 px",
            metric="top-1 %",
            value=value,
            note=note,
        )
        for value, note in rows
    )


_MS_RESULTS = {
    18: _imagenet((61.70, "T=1, as MA-SNN's authors trained it")),
    34: _imagenet((64.13, "T=1, as MA-SNN's authors trained it")),
    104: _imagenet((71.57, "T=1, as MA-SNN's authors trained it"), (76.02, "T=5, 288 px")),
}
_ATT_RESULTS = {
    18: _imagenet((63.97, "csa, T=1"), (63.42, "ca, T=1")),
    34: _imagenet((69.15, "csa, T=1"), (67.96, "ca, T=1")),
    104: _imagenet(
        (73.82, "csa, T=1"),
        (72.03, "ca, T=1"),
        (75.92, "csa, T=1, 288 px"),
        (77.08, "csa, T=4, 288 px"),
    ),
}
_ATT_2_RESULTS = {
    18: _imagenet((63.49, "csa, T=1")),
    34: _imagenet((68.36, "csa, T=1")),
    104: (),
}


def _ms_options(layers: int) -> dict[str, Any]:
    """The repository's 104 layers have another stem and shortcut than its 18 and 34."""
    if layers > 100:
        return {"stem": "three_conv3", "shortcut": "avgpool", "dropout": 0.2}
    return {"stem": "conv7", "shortcut": "conv", "dropout": 0.0}


def _add(name: str, **entry: Any) -> None:
    MODELS.add(name)(ModelEntry(body=SpikingResNet, **entry))


_ATT: dict[str, Any] = {"attention": "csa", "shortcut": "avgpool", "dropout": 0.2, "T": 1}
for _layers, _depths in DEPTHS.items():
    _add(
        f"ms_resnet_{_layers}",
        config=ResNetConfig(
            depths=_depths,
            branch_scale=0.0,
            T=5 if _layers == 104 else 6,
            **_ms_options(_layers),
        ),
        source=MS_RESNET,
        about=f"MS-ResNet-{_layers}: residual net with membrane shortcuts, ImageNet",
        results=_MS_RESULTS[_layers],
        keys=KEYS,
    )
    _add(
        f"att_res_snn_{_layers}",
        config=ResNetConfig(depths=_depths, **_ATT),
        source=MA_SNN,
        about=f"Att-Res-SNN-{_layers}, first placement: gates on the branch, ImageNet",
        results=_ATT_RESULTS[_layers],
        keys=KEYS,
        note="The released gates end in a ReLU, so a branch only ever adds; those of the preset "
        "'paper' do not.",
    )
    _add(
        f"att_res_snn_{_layers}_after_add",
        config=ResNetConfig(depths=_depths, placement="after_add", **_ATT),
        source=MA_SNN,
        about=f"Att-Res-SNN-{_layers}, second placement: gates behind the addition, ImageNet",
        results=_ATT_2_RESULTS[_layers],
        note="The released code does not hold this placement; the gates are its own. Behind the "
        "addition they shrink what passes a block at each of them: no block isometry at the "
        "default initialisation.",
    )


def _build_block(config: Config, arrays: Arrays) -> nn.Module:
    args, x = config["args"], arrays["input"]
    stride = args["stride"]
    grid = (-(-x.shape[-2] // stride), -(-x.shape[-1] // stride))
    neuron = mem_update_part(config)
    site = Site(dim=args["out_channels"], heads=1, T=len(x), grid=grid, neuron=neuron)
    return ResidualBlock(
        args["in_channels"],
        site,
        stride=stride,
        attention=_gate(config, arrays),
        shortcut="conv" if "state/shortcut.0.weight" in arrays else "avgpool",
    )


def _gate(config: Config, arrays: Arrays) -> dict[str, Any]:
    """CSA where the file has a c_ratio; MS-ResNet has no gate."""
    if "c_ratio" not in config:
        return {"name": "none"}
    return {"name": str(config.get("attention", "CSA")).lower(), "ratio_c": config["c_ratio"]}


def _build_net(config: Config, arrays: Arrays) -> nn.Module:
    x, classes = arrays["input"], config["num_classes"]
    return SpikingResNet(
        ResNetConfig(
            depths=tuple(config["num_block"]),
            widths=tuple(config["widths"]),
            stem="three_conv3" if "state/conv1.2.weight" in arrays else "conv7",
            shortcut="conv" if "state/conv2_x.0.shortcut.0.weight" in arrays else "avgpool",
            attention=_gate(config, arrays),
            neuron=mem_update_part(config),
            in_channels=x.shape[1],
            image_size=(x.shape[2], x.shape[3]),
            num_classes=classes,
            T=config["T"],
        )
    )


def _build_cell(config: Config, arrays: Arrays) -> nn.Module:
    """PruningCell: a gate, or with `fbs` the winners of its maps and no ReLU."""
    args = config["args"]
    T, _, dim, H, W = arrays["input"].shape
    part: dict[str, Any] = {"name": str(args["attention"]).lower()}
    part |= {"ratio_t": args["t_ratio"], "ratio_c": args["c_ratio"]}
    if args.get("fbs"):
        if not args.get("reserve_coefficient", True):
            raise ValueError("got reserve_coefficient false, expected true: no other file is known")
        part |= {
            "keep_t": args["t_sparsity_ratio"],
            "keep_c": args["c_sparsity_ratio"],
            "post_relu": False,
        }
    site = Site(dim=dim, heads=1, T=T, grid=(H, W), neuron="mem_update")
    return install(site, part)


def _build_isometry(config: Config, arrays: Arrays) -> nn.Module:
    """The block, or its gate alone, whose Jacobian the file holds."""
    x = arrays["input"]
    if config["kind"] == "block":
        sizes = {"in_channels": x.shape[2], "out_channels": x.shape[2], "stride": 1}
        return _build_block({**config, "args": sizes}, arrays)
    site = Site(dim=x.shape[2], heads=1, T=len(x), grid=(x.shape[3], x.shape[4]))
    return install(site, {"name": "csa", "ratio_c": config["c_ratio"]})


def _isometry(module: nn.Module, arrays: Arrays, config: Config) -> dict[str, Tensor]:
    """Jacobian J (rows are outputs), phi = tr(J J^T) / m, varphi = tr((J J^T)^2) / m - phi^2."""
    x = arrays["input"]
    m = x.numel()
    jacobian = torch.autograd.functional.jacobian
    J: Tensor = jacobian(module, x).reshape(m, m)  # type: ignore[no-untyped-call]
    JJ = J @ J.T
    phi = JJ.trace() / m
    return {"jacobian": J, "phi": phi, "varphi": JJ.square().sum() / m - phi.square()}


for _prefix in ("attres", "msresnet"):
    GOLDEN.add(f"{_prefix}_block")(Golden(build=_build_block, keys=BLOCK))
    GOLDEN.add(f"{_prefix}_net")(Golden(build=_build_net, keys=KEYS))
for _family in ("attres_pruningcell", "attres_pruningcell_fbs"):
    GOLDEN.add(_family)(Golden(build=_build_cell, keys=PRUNING_CELL))
GOLDEN.add("attres_bdi")(Golden(build=_build_isometry, keys=BLOCK + PRUNING_CELL, extras=_isometry))
