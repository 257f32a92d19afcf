"""Official checkpoints, as their training scripts leave them, and files that are none."""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saccade
from saccade.cli import main
from saccade.convert import convert, read_official
from saccade.models import SpikingTransformer, create_model
from tests.awake import awake, firing_rates

State = dict[str, Tensor]
RULES = (
    (r"stem\.stages\.0\.conv\.", "patch_embed.proj_conv."),
    (r"stem\.stages\.(\d)\.conv\.", r"patch_embed.proj_conv\1."),
    (r"stem\.stages\.0\.norm\.", "patch_embed.proj_bn."),
    (r"stem\.stages\.(\d)\.norm\.", r"patch_embed.proj_bn\1."),
    (r"stem\.position\.conv\.", "patch_embed.rpe_conv."),
    (r"stem\.position\.norm\.", "patch_embed.rpe_bn."),
    (r"blocks\.(\d+)\.attention\.out\.conv\.", r"block.\1.attn.proj_linear."),
    (r"blocks\.(\d+)\.attention\.out\.norm\.", r"block.\1.attn.proj_bn."),
    (r"blocks\.(\d+)\.attention\.([qkv])\.conv\.", r"block.\1.attn.\2_linear."),
    (r"blocks\.(\d+)\.attention\.([qkv])\.norm\.", r"block.\1.attn.\2_bn."),
    (r"blocks\.(\d+)\.mlp\.fc(\d)\.conv\.", r"block.\1.mlp.fc\2_linear."),
    (r"blocks\.(\d+)\.mlp\.fc(\d)\.norm\.", r"block.\1.mlp.fc\2_bn."),
    (r"head\.linear\.", "head."),
)
"""Our names to those of the official CIFAR code; written here on its own, from that code."""
X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(**options: Any) -> SpikingTransformer:
    torch.manual_seed(0)
    return awake(create_model("spikformer", **options)).eval()


def official_name(ours: str) -> str:
    for pattern, replacement in RULES:
        if match := re.match(pattern, ours):
            return match.expand(replacement) + ours[match.end() :]
    raise AssertionError(ours)


def official(model: SpikingTransformer) -> State:
    """The CIFAR copy: Linear layers [out in], and LayerNorms that it never calls."""
    state: State = {}
    for key, value in model.state_dict().items():
        name = official_name(key)
        flat = name.endswith("_linear.weight")
        state[name] = value.flatten(1).clone() if flat else value.clone()
    for block in range(model.config.depth):
        for norm in ("norm1", "norm2"):
            state[f"block.{block}.{norm}.weight"] = torch.ones(model.config.dim)
            state[f"block.{block}.{norm}.bias"] = torch.zeros(model.config.dim)
    return state


def of_2022(state: State) -> State:
    """The stem's names in the first upload."""

    def old(key: str) -> str:
        match = re.fullmatch(r"patch_embed\.proj_(conv|bn)(\d?)\.(.+)", key)
        return f"patch_embed.block{int(match[2] or 0) + 1}_{match[1]}.{match[3]}" if match else key

    renamed = {old(key): value for key, value in state.items()}
    assert len(renamed) == len(state)
    assert "patch_embed.block4_bn.running_var" in renamed
    return renamed


def as_script(state: State) -> dict[str, Any]:
    return {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=1, sched="cosine")}


def parallel(state: State) -> dict[str, Any]:
    return {"model": {f"module.{key}": value for key, value in state.items()}}


@pytest.mark.parametrize(
    "wrap", [dict, as_script, parallel, of_2022], ids=["raw", "script", "parallel", "2022"]
)
def test_an_official_checkpoint_computes_what_ours_does(
    tmp_path: Path, wrap: Callable[[State], Any]
):
    model = build()
    torch.save(wrap(official(model)), tmp_path / "best.pth")
    converted = convert(tmp_path / "best.pth", "spikformer")
    assert not converted.model.training
    rates = firing_rates(converted.model, lambda: converted.model(X))
    assert min(rates.values()) > 0
    assert torch.equal(converted.model(X), model(X))
    assert set(converted.dropped) == {
        f"block.{b}.norm{n}.{p}" for b in (0, 1) for n in (1, 2) for p in ("weight", "bias")
    }
    assert all("never calls it" in reason for reason in converted.dropped.values())


def test_the_command_writes_a_file_that_loads_to_equal_logits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = build(num_classes=100, in_channels=1)
    source, target = tmp_path / "best [1].pth", tmp_path / "best [1].safetensors"
    torch.save(as_script(official(model)), source)
    assert main(["convert", str(source), "--model", "spikformer", "--out", str(target)]) == 0
    printed = capsys.readouterr().out
    assert f"wrote {target}" in printed
    assert "left behind 8 keys such as block.0.norm1.weight" in printed
    loaded = saccade.load(target)
    assert (loaded.config.num_classes, loaded.config.in_channels) == (100, 1)
    assert torch.equal(loaded(X[:, :1]), model(X[:, :1]))


def drop(state: State) -> None:
    del state["block.1.attn.k_bn.running_mean"]


def add(state: State) -> None:
    state["block.0.attn.temperature"] = torch.ones(1)


def deepen(state: State) -> None:
    state["block.2.attn.q_linear.weight"] = torch.ones(64, 64)


def widen(state: State) -> None:
    state["block.0.mlp.fc1_linear.weight"] = torch.ones(256, 65)


def flatten_stem(state: State) -> None:
    state["patch_embed.proj_conv.weight"] = torch.ones(5)


def empty_head(state: State) -> None:
    state["head.weight"] = torch.tensor(1.0)


def turn(state: State) -> None:
    key = "block.0.mlp.fc1_linear.weight"
    state[key] = state[key].T


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, r"holds nothing for blocks\.1\.attention\.k\.norm\.running_mean"),
        (add, r"key 'block\.0\.attn\.temperature' is not in the key map"),
        (deepen, r"'blocks\.2\.attention\.q\.conv\.weight', which this model does not have"),
        (widen, r"fc1_linear\.weight': got shape \(256, 65\), expected \(256, 64, 1, 1\)"),
        (turn, r"fc1_linear\.weight': got shape \(64, 256\), expected \(256, 64, 1, 1\)"),
        (flatten_stem, r"proj_conv\.weight': got shape \(5,\), expected \(8, 3, 3, 3\)"),
        (empty_head, r"head\.weight': got shape \(\), expected \(10, 64\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_key(
    tmp_path: Path, damage: Callable[[State], None], message: str
):
    state = official(build())
    damage(state)
    torch.save(state, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "best.pth", "spikformer")


class Malicious:
    """Runs a command where a careless reader unpickles it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path):
    marker, path = tmp_path / "ran", tmp_path / "best.pth"
    state: dict[str, Any] = {"state_dict": official(build())}
    torch.save(state | {"args": Malicious(f"touch '{marker}'")}, path)
    with pytest.raises(ValueError, match=r"best\.pth is not a checkpoint that is safe to read"):
        convert(path, "spikformer")
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused_by_name(tmp_path: Path, share: float):
    path = tmp_path / "best.pth"
    torch.save(official(build()), path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(ValueError, match=r"best\.pth is not a checkpoint"):
        read_official(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, expected a state dict of tensors"),
        ({}, "holds an empty dict, expected a state dict"),
        ({"epoch": 3}, "found no state dict under state_dict, model"),
        ({"state_dict": {"a": 1}}, "found no state dict"),
        (torch.ones(2), "holds a Tensor, expected a state dict"),
    ],
)
def test_a_file_without_weights_is_refused(tmp_path: Path, content: Any, message: str):
    torch.save(content, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=message):
        read_official(tmp_path / "best.pth")


def test_what_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no checkpoint at .*best\.pth"):
        convert(tmp_path / "best.pth", "spikformer")
    with pytest.raises(ValueError, match=r"unknown model 'spikfomer'; did you mean 'spikformer'"):
        convert(tmp_path / "best.pth", "spikfomer")
    (tmp_path / "text.pth").write_text("epoch 1, loss 0.3\n")
    with pytest.raises(ValueError, match=r"text\.pth is not a checkpoint"):
        read_official(tmp_path / "text.pth")
